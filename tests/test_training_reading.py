"""Readers that are killed and shards that change under a run: made good where that is possible, and named."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import mae_trainer, pack, record_ids, training_arguments

from geomae.errors import DamagedPhotoError, ReaderKilledError, TooManyDamagedPhotosError
from geomae.training import find_checkpoint
from geomae.training.reading import MAX_RESTARTS

NUM_TRAINING = 80


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pack(tmp_path / "photos", train=NUM_TRAINING, validation=8)


def trainer_with_readers(photos: Path, folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    options = {"max_steps": 20, "dataloader_num_workers": 2, "per_device_train_batch_size": 4, **changes}
    return mae_trainer(photos, training_arguments(folder, **options))


def readers() -> list[int]:
    """Child processes of this one, by rising id."""
    return sorted(int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def kill_readers_at(trainer: Any, steps: tuple[int, ...]) -> None:
    step = trainer.training_step
    due = list(steps)

    def killing(*inputs: Any) -> Any:
        if due and trainer.state.global_step + 1 == due[0]:
            due.pop(0)
            os.kill(readers()[0], signal.SIGKILL)
        return step(*inputs)

    trainer.training_step = killing


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow  # torch finds out after five seconds
@pytest.mark.parametrize("accumulation", [1, 2])
def test_run_whose_reader_is_killed_repeats_the_losses_of_the_unbroken_one(
    photos: Path, tmp_path: Path, accumulation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also resumed, and killed once more: places are counted from where the readers began."""
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "save_strategy": "steps", "save_steps": 6}
    unbroken = trainer_with_readers(photos, tmp_path / "unbroken", **options)
    expected = record_ids(unbroken)
    unbroken.train()
    broken = trainer_with_readers(photos, tmp_path / "broken", **options)
    kill_readers_at(broken, (5, 11))
    ids = record_ids(broken)
    with caplog.at_level(logging.WARNING):
        broken.train()
    assert "the readers are started anew, 2 of 3 times" in caplog.text
    assert ids == expected
    assert losses(broken) == losses(unbroken)
    resumed = trainer_with_readers(photos, tmp_path / "broken", **options)
    kill_readers_at(resumed, (15,))
    ids = record_ids(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken/checkpoint-12"))
    assert ids == expected[12 * 4 * accumulation :]
    assert losses(resumed) == losses(unbroken)


@pytest.mark.slow
def test_readers_that_are_killed_again_and_again_end_the_run_with_what_to_do(photos: Path, tmp_path: Path) -> None:
    trainer = trainer_with_readers(photos, tmp_path / "run", max_steps=60, save_strategy="steps", save_steps=2)
    kill_readers_at(trainer, tuple(range(3, 60)))
    with pytest.raises(ReaderKilledError, match=rf"killed {MAX_RESTARTS + 1} times: .*lower dataloader_num_workers"):
        trainer.train()
    assert trainer.state.global_step >= 3
    resumed = trainer_with_readers(photos, tmp_path / "run", max_steps=60)
    resumed.train(resume_from_checkpoint="true")


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_shard_lost_in_mid_run_is_named_and_leaves_the_checkpoint(
    photos: Path, tmp_path: Path, damage: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated while it is mapped: what lies behind its end must not be touched."""
    if damage == "deleted":  # a file that is open stays readable: only one is open at a time here
        monkeypatch.setattr("geomae.data.groups._MAX_OPEN_FILES", 1)
        monkeypatch.setattr("geomae.data.groups._FEWEST_OPEN_FILES", 1)
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "max_steps": 90}
    trainer = trainer_with_readers(photos, tmp_path / "run", dataloader_num_workers=num_workers, **options)
    step = trainer.training_step

    def losing(*inputs: Any) -> Any:
        shard = photos / "train-00001-of-00002.parquet"
        if trainer.state.global_step == 6:
            shard.unlink() if damage == "deleted" else os.truncate(shard, 1000)
        return step(*inputs)

    trainer.training_step = losing
    with pytest.raises((TooManyDamagedPhotosError, DamagedPhotoError), match=r"ack (the data|it) a") as stop:
        trainer.train()
    assert "Traceback" not in str(stop.value)
    saved = trainer.state.global_step // 5 * 5
    assert find_checkpoint("true", str(tmp_path / "run")) == str(tmp_path / f"run/checkpoint-{saved}")
