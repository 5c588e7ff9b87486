"""Does a long run lose anything? Pretraining and fine-tuning by the thousand steps, watched from outside.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 60 --only pretraining --output outputs/soak.json

The real scripts train a tiny model on tiny photos, so that a minute has as many steps as hours of a real run: with a
reader of its own, and every `--every_steps` steps an evaluation, pictures and a checkpoint, of which two are kept. Once
a second somebody looks at all of their processes: memory, open files, threads, shared memory. A line through ten
stretches of the run says how much each grows in 1,000 steps. Takes twelve minutes, and a core and a half. Writes the
JSON, and a page and a picture beside it.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import torch
from lasting.counted_run import NUM_BYTES
from lasting.growth import fit_growth
from lasting.soak_report import draw, summarise, to_markdown
from lasting.tiny_photos import draw_coordinates, make_jpegs
from lasting.watch import Watch
from recording import write_results

from geomae.data.layout import shard_name
from geomae.data.shards import PhotoRow, write_shard
from geomae.errors import GeoMAEError, PredictionError
from geomae.provenance import find_commit, find_versions
from geomae.reporting.plots import save_figure
from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
RUNS = {"pretraining": "run_pretrain_mae.py", "fine-tuning": "run_finetune_geo.py"}
MOST_SAMPLES = 250  # that are kept, evenly spaced: for the picture; the lines go through all
WATCHED = ("own_bytes", "rss_bytes", "num_files", "num_threads", "num_processes", "shared_bytes", "num_shared")
_SETTINGS = ("minutes", "every_steps", "num_workers", "photos")
_MODEL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_OF_RUN: dict[str, dict[str, Any]] = {
    "pretraining": {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    },
    "fine-tuning": {
        "head_type": "vmf_mixture",
        "num_mixture_components": 8,
        "head_hidden_sizes": [16],
        "ema_decay": 0.99,
    },
}


def main() -> None:
    """Pack photos, let each script run for its minutes, write what was seen."""
    arguments = _parse_arguments()
    load_before = os.getloadavg()[0]
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack(folder / "photos", arguments.photos)
        for title in arguments.only:
            runs[title] = soak(title, folder, arguments)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": find_commit(),
        "versions": find_versions(("torch", "transformers", "datasets", "accelerate")),
        "machine": describe_machine(torch.device("cpu"), load_before),
        "settings": {name: getattr(arguments, name) for name in _SETTINGS},
        "runs": runs,
    }
    write_results(arguments.output, record, to_markdown)
    save_figure(draw(record), arguments.output.with_suffix(".png"))


def pack(folder: Path, num_photos: int) -> None:
    """Photos to train on in shards, and a tenth as many to validate on."""
    folder.mkdir()
    jpegs = make_jpegs(200, side=16)
    for split, count in (("train", num_photos), ("validation", num_photos // 10)):
        places = draw_coordinates(count, seed=len(split))
        rows = [
            PhotoRow(f"{split}-{number}", jpegs[number % len(jpegs)], *map(float, places[number]))
            for number in range(count)
        ]
        for shard in range(2):
            write_shard(folder / shard_name(split, shard, 2), rows[shard::2], optional_columns=(), digest="soak")


def soak(title: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let a script run for its minutes; what was seen of it, and what grows."""
    counter = folder / f"{title}.step"
    counter.write_bytes(bytes(NUM_BYTES))
    log = folder / f"{title}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            _command(title, counter, folder, arguments),
            cwd=ROOT,
            env=os.environ | {"HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            with Watch(process.pid, 1.0, lambda: {"step": _read_step(counter)}) as watch:
                process.wait()
        finally:
            process.kill()
    if process.returncode:
        raise PredictionError(f"{title} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    samples = [sample for sample in watch.samples if sample["step"]]
    last = samples[-1]["step"]
    training = [sample for sample in samples if sample["step"] < last]  # it ends with other work
    steps = [sample["step"] for sample in training]
    growth = {name: fit_growth(steps, [sample[name] for sample in training]) for name in WATCHED}
    print(f"{title}: {last:,} steps, {growth['own_bytes']['per_1000_steps']:,.0f} bytes per 1,000", file=sys.stderr)
    seconds = training[-1]["seconds"] - training[0]["seconds"]
    shown = training[:: math.ceil(len(training) / MOST_SAMPLES)]
    return {"num_steps": last, "seconds": seconds, **summarise(growth), "growth": growth, "samples": shown}


def _read_step(counter: Path) -> int:
    return int.from_bytes(counter.read_bytes(), "little")


def _command(title: str, counter: Path, folder: Path, arguments: argparse.Namespace) -> list[str]:
    every = arguments.every_steps
    options = {
        "output_dir": folder / title,
        "data_dirs": [str(folder / "photos")],
        "dataloader_num_workers": arguments.num_workers,
        "max_steps": 10_000_000,
        "logging_steps": 50,
        "disable_tqdm": True,
        "save_total_limit": 2,
        "report_to": "tensorboard",
        "reconstruction_steps": every,
        "prediction_maps": True,
        "load_best_model_at_end": False,
        **dict.fromkeys(("eval_steps", "save_steps"), every),
        **_MODEL,
        **_OF_RUN[title],
    }
    configuration = f"configs/{'pretrain' if title == 'pretraining' else 'finetune'}/smoke.yaml"
    command = [sys.executable, "benchmarks/lasting/counted_run.py", str(counter), str(60 * arguments.minutes)]
    command += [RUNS[title], configuration]
    return command + [part for name, value in options.items() for part in (f"--{name}", str(value))]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0, help="of each run (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="runs; both by default")
    parser.add_argument("--every_steps", type=int, default=500, help="evaluation, pictures, checkpoint (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="readers of the run (%(default)s)")
    parser.add_argument("--photos", type=int, default=4000, help="to train on (%(default)s)")
    output = Path("results/reliability/soak.json")
    parser.add_argument(
        "--output", type=Path, default=output, help="JSON; the page and the picture lie beside it (%(default)s)"
    )
    arguments = parser.parse_args()
    for name, least in {"minutes": 0.1, "every_steps": 1, "num_workers": 0, "photos": 100}.items():
        if (value := getattr(arguments, name)) < least:
            parser.error(f"--{name} {value}: expected at least {least}.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
