"""A stand-in for photos: JPEG crops of a world picture, cut at given coordinates.

The question "where on Earth is this patch of ground?" needs no download and has the real answer's shape. It says
nothing about accuracy on photos; it does tell methods that learn from methods that do not.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from geomae.data.layout import shard_name
from geomae.data.manifest import refuse_other_run, write_manifest
from geomae.data.photo_index import OPTIONAL_COLUMNS
from geomae.data.photos import encode_jpeg
from geomae.data.shards import PhotoRow, ShardTask, build_shards, digest_of, only_run
from geomae.errors import ConfigError, SourceError
from geomae.geography import EARTH_RADIUS_KM, unit_vectors

__all__ = ["EarthCutter", "EarthPicture", "EarthSplit", "default_extent_km", "pack_earth"]

MAX_EXTENT_KM = 12_000.0  # a tangent plane shows less than a hemisphere, and stretches towards its edge

_WRAP_COLUMNS = 4  # copied over the date line, so that interpolation finds its neighbours
_DEFAULT_EXTENT_PIXELS = (40, 200)  # picture pixels across a crop: some detail at least, some context at most
_WIDEST_DEFAULT_KM = 5000.0


class EarthPicture:
    """An equirectangular picture of the whole Earth: left edge 180 W, top edge 90 N.

    Where a crop's pixel is larger than the picture's, it is cut from a copy shrunk by powers of two, in each direction
    on its own: towards the poles the picture's pixels become narrow, but not low.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        """Take `(H, 2H, 3)` uint8 RGB pixels."""
        height, width = pixels.shape[:2]
        if abs(width - 2 * height) > 0.01 * width:
            raise SourceError(
                f"the picture of the Earth has {width} x {height} pixels; an equirectangular picture of the whole "
                "Earth is twice as wide as it is high."
            )
        self.km_per_pixel = math.pi * EARTH_RADIUS_KM / height
        self._levels = {(0, 0): pixels}

    @classmethod
    def open(cls, file: str | Path) -> "EarthPicture":
        """Read a JPEG or PNG.

        Raises:
            SourceError: there is no such picture, or it is not twice as wide as high.
        """
        try:
            pixels = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
        except cv2.error:  # of more than 2**30 pixels
            pixels = None
        if pixels is None:
            raise SourceError(
                f"{file} is not a picture that OpenCV can read; expected a JPEG or PNG of the whole Earth, of at most "
                "2**30 pixels."
            )
        return cls(pixels)

    def crop(
        self, latitude_deg: float, longitude_deg: float, *, image_size: int, extent_km: float, heading_deg: float = 0.0
    ) -> np.ndarray:
        """The view straight down at a point, on the plane that touches the Earth there.

        Args:
            latitude_deg: of the crop's centre.
            longitude_deg: of the crop's centre.
            image_size: pixels of a side.
            extent_km: length on the ground of the line from the middle of one edge to the middle of the opposite one.
            heading_deg: compass direction of the crop's upper edge: 0 has north up, 90 has east up.

        Returns:
            `(image_size, image_size, 3)` uint8 RGB.

        Source: Snyder (1987), "Map projections: a working manual", USGS 1395, chapter 22 (gnomonic projection).
        """
        latitude, longitude = _tangent_grid(latitude_deg, longitude_deg, image_size, extent_km, heading_deg)
        columns, rows = self._shrink_steps(latitude_deg, extent_km, extent_km / image_size)
        level = self._level(columns, rows)
        height, width = level.shape[0], level.shape[1] - 2 * _WRAP_COLUMNS
        x = np.mod((longitude + math.pi) * (width / (2 * math.pi)) - 0.5, width) + _WRAP_COLUMNS
        y = (math.pi / 2 - latitude) * (height / math.pi) - 0.5
        return cv2.remap(level, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

    def _shrink_steps(self, latitude_deg: float, extent_km: float, km_per_crop_pixel: float) -> tuple[int, int]:
        """How often to halve the picture's width and height so that its pixels match the crop's."""
        ratio = km_per_crop_pixel / self.km_per_pixel
        # a crop that holds a pole has pixels of every width: judge by those half-way to its edge
        narrowing = max(math.cos(math.radians(latitude_deg)), math.sin(extent_km / (4 * EARTH_RADIUS_KM)))
        return max(0, round(math.log2(ratio / narrowing))), max(0, round(math.log2(ratio)))

    def _level(self, columns: int, rows: int) -> np.ndarray:
        """The picture halved `columns` and `rows` times, with a few columns wrapped around at both sides."""
        key = (columns + 1, rows + 1)  # (0, 0) is the picture itself, without the wrapped columns
        if key not in self._levels:
            pixels = self._levels[0, 0]
            size = max(8, pixels.shape[1] >> columns), max(4, pixels.shape[0] >> rows)
            shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            wrap = _WRAP_COLUMNS
            self._levels[key] = cv2.copyMakeBorder(shrunk, 0, 0, wrap, wrap, cv2.BORDER_WRAP)
        return self._levels[key]


def _tangent_grid(
    latitude_deg: float, longitude_deg: float, image_size: int, extent_km: float, heading_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude, in radians, of the pixel centres of a crop; two `(image_size, image_size)` float32."""
    if not 0 < extent_km <= MAX_EXTENT_KM:
        raise ConfigError(f"extent_km={extent_km:g}: expected more than 0 and at most {MAX_EXTENT_KM:g} km.")
    center = unit_vectors((latitude_deg, longitude_deg))
    longitude, heading = math.radians(longitude_deg), math.radians(heading_deg)
    east = np.array([-math.sin(longitude), math.cos(longitude), 0.0])
    north = np.cross(center, east)
    up = math.cos(heading) * north + math.sin(heading) * east
    right = math.cos(heading) * east - math.sin(heading) * north
    half_width = math.tan(extent_km / (2 * EARTH_RADIUS_KM))
    offsets = ((np.arange(image_size) + 0.5) * (2 / image_size) - 1) * half_width
    # (1, S, 1) * (3,) + (S, 1, 1) * (3,) -> (S, S, 3)
    points = center + offsets[None, :, None] * right - offsets[:, None, None] * up
    x, y, z = np.moveaxis(points.astype(np.float32), -1, 0)
    return np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)


def default_extent_km(picture: EarthPicture) -> tuple[float, float]:
    """40 to 200 picture pixels: about 300 to 1500 km for a picture 5,400 pixels wide; 5000 km at most."""
    low, high = (pixels * picture.km_per_pixel for pixels in _DEFAULT_EXTENT_PIXELS)
    return min(low, _WIDEST_DEFAULT_KM), min(high, _WIDEST_DEFAULT_KM)


@dataclass(frozen=True)
class EarthSplit:
    """Where to cut the crops of one split; `ids` and the `optional` columns have one entry a point, degrees."""

    name: str
    latitude: np.ndarray
    longitude: np.ndarray
    ids: Sequence[str]
    optional: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class EarthCutter:
    """Turns coordinates into photos. Each is a pure function of (seed, split, index), in whatever process it is cut."""

    picture_file: str
    image_size: int = 96  # pixels of a side
    extent_km: tuple[float, float] = (300.0, 1500.0)  # smallest and largest view, drawn log-uniformly
    rotation_deg: float = 180.0  # headings are drawn from -rotation to rotation; 0 keeps north up
    light: float = 0.2  # strength of the change of brightness, contrast and tint; 0 keeps the picture's colours
    grey: bool = False  # brightness alone: forest, sea and shadow look alike, and many places fit a crop
    jpeg_quality: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.extent_km
        if not 0 < low <= high <= MAX_EXTENT_KM:
            raise ConfigError(f"extent_km={low:g} {high:g}: expected 0 < smallest <= largest <= {MAX_EXTENT_KM:g} km.")
        if self.image_size < 8 or not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(
                f"image_size={self.image_size}, jpeg_quality={self.jpeg_quality}: expected at least 8 pixels and a "
                "quality from 1 to 100."
            )
        if not (0 <= self.rotation_deg <= 180 and 0 <= self.light <= 1):
            raise ConfigError(
                f"rotation_deg={self.rotation_deg:g}, light={self.light:g}: expected 0 to 180 degrees and 0 to 1."
            )

    def __call__(self, payload: dict[str, Any]) -> Iterator[PhotoRow]:
        """The rows of one shard: `payload` holds `split`, `first_index` and the columns of its rows."""
        picture = _open_once(self.picture_file)
        for offset, photo_id in enumerate(payload["id"]):
            latitude, longitude = payload["latitude"][offset], payload["longitude"][offset]
            photo = self.cut(picture, latitude, longitude, payload["split"], payload["first_index"] + offset)
            optional = {name: payload[name][offset] or None for name in OPTIONAL_COLUMNS if name in payload}
            yield PhotoRow(photo_id, encode_jpeg(photo, self.jpeg_quality), latitude, longitude, **optional)

    def cut(
        self, picture: EarthPicture, latitude_deg: float, longitude_deg: float, split: str, index: int
    ) -> np.ndarray:
        """The `(image_size, image_size, 3)` uint8 crop number `index` of a split, before compression."""
        rng = np.random.default_rng((self.seed, zlib.crc32(split.encode()), index))
        extent_km = math.exp(rng.uniform(*np.log(self.extent_km)))
        heading_deg = rng.uniform(-self.rotation_deg, self.rotation_deg)
        crop = picture.crop(
            latitude_deg, longitude_deg, image_size=self.image_size, extent_km=extent_km, heading_deg=heading_deg
        )
        crop = _change_light(crop, self.light, rng) if self.light else crop
        return cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if self.grey else crop


@lru_cache(maxsize=1)
def _open_once(picture_file: str) -> EarthPicture:
    return EarthPicture.open(picture_file)


def _change_light(crop: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast around middle grey, brightness, and a factor for each colour, in one look-up table."""
    contrast, brightness = math.exp(rng.uniform(-light, light)), 128 * rng.uniform(-light, light)
    tint = np.exp(rng.uniform(-light, light, 3) / 2)
    levels = (np.arange(256.0)[:, None] - 128) * contrast + 128 + brightness  # (256, 1)
    table = np.clip(np.rint(levels * tint), 0, 255).astype(np.uint8)  # (256, 3)
    return cv2.LUT(crop, table[None])


def pack_earth(
    splits: Sequence[EarthSplit],
    output_dir: Path,
    cutter: EarthCutter,
    *,
    source: str,
    photos_per_shard: int = 5000,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Cut every crop into shards, resuming a run that was stopped, and write the manifest.

    Args:
        splits: where to cut.
        output_dir: the packed folder.
        cutter: how to cut.
        source: of the picture and the coordinates, in words, for the manifest.
        photos_per_shard: a stopped run loses at most that many for each process.
        num_processes: the bytes do not depend on it.

    Returns:
        The manifest.

    Raises:
        SourceError: the folder holds a finished split of the same name that was made otherwise.
    """
    options = asdict(cutter) | {"picture_file": Path(cutter.picture_file).name, "extent_km": list(cutter.extent_km)}
    options["photos_per_shard"] = photos_per_shard
    picture_sha256 = hashlib.sha256(Path(cutter.picture_file).read_bytes()).hexdigest()
    known = [name for name in OPTIONAL_COLUMNS if any(name in split.optional for split in splits)]
    tasks = [task for split in splits for task in _plan(split, photos_per_shard, [options, picture_sha256, known])]
    with only_run(output_dir):
        refuse_other_run(output_dir, {split.name for split in splits}, source=source, options=options)
        reports = build_shards(
            output_dir, tasks, cutter, optional_columns=known, num_processes=num_processes, description="earth"
        )
        return write_manifest(output_dir, reports, source=source, options=options)


def _plan(split: EarthSplit, photos_per_shard: int, made_by: list[Any]) -> Iterator[ShardTask]:
    payloads = list(_cut_into_payloads(split, photos_per_shard))
    for index, payload in enumerate(payloads):
        name = shard_name(split.name, index, len(payloads))
        photos = digest_of(payload["id"], payload["latitude"], payload["longitude"])
        yield ShardTask(name, split.name, len(payload["id"]), digest_of(*made_by, payload), payload, photos)


def _cut_into_payloads(split: EarthSplit, photos_per_shard: int) -> Iterator[dict[str, Any]]:
    for first in range(0, len(split.ids), photos_per_shard):
        rows = slice(first, first + photos_per_shard)
        payload = {"split": split.name, "first_index": first, "id": list(split.ids[rows])}
        payload |= {"latitude": split.latitude[rows].tolist(), "longitude": split.longitude[rows].tolist()}
        yield payload | {name: list(values[rows]) for name, values in split.optional.items()}
