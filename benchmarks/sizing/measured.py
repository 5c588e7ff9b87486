"""What a training step really takes: seconds, bytes, and the largest batch that a GPU has room for."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sizing.cases import CASES, Case
from sizing.simulation import simulate_step

__all__ = ["MeasuredStep", "check_process_memory", "find_largest_batch", "measure_rounds", "search_largest"]

BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MeasuredStep:
    """One step, once."""

    seconds: float
    peak_bytes: int  # of a GPU's tensors, without those of other models on it; 0 on the CPU


class TrainingStep:
    """Forward, backward and AdamW of one model on one ready batch, in bfloat16 autocast."""

    def __init__(self, model: PreTrainedModel, *, is_compiled: bool = False) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.forward: Callable[..., Any] = torch.compile(model) if is_compiled else model

    def __call__(self, batch_size: int) -> MeasuredStep:
        """Run one step and wait for it."""
        config = self.model.config
        size = (batch_size, config.num_channels, config.image_size, config.image_size)
        photos = torch.randint(0, 256, size, dtype=torch.uint8, device=self.device)
        has_head = hasattr(self.model, "head")
        inputs = {"coordinates_deg": torch.rand(batch_size, 2, device=self.device)} if has_head else {}
        is_gpu = self.device.type == "cuda"
        others_bytes = 0
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
            others_bytes = torch.cuda.memory_allocated(self.device) - photos.nbytes - self.resident_bytes()
        started = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.forward(pixel_values=photos, **inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if is_gpu:
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        peak_bytes = torch.cuda.max_memory_allocated(self.device) - others_bytes if is_gpu else 0
        return MeasuredStep(seconds, peak_bytes)

    def resident_bytes(self) -> int:
        """Of weights, buffers and the optimizer's states, which stay between steps."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, states)]
        return sum(tensor.nbytes for tensor in tensors)


def measure_rounds(
    models: Mapping[str, PreTrainedModel], *, batch_size: int, num_rounds: int, is_compiled: bool
) -> dict[str, list[MeasuredStep]]:
    """Steps of several models, one of each a round, after one that is not counted."""
    steps = {name: TrainingStep(model, is_compiled=is_compiled) for name, model in models.items()}
    for step in steps.values():
        step(batch_size)
    rounds: dict[str, list[MeasuredStep]] = {name: [] for name in steps}
    for _ in range(num_rounds):
        for name, step in steps.items():
            rounds[name].append(step(batch_size))
    return rounds


def find_largest_batch(model: PreTrainedModel, *, is_compiled: bool) -> int:
    """Photos of the largest batch, to 1 %, that trains on the model's GPU without running out of memory."""
    step = TrainingStep(model, is_compiled=is_compiled)

    def fits(batch_size: int) -> bool:
        try:
            step(batch_size)
            step(batch_size)  # the second has the optimizer's states from its start
        except torch.OutOfMemoryError:
            return False
        finally:
            step.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
        return True

    return search_largest(fits)


def search_largest(fits: Callable[[int], bool], *, relative_precision: float = 0.01) -> int:
    """The largest number that fits, to a precision: doubled until one does not, then halved between; 0: not even 1."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, relative_precision * low):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_process_memory(case: Case, batch_size: int) -> dict[str, Any]:
    """The peak of a real process during one step on the CPU, above its weights, beside the simulated one.

    Both with the attention of the CPU, whose scores are stored; the optimizer's states come after the peak.
    """
    # Above this size every tensor is mapped by itself and given back when it is freed, so that the peak is the step's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, "-m", "sizing.measured", case.key, str(batch_size)]
    done = subprocess.run(command, cwd=BENCHMARKS, env=environment, check=True, capture_output=True, text=True)
    simulated = simulate_step(case.build_meta(), batch_size)
    simulated_bytes = simulated.peak - simulated.weights - simulated.optimizer
    measured_bytes = int(done.stdout.split()[-1])
    return {
        "title": case.title,
        "batch_size": batch_size,
        "measured_gb": measured_bytes / 1e9,
        "simulated_gb": simulated_bytes / 1e9,
        "measured_is_times": measured_bytes / simulated_bytes,
    }


def measure_process_peak(case: Case, batch_size: int) -> int:
    """Bytes that this process takes at the peak of a first step above what it held before it; Linux only."""
    step = TrainingStep(case.build(torch.device("cpu")))
    step.optimizer = torch.optim.SGD(step.model.parameters(), lr=0.0)  # no states, so that the second step has none
    step(2)  # kernels are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is held now
    held = _read_kilobytes("VmRSS")
    step(batch_size)
    return 1024 * (_read_kilobytes("VmHWM") - held)


def _read_kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    torch.set_num_threads(1)
    (named,) = [case for case in CASES if case.key == sys.argv[1]]
    print(measure_process_peak(named, int(sys.argv[2])))
