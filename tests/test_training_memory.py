"""A batch that does not fit into memory: the message names the keys to change, with values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import mae_trainer, pack, training_arguments

from geomae.errors import DeviceMemoryError

OF_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB")
OF_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 640000 bytes.")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=8)


def trainer_without_memory(photos: Path, folder: Path, error: Exception, *, trains: bool, **changes: Any) -> Any:
    trainer = mae_trainer(photos, training_arguments(folder, **changes))
    compute_loss = trainer.compute_loss

    def failing(model: Any, *inputs: Any, **options: Any) -> Any:
        if model.training == trains:
            raise error
        return compute_loss(model, *inputs, **options)

    trainer.compute_loss = failing
    return trainer


@pytest.mark.parametrize(("error", "asked"), [(OF_CUDA, "2.50 GiB"), (OF_CPU, "640000 bytes")], ids=["gpu", "cpu"])
def test_step_that_does_not_fit_names_what_trains_the_same_in_less(
    photos: Path, tmp_path: Path, error: Exception, asked: str
) -> None:
    trainer = trainer_without_memory(photos, tmp_path, error, trains=True, gradient_accumulation_steps=2)
    with pytest.raises(DeviceMemoryError) as told:
        trainer.train()
    for words in (
        "a training step with per_device_train_batch_size 8 does not fit into the memory of cpu",
        f"({asked} more were asked for)",
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 4, which trains the same",
        "--bf16 true",
        "--gradient_checkpointing true",
        "--resume_from_checkpoint last",
    ):
        assert words in str(told.value)


def test_evaluation_that_does_not_fit_names_its_own_batch_size(photos: Path, tmp_path: Path) -> None:
    """Also in the midst of training."""
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "bf16": True}
    trainer = trainer_without_memory(photos, tmp_path, OF_CUDA, trains=False, **options)
    for act in (trainer.train, trainer.evaluate):
        with pytest.raises(
            DeviceMemoryError, match=r"evaluation with per_device_eval_batch_size 8 .*_eval_batch_size 4"
        ):
            act()
        with pytest.raises(DeviceMemoryError) as told:
            act()
        assert "bf16" not in str(told.value)


def test_evaluation_of_single_photos_asks_for_more_memory(photos: Path, tmp_path: Path) -> None:
    trainer = trainer_without_memory(photos, tmp_path, OF_CUDA, trains=False, per_device_eval_batch_size=1, bf16=True)
    with pytest.raises(DeviceMemoryError, match="Try a device with more memory"):
        trainer.evaluate()


def test_other_errors_stay_what_they_are(photos: Path, tmp_path: Path) -> None:
    trainer = trainer_without_memory(photos, tmp_path, RuntimeError("shapes differ"), trains=True)
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.train()
