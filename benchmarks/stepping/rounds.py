"""Runs a group: every contestant in every setting, interleaved, and what fails is a row that says so."""

import gc
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from geomae.training.throughput import measure_matmul
from stepping.contestants import Batch, Contestant, Group, make_batch
from stepping.measure import Setting, Trainee, float32_products, free_memory
from stepping.report import Row, summarise_case

__all__ = ["Plan", "measure_group"]

_MATMUL_SECONDS = 0.5
NUM_PROBES = 3


@dataclass(frozen=True)
class Plan:
    """What is measured of every group."""

    batch_sizes: list[int]
    precisions: list[str]
    compiles: bool
    num_rounds: int
    num_steps: int
    """Of a round, at least."""

    seconds: float
    """Of a round, at least."""


def measure_group(group: Group, plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """One case for each batch size and precision; the models are built once, and gone afterwards."""
    trainees: dict[tuple[str, str], Trainee | str] = {}
    for contestant in group.contestants:
        for memory_format in contestant.memory_formats:
            trainees[contestant.key, memory_format] = _build(contestant, memory_format, device)
    cases = []
    for batch_size in plan.batch_sizes:
        batch = make_batch(batch_size, group.image_size, device)
        for precision in plan.precisions:
            rows = [
                Row(contestant, setting)
                for contestant in group.contestants
                for setting in _settings_of(contestant, precision, compiles=plan.compiles)
            ]
            print(f"{group.title}, batch {batch_size}, {precision}", file=sys.stderr)
            before = _measure_matmul(device, precision)
            _run(rows, trainees, batch, plan)
            matmul_flops = (before, _measure_matmul(device, precision))
            cases.append(
                summarise_case(
                    group=group.key,
                    title=group.title,
                    batch_size=batch_size,
                    precision=precision,
                    matmul_flops=matmul_flops,
                    rows=rows,
                )
            )
    trainees.clear()
    free_memory(device)
    return cases


def _settings_of(contestant: Contestant, precision: str, *, compiles: bool) -> list[Setting]:
    modes = (False, True) if compiles and contestant.compiles else (False,)
    return [
        Setting(precision, compiled, attention, memory_format)
        for compiled in modes
        for attention in contestant.attentions
        for memory_format in contestant.memory_formats
    ]


def _build(contestant: Contestant, memory_format: str, device: torch.device) -> Trainee | str:
    """The contestant, ready to train, or why it is not."""
    built: list[Trainee] = []
    error = _attempt(contestant, lambda: built.append(Trainee(contestant, memory_format, device)))
    return error or built[0]


def _run(rows: list[Row], trainees: dict[tuple[str, str], Trainee | str], batch: Batch, plan: Plan) -> None:
    """Warm every row up, then time them round by round, each round in an order of its own.

    To compile takes a minute: of each contestant only what was fastest uncompiled, in three steps, is compiled.
    """
    torch.compiler.reset()  # dynamo compiles eight sizes and precisions of one function, and runs the ninth uncompiled
    seconds: dict[str, dict[Setting, float]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.setting.compiled):
        trainee = trainees[row.contestant.key, row.setting.memory_format]
        if isinstance(trainee, str):
            row.error = trainee
            continue
        eager = replace(row.setting, compiled=False)
        known = seconds[row.contestant.key]
        if row.setting.compiled and known and eager != min(known, key=lambda setting: known[setting]):
            rows.remove(row)
            continue
        _warm_up(row, trainee, batch)
        if not row.setting.compiled and not row.error:
            known[row.setting] = min(
                trainee.time_steps(batch, row.setting, num_steps=1, seconds=0.0) for _ in range(NUM_PROBES)
            )
    rng = np.random.default_rng(0)
    for number in range(plan.num_rounds):
        for index in rng.permutation(len(rows)):
            row = rows[index]
            if row.error:
                continue
            trainee = trainees[row.contestant.key, row.setting.memory_format]
            row.error = _attempt(row.contestant, lambda row=row, trainee=trainee: _time(row, trainee, batch, plan))
            if not row.error:
                _say(f"round {number + 1}", row, f"{len(batch.photos) / row.seconds_by_round[-1]:.2f} photos/s")


def _warm_up(row: Row, trainee: Trainee, batch: Batch) -> None:
    def steps() -> None:
        row.first_step_s = trainee.warm_up(batch, row.setting)
        row.flops_per_photo = trainee.count_flops(batch, row.setting)
        row.peak_bytes = trainee.measure_memory(batch, row.setting)

    row.error = _attempt(row.contestant, steps)
    _say("first step", row, row.error or f"{row.first_step_s:.1f} s")


def _time(row: Row, trainee: Trainee, batch: Batch, plan: Plan) -> None:
    seconds = trainee.time_steps(batch, row.setting, num_steps=plan.num_steps, seconds=plan.seconds)
    row.seconds_by_round.append(seconds)


def _attempt(contestant: Contestant, work: Callable[[], Any]) -> str:
    """Do it; what went wrong if it is the memory of the device or another's code, for a cell of a table."""
    try:
        work()
    except Exception as error:
        is_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if contestant.role == "ours" and not is_memory:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        message = "out of memory" if is_memory else f"{type(error).__name__}: {(lines or ['no word'])[0][:120]}"
    else:
        return ""
    gc.collect()  # the error held the activations
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return message


def _say(when: str, row: Row, what: str) -> None:
    print(f"  {when} {row.contestant.key}, {row.setting}: {what}", file=sys.stderr)


def _measure_matmul(device: torch.device, precision: str) -> float:
    """FLOP/s of a matrix product as the precision has it."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with float32_products(precision):
        size = 8192 if device.type == "cuda" else 1024
        return measure_matmul(device, dtype, size=size, seconds=_MATMUL_SECONDS)
