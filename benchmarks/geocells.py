"""How long it takes to make geocells of as many photos as MP-16 has, and to give every photo its cell, on one core.

    python benchmarks/geocells.py
    python benchmarks/geocells.py --num_points 100000 --rounds 1 --output outputs/benchmarks/quick.json

The 4.72 million points are the 100,000 real coordinates of MP-16 in `../shared/data/geotags` (--shared_data), each
repeated and moved by some 2 km; without that list they are drawn near populated places, and the result says so. Takes
about five minutes. Writes the JSON and a page of tables beside it.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read once, by numpy

import numpy as np
from numpy.typing import NDArray
from recording import write_results

from geomae.data.places import draw_near_places
from geomae.errors import GeoMAEError
from geomae.evaluation import read_training_coordinates
from geomae.geocells import build_geocells, draft_by_kmeans, draft_by_s2, nearest_centroids
from geomae.geography import to_degrees, unit_vectors
from geomae.provenance import find_commit, find_versions
from machine import find_cpu_model

NUM_POINTS = 4_720_000  # MP-16's photos
JITTER = 3e-4  # radians, 2 km
MOST_ASSIGN_S = 60.0  # stated before the measurement


@dataclass(frozen=True)
class Run:
    """One step, once."""

    cpu_s: float
    wall_s: float
    peak_mb: float  # of the process above what it held before, in units of 10^6 bytes; with the step's result


def main() -> None:
    """Draw the points, run the rounds, write the results."""
    arguments = _parse_arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    commit, load_before = find_commit(), os.getloadavg()[0]
    points_deg, is_real = draw_points(arguments.num_points, arguments.shared_data)
    steps, num_cells = _prepare(points_deg, arguments)
    rounds: dict[str, list[Run]] = defaultdict(list)
    for number in range(arguments.rounds):
        for title, step in steps.items():
            run = measure(step)
            rounds[title].append(run)
            print(f"round {number + 1} {title:40} {run.cpu_s:7.2f} s, {run.peak_mb:6.0f} MB", file=sys.stderr)
    record = {
        "commit": commit,
        "versions": find_versions(("numpy", "scipy", "s2geometry")),
        "machine": {
            "cpu": find_cpu_model(),
            "num_cores_used": 1,
            "load_average_before": load_before,  # of a minute; what others do on the machine
            "load_average_after": os.getloadavg()[0],
        },
        "settings": {
            name: getattr(arguments, name) for name in ("num_points", "rounds", "max_photos", "min_photos", "num_cells")
        },
        "points_are_real": is_real,
        "num_geocells": num_cells,
        "steps": {title: _summarise(runs) for title, runs in rounds.items()},
    }
    write_results(arguments.output, record, to_markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared_data = Path(os.environ.get("GEOMAE_SHARED_DATA") or "../shared/data")
    parser.add_argument("--shared_data", type=Path, default=shared_data, help="holds geotags/ (%(default)s)")
    output = Path("results/benchmarks/geocells.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    parser.add_argument("--num_points", type=int, default=NUM_POINTS, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--max_photos", type=int, nargs="+", default=[5000, 2000, 1000], help="(ISN's)")
    parser.add_argument("--min_photos", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--num_cells", type=int, nargs="+", default=[50, 400], help="of k-means (50 400)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.num_points < 8:
        parser.error("expected --rounds of at least 1 and --num_points of at least 8")
    return arguments


def draw_points(num_points: int, shared_data: Path) -> tuple[NDArray[np.float64], bool]:
    """Latitude and longitude `(num_points, 2)` near those of MP-16, and whether they are; always the same."""
    rng = np.random.default_rng(0)
    file = shared_data / "geotags" / "mp16_coordinates_100k.csv"
    if not file.is_file():
        return draw_near_places(num_points, rng), False
    real = unit_vectors(read_training_coordinates(file))
    points = real[np.arange(num_points) % len(real)]
    return to_degrees(points + rng.normal(0.0, JITTER, points.shape)), True


def _prepare(
    points_deg: NDArray[np.float64], arguments: argparse.Namespace
) -> tuple[dict[str, Callable[[], Any]], list[int]]:
    """The steps by their titles, and how many cells the S2 partitions have."""
    by_s2 = partial(draft_by_s2, points_deg, max_photos=arguments.max_photos, min_photos=arguments.min_photos)
    by_kmeans = partial(draft_by_kmeans, points_deg, num_cells=arguments.num_cells)
    blueprints = by_s2()
    geocells = build_geocells(points_deg, blueprints).geocells
    finest_deg = geocells.partitions[-1].centroids_deg
    quarter = points_deg[: len(points_deg) // 4]
    return {
        "S2 cells": by_s2,
        "centroids, areas, counts and spreads": partial(build_geocells, points_deg, blueprints),
        "assign": partial(geocells.assign, points_deg),
        "assign a quarter of the points": partial(geocells.assign, quarter),
        "nearest centroid alone": partial(nearest_centroids, points_deg, finest_deg),
        "k-means": by_kmeans,
    }, geocells.num_geocells


def measure(step: Callable[[], Any]) -> Run:
    """Run a step, and look at the clocks and at the peak of this process's memory; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is held now
    held_mb = _memory_mb("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    result = step()
    run = Run(time.process_time() - cpu, time.perf_counter() - wall, _memory_mb("VmHWM") - held_mb)
    del result
    return run


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def _summarise(runs: list[Run]) -> dict[str, Any]:
    return {
        "cpu_s": median(run.cpu_s for run in runs),
        "cpu_s_by_round": [run.cpu_s for run in runs],
        "wall_s": median(run.wall_s for run in runs),
        "peak_mb": median(run.peak_mb for run in runs),
    }


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page of tables."""
    from loading.report import markdown_table  # it imports torch, whose memory is not ours

    steps, settings, machine = (record[key] for key in ("steps", "settings", "machine"))
    rows = [
        [
            title,
            f"{step['cpu_s']:.2f}",
            f"{min(step['cpu_s_by_round']):.2f} to {max(step['cpu_s_by_round']):.2f}",
            f"{step['wall_s']:.2f}",
            f"{step['peak_mb']:.0f}",
        ]
        for title, step in steps.items()
    ]
    assign_s = steps["assign"]["cpu_s"]
    return (
        f"# Geocells of {settings['num_points']:,} photos\n\n"
        f"Commit {(record['commit'] or 'unknown')[:12]}, {machine['cpu']}, one core, which others may have used too: "
        f"load average {machine['load_average_before']:.1f} before and {machine['load_average_after']:.1f} after. "
        f"Medians of {settings['rounds']} rounds. The points are "
        f"{'real coordinates of MP-16, repeated and moved by 2 km' if record['points_are_real'] else 'drawn'}. "
        f"S2 cells have at most {_listed(settings['max_photos'])} and at least {settings['min_photos']} photos: "
        f"{_listed(record['num_geocells'])} cells. K-means makes {_listed(settings['num_cells'])}.\n\n"
        + markdown_table(["", "s of the core", "its rounds", "s of the clock", "peak memory, MB"], rows)
        + "\nMemory is what a step holds at its peak above what was held before, its result included: of `assign`, 8 "
        "bytes for each point and partition.\n\n"
        f"- `assign`: {assign_s:.2f} s of at most {MOST_ASSIGN_S:g} s of one core: "
        f"{'met' if assign_s <= MOST_ASSIGN_S else '**missed**'}.\n"
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
