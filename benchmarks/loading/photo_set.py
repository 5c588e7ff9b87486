"""A set of JPEGs like MP-16's, cut from real photos, and the same bytes in every format that a pipeline reads."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import datasets
import numpy as np

from geomae.data.photos import decode_photo, encode_jpeg
from geomae.errors import ConfigError, SourceError

__all__ = ["Photo", "PhotoSet", "make_photo_set"]

_NUM_SHARDS = 4
_CROP_SHARE = (0.3, 1.0)  # of the photo that a cut covers
# Flickr sharpens what it shrinks. With this much of it, and without the flattest sources, 427x320 at quality 75 comes
# to 28 KB, the mean of MP-16; plain area averaging of the same photos comes to 21 KB.
_SHARPENING = 0.5
_FLATTEST_LEFT_OUT = 0.25
_SEED = 0


@dataclass(frozen=True)
class Photo:
    """JPEG bytes with a random place, as every format stores them."""

    name: str
    jpeg: bytes
    latitude: float
    longitude: float


@dataclass(frozen=True)
class PhotoSet:
    """Where the photos lie, in each format; formats whose package is not installed are absent."""

    folder: Path
    width: int
    height: int
    quality: int
    num_photos: int

    @property
    def jpegs(self) -> Path:
        """Folder of single JPEGs."""
        return self.folder / "jpegs"

    @property
    def packed(self) -> Path:
        """Parquet shards of GeoMAE."""
        return self.folder / "geomae"

    @property
    def arrow(self) -> Path:
        """A table that `datasets.load_from_disk` maps into memory."""
        return self.folder / "arrow"

    @property
    def msgpack(self) -> Path:
        """Files of concatenated msgpack maps."""
        return self.folder / "msgpack"

    @property
    def tars(self) -> Path:
        """Tar files of WebDataset."""
        return self.folder / "tars"

    @property
    def mds(self) -> Path:
        """Shards of MosaicML streaming."""
        return self.folder / "mds"

    def read(self) -> Iterator[Photo]:
        """Every photo, in the order of its name."""
        with (self.jpegs / "coordinates.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                jpeg = (self.jpegs / row["file"]).read_bytes()
                yield Photo(row["file"], jpeg, float(row["latitude"]), float(row["longitude"]))

    def mean_kilobytes(self) -> float:
        """Mean size of a JPEG in units of 1,000 bytes."""
        return sum(len(photo.jpeg) for photo in self.read()) / self.num_photos / 1000


def make_photo_set(
    shared_data: Path, cache_dir: Path, *, width: int, height: int, quality: int, num_photos: int
) -> PhotoSet:
    """Make what the cache does not hold yet; our own shards are packed anew every time, as our packer may have changed.

    Raises:
        SourceError: `shared_data` holds no photos.
        ConfigError: fewer photos than a shard needs.
    """
    if num_photos < _NUM_SHARDS:
        raise ConfigError(f"--photos {num_photos}: expected at least {_NUM_SHARDS}, one for each shard.")
    folder = cache_dir / f"photos_{width}x{height}_q{quality}_n{num_photos}"
    photos = PhotoSet(folder, width, height, quality, num_photos)
    _make_once(photos.jpegs, partial(_cut_jpegs, photos, shared_data / "photos"))
    _make_once(photos.arrow, partial(_write_arrow, photos))
    for package, path, write in (
        ("msgpack", photos.msgpack, _write_msgpack),
        ("webdataset", photos.tars, _write_tars),
        ("streaming", photos.mds, _write_mds),
    ):
        if importlib.util.find_spec(package) is not None:
            _make_once(path, partial(write, photos))
    shutil.rmtree(photos.packed, ignore_errors=True)
    _pack(photos)
    return photos


def _make_once(path: Path, write: Callable[[Path], None]) -> None:
    """Write into a folder beside `path` that gets its name when it is whole."""
    if path.exists():
        return
    print(f"making {path}", file=sys.stderr)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cut_jpegs(photos: PhotoSet, source_dir: Path, target: Path) -> None:
    sources = _read_sources(source_dir, photos)
    rng = np.random.default_rng(_SEED)
    with (target / "coordinates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "latitude", "longitude"])
        for index in range(photos.num_photos):
            name = f"{index:06d}.jpg"
            cut = _cut(sources[index % len(sources)], photos, rng)
            (target / name).write_bytes(encode_jpeg(cut, photos.quality))
            writer.writerow([name, round(rng.uniform(-90, 90), 5), round(rng.uniform(-180, 180), 5)])


def _read_sources(source_dir: Path, photos: PhotoSet) -> list[np.ndarray]:
    """The real photos but the flattest, which compress to far less than a photo of MP-16."""
    files = sorted(path for path in source_dir.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SourceError(
            f"{source_dir} holds no JPEGs to cut the photos from. Pass --shared_data, or set GEOMAE_SHARED_DATA to the "
            "folder that holds photos/."
        )
    sources = [decode_photo(file.read_bytes(), min_short_side=0) for file in files]
    sizes = [len(encode_jpeg(_shrink(source, photos), photos.quality)) for source in sources]
    kept = np.argsort(sizes, kind="stable")[int(len(sources) * _FLATTEST_LEFT_OUT) :]
    return [sources[index] for index in sorted(kept)]


def _cut(source: np.ndarray, photos: PhotoSet, rng: np.random.Generator) -> np.ndarray:
    """A random part in the shape of the set, mirrored half of the time, shrunk and sharpened."""
    source_height, source_width = source.shape[:2]
    largest = min(source_height, source_width * photos.height / photos.width)
    height = max(int(largest * rng.uniform(*_CROP_SHARE) ** 0.5), 1)
    width = max(min(round(height * photos.width / photos.height), source_width), 1)
    top, left = rng.integers(source_height - height + 1), rng.integers(source_width - width + 1)
    small = _shrink(source[top : top + height, left : left + width], photos)
    blurred = cv2.GaussianBlur(small, (0, 0), 1.0)
    sharp = cv2.addWeighted(small, 1 + _SHARPENING, blurred, -_SHARPENING, 0)
    return sharp[:, ::-1] if rng.random() < 0.5 else sharp


def _shrink(photo: np.ndarray, photos: PhotoSet) -> np.ndarray:
    return cv2.resize(photo, (photos.width, photos.height), interpolation=cv2.INTER_AREA)


def _pack(photos: PhotoSet) -> None:
    """Through the command line that users pack with; at this short side it keeps the bytes of each JPEG."""
    command = [sys.executable, "-m", "geomae.data", "pack", str(photos.jpegs)]
    command += ["--csv", str(photos.jpegs / "coordinates.csv"), "--output_dir", str(photos.packed)]
    command += ["--short_side", str(min(photos.width, photos.height))]
    command += ["--photos_per_shard", str(photos.num_photos // _NUM_SHARDS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SourceError(f"`geomae.data pack` failed on {photos.jpegs}:\n{done.stderr}")


def _write_arrow(photos: PhotoSet, target: Path) -> None:
    rows = list(photos.read())
    columns = {
        "image": [{"bytes": row.jpeg, "path": row.name} for row in rows],
        "latitude": [row.latitude for row in rows],
        "longitude": [row.longitude for row in rows],
    }
    number = datasets.Value("float64")
    features = datasets.Features(image=datasets.Image(), latitude=number, longitude=number)
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(target, num_shards=_NUM_SHARDS)


def _write_msgpack(photos: PhotoSet, target: Path) -> None:
    import msgpack

    rows = list(photos.read())
    for shard in range(_NUM_SHARDS):
        with (target / f"shard_{shard}.msg").open("wb") as file:
            for row in rows[shard::_NUM_SHARDS]:
                record = {"id": row.name, "image": row.jpeg, "latitude": row.latitude, "longitude": row.longitude}
                file.write(msgpack.packb(record))


def _write_tars(photos: PhotoSet, target: Path) -> None:
    import webdataset

    rows = list(photos.read())
    for shard in range(_NUM_SHARDS):
        with webdataset.TarWriter(str(target / f"{shard:05d}.tar")) as writer:
            for row in rows[shard::_NUM_SHARDS]:
                coordinates = json.dumps({"latitude": row.latitude, "longitude": row.longitude}).encode()
                writer.write({"__key__": Path(row.name).stem, "jpg": row.jpeg, "json": coordinates})


def _write_mds(photos: PhotoSet, target: Path) -> None:
    import streaming

    columns = {"image": "bytes", "latitude": "float64", "longitude": "float64"}
    with streaming.MDSWriter(out=str(target), columns=columns) as writer:
        for row in photos.read():
            writer.write({"image": row.jpeg, "latitude": row.latitude, "longitude": row.longitude})
