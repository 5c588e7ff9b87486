"""How fast photos come from disk to batches of 224x224 crops, by ours and by seven other pipelines, in one run.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --only ours bound --rounds 3 --output outputs/benchmarks/quick.json

The photos are cut from those in `../shared/data/photos` (--shared_data). A peer that is not installed is left out, and
the result says so. Three of them come with two commands; MosaicML streaming pins older versions of libraries that we
need newer, and works with ours all the same:

    pip install ".[bench]"
    pip install --no-deps mosaicml-streaming catalogue

Takes about seven minutes on two cores. Writes the JSON and a page of tables beside it.
"""

import argparse
import math
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read once, when numpy and torch are imported

import cv2
import numpy as np
import torch
from recording import write_results

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from loading.measure import Measurement, measure, memory_over_epochs
from loading.peers import missing_modules, peer_pipelines
from loading.photo_set import PhotoSet, make_photo_set
from loading.pipelines import LoaderOptions, Pipeline, ours, own_pipelines
from loading.report import cores_needed, judge_memory, judge_targets, medians_and_ratios, to_markdown
from machine import find_cpu_model

_PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "simplejpeg", "opencv-python-headless", "pyarrow", "datasets"),
    *("msgpack", "webdataset", "mosaicml-streaming"),
)


def main() -> None:
    """Make the photos, run the rounds, write the results."""
    arguments = _parse_arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    photos = make_photo_set(
        arguments.shared_data,
        arguments.cache_dir,
        width=arguments.size[0],
        height=arguments.size[1],
        quality=arguments.quality,
        num_photos=arguments.photos,
    )
    options = _place_processes(arguments)
    pipelines, left_out = _choose_pipelines(own_pipelines(photos, options) + peer_pipelines(photos, options), arguments)
    load_before = os.getloadavg()[0]
    rounds = _run_rounds(pipelines, photos, arguments)
    entries = medians_and_ratios(pipelines, rounds)
    record = {
        "commit": find_commit(),
        "versions": find_versions(_PACKAGES),
        "machine": _describe_machine(options, load_before),
        "settings": _describe_settings(arguments),
        "photos": _describe_photos(photos),
        "pipelines": entries,
        "left_out": left_out,
        "targets": judge_targets(entries),
        "memory": _look_at_memory(photos, options, arguments.memory_epochs),
        "cores_needed": cores_needed(entries),
    }
    write_results(arguments.output, record, to_markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared_data = Path(os.environ.get("GEOMAE_SHARED_DATA") or "../shared/data")
    parser.add_argument("--shared_data", type=Path, default=shared_data, help="folder that holds photos/ (%(default)s)")
    parser.add_argument(
        "--cache_dir", type=Path, default=Path("outputs/benchmarks"), help="for the photos (%(default)s)"
    )
    output = Path("results/benchmarks/input_pipeline.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    parser.add_argument("--size", type=_size, default=(427, 320), help="of the photos, WIDTHxHEIGHT (427x320)")
    parser.add_argument("--quality", type=int, default=75, help="of the JPEGs (%(default)s)")
    parser.add_argument("--photos", type=int, default=4096, help="how many (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="pipelines to run beside ours; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="in each, every pipeline runs once (%(default)s)")
    parser.add_argument("--batches", type=int, default=40, help="measured in a round; ours: whole epochs (%(default)s)")
    parser.add_argument("--warmup_batches", type=int, default=8, help="left out before them (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="photos (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="of the DataLoader (%(default)s)")
    parser.add_argument("--memory_epochs", type=int, default=6, help="of ours, at least 2; 0: none (%(default)s)")
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give workers cores of their own (%(default)s)",
    )
    arguments = parser.parse_args()
    try:
        _check(arguments)
    except ConfigError as error:
        parser.error(str(error))
    return arguments


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected WIDTHxHEIGHT, such as 427x320") from None
    return width, height


def _check(arguments: argparse.Namespace) -> None:
    names = ("rounds", "batches", "warmup_batches", "batch_size", "num_workers")
    if too_small := [name for name in names if getattr(arguments, name) < 1]:
        raise ConfigError(f"--{too_small[0]} {getattr(arguments, too_small[0])}: expected at least 1.")
    if arguments.memory_epochs == 1:
        raise ConfigError("--memory_epochs 1: expected 0, or at least 2 epochs to compare.")
    num_needed = (arguments.batches + arguments.warmup_batches + arguments.num_workers) * arguments.batch_size
    if arguments.photos < num_needed:
        raise ConfigError(
            f"--photos {arguments.photos}: the peers are measured within one epoch, and --warmup_batches "
            f"{arguments.warmup_batches} and --batches {arguments.batches} of {arguments.batch_size} need {num_needed}."
        )


def _place_processes(arguments: argparse.Namespace) -> LoaderOptions:
    """Main process on the first core, workers on the others, if there are enough of them."""
    cores = sorted(os.sched_getaffinity(0))
    is_pinned = arguments.pin and len(cores) > arguments.num_workers
    if is_pinned:
        os.sched_setaffinity(0, {cores[0]})
    return LoaderOptions(arguments.batch_size, arguments.num_workers, tuple(cores[1:]) if is_pinned else ())


def _choose_pipelines(
    pipelines: list[Pipeline], arguments: argparse.Namespace
) -> tuple[list[Pipeline], dict[str, str]]:
    """Those that were asked for and can run, and why the others cannot."""
    known = [pipeline.key for pipeline in pipelines]
    if unknown := set(arguments.only or ()) - set(known):
        raise ConfigError(f"--only {' '.join(sorted(unknown))}: there is only {', '.join(known)}.")
    wanted = [each for each in pipelines if not arguments.only or each.key == "ours" or each.key in arguments.only]
    left_out = {each.title: f"{missing_modules(each)[0]} is not installed" for each in wanted if missing_modules(each)}
    return [pipeline for pipeline in wanted if pipeline.title not in left_out], left_out


def _run_rounds(
    pipelines: list[Pipeline], photos: PhotoSet, arguments: argparse.Namespace
) -> dict[str, list[Measurement]]:
    """Every pipeline once a round, in an order of its own, so that what disturbs the machine disturbs all alike."""
    rounds = defaultdict(list)
    rng = np.random.default_rng(0)
    for number in range(arguments.rounds):
        for index in rng.permutation(len(pipelines)):
            pipeline = pipelines[index]
            num_batches = _num_batches(pipeline, photos, arguments)
            run = measure(pipeline, num_warmup_batches=arguments.warmup_batches, num_batches=num_batches)
            rounds[pipeline.key].append(run)
            print(
                f"round {number + 1} {pipeline.key:16} {run.photos_per_s:7.0f} photos/s "
                f"{run.photos_per_core_s:7.0f} photos/worker-core-s in {run.wall_s:.1f} s",
                file=sys.stderr,
            )
    return rounds


def _num_batches(pipeline: Pipeline, photos: PhotoSet, arguments: argparse.Namespace) -> int:
    """The fast ones get three times the batches, rounded up to epochs: they read many photos at once, now and then."""
    if not pipeline.whole_epochs:
        return int(arguments.batches)
    num_epochs = math.ceil(3 * arguments.batches * arguments.batch_size / photos.num_photos)
    return round(num_epochs * photos.num_photos / arguments.batch_size)


def _look_at_memory(photos: PhotoSet, options: LoaderOptions, num_epochs: int) -> dict[str, Any] | None:
    if num_epochs < 2:
        return None
    batches_per_epoch = round(photos.num_photos / options.batch_size)
    batches = ours(photos, options)
    return judge_memory(memory_over_epochs(batches, num_epochs=num_epochs, batches_per_epoch=batches_per_epoch))


def _describe_machine(options: LoaderOptions, load_before: float) -> dict[str, Any]:
    return {
        "cpu": find_cpu_model(),
        "num_cores": os.cpu_count(),
        "is_pinned": bool(options.worker_cores),
        "load_average_before": load_before,  # of a minute; what others do on the machine
        "load_average_after": os.getloadavg()[0],
    }


def _describe_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("rounds", "batches", "warmup_batches", "batch_size", "num_workers")
    return {name: getattr(arguments, name) for name in names}


def _describe_photos(photos: PhotoSet) -> dict[str, Any]:
    return {
        "count": photos.num_photos,
        "width": photos.width,
        "height": photos.height,
        "quality": photos.quality,
        "mean_kilobytes": photos.mean_kilobytes(),
    }


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
