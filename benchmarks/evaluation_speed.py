"""How much of an evaluation is inference: photos per second of `predict_coordinates` beside those of the bare model.

    python benchmarks/evaluation_speed.py
    python benchmarks/evaluation_speed.py --compile --only small vit_base --batch_sizes 32 --photos 96
    python benchmarks/evaluation_speed.py --device cuda --photos 25600 --batch_sizes 64 256 --num_workers 12 --compile

Photos are made on the spot and lie in files, as a test set does. The bare model gets batches that are ready on its
device, the same number of the same size. Both run once a round, one behind the other, eager and, with `--compile`,
compiled; weights are random, which takes as long. What a compilation takes is measured apart and said on the page: an
evaluation waits for it once. The small model is measured with eight times the photos, ten crops with a tenth of them.
Takes about five minutes on two cores. Writes the JSON and a page beside it.
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
from machine import describe_machine
from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, GeoMAEConfig, GeoMAEForGeolocation

NUM_FILES = 256  # different photos
SETTINGS = ("photos", "batch_sizes", "num_workers", "rounds", "size", "compile")
LARGEST_SHARE = 0.05  # of an evaluation's time that may pass outside the model
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
    device, commit, load_before = torch.device(arguments.device), find_commit(), os.getloadavg()[0]
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
            for batch_size in arguments.batch_sizes:
                measured = measure_case(case, shown, device, arguments, min(batch_size, len(shown)))
                entries |= {f"{case.key}_{batch_size}{suffix}": entry for suffix, entry in measured.items()}
    record = {
        "commit": commit,
        "versions": find_versions(("torch", "timm", "transformers", "datasets", "numpy", "simplejpeg")),
        "machine": describe_machine(device, load_before),
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
    case: Case, photos: datasets.Dataset, device: torch.device, arguments: argparse.Namespace, batch_size: int
) -> dict[str, dict[str, Any]]:
    """An entry for each way to run the model, by what its key ends in; they take turns."""
    torch.manual_seed(0)
    models = {"": case.build().eval().to(device)}
    collator = PhotoCollator(models[""].config.image_size, augment=False, labelled=False, ten_crop=case.ten_crop)
    started = time.perf_counter()
    ready = [
        collator([photos[row % len(photos)] for row in range(start, start + batch_size)])["pixel_values"]
        for start in range(0, min(NUM_READY * batch_size, len(photos)), batch_size)
    ]
    decoded_per_s = len(ready) * batch_size / (time.perf_counter() - started)
    ready = [pixel_values.to(device) for pixel_values in ready]
    if arguments.compile:
        models["_compiled"] = case.build().eval().to(device)
        models["_compiled"].compile()
    first_s = {name: run_bare(model, ready, 1, batch_size, bf16=case.bf16) for name, model in models.items()}
    for model in models.values():
        run_bare(model, ready, len(ready), batch_size, bf16=case.bf16)  # kernels are chosen, memory is taken
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(arguments.rounds):
        for name, model in models.items():
            rounds[name].append(measure_round(case, model, photos, collator, ready, batch_size, arguments.num_workers))
    return {
        name: {
            "title": case.title + name.replace("_", ", "),
            "batch_size": batch_size,
            "first_batch_s": first_s[name],
            "decoded_photos_per_core_s": decoded_per_s,
            **summarise_rounds(measured, len(photos)),
        }
        for name, measured in rounds.items()
    }


def measure_round(
    case: Case,
    model: PreTrainedModel,
    photos: datasets.Dataset,
    collator: PhotoCollator,
    ready: list[Tensor],
    batch_size: int,
    num_workers: int,
) -> tuple[float, float]:
    """Seconds of the whole evaluation, and of the bare model for as many photos."""
    num_photos, num_batches, device = len(photos), -(-len(photos) // batch_size), ready[0].device
    started = time.perf_counter()
    predict_coordinates(
        model, photos, collator, batch_size=batch_size, num_workers=num_workers, bf16=case.bf16, device=device
    )
    whole_s = time.perf_counter() - started
    bare_s = run_bare(model, ready, num_batches, batch_size, bf16=case.bf16) * num_photos / (num_batches * batch_size)
    print(f"{case.key}, {batch_size}: {whole_s:.2f} s, of which the model {bare_s:.2f} s", file=sys.stderr)
    return whole_s, bare_s


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


def judge_target(cases: dict[str, dict[str, Any]], num_workers: int) -> str:
    """Whether at most 5 % of an evaluation pass outside the model, in words, and where readers are short."""
    over = {key: entry for key, entry in cases.items() if entry["share_outside_model"] > LARGEST_SHARE}
    target = f"At most {100 * LARGEST_SHARE:.0f} % are to pass outside the model"
    if not over:
        return f"{target}: met everywhere."
    words = [f"{target}: missed by {len(over)} of {len(cases)} rows."]
    for entry in over.values():
        decoded_per_s = max(1, num_workers) * entry["decoded_photos_per_core_s"]
        if decoded_per_s < entry["bare_photos_per_s"]:
            reason = "fewer than the model takes: more of them, on cores of their own, are what is missing"
        else:
            reason = "more than the model takes: the time goes into starting them, or into sharing cores"
        row = f"{entry['title']}, batches of {entry['batch_size']}"
        words.append(f"- {row}: the readers decode at most {decoded_per_s:,.0f} photos/s, {reason}.")
    return "\n".join(words)


def to_markdown(record: dict[str, Any]) -> str:
    """The page beside the JSON."""
    settings, machine = record["settings"], record["machine"]
    width, height = settings["size"]
    commit, where = (record["commit"] or "unknown")[:12], f"{machine['cpu']}, {machine['num_cores']} cores"
    load = f"load {machine['load_average_before']:.1f} before, {machine['load_average_after']:.1f} after"
    lines = [
        "# How much of an evaluation is inference",
        "",
        f"Written by `benchmarks/evaluation_speed.py` at commit `{commit}`; every round and the versions are in the "
        "JSON beside this page.",
        "",
        f"Photos in files, JPEGs of {width}x{height} and {record['mean_kilobytes']:.1f} KB in "
        f"the mean, with {settings['num_workers']} DataLoader worker(s). "
        f"{machine['device']}, {where}, {load}. Medians of {settings['rounds']} "
        "interleaved rounds. The whole is `predict_coordinates`, from the start of the workers to the gathered "
        "answers; the model alone gets batches that are ready on its device. Where that is the CPU, worker and model "
        "share the cores with each other and with whatever else runs: a share below 0 says that the model alone met "
        "more of it. A last batch that is not full is run eagerly by the whole, and counted in proportion alone.",
        "",
        "No rate holds the first batch, which loads kernels and, where it says compiled, compiles: a compilation that "
        "is not in torch's cache on disk takes longer than one that is, and every process waits for it once.",
        "",
        "| model | batch | photos | first batch, s | whole, photos/s | model alone, photos/s | outside the model, % | "
        "its rounds, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in record["cases"].values():
        shares = [100 * share for share in entry["share_outside_model_by_round"]]
        lines.append(
            f"| {entry['title']} | {entry['batch_size']} | {entry['num_photos']:,} | {entry['first_batch_s']:.1f} | "
            f"{entry['photos_per_s']:,.1f} | {entry['bare_photos_per_s']:,.1f} | "
            f"{100 * entry['share_outside_model']:.1f} | {min(shares):.1f} to {max(shares):.1f} |"
        )
    return "\n".join([*lines, "", judge_target(record["cases"], settings["num_workers"])]) + "\n"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--photos", type=int, default=128, help="of ViT-B's test set (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="WIDTH HEIGHT of the photos (500 375)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32], help="photos; one after another (8 32)")
    parser.add_argument("--compile", action="store_true", help="every model compiled, too")
    parser.add_argument("--num_workers", type=int, default=1, help="of the DataLoader (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[case.key for case in CASES], help="cases; all by default")
    output = Path("results/benchmarks/evaluation_speed.json")
    parser.add_argument("--output", type=Path, default=output, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    if too_small := [name for name in ("photos", "rounds") if getattr(arguments, name) < 1]:
        parser.error(f"--{too_small[0]} {getattr(arguments, too_small[0])}: expected at least 1.")
    if min(arguments.batch_sizes) < 1:
        parser.error(f"--batch_sizes {min(arguments.batch_sizes)}: expected at least 1.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
