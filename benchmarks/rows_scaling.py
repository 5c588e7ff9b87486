"""From ten thousand photos to a million: are time and memory straight lines?

    python benchmarks/rows_scaling.py
    python benchmarks/rows_scaling.py --rows 1000 3000 10000 --only pack epoch --output outputs/rows.json

Tiny JPEGs lie in msgpack shards as MP-16's photos do, with a table of coordinates and photographers. Every number of
them is packed, read for an epoch without a model, resumed in the middle of it, judged from a file of answers, and
answered by a tiny model in both ways, each by the command that its users give, in a process of its own. Takes about
half an hour on two cores, and 2 GB of the temporary folder. Writes the JSON, and a page and a picture beside it, after
every number of rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lasting.rows_report import draw, summarise, to_markdown
from lasting.tiny_photos import draw_coordinates, make_jpegs, photo_ids, write_msgpack, write_table
from lasting.watch import Watch
from recording import write_results

from geomae.errors import GeoMAEError, PredictionError
from geomae.provenance import find_commit, find_versions
from geomae.reporting.plots import save_figure
from machine import describe_machine
from modeling import GeoMAEConfig, GeoMAEForGeolocation

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "head_hidden_sizes": [16],
    "head_type": "vmf_mixture",
    "num_mixture_components": 8,
}


def pack(folder: Path) -> list[str]:
    """Index the shards, check every photo, write parquet."""
    source = [str(folder / "photos"), "--csv", str(folder / "photos.csv"), "--output_dir", str(folder / "packed")]
    return [PYTHON, "-m", "geomae.data", "pack", *source, "--num_processes", "1"]


def epoch(folder: Path) -> list[str]:
    """All photos once, with one reader."""
    return [PYTHON, "benchmarks/lasting/reading.py", "epoch", str(folder / "packed")]


def resume(folder: Path) -> list[str]:
    """The first batch of a run that was stopped in the middle of its epoch."""
    return [PYTHON, "benchmarks/lasting/reading.py", "resume", str(folder / "packed")]


def judge(folder: Path) -> list[str]:
    """A file of answers against the truths, beside the baselines, with intervals."""
    asked = ["--predictions", str(folder / "answers.parquet"), "--output_dir", str(folder / "judged")]
    return [PYTHON, "run_evaluate_geo.py", *asked, *_test_set(folder)]


def evaluate(folder: Path) -> list[str]:
    """The same with a model's answers."""
    asked = ["--checkpoint", str(folder / "model"), "--output_dir", str(folder / "evaluated")]
    return [PYTHON, "run_evaluate_geo.py", *asked, *_test_set(folder), "--per_device_eval_batch_size", "256"]


def predict(folder: Path) -> list[str]:
    """A model's answers with radii and names of places."""
    photos = [str(folder / "packed"), "--split", "train", "--model", str(folder / "model")]
    output = ["--output_file", str(folder / "answered.parquet"), "--per_device_eval_batch_size", "256"]
    return [PYTHON, "-m", "geomae.predict", *photos, *output]


def _test_set(folder: Path) -> list[str]:
    training = ["--train_coordinates", str(folder / "training.csv")]
    return ["--test_set", str(folder / "packed"), "--split", "train", *training]


STAGES: dict[str, Callable[[Path], list[str]]] = {
    stage.__name__: stage for stage in (pack, epoch, resume, judge, evaluate, predict)
}


def main() -> None:
    """Every stage at every number of rows."""
    arguments = _parse_arguments()
    load_before = os.getloadavg()[0]
    record: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": find_commit(),
        "versions": find_versions(("torch", "transformers", "datasets", "pyarrow")),
        "settings": {"jpeg_side": arguments.jpeg_side},
        "stages": {name: {"rows": {}} for name in arguments.only},
    }
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_inputs(folder, num_rows, arguments.jpeg_side)
            for stage in arguments.only:
                record["stages"][stage]["rows"][str(num_rows)] = measure(stage, num_rows, folder)
        record["machine"] = describe_machine(torch.device("cpu"), load_before)
        for entry in record["stages"].values():
            entry |= summarise(entry["rows"])
        write_results(arguments.output, record, to_markdown)
        save_figure(draw(record), arguments.output.with_suffix(".png"))


def make_inputs(folder: Path, num_rows: int, jpeg_side: int) -> None:
    """Photos and their table, answers that are somewhere near, coordinates of other photos, a model."""
    places = draw_coordinates(num_rows)
    write_msgpack(folder / "photos", num_rows, make_jpegs(300, jpeg_side))
    write_table(folder / "photos.csv", places)
    np.savetxt(folder / "training.csv", draw_coordinates(num_rows, seed=1), "%.6f", ",", header="LAT,LON", comments="")
    answers = np.clip(places + np.random.default_rng(2).normal(0, 5, places.shape), (-89, -179), (89, 179))
    columns = {"id": list(photo_ids(num_rows)), "latitude": answers[:, 0], "longitude": answers[:, 1]}
    pq.write_table(pa.table(columns), folder / "answers.parquet")
    torch.manual_seed(0)
    GeoMAEForGeolocation(GeoMAEConfig(**TINY)).save_pretrained(folder / "model")


def measure(stage: str, num_rows: int, folder: Path) -> dict[str, Any]:
    """Run a stage's command; its seconds, those of the processors, and the most memory of all its processes."""
    # threads of others that wait for a core would count as ours
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment["GEOMAE_CACHE"] = str(folder / "cache")
    log = folder / f"{stage}.log"
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(STAGES[stage](folder), cwd=ROOT, env=environment, stdout=file, stderr=file)
        with Watch(process.pid, 0.2) as watch:
            _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise PredictionError(f"{stage} of {num_rows:,} rows failed:\n{log.read_text()[-2000:]}")
    result = {
        "seconds": time.perf_counter() - started,
        "core_seconds": used.ru_utime + used.ru_stime,
        "memory_mib": watch.peak("own_bytes") / 2**20,
        "largest_process_bytes": watch.peak("largest_bytes"),
        **{f"peak_{name}": watch.peak(name) for name in ("rss_bytes", "own_bytes", "num_files", "num_threads")},
    }
    if stage in ("epoch", "resume"):
        result |= {f"said_{name}": value for name, value in json.loads(log.read_text().splitlines()[-1]).items()}
    megabytes = result["peak_own_bytes"] / 2**20
    print(f"{stage}, {num_rows:,} rows: {result['seconds']:.1f} s, {megabytes:,.0f} MiB", file=sys.stderr, flush=True)
    return result


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    rows = [10_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=rows, help=f"({' '.join(map(str, rows))})")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), help="stages; all by default")
    parser.add_argument("--jpeg_side", type=int, default=16, help="pixels of a photo (%(default)s)")
    output = Path("results/reliability/rows_scaling.json")
    parser.add_argument(
        "--output", type=Path, default=output, help="JSON; the page and the picture lie beside it (%(default)s)"
    )
    arguments = parser.parse_args()
    if min(arguments.rows) < 1000 or arguments.jpeg_side < 8:
        parser.error(f"--rows {min(arguments.rows)} --jpeg_side {arguments.jpeg_side}: expected at least 1000 and 8.")
    if "pack" not in arguments.only:
        parser.error("--only: every other stage needs what pack writes; name pack too.")
    arguments.rows = sorted(set(arguments.rows))
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
