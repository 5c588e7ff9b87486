"""GeoMAE from ViT-Ti to ViT-H, and the baselines: parameters, work, memory, the largest batch and photos per second.

    python benchmarks/model_sizes.py
    python benchmarks/model_sizes.py --device cuda --batch_size 64 --measure all \
        --output results/benchmarks/model_sizes_h200.json

Memory is counted on tensors without storage (`sizing/`), for bfloat16 autocast, fused attention and AdamW in
float32, with and without gradient checkpointing, and compared with what steps really take: the peak of a process on the
CPU, `max_memory_allocated` and the largest batch found by trying on a GPU. What is measured is a step of forward,
backward and AdamW. Takes about five minutes on two cores. Writes the JSON and a page beside it.
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import torch
from recording import write_results

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from machine import describe_machine
from sizing.cases import CASES, Case
from sizing.measured import check_process_memory, find_largest_batch, measure_rounds
from sizing.report import to_markdown
from sizing.simulation import fused_attention, largest_batch, simulate_step

SIMULATED_BATCHES = (1, 16, 128, 1024, 4096)
PEAK_FLOPS = {"A100": 312e12, "H200": 790e12}  # a data sheet's, and a measured one's: docs/performance.md
ASSUMED_MFU = 0.5
POLICIES = ("plain", "checkpointed")
MEASURED_ON_CPU = ("pretrain_tiny", "pretrain_small", "pretrain_base", "finetune_tiny", "finetune_small")
MEASURED_ON_CPU += ("finetune_base", "supervised_resnet152")


def main() -> None:
    """Count, measure, write the results."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.num_threads)
    commit, device, load_before = find_commit(), torch.device(arguments.device), os.getloadavg()[0]
    entries: dict[str, Any] = {}
    for case in CASES:
        if case.key in arguments.only:
            entries[case.key] = describe(case, arguments)
            print(f"{case.key}: memory counted", file=sys.stderr)
    for case in CASES:
        if case.key in entries and case.key in arguments.measure:
            entries[case.key]["measured"] = measure(case, entries[case.key]["memory"], device, arguments)
            print(f"{case.key}: measured", file=sys.stderr)
    checked = next((case for case in CASES if case.key == arguments.check_memory_of), None)
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers")),
        "machine": describe_machine(device, load_before),
        "settings": {name: getattr(arguments, name) for name in ("device", "batch_size", "rounds", "gpu_gb", "reserve")}
        | {"is_compiled": arguments.compile, "peak_flops": PEAK_FLOPS, "mfu": ASSUMED_MFU},
        "check_on_the_cpu": check_process_memory(checked, arguments.check_batch_size) if checked else None,
        "cases": entries,
    }
    write_results(arguments.output, record, to_markdown)


