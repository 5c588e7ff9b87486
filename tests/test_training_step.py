"""One step of the trainers: what it does not touch, and what it does not wait for."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from transformers import TrainerCallback


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=13)


class Gradients(TrainerCallback):
    """Keeps the gradients that the optimizer is about to use."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.of_step: list[list[torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = (parameter.grad for parameter in self.model.parameters())
        self.of_step.append([gradient.clone() for gradient in gradients if gradient is not None])


def test_without_clipping_the_norm_is_logged_and_no_gradient_is_touched(photos: Path, tmp_path: Path) -> None:
    norms, gradients = [], []
    for max_grad_norm in (0.0, 1e9):  # a limit that clips nothing: transformers' own way
        torch.manual_seed(0)
        trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=3, max_grad_norm=max_grad_norm))
        watch = Gradients(trainer.model)
        trainer.add_callback(watch)
        clipping = Mock(wraps=trainer.accelerator.clip_grad_norm_)
        trainer.accelerator.clip_grad_norm_ = clipping
        trainer.train()
        assert clipping.call_count == (3 if max_grad_norm else 0)
        norms.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
        gradients.append(watch.of_step)
    by_hand = [np.sqrt(sum(float(each.double().square().sum()) for each in step)) for step in gradients[0]]
    assert norms[0] == norms[1] == pytest.approx(by_hand, rel=1e-5)
    for unclipped, clipped in zip(*gradients, strict=True):
        assert all(torch.equal(*pair) for pair in zip(unclipped, clipped, strict=True))


class NothingWaits(TrainerCallback):
    """From the end of step 2 to that of step 4 whatever waits for the GPU is an error; to be the last callback."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (2, 4):
            torch.cuda.set_sync_debug_mode("error" if state.global_step == 2 else "default")


def train_without_waiting(trainer: Any) -> None:
    trainer.add_callback(NothingWaits())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 5


ON_A_GPU: dict[str, Any] = {"max_steps": 5, "logging_steps": 5, "bf16": True, "optim": "adamw_torch_fused"}


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.0}, {"ema_decay": 0.9}], ids=["", "unclipped", "average"])
def test_no_step_of_pretraining_waits_for_the_gpu(photos: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    train_without_waiting(mae_trainer(photos, training_arguments(tmp_path, **ON_A_GPU, **changes)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "architecture",
    [
        {"head_type": "sphere"},
        {"head_type": "geocells", "num_geocells": [4, 9], "label_smoothing": 0.1},
        {"head_type": "hybrid", "num_geocells": [4, 9]},
        {"head_type": "vmf_mixture", "num_mixture_components": 5},
    ],
    ids=lambda architecture: architecture["head_type"],
)
def test_no_step_of_fine_tuning_waits_for_the_gpu(photos: Path, tmp_path: Path, architecture: dict[str, Any]) -> None:
    train_without_waiting(geolocation_trainer(photos, training_arguments(tmp_path, **ON_A_GPU), **architecture))


@pytest.mark.gpu
def test_step_that_waits_for_the_gpu_is_found(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, **ON_A_GPU))
    guard = trainer._guard
    trainer._guard = lambda value, what: (value.item(), guard(value, what))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="synchronizing"):
        train_without_waiting(trainer)
