"""One training step: its time, its arithmetic, its memory."""

import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from stepping.contestants import Batch, Contestant

__all__ = ["Setting", "Trainee", "clock_of", "float32_products", "free_memory"]

_PHOTOS_TO_COUNT = 2


@dataclass(frozen=True)
class Setting:
    """How a contestant trains."""

    precision: str
    """`fp32`, `tf32` (float32 with matrix products in TF32) or `bf16` (autocast)."""

    compiled: bool
    attention: str
    memory_format: str

    def __str__(self) -> str:
        attention = f"{self.attention} attention" if self.attention else ""
        mode = "compiled" if self.compiled else "eager"
        return ", ".join(part for part in (mode, attention, self.memory_format.replace("_", " ")) if part)


class Trainee:
    """A contestant's model with its optimiser in one memory format, which trains in any setting of that format."""

    def __init__(self, contestant: Contestant, memory_format: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.contestant, self.device = contestant, device
        self.model = contestant.build().train().to(device)
        if memory_format:
            self.model.to(memory_format=getattr(torch, memory_format))
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, **contestant.optimizer)
        # static shapes: another batch size gets a graph of its own instead of one for any size
        self.compiled = torch.compile(self.model, dynamic=False)

    def step(self, batch: Batch, setting: Setting) -> Tensor:
        """Forward, backward, clip, AdamW, zero_grad; the loss `()`, which nobody waits for."""
        loss = self.forward(batch, setting)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.contestant.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def forward(self, batch: Batch, setting: Setting) -> Tensor:
        """The loss `()` of a batch."""
        self.contestant.choose_attention(self.model, setting.attention)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            return self.contestant.loss(self.compiled if setting.compiled else self.model, batch)

    def warm_up(self, batch: Batch, setting: Setting) -> float:
        """Compile, choose kernels, allocate the optimiser's state; seconds that the first step took.

        Raises:
            FloatingPointError: the loss is not finite, so that what is measured would not be training.
        """
        with float32_products(setting.precision):
            started = time.perf_counter()
            loss = self.step(batch, setting).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of the first step is {loss}")
        return time.perf_counter() - started

    def time_steps(self, batch: Batch, setting: Setting, *, num_steps: int, seconds: float) -> float:
        """Seconds of a step by `clock_of`, in the mean over `num_steps`, and so on until `seconds` have passed."""
        clock = clock_of(self.device)
        with float32_products(setting.precision):
            _wait_for(self.device)
            started, num_done = clock(), 0
            while True:
                for _ in range(num_steps):
                    self.step(batch, setting)
                _wait_for(self.device)
                num_done += num_steps
                elapsed = clock() - started
                if elapsed >= seconds:
                    return elapsed / num_done

    def count_flops(self, batch: Batch, setting: Setting) -> float:
        """FLOP of forward and backward for a photo: matrix products, convolutions, attention; a multiply-add is 2."""
        # a batch of one comes twice, because batch norm needs two
        few = Batch(*(torch.cat((tensor, tensor))[:_PHOTOS_TO_COUNT] for tensor in vars(batch).values()))
        # torch does not count the CPU's fused attention: here it becomes the matrix products that it is
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.forward(few, replace(setting, compiled=False)).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops() / _PHOTOS_TO_COUNT

    def measure_memory(self, batch: Batch, setting: Setting) -> float:
        """Bytes of tensors at the peak of a step: this model's own, with its gradients, AdamW's state and activations.

        Needs a step before it. What other models hold meanwhile does not count. On the CPU the profiler's record of
        every allocation is added up, so libraries' scratch memory is not in it.
        """
        with float32_products(setting.precision):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                held_before = torch.cuda.memory_allocated(self.device)
                self.step(batch, setting)
                growth = torch.cuda.max_memory_allocated(self.device) - held_before
            else:
                growth = _peak_of_allocations(lambda: self.step(batch, setting))
        return growth + self.count_resident_bytes()

    def count_resident_bytes(self) -> int:
        """Bytes that stay between steps: weights, buffers, the optimiser's state."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, state)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_of_allocations(step: Callable[[], Any]) -> int:
    """The most bytes of CPU tensors that are alive at one time of a step, above those from before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = peak = 0
    for _, num_bytes in changes:
        held += num_bytes
        peak = max(peak, held)
    return peak


def clock_of(device: torch.device) -> Callable[[], float]:
    """The clock on the wall, or that of one CPU thread: seconds that its core worked, not those of a busy machine."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Inside, float32 products and convolutions are rounded to TF32 in `tf32`, and in no other precision."""
    before, before_in_convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = before_in_convolutions


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what the models of a group held, graphs of torch.compile included."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
