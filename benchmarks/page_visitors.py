"""The page under a crowd: fifty visitors for a minute, then more at one moment than its queue holds.

    python benchmarks/page_visitors.py
    python benchmarks/page_visitors.py --visitors 10 --seconds 20 --output outputs/visitors.json

`app.py` serves a fresh model of the size of `make quick`, and is asked over HTTP as browsers ask it. A visitor sends a
photo of 1600x1200, looks at the answer, sends two more and leaves; somebody else comes. One photo in twenty is none,
and has to be refused with a sentence. Then `--rush` visitors send one at the same moment: the queue takes as many as it
has places, and the others have to be told. Visitors and page share the machine, so that the page alone is faster.
Takes three minutes. Writes the JSON, and a page and a picture beside it.
"""

import argparse
import asyncio
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import httpx
import numpy as np
import torch
from lasting.visitors import ANSWERED, FAILED, REFUSED, TOO_FULL, Crowd
from lasting.visitors_report import draw, to_markdown
from lasting.watch import Watch, look_at, processes_of
from PIL import Image
from recording import write_results

from geomae.errors import GeoMAEError, PredictionError
from geomae.provenance import find_commit, find_versions
from geomae.reporting.plots import save_figure
from machine import describe_machine
from modeling import GeoMAEConfig, GeoMAEForGeolocation

ROOT = Path(__file__).resolve().parents[1]
NUM_CELLS = [50, 200]  # as those of `make quick`
_MODEL: dict[str, Any] = {
    "image_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "head_type": "geocells",
    "head_hidden_sizes": [128],
}
_SETTINGS = ("visitors", "seconds", "pause_s", "photos_per_visit", "rush", "photo_size")


def main() -> None:
    """Serve the page, send the crowd, write what it met."""
    arguments = _parse_arguments()
    load_before = os.getloadavg()[0]
    photos = make_photos(arguments.photo_size)
    with tempfile.TemporaryDirectory() as name, serve(Path(name)) as (process, address):
        measured = measure(process.pid, address, photos, arguments)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": find_commit(),
        "versions": find_versions(("torch", "transformers", "gradio")),
        "machine": describe_machine(torch.device("cpu"), load_before),
        "settings": {name: getattr(arguments, name) for name in _SETTINGS},
        "photo_bytes": sorted(map(len, photos)),
        **measured,
    }
    write_results(arguments.output, record, to_markdown)
    save_figure(draw(record), arguments.output.with_suffix(".png"))


def make_photos(size: tuple[int, int]) -> list[bytes]:
    """Nineteen JPEGs of clouds of colours, and a file that is none."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(19):
        colours = Image.fromarray(rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        colours.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        photos.append(buffer.getvalue())
    return [*photos, b"\xff\xd8 not a photo"]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`app.py` with a fresh model, and where it is."""
    torch.manual_seed(0)
    model = GeoMAEForGeolocation(GeoMAEConfig(**_MODEL, num_geocells=NUM_CELLS))
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(20)  # so that posteriors differ from photo to photo
    model.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--model", str(folder / "model"), "--server_name", "127.0.0.1"]
    log, address = folder / "page.log", f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--server_port", str(port)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True
        )
        try:
            _wait_until_there(process, address, log)
            yield process, address
        finally:
            process.terminate()
            process.wait(30)
    if "Traceback" in (said := log.read_text()):
        print(f"the page's log has a traceback:\n{said[-3000:]}", file=sys.stderr)


def _wait_until_there(process: subprocess.Popen[str], address: str, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise PredictionError(f"app.py ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            httpx.get(address).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise PredictionError(f"app.py does not answer at {address}:\n{log.read_text()[-2000:]}")


def measure(pid: int, address: str, photos: list[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """A photo, the crowd, silence, the rush, and a photo again."""
    first = Crowd(address, photos)
    asyncio.run(first.rush(2))  # imports and caches
    before = look_around(pid)
    crowd, rush, last = (Crowd(address, photos) for _ in range(3))
    with Watch(pid, 0.5) as watch:
        began = time.perf_counter()
        stay = {"pause_s": arguments.pause_s, "photos_per_visit": arguments.photos_per_visit}
        asyncio.run(crowd.stay(arguments.visitors, arguments.seconds, **stay))
        seconds = time.perf_counter() - began
        time.sleep(arguments.silence_s)
        after_crowd = look_around(pid)
        asyncio.run(rush.rush(arguments.rush))
        time.sleep(arguments.silence_s)
        asyncio.run(last.rush(1))
        in_the_end = look_around(pid)
    return {
        "crowd": describe(crowd, seconds),
        "rush": describe(rush, None),
        "afterwards": describe(last, None),
        "holding": {"before": before, "after_the_crowd": after_crowd, "at_the_end": in_the_end},
        "samples": watch.samples,
        "asked": [asdict(asked) for asked in crowd.asked],
    }


def look_around(pid: int) -> dict[str, Any]:
    """What the page holds now."""
    holding = asdict(look_at(processes_of(pid)))
    return holding | {"memory_mib": holding["own_bytes"] / 2**20}


def describe(crowd: Crowd, seconds: float | None) -> dict[str, Any]:
    """How many photos were answered, how fast, and what the others were told."""
    outcomes = Counter(asked.outcome for asked in crowd.asked)
    waited = [asked.seconds for asked in crowd.asked if asked.outcome in (ANSWERED, REFUSED)]
    described: dict[str, Any] = {
        "num_visits": crowd.num_visits,
        "num_photos": len(crowd.asked),
        "outcomes": {outcome: outcomes[outcome] for outcome in (ANSWERED, REFUSED, TOO_FULL, FAILED)},
        "said": {outcome: _first_said(crowd, outcome) for outcome in (REFUSED, TOO_FULL, FAILED)},
    }
    if waited:
        ends = np.percentile(waited, [50, 95, 99]).tolist()
        described["latency_s"] = dict(zip(("p50", "p95", "p99"), ends, strict=True)) | {"most": max(waited)}
    if seconds is not None:
        described["photos_per_s"] = len(waited) / seconds
    return described


def _first_said(crowd: Crowd, outcome: str) -> str | None:
    return next((asked.said for asked in crowd.asked if asked.outcome == outcome), None)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50, help="at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="that they stay (%(default)s)")
    parser.add_argument("--pause_s", type=float, default=2.0, help="of a visitor after an answer (%(default)s)")
    parser.add_argument("--photos_per_visit", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--rush", type=int, default=150, help="visitors at one moment; queue: 64 (%(default)s)")
    parser.add_argument("--silence_s", type=float, default=20.0, help="before memory is looked at (%(default)s)")
    parser.add_argument("--photo_size", type=int, nargs=2, default=(1600, 1200), help="WIDTH HEIGHT (1600 1200)")
    output = Path("results/reliability/page_visitors.json")
    parser.add_argument(
        "--output", type=Path, default=output, help="JSON; the page and the picture lie beside it (%(default)s)"
    )
    arguments = parser.parse_args()
    for name, least in {"visitors": 1, "seconds": 1, "rush": 1, "photos_per_visit": 1}.items():
        if (value := getattr(arguments, name)) < least:
            parser.error(f"--{name} {value}: expected at least {least}.")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
