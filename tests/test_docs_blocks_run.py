"""Every block of README.md and docs/ that is not marked runs as it stands, page by page, in a copy of the checkout.

The copy holds what the pages presuppose: what `make demo` and `make quick` leave, made in a few steps, and small files
under the names that stand for a reader's own. The configurations of these two are shortened in it, and nothing else.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_blocks import PAGES, Block, blocks_of
from launching import ROOT
from source_files import msgpack_bytes, tar_bytes, write_csv, write_file

from geomae.data.photos import encode_jpeg

COPIED = [
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "app.py",
    "benchmarks",
    "configs",
    "docs",
    "geomae",
    "modeling",
    "model_cards",
    "pyproject.toml",
]
SHORT = {"max_steps": 8, "warmup_steps": 1, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
SHORT |= {"eval_steps": 4, "save_steps": 4, "logging_steps": 2, "reconstruction_steps": 4}
DEMO = """
DATA=outputs/demo/data CELLS=outputs/quick/geocells
python -m geomae.data earth --shared_data none --num_train 300 --num_validation 60 --num_test 60 --output_dir $DATA
python run_pretrain_mae.py configs/pretrain/demo.yaml
python run_finetune_geo.py configs/finetune/demo.yaml
python run_evaluate_geo.py configs/evaluate/demo.yaml
python -m geomae.geocells build --train_coordinates $DATA --kind kmeans --num_cells 50 200 --output_dir $CELLS
python run_finetune_geo.py configs/finetune/quick.yaml
"""
NUM_PHOTOS = 80


def environment(folder: Path) -> dict[str, str]:
    """That of a shell in which the tests' own environment is active and the checkout is that folder."""
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": binaries, "PYTHONPATH": str(folder), "ACCELERATE_USE_CPU": "true"}


def run(code: str, folder: Path, *, language: str = "bash") -> None:
    """Run a block in a fresh shell or interpreter that stands in a folder; what it printed explains a failure."""
    words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


def serve(code: str, folder: Path) -> None:
    """Start the page of a block, ask for it once, and stop it."""
    served = {"env": {**environment(folder), "PYTHONUNBUFFERED": "1"}, "stderr": subprocess.STDOUT, "text": True}
    printed = ""
    with subprocess.Popen(["bash", "-c", f"exec {code}"], cwd=folder, stdout=subprocess.PIPE, **served) as page:
        try:
            for line in page.stdout or ():
                printed += line
                if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                    with urllib.request.urlopen(address[0], timeout=60) as answer:
                        assert answer.status == 200
                    return
        finally:
            page.terminate()
    pytest.fail(f"{code} ended without an address:\n{printed[-6000:]}")


def shorten(config: Path) -> None:
    """Give a configuration fewer steps and smaller batches, where it has them."""
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({key: SHORT.get(key, value) for key, value in settings.items()}))


def write_readers_files(folder: Path) -> None:
    """Photos, tables and archives under the names that the pages use for a reader's own."""
    rng = np.random.default_rng(0)
    photos = [encode_jpeg(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8), 90) for _ in range(NUM_PHOTOS)]
    places = [(float(row[0]), float(row[1])) for row in rng.uniform((-55, -170), (65, 170), (600, 2))]
    for number, photo in enumerate(photos, start=1):
        write_file(folder / f"my_photos/{number}.jpg", photo)
    rows = [(f"{number}.jpg", *place) for number, place in enumerate(places[:NUM_PHOTOS], start=1)]
    write_csv(folder / "my_photos/coordinates.csv", "file,latitude,longitude", rows)
    write_csv(folder / "my_list.csv", "latitude,longitude", places)
    ids = [f"{number % 5:02x}/{number % 7:02x}/90558065{number:02d}.jpg" for number in range(NUM_PHOTOS)]
    mp16 = [(name, f"author {name}", *place, 1, 2) for name, place in zip(ids, places, strict=False)]
    write_csv(folder / "mp16_places365.csv", "IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label", mp16)
    records = [{"id": name, "image": photo} for name, photo in zip(ids, photos, strict=True)]
    write_file(folder / "mp16_shards/shard_0.msg", msgpack_bytes(records[:40]))
    write_file(folder / "mp16_shards/shard_1.msg", msgpack_bytes(records[40:]))
    write_file(folder / "mp16_urls.csv", "".join(f"{name},http://localhost/{name}\n" for name in ids))
    flat = [name.replace("/", "_") for name in ids]
    members = {f"mp16_data/{name}": photo for name, photo in zip(flat, photos, strict=True)}
    write_file(folder / "MP16-Pro/mp-16-images00", tar_bytes(members))
    pro = [(name, *row[1:]) for name, row in zip(flat, mp16, strict=True)]
    write_csv(folder / "MP16-Pro/metadata/MP16_Pro_places365.csv", "IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label", pro)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which `make demo` and `make quick` have run, shortened, with a reader's own files."""
    pytest.importorskip("cartopy")
    folder = tmp_path_factory.mktemp("checkout")
    for path in [*ROOT.glob("run_*.py"), *filter(Path.exists, map(ROOT.joinpath, COPIED))]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    for config in [*(folder / "configs").glob("*/demo.yaml"), folder / "configs/finetune/quick.yaml"]:
        shorten(config)
    write_readers_files(folder)
    run(DEMO, folder)
    return folder


def runnable(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.runs]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_blocks_of_a_page_run_as_they_stand(page: str, checkout: Path) -> None:
    for block in runnable(page):
        if block.code.startswith("python app.py"):  # it would run until somebody stops it
            serve(block.code, checkout)
        else:
            run(block.code, checkout, language=block.language)
