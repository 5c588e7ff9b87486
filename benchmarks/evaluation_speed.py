"""How much of an evaluation is inference: photos per second of `predict_coordinates` beside those of the bare model.

    python benchmarks/evaluation_speed.py
    python benchmarks/evaluation_speed.py --device cuda --photos 25600 --batch_size 256 --num_workers 12

Photos are made on the spot and lie in files, as a test set does. The bare model gets batches that are ready on its
device, the same number of the same size. Both run once a round, one behind the other; weights are random, which takes
as long. The small model is measured with eight times the photos, ten crops with a tenth of them. Takes about five
minutes on two cores. Writes the JSON and a page beside it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import cv2
import datasets
import numpy as np
import torch
from recording import write_results
from torch import Tensor
from transformers import PreTrainedModel

from geomae.data import PhotoCollator
from geomae.data.photos import encode_jpeg
from geomae.errors import ConfigError, GeoMAEError
from geomae.evaluation.predict import predict_coordinates
from geomae.provenance import find_commit, find_versions
from machine import find_cpu_model
from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, GeoMAEConfig, GeoMAEForGeolocation

NUM_FILES = 256  # different photos
SETTINGS = ("photos", "batch_size", "num_workers", "rounds", "size")
NUM_READY = 4  # batches that the bare model sees in turn
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
SMALL |= {"image_size": 64, "patch_size": 8}


@dataclass(frozen=True)
class Case:
    """One model and how it is evaluated."""

    key: str
    title: str
    build: Callable[[], PreTrainedModel]
    bf16: bool
    ten_crop: bool = False
    times_photos: float = 1.0  # of what is asked for, so that each takes about as long


def build_small() -> PreTrainedModel:
    """The size of the demo's."""
    return GeoMAEForGeolocation(GeoMAEConfig(**SMALL))


def build_vit_base() -> PreTrainedModel:
    """The thesis's ViT."""
    return GeoBaselineForGeolocation(GeoBaselineConfig(backbone="vit_base_patch16_224"))


CASES = [
    Case("small", "GeoMAE, 4 layers of width 128, 64 px, float32", build_small, bf16=False, times_photos=8),
    Case("vit_base", "ViT-B/16, 224 px, bf16", build_vit_base, bf16=True),
    Case(
        "vit_base_ten_crop", "ViT-B/16, 224 px, bf16, ten crops", build_vit_base, True, ten_crop=True, times_photos=0.1
    ),
]


def main() -> None:
    """Make the photos, run the rounds, write the results."""
    arguments = _parse_arguments()
    device, commit = torch.device(arguments.device), find_commit()
    # the workers need cores too, and threads that wait for one another's core take many times as long
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - arguments.num_workers))
    entries = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), tuple(arguments.size))
        mean_kilobytes = statistics.mean(file.stat().st_size for file in files) / 1000
        for case in CASES:
            if arguments.only and case.key not in arguments.only:
                continue
            shown = make_test_set(files, max(1, round(case.times_photos * arguments.photos)))
            rounds = measure_case(case, shown, device, arguments)
            entries[case.key] = {"title": case.title, **summarise_rounds(rounds, len(shown))}
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers", "datasets", "numpy", "simplejpeg")),
        "machine": _describe_machine(device),
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "mean_kilobytes": mean_kilobytes,
        "cases": entries,
    }
    write_results(arguments.output, record, to_markdown)


def make_photos(folder: Path, size: tuple[int, int]) -> list[Path]:
    """JPEGs of WIDTH x HEIGHT pixels, smooth with some noise."""
    width, height = size
    files = []
    for number in range(NUM_FILES):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        photo = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        files.append(folder / f"{number}.jpg")
        files[-1].write_bytes(encode_jpeg(photo, 75))
    return files


def make_test_set(files: list[Path], num_photos: int) -> datasets.Dataset:
    """A map-style test set as `load_photos` makes it of a folder; each file comes again under other ids."""
    columns = {
        "id": [f"{number}.jpg" for number in range(num_photos)],
        "image": [{"bytes": None, "path": str(file)} for file in islice(cycle(files), num_photos)],
    }
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict(columns, features=features)


