"""Processes that train alone, beside each other and together, in turn: what each way of it costs."""

import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from modeling import GeoMAEConfig, GeoMAEForPreTraining
from stepping.changes import TINY, Step
from stepping.contestants import make_batch

__all__ = ["ALONE", "BESIDE", "BUCKET_BYTES", "MEASUREMENTS", "OPTIONS", "TOGETHER", "Option", "Plan", "work"]

ALONE, BESIDE, TOGETHER = "alone", "beside", "together"
BUCKET_BYTES = 25 * 2**20  # that DDP averages at a time, by default
MEASUREMENTS = "measurements.json"


@dataclass(frozen=True)
class Option:
    """A way to set DDP up other than transformers' Trainer does it."""

    key: str
    title: str
    predicted_percent: float
    """Of the step's time that two CPU processes save by it; written down before it was measured."""

    ddp: dict[str, bool]
    halves_bytes: bool = False


OPTIONS = (
    Option("bucket_view", "gradient_as_bucket_view: gradients lie in buckets", 2.0, {"gradient_as_bucket_view": True}),
    Option("static_graph", "static_graph: what takes part is taken from the first step", 0.1, {"static_graph": True}),
    Option("own_buffers", "broadcast_buffers off", 0.1, {"broadcast_buffers": False}),
    Option("bf16_gradients", "gradients are averaged in bf16 (bf16_compress_hook)", 5.0, {}, halves_bytes=True),
)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    device: str
    num_processes: int
    batch_size: int
    """Photos of a step, in each process."""

    num_rounds: int
    num_steps: int
    tiny: bool


def work(rank: int, plan: Plan, folder: Path) -> None:
    """Be one of the processes; the first one leaves what was measured in the folder."""
    torch.set_num_threads(1)
    device = torch.device(plan.device, rank) if plan.device == "cuda" else torch.device(plan.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=(folder / "meeting_point").as_uri(),
        rank=rank,
        world_size=plan.num_processes,
    )
    try:
        measurements = measure(rank, plan, device)
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        (folder / MEASUREMENTS).write_text(json.dumps(measurements))


def measure(rank: int, plan: Plan, device: torch.device) -> dict[str, Any]:
    """Every way of training once in a round, in an order of the round's own, the same in every process."""
    torch.manual_seed(0)
    model = GeoMAEForPreTraining(GeoMAEConfig(**(TINY if plan.tiny else {})))
    step = Step(model, make_batch(plan.batch_size, model.config.image_size, device))
    num_parameters = sum(parameter.numel() for parameter in step.parameters)
    flops_per_photo = count_flops(step)
    ways = _ways_of(step)
    seconds: dict[str, list[float]] = {key: [] for key in ways}
    core_seconds: dict[str, list[float]] = {key: [] for key in ways}
    all_reduce: dict[str, list[float]] = {"fp32": [], "bf16": []}
    rng = np.random.default_rng(0)
    for number in range(1, plan.num_rounds + 1):
        for key in rng.permutation(list(ways)):
            with ways[key]():
                took, worked = time_steps(step, plan.num_steps, works=rank == 0 or key != ALONE)
            seconds[key].append(took)
            core_seconds[key].append(worked)
            if rank == 0:
                print(f"round {number} {key}: {took:.3f} s, {worked:.3f} core-seconds", file=sys.stderr)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            all_reduce[name].append(time_all_reduce(num_parameters, dtype, device))
    return {
        "num_parameters": num_parameters,
        "flops_per_photo": flops_per_photo,
        "seconds": seconds,
        "core_seconds": core_seconds,
        "all_reduce_s": all_reduce,
    }


def _ways_of(step: Step) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {ALONE: nullcontext, BESIDE: nullcontext}
    ways[TOGETHER] = lambda: together(step)
    for option in OPTIONS:
        ways[option.key] = functools.partial(together, step, option)
    return ways


@contextmanager
def together(step: Step, option: Option | None = None) -> Iterator[None]:
    """Gradients are averaged over the processes: by DDP as transformers' Trainer makes it, but for the option."""
    bare = step.model
    step.model = DistributedDataParallel(bare, **(option.ddp if option else {}))
    if option and option.halves_bytes:
        step.model.register_comm_hook(None, bf16_compress_hook)
    yield
    step.model = bare
    gc.collect()  # with it go its hooks on the parameters


def time_steps(step: Step, num_steps: int, *, works: bool) -> tuple[float, float]:
    """Seconds of a step on the clock, of the slowest process, and core-seconds, in the mean over those that work."""
    device = step.batch.photos.device
    if works:
        step.run()  # DDP lays out its buckets anew after the first step
    _wait_for_all(device)
    started, started_working = time.perf_counter(), time.process_time()
    if works:
        for _ in range(num_steps):
            step.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    mine = (time.perf_counter() - started, time.process_time() - started_working) if works else None
    of_all: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(of_all, mine)
    clocks, cores = zip(*(each for each in of_all if each is not None), strict=True)
    return max(clocks) / num_steps, sum(cores) / len(cores) / num_steps


def time_all_reduce(num_parameters: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds to add up as many numbers as there are gradients, in DDP's buckets, with nothing else to do."""
    numbers = torch.zeros(num_parameters, dtype=dtype, device=device)
    buckets = numbers.split(BUCKET_BYTES // numbers.element_size())
    for _ in range(2):  # the second time counts
        _wait_for_all(device)
        started = time.perf_counter()
        handles = [distributed.all_reduce(bucket, async_op=True) for bucket in buckets]
        for handle in handles:
            handle.wait()
        _wait_for_all(device)
        elapsed = time.perf_counter() - started
    return elapsed


def _wait_for_all(device: torch.device) -> None:
    distributed.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(step: Step) -> float:
    """FLOP of forward and backward for a photo: matrix products and attention; a multiply-add is 2."""
    # torch does not count the CPU's fused attention: here it becomes the matrix products that it is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.loss().backward()
    for parameter in step.parameters:
        parameter.grad = None
    return counter.get_total_flops() / len(step.pixel_values)
