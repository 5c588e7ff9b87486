"""What HF Trainer costs: the same step inside it, with our trainers and our data, and in a bare loop.

    python benchmarks/trainer_loop.py
    python benchmarks/trainer_loop.py --device cuda --batch_size 512 --num_workers 12 --steps 20 --compile \
        --run_mae transformers/examples/pytorch/image-pretraining/run_mae.py --run_mae_steps 200 \
        --output results/benchmarks/trainer_loop_h200.json

Trainer and bare loop are both live and take turns, each on its own copy of the model. On a GPU a turn should be many
steps (`--steps 20`), since it is waited for at the end of each. Photos are generated. With `--run_mae` the example of
transformers is run as it is shipped, end to end, against `run_pretrain_mae.py`. Takes about five minutes on two cores
without it. Writes the JSON and a page beside it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import torch
from evaluation_speed import make_photos
from recording import write_results

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from loops.contestants import CASES, CONTESTANTS, Case, alternate, pack_photos
from loops.report import describe_parts, judge_targets, summarise_rounds, to_markdown
from loops.run_mae import compare_with_run_mae
from machine import describe_machine

SETTINGS = ("batch_size", "num_workers", "rounds", "steps", "size", "compile")


def main() -> None:
    """Make the photos, let the loops take turns, write the results."""
    arguments = _parse_arguments()
    commit, num_cores, load_before = find_commit(), len(os.sched_getaffinity(0)), os.getloadavg()[0]
    # the readers need cores too, and threads that wait for one another's core take many times as long
    torch.set_num_threads(max(1, num_cores - arguments.num_workers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jpegs").mkdir()
        pack_photos(make_photos(folder / "jpegs", tuple(arguments.size)), folder)
        cases = {
            case.key: measure_case(case, folder, arguments)
            for case in CASES
            if arguments.only is None or case.key in arguments.only
        }
        run_mae = None
        if arguments.run_mae is not None:
            run_mae = compare_with_run_mae(arguments.run_mae, folder / "jpegs", folder, folder, arguments)
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers", "accelerate")),
        "machine": describe_machine(torch.device(arguments.device), load_before),
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "cases": cases,
        "targets": judge_targets(cases, num_cores, arguments.num_workers),
        "run_mae": run_mae,
    }
    write_results(arguments.output, record, to_markdown)


def measure_case(case: Case, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every contestant of a case."""
    entries = {}
    for name in case.contestants:
        contestant = CONTESTANTS[name]
        alternation, bare = alternate(case, contestant, folder, folder / f"{case.key}_{name}", arguments)
        rounds, steps = alternation.rounds, arguments.steps * case.times_steps
        batch_size = max(1, round(arguments.batch_size * case.batch_share))
        entries[name] = {"title": contestant.title, **summarise_rounds(rounds, steps, batch_size)}
        num_steps = len(rounds) * steps
        parts = describe_parts(rounds, alternation.parts.seconds, bare.parts.seconds, num_steps)
        entries[name]["parts"] = parts
        lost = ", ".join(f"{percent:.1f}" for percent in entries[name]["lost_percent_by_round"])
        print(f"{case.key}, {contestant.title}: {lost} % lost", file=sys.stderr)
    return {"title": case.title, "contestants": entries}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="photos; a quarter in fine-tuning (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="readers of the pipeline (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="of each loop in a round; small: 20 times (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(427, 320), help="WIDTH HEIGHT of the photos (427 320)")
    parser.add_argument("--compile", action="store_true", help="torch.compile in both loops")
    parser.add_argument("--only", nargs="+", choices=[case.key for case in CASES], help="cases; all by default")
    parser.add_argument("--run_mae", type=Path, help="run_mae.py of a transformers checkout; left out without")
    parser.add_argument("--run_mae_steps", type=int, default=10, help="of each run against it (%(default)s)")
    output = Path("results/benchmarks/trainer_loop.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    names = ("batch_size", "rounds", "steps", "run_mae_steps")
    if too_small := [name for name in names if getattr(arguments, name) < 1]:
        parser.error(f"--{too_small[0]} {getattr(arguments, too_small[0])}: expected at least 1.")
    if arguments.run_mae is not None and not arguments.run_mae.is_file():
        parser.error(
            f"--run_mae {arguments.run_mae}: there is no such file; name run_mae.py of a transformers checkout"
        )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
