"""Pretraining by one process and by several: photos/s, what DDP costs of them, and how its options change that.

    python benchmarks/process_scaling.py
    python benchmarks/process_scaling.py --device cuda --processes 8 --batch_size 512 --steps 20 --rounds 5 \
        --output results/benchmarks/process_scaling_8_h200.json

The same batch in each process: alone, beside others that train for themselves (they share the memory's bandwidth), and
together with them through DDP, over gloo on the CPU and NCCL on GPUs. For machines of 8 and 4 x 8 GPUs the page says
what a ring all-reduce costs beside a step, computed. A process has one CPU thread: by default two cores should be free.
Takes about four minutes on two cores. Writes the JSON and a page beside it.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import torch
from processes.measure import MEASUREMENTS, Plan, work
from processes.report import compute_machines, summarise, to_markdown
from recording import write_results
from torch import multiprocessing

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from machine import describe_machine

_SETTINGS = ("processes", "batch_size", "rounds", "steps", "tiny")
_OUTPUT = Path("results/benchmarks/process_scaling.json")


def main() -> None:
    """Start the processes, write what they measured and what follows from it."""
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    commit, load_before = find_commit(), os.getloadavg()[0]
    plan = Plan(
        device=arguments.device,
        num_processes=arguments.processes,
        batch_size=arguments.batch_size,
        num_rounds=arguments.rounds,
        num_steps=arguments.steps,
        tiny=arguments.tiny,
    )
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (plan, Path(folder)), nprocs=plan.num_processes)
        measurements = json.loads((Path(folder) / MEASUREMENTS).read_text())
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers")),
        "machine": describe_machine(torch.device(arguments.device), load_before),
        "settings": {name: getattr(arguments, name) for name in _SETTINGS},
        "measurements": measurements,
        **summarise(measurements, batch_size=plan.batch_size, num_processes=plan.num_processes),
        "computed": compute_machines(measurements["flops_per_photo"], measurements["num_parameters"]),
    }
    write_results(arguments.output, record, to_markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that train together; a GPU each (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="photos of a step, in each process (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a round, after one that warms up (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, which says nothing of speed: for tests")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    for name, least in {"processes": 2, "batch_size": 1, "rounds": 1, "steps": 1}.items():
        if (value := getattr(arguments, name)) < least:
            parser.error(f"--{name} {value}: expected at least {least}.")
    if arguments.tiny and arguments.output == _OUTPUT:
        parser.error(f"--tiny: its page would take the place of {_OUTPUT}; give another --output.")
    if arguments.device == "cuda" and torch.cuda.device_count() < arguments.processes:
        raise ConfigError(
            f"--device cuda --processes {arguments.processes}: each process needs a CUDA device, and there are "
            f"{torch.cuda.device_count()} here."
        )
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
