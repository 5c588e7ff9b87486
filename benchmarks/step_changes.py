"""What each thing that makes a training step fast is worth: the step as it is beside the step with one of them undone.

    python benchmarks/step_changes.py
    python benchmarks/step_changes.py --device cuda --batch_sizes 512 256 256 --steps 20 --rounds 5 \
        --output results/benchmarks/step_changes_h200.json

Every change has its prediction, percent of the step's time, written down before it was first measured. Within a round
all steps run once, in an order of their own, with the same weights on the same photos; the seconds are those of one CPU
thread, or of the clock on the wall on a GPU. Eager, in bf16. What compilation is worth, `train_step.py` measures. Takes
about six minutes on two cores. Writes the JSON and a page beside it.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import numpy as np
import torch
from recording import write_results

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from loading.report import markdown_table
from machine import describe_machine
from stepping.changes import CASES, Case, Step
from stepping.contestants import make_batch
from stepping.measure import clock_of, free_memory

_SETTINGS = ("batch_sizes", "rounds", "steps", "threads", "tiny")
_OUTPUT = Path("results/benchmarks/step_changes.json")
_AS_IT_IS = "as_it_is"


def main() -> None:
    """Time every case, write the results."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    device, commit, load_before = torch.device(arguments.device), find_commit(), os.getloadavg()[0]
    sizes = dict(zip((case.key for case in CASES), arguments.batch_sizes, strict=True))
    chosen = [case for case in CASES if case.key in arguments.only]
    entries = {case.key: measure_case(case, sizes[case.key], device, arguments) for case in chosen}
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers")),
        "machine": describe_machine(device, load_before),
        "settings": {name: getattr(arguments, name) for name in _SETTINGS},
        "cases": entries,
    }
    write_results(arguments.output, record, to_markdown)


def measure_case(case: Case, batch_size: int, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """The step as it is and with each change undone, interleaved."""
    torch.manual_seed(0)
    model = case.build(arguments.tiny)
    step = Step(model, make_batch(batch_size, model.config.image_size, device))
    ways = {_AS_IT_IS: lambda step: nullcontext()} | {change.key: change.undone for change in case.changes}
    seconds: dict[str, list[float]] = {key: [] for key in ways}
    rng = np.random.default_rng(0)
    for number in range(1 + arguments.rounds):
        for key in rng.permutation(list(ways)):
            with ways[key](step):
                took = time_steps(step, 1 if number == 0 else arguments.steps)
            if number:  # the round before the first one chooses kernels and takes memory
                seconds[key].append(took)
                print(f"{case.key} round {number} {key}: {took:.3f} s", file=sys.stderr)
    del model, step
    free_memory(device)
    return {"title": case.title, "batch_size": batch_size, **summarise(case, seconds)}


def time_steps(step: Step, num_steps: int) -> float:
    """Seconds of a step, in the mean over so many."""
    device = step.batch.photos.device
    clock = clock_of(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    for _ in range(num_steps):
        step.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - started) / num_steps


def summarise(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians; what a change is worth is taken within each round, in percent of the step as it is."""
    as_it_is = seconds[_AS_IT_IS]
    changes = {}
    for change in case.changes:
        worth = [100 * (without / with_it - 1) for without, with_it in zip(seconds[change.key], as_it_is, strict=True)]
        changes[change.key] = {
            "title": change.title,
            "predicted_percent": change.predicted_percent,
            "before_s": median(seconds[change.key]),
            "after_s": median(as_it_is),
            "worth_percent": median(worth),
            "worth_percent_by_round": worth,
        }
    return {"step_s": median(as_it_is), "seconds_by_round": seconds, "changes": changes}


def to_markdown(record: dict[str, Any]) -> str:
    """The page beside the JSON."""
    settings, machine = record["settings"], record["machine"]
    lines = [
        "# What each change to the training step is worth",
        "",
        f"Written by `benchmarks/step_changes.py` at commit `{(record['commit'] or 'unknown')[:12]}` on "
        f"{machine['device']}, {machine['cpu']}; load {machine['load_average_before']:.1f} before, "
        f"{machine['load_average_after']:.1f} after. Eager, bf16, medians of {settings['rounds']} "
        f"interleaved rounds of {settings['steps']} step(s).",
        "",
    ]
    if settings["tiny"]:
        lines += ["**These are tiny networks, for the tests: nothing here says anything of speed.**", ""]
    for case in record["cases"].values():
        rows = [
            [
                change["title"],
                f"{change['predicted_percent']:+.1f}",
                f"{change['worth_percent']:+.1f}",
                f"{min(change['worth_percent_by_round']):+.1f} to {max(change['worth_percent_by_round']):+.1f}",
                f"{1000 * change['before_s']:,.0f}",
            ]
            for change in case["changes"].values()
        ]
        columns = ["what makes it fast", "without it: predicted, %", "measured, %", "rounds, %", "ms without it"]
        lines += [f"## {case['title']}, batch {case['batch_size']}: {1000 * case['step_s']:,.0f} ms a step", ""]
        lines += [markdown_table(columns, rows), ""]
    return "\n".join(lines)


def _parse_arguments() -> argparse.Namespace:
    keys, default_sizes = [case.key for case in CASES], [case.batch_size for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, help="cases (%(default)s)")
    parser.add_argument(
        "--batch_sizes", type=int, nargs=len(keys), default=default_sizes, help=f"of {', '.join(keys)} (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="of a round (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, which say nothing of speed: for tests")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    least = {"batch_sizes": min(arguments.batch_sizes)}
    least |= {name: getattr(arguments, name) for name in ("threads", "rounds", "steps")}
    for name, value in least.items():
        if value < 1:
            parser.error(f"--{name} {value}: expected at least 1.")
    if arguments.tiny and arguments.output == _OUTPUT:
        parser.error(f"--tiny: its page would take the place of {_OUTPUT}; give another --output.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
