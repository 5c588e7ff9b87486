"""The memory of a training step, counted operation by operation on tensors without storage: no GPU is needed.

`simulate_step` runs forward and backward of a model under torch's `FakeTensorMode`, where every operation computes
shapes alone, and adds up the storages that are alive; `largest_batch` asks which batch fits a limit.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from modeling.attention import DeviceAwareAttention

__all__ = ["LiveBytes", "StepMemory", "fused_attention", "largest_batch", "simulate_step"]

ALIGNMENT_BYTES = 512
"""CUDA's caching allocator hands out multiples of this."""

ADAMW_STATE_BYTES = 8
"""Two float32 averages a trained parameter."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, from then until nothing refers to it.

    Storages from before are counted where `count` is told of them. What kernels take and give back inside one
    operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count what is new in its answer."""
        answer = func(*args, **(kwargs or {}))
        for value in tree_iter(answer):
            if isinstance(value, Tensor):
                self.count(value)
        return answer

    def count(self, tensor: Tensor) -> None:
        """Add the tensor's storage; views share one, which counts once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        num_bytes = math.ceil(storage.nbytes() / ALIGNMENT_BYTES) * ALIGNMENT_BYTES

        def forget(_: Any) -> None:
            self.live_bytes -= num_bytes
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, forget)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step with AdamW, all on one device."""

    weights: int
    """Parameters and buffers."""

    optimizer: int
    """AdamW's two states of every trained parameter; a gradient as large as one of them is inside `peak`."""

    saved: int
    """What the forward pass leaves for the backward pass: activations, and the weights' copies in bfloat16."""

    peak: int
    """The most that is alive at any moment, weights and optimizer included."""


@contextmanager
def fused_attention() -> Iterator[None]:
    """GeoMAE attends as on a GPU, where scores are never stored, whatever the device."""
    with patch.object(DeviceAwareAttention, "fused_attn", True):
        yield


def simulate_step(model: PreTrainedModel, batch_size: int) -> StepMemory:
    """Memory of forward, backward and AdamW's step in bfloat16 autocast, counted without doing the work.

    Args:
        model: in training mode and of the meta device; it is left on fake tensors, so use it for this alone.
        batch_size: photos, at least 1.
    """
    config, trained = model.config, [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # fake: a fake tensor of a GPU would ask for the GPU in its backward pass
        meter = LiveBytes()
        for tensor in (*model.parameters(), *model.buffers()):
            meter.count(tensor)
        weights, optimizer = meter.live_bytes, ADAMW_STATE_BYTES * sum(trained)
        with meter:
            photos = torch.zeros(batch_size, config.num_channels, config.image_size, config.image_size).byte()
            inputs = {"coordinates_deg": torch.zeros(batch_size, 2)} if hasattr(model, "head") else {}
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(pixel_values=photos, **inputs).loss
            saved = meter.live_bytes - weights
            loss.backward()
        model.zero_grad()
    return StepMemory(weights, optimizer, saved, meter.peak_bytes + optimizer)


def largest_batch(batch_sizes: Sequence[int], peaks: Sequence[int], limit_bytes: float) -> int:
    """Photos of the largest batch whose peak stays within a limit; 0 where not even the smallest does.

    Args:
        batch_sizes: rising, at least one.
        peaks: bytes at the peak of a step with each of them. Between two the peak is at most their straight line, since
            it is the most of several moments, each of which grows linearly: the answer is never too large.
        limit_bytes: what there is. Where more fits than the largest of `batch_sizes`, that is the answer.
    """
    return int(np.interp(limit_bytes, peaks, batch_sizes)) if limit_bytes >= peaks[0] else 0
