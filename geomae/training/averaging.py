"""A moving average of the weights: what is judged and saved, while training goes on with the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

__all__ = ["WeightAverage", "load_trained_weights", "save_trained_weights"]

TRAINED_WEIGHTS_FILE = "trained_weights.safetensors"


class WeightAverage(TrainerCallback):
    """The exponential moving average of a model's weights and of its buffers of floats; other buffers are the model's.

    With the weights w_t after optimiser step t, a_1 = w_1 and a_t = d_t a_(t-1) + (1 - d_t) w_t: the average lags
    behind the weights, by d / (1 - d) steps in the end. d_t depends on t alone, so that a resumed run repeats it.
    Nothing waits for the device.

    Source: Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging"; timm's `ModelEmaV3`.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_power: float | None = None) -> None:
        """Begin with the model as it is.

        Args:
            model: on the device where it is trained; the average takes as much memory there.
            decay: d, the share of the average that a step keeps, 0 to 1.
            warmup_power: p: d_t is 1 - t^-p as long as that is less than `decay`; None: `decay` from step 2 on.
        """
        self.model = model
        use_warmup = warmup_power is not None
        self._average = ModelEmaV3(model, decay=decay, use_warmup=use_warmup, warmup_power=warmup_power or 1.0)
        self._find_tensors()

    def _find_tensors(self) -> None:
        """Once, not in every step as `ModelEmaV3.update` does: two `state_dict()` of a ViT-B take 2.5 ms."""
        states = (module.state_dict().values() for module in (self._average.module, self.model))
        pairs = list(zip(*states, strict=True))
        self._averages, self._weights = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self._counts = list(zip(*(pair for pair in pairs if not pair[0].is_floating_point()), strict=True))

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The model lies where it is trained now."""
        self._find_tensors()

    @torch.no_grad()
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take in the weights of the step that has just ended."""
        decay = self._average.get_decay(state.global_step)
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)
        if self._counts:
            averages, weights = self._counts
            torch._foreach_copy_(averages, weights)

    def restart(self) -> None:
        """Make the average what the model is."""
        self._average.set(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, by the names of the model's own tensors."""
        return dict(self._average.module.state_dict())

    @contextmanager
    def inside_the_model(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, in its own memory: wrapped and compiled, it uses them too."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        averages, weights = self._average.module.state_dict().values(), self.model.state_dict().values()
        for average, weight in zip(averages, weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def save_trained_weights(model: nn.Module, checkpoint: str) -> None:
    """Keep the weights that training goes on with beside the averaged ones of a checkpoint's model."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, Path(checkpoint) / TRAINED_WEIGHTS_FILE)


def load_trained_weights(model: nn.Module, checkpoint: str) -> None:
    """Go on with them; a checkpoint of a run without an average has its weights in the model itself."""
    path = Path(checkpoint) / TRAINED_WEIGHTS_FILE
    if path.is_file():
        model.load_state_dict(load_file(path))
