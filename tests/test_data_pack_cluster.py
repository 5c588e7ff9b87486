"""Packing that is spread: over a Ray cluster, over processes that are killed, and within bounded memory."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geomae.data.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
MakePhoto = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path, make_photo: MakePhoto) -> Path:
    """Sixty photos of twelve authors, two of them damaged."""
    for number in range(60):
        make_photo(f"photos/{number:02d}.jpg", seed=number, width=330, height=300)
    for number in (7, 31):
        (tmp_path / f"photos/{number:02d}.jpg").write_bytes(b"\xff\xd8 gone bad")
    lines = [f"{number:02d}.jpg,author {number % 12},{number + 1},{-number}" for number in range(60)]
    (tmp_path / "photos.csv").write_text("IMG_ID,AUTHOR,LAT,LON\n" + "\n".join(lines))
    return tmp_path / "photos"


def options(output_dir: Path) -> list[str]:
    return ["--output_dir", str(output_dir), "--photos_per_shard", "7", "--validation_fraction", "0.3"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*")}


@pytest.fixture
def ray_of_two_workers() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _memory=2**30, object_store_memory=2**27)
    yield
    ray.shutdown()


@pytest.mark.slow  # Ray takes half a minute to start
@pytest.mark.usefixtures("ray_of_two_workers")
def test_ray_writes_the_bytes_of_one_process(photos: Path, tmp_path: Path) -> None:
    assert main(["pack", str(photos), *options(tmp_path / "alone"), "--num_processes", "1"]) == 0
    assert main(["pack", str(photos), *options(tmp_path / "ray"), "--ray", "local"]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


def test_ray_that_is_not_installed_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["pack", str(photos), *options(tmp_path / "out"), "--ray"]) == 2
    assert "pip install ray" in capsys.readouterr().err


@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_packing_goes_on_without_losing_or_doubling_a_photo(
    photos: Path, tmp_path: Path, num_processes: int
) -> None:
    command = [sys.executable, "-m", "geomae.data", "pack", str(photos), *options(tmp_path / "out")]
    command += ["--num_processes", str(num_processes)]
    for num_finished in (1, 3):  # killed twice, further on each time
        victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while len(list((tmp_path / "out").glob("*.parquet"))) < num_finished and time.monotonic() < deadline:
            time.sleep(0.002)
        workers = psutil.Process(victim.pid).children() if victim.poll() is None else []
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        psutil.wait_procs(workers, timeout=30)
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert len(finished) >= 3
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert main(["pack", str(photos), *options(tmp_path / "unbroken"), "--num_processes", "1"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    ids = [name for file in (tmp_path / "out").glob("*.parquet") for name in pq.read_table(file)["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 58
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sorted(photo["file"] for photo in manifest["bad"]) == ["07.jpg", "31.jpg"]


MEASURE = """
import re, sys
from geomae.data.pack import PhotoPacker
from geomae.errors import DamagedPhotoError

def peak_kib():  # getrusage begins with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak_kib()
try:
    PhotoPacker().pack_bytes(open(sys.argv[1], "rb").read())
    print("packed", end=" ")
except DamagedPhotoError as error:
    print("refused", end=" ")
print((peak_kib() - before) // 1024)
"""


def measure(photo: Path) -> tuple[str, int]:
    """What becomes of a photo in a process of its own, and the MiB that it took."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(photo)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    outcome, megabytes = done.stdout.split()
    return outcome, int(megabytes)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "jpg"])
def test_decompression_bomb_is_refused_before_its_pixels_are_made(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.{suffix}"
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.new("L", (12_000, 12_000)).save(path, **options)  # 144 million pixels: 432 MB as RGB
    outcome, megabytes = measure(path)
    assert outcome == "refused"
    assert megabytes < 50


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_largest_photo_that_is_allowed_stays_below_its_bound(tmp_path: Path, mode: str) -> None:
    """100 million pixels with transparency: 400 MB as Pillow keeps them, 300 MB as RGB."""
    path = tmp_path / "large.png"
    Image.new(mode, (10_000, 10_000)).save(path, compress_level=1)
    outcome, megabytes = measure(path)
    assert outcome == "packed"
    assert megabytes < 1000


@pytest.mark.parametrize("order", ["mixed", "source"])
def test_order_is_that_of_the_source_where_it_is_asked_for(photos: Path, tmp_path: Path, order: str) -> None:
    assert main(["pack", str(photos), "--output_dir", str(tmp_path / "out"), "--order", order]) == 0
    (file,) = (tmp_path / "out").glob("*.parquet")
    ids = pq.read_table(file)["id"].to_pylist()
    assert (ids == sorted(ids)) == (order == "source")
    assert len(ids) == 58


def test_bytes_of_a_photo_are_those_of_the_archive_it_comes_from(photos: Path, tmp_path: Path) -> None:
    """The same photos from a folder and from a zip give the same shards, manifest apart."""
    import zipfile

    (tmp_path / "zips").mkdir()
    with zipfile.ZipFile(tmp_path / "zips/00.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(photos.iterdir()):
            archive.write(file, file.name)
    table = ["--csv", str(photos.with_suffix(".csv"))]
    for source, out in ((photos, "a"), (tmp_path / "zips", "b")):
        assert main(["pack", str(source), "--output_dir", str(tmp_path / out), *table, "--num_processes", "1"]) == 0
    tables = [pq.read_table(next((tmp_path / out).glob("*.parquet"))) for out in ("a", "b")]
    assert tables[0].equals(tables[1])


def test_inspect_says_what_a_source_holds(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with photos.with_suffix(".csv").open("a") as file:
        file.write("\ngone.jpg,someone,1,1\nnowhere.jpg,someone,0,0")
    assert main(["inspect", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert "photos of photos with coordinates of photos.csv: kind folder, 60 photos" in printed
    assert "known of them: latitude, longitude, author" in printed
    assert "left out         1: its coordinates are (0, 0)" in printed
    assert "left out gone.jpg: the table names it, but there is no such photo" in printed


def test_what_the_source_lacks_is_counted_in_the_manifest_and_stops_the_run_above_the_share(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with photos.with_suffix(".csv").open("a") as file:
        file.write("\n" + "\n".join(f"gone{number}.jpg,someone,1,1" for number in range(10)))
    assert main(["pack", str(photos), *options(tmp_path / "out")]) == 2
    assert "10 of 70 photos cannot be used (photos of photos with coordinates" in capsys.readouterr().err
    assert main(["pack", str(photos), *options(tmp_path / "out"), "--max_bad_fraction", "0.2"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["num_bad"] == 12
    counts = manifest["splits"]["train"]["num_bad_by_reason"]
    assert counts["the table names it, but there is no such photo"] == 10


def test_sixteen_bit_and_float_photos_are_stored_with_their_greys(tmp_path: Path) -> None:
    from geomae.data.pack import PhotoPacker

    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    with Image.open(io.BytesIO(PhotoPacker().pack_bytes(buffer.getvalue()))) as stored:
        greys = np.asarray(stored.convert("L")).astype(int)
    assert np.abs(greys - (ramp >> 8)).mean() < 3