def describe(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is computed: parameters, work, memory and the largest batch on each GPU, photos/s at the assumed MFU."""
    model = case.build_meta()
    flops = model.flops_per_photo()
    memory = {policy: count_memory(case, policy == "checkpointed", arguments) for policy in POLICIES}
    return {
        "title": case.title,
        "config": case.config_file,
        "parameters_million": model.num_parameters() / 1e6,
        "gflop_per_photo": flops / 1e9,
        "memory": memory,
        "computed_photos_per_s": {chip: ASSUMED_MFU * peak / flops for chip, peak in PEAK_FLOPS.items()},
        "measured": None,
    }


def count_memory(case: Case, checkpointed: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of a step as a function of the batch, and the largest batch that fits."""
    peaks = []
    for batch_size in SIMULATED_BATCHES:
        with fused_attention():
            step = simulate_step(case.build_meta(checkpointed=checkpointed), batch_size)
        peaks.append(step.peak)
    by_batch = dict(zip(SIMULATED_BATCHES, peaks, strict=True))
    per_photo = (by_batch[1024] - by_batch[128]) / (1024 - 128)
    fits = {}
    for gigabytes in arguments.gpu_gb:
        exact = largest_batch(SIMULATED_BATCHES, peaks, (1 - arguments.reserve) * gigabytes * 1e9)
        fits[str(gigabytes)] = {"exact": exact, "power_of_two": 2 ** (exact.bit_length() - 1) if exact else 0}
    return {
        "weights_gb": step.weights / 1e9,
        "optimizer_gb": step.optimizer / 1e9,
        "fixed_gb": (by_batch[128] - 128 * per_photo) / 1e9,
        "per_photo_mb": per_photo / 1e6,
        "largest_counted_batch": SIMULATED_BATCHES[-1],
        "peak_gb_by_batch": {str(batch_size): peak / 1e9 for batch_size, peak in by_batch.items()},
        "largest_batch": fits,
    }


def measure(case: Case, memory: dict[str, Any], device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Photos/s and, on a GPU, peaks and the largest batch beside the computed one, with and without checkpointing."""
    rounds = measure_rounds(
        {policy: case.build(device, checkpointed=policy == "checkpointed") for policy in POLICIES},
        batch_size=arguments.batch_size,
        num_rounds=arguments.rounds,
        is_compiled=arguments.compile,
    )
    ratios = [slow.seconds / fast.seconds for fast, slow in zip(*rounds.values(), strict=True)]
    measured: dict[str, Any] = {
        policy: {
            "photos_per_s": arguments.batch_size / median(step.seconds for step in steps),
            "seconds_by_round": [step.seconds for step in steps],
            "peak_gb": max(step.peak_bytes for step in steps) / 1e9 if device.type == "cuda" else None,
            "largest_batch": None,
            "computed_largest_batch": None,
        }
        for policy, steps in rounds.items()
    }
    measured["checkpointed_takes_times"] = median(ratios)
    if device.type == "cuda":
        room = (1 - arguments.reserve) * torch.cuda.get_device_properties(device).total_memory
        for policy in POLICIES:
            peaks = [round(peak_gb * 1e9) for peak_gb in memory[policy]["peak_gb_by_batch"].values()]
            measured[policy]["computed_largest_batch"] = largest_batch(SIMULATED_BATCHES, peaks, room)
            model = case.build(device, checkpointed=policy == "checkpointed")
            measured[policy]["largest_batch"] = find_largest_batch(model, is_compiled=arguments.compile)
    return measured


def _parse_arguments() -> argparse.Namespace:
    keys = [case.key for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where steps are measured (cpu)")
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="cases; all by default")
    measured = "cases whose steps are measured; on the CPU by default some up to ViT-B, on a GPU all; none: no case"
    parser.add_argument("--measure", nargs="+", choices=[*keys, "all", "none"], help=measured)
    parser.add_argument("--batch_size", type=int, default=8, help="photos of a measured step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, both policies run once (%(default)s)")
    parser.add_argument("--num_threads", type=int, default=1, help="of a measured step on the CPU (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="measure compiled steps")
    parser.add_argument("--gpu_gb", nargs="+", type=int, default=[24, 40, 80, 141], help="10^9 bytes (24 40 80 141)")
    parser.add_argument("--reserve", type=float, default=0.1, help="share of a GPU left for the rest (%(default)s)")
    check = "case whose real process on the CPU is compared with its simulation, or none (%(default)s)"
    parser.add_argument("--check_memory_of", choices=[*keys, "none"], default="pretrain_base", help=check)
    parser.add_argument("--check_batch_size", type=int, default=32, help="photos of that step (%(default)s)")
    output = Path("results/benchmarks/model_sizes.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    for name in ("batch_size", "rounds", "num_threads", "check_batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: expected at least 1.")
    if not 0 <= arguments.reserve < 1:
        parser.error(f"--reserve {arguments.reserve}: expected a share from 0 to below 1, such as 0.1.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    if arguments.measure is None:
        arguments.measure = MEASURED_ON_CPU if arguments.device == "cpu" else keys
    elif "all" in arguments.measure:
        arguments.measure = keys
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