def measure_case(
    case: Case, photos: datasets.Dataset, device: torch.device, arguments: argparse.Namespace
) -> list[tuple[float, float]]:
    """Seconds of the whole evaluation and of the bare model, for each round."""
    torch.manual_seed(0)
    model = case.build().eval().to(device)
    collator = PhotoCollator(model.config.image_size, augment=False, labelled=False, ten_crop=case.ten_crop)
    size, num_photos = arguments.batch_size, len(photos)
    full = min(size, num_photos)
    ready = [
        collator([photos[row % num_photos] for row in range(start, start + full)])["pixel_values"].to(device)
        for start in range(0, min(NUM_READY * full, num_photos), full)
    ]
    num_batches = -(-num_photos // full)
    run_bare(model, ready, len(ready), full, bf16=case.bf16)  # kernels are chosen, memory is taken
    rounds = []
    for number in range(arguments.rounds):
        started = time.perf_counter()
        predict_coordinates(
            model, photos, collator, batch_size=size, num_workers=arguments.num_workers, bf16=case.bf16, device=device
        )
        whole_s = time.perf_counter() - started
        bare_s = run_bare(model, ready, num_batches, full, bf16=case.bf16) * num_photos / (num_batches * full)
        rounds.append((whole_s, bare_s))
        print(f"{case.key} round {number + 1}: {whole_s:.2f} s, of which the model {bare_s:.2f} s", file=sys.stderr)
    return rounds


@torch.inference_mode()
def run_bare(model: Any, ready: list[Tensor], num_batches: int, batch_size: int, *, bf16: bool) -> float:
    """Seconds in which the model answers so many ready batches, one crop of every photo at a time."""
    with _timed(ready[0].device) as seconds, torch.autocast(ready[0].device.type, torch.bfloat16, enabled=bf16):
        for pixel_values in islice(cycle(ready), num_batches):
            outputs = [model(pixel_values=crops) for crops in pixel_values.split(batch_size)]
            if len(outputs) > 1:
                model.combine_crops(outputs)
    return seconds[0]


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """The seconds of the block, once the device has done what it was asked for."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - started)


def summarise_rounds(rounds: list[tuple[float, float]], num_photos: int) -> dict[str, Any]:
    """Medians over rounds of `(whole_s, bare_s)`; the share outside the model is taken within each round."""
    shares = [1.0 - bare_s / whole_s for whole_s, bare_s in rounds]
    return {
        "num_photos": num_photos,
        "photos_per_s": num_photos / statistics.median(whole_s for whole_s, _ in rounds),
        "bare_photos_per_s": num_photos / statistics.median(bare_s for _, bare_s in rounds),
        "share_outside_model": statistics.median(shares),
        "share_outside_model_by_round": shares,
        "seconds_by_round": [list(seconds) for seconds in rounds],
    }


def to_markdown(record: dict[str, Any]) -> str:
    """The page beside the JSON."""
    settings, machine = record["settings"], record["machine"]
    width, height = settings["size"]
    commit, where = (record["commit"] or "unknown")[:12], f"{machine['cpu']}, {machine['num_cores']} cores"
    lines = [
        "# How much of an evaluation is inference",
        "",
        f"Written by `benchmarks/evaluation_speed.py` at commit `{commit}`; every round and the versions are in the "
        "JSON beside this page.",
        "",
        f"Photos in files, JPEGs of {width}x{height} and {record['mean_kilobytes']:.1f} KB in "
        f"the mean, in batches of {settings['batch_size']}, with {settings['num_workers']} DataLoader worker(s). "
        f"{machine['device']}, {where}, load {machine['load_average']:.1f} at its end. Medians of {settings['rounds']} "
        "interleaved rounds. The whole is `predict_coordinates`, from the start of the workers to the gathered "
        "answers; the model alone gets batches that are ready on its device. Where that is the CPU, worker and model "
        "share the cores with each other and with whatever else runs: a share below 0 says that the model alone met "
        "more of it.",
        "",
        "| model | photos | whole, photos/s | model alone, photos/s | outside the model, % | its rounds, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in record["cases"].values():
        shares = [100 * share for share in entry["share_outside_model_by_round"]]
        lines.append(
            f"| {entry['title']} | {entry['num_photos']:,} | {entry['photos_per_s']:,.1f} | "
            f"{entry['bare_photos_per_s']:,.1f} | "
            f"{100 * entry['share_outside_model']:.1f} | {min(shares):.1f} to {max(shares):.1f} |"
        )
    return "\n".join(lines) + "\n"


def _describe_machine(device: torch.device) -> dict[str, Any]:
    cpu = f"CPU with {torch.get_num_threads()} thread(s)"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": find_cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--photos", type=int, default=128, help="of ViT-B's test set (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="WIDTH HEIGHT of the photos (500 375)")
    parser.add_argument("--batch_size", type=int, default=32, help="photos (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="of the DataLoader (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[case.key for case in CASES], help="cases; all by default")
    output = Path("results/benchmarks/evaluation_speed.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    names = ("photos", "batch_size", "rounds")
    if too_small := [name for name in names if getattr(arguments, name) < 1]:
        parser.error(f"--{too_small[0]} {getattr(arguments, too_small[0])}: expected at least 1.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
