"""Where photos come from: every kind of source is one function that returns `PhotoRecord`s, cheap and undecoded."""

import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from geomae.columns import COLUMN_ALIASES, find_column
from geomae.errors import ConfigError, CoordinateError, SourceError
from geomae.geography import check_coordinates

__all__ = [
    "PHOTO_SUFFIXES",
    "SCENES",
    "CoordinateTable",
    "PhotoRecord",
    "find_csv",
    "list_photos",
    "open_source",
    "read_coordinate_table",
    "read_gps",
    "records_from_csv",
    "records_from_exif",
    "records_without_coordinates",
]

logger = logging.getLogger(__name__)

# HEIC is listed although Pillow cannot read it: such photos are then counted and named, not silently absent
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif", ".ppm"}
)
SCENES = ("indoor", "natural", "urban")  # what the numbers of S3_Label mean

_GPS_BLOCK = 0x8825


@dataclass(frozen=True)
class PhotoRecord:
    """One photo of a source: where its bytes are and what is known of it; coordinates in degrees."""

    id: str
    file: str  # path of the photo
    latitude: float | None = None
    longitude: float | None = None
    author: str | None = None
    scene: str | None = None
    country: str | None = None
    position_in_exif: bool = False  # the coordinates are still to be read from the photo itself

    def read(self) -> bytes:
        """The encoded photo.

        Raises:
            OSError: the file is absent or cannot be read.
        """
        return Path(self.file).read_bytes()


@dataclass(frozen=True)
class CoordinateTable:
    """A CSV of photos, columns under our names.

    `ids` is None where the file names no photos; `latitude` and `longitude` are `(n,)` float64 degrees, all on Earth;
    `optional` holds those of `author`, `scene` and `country` that the file has.
    """

    ids: list[str] | None
    latitude: np.ndarray
    longitude: np.ndarray
    optional: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.latitude)


def read_coordinate_table(csv_file: str | Path, *, swap_lat_lon: bool = False) -> CoordinateTable:
    """Read a CSV under any of the field's column names and check every coordinate.

    Args:
        csv_file: a CSV with a header; see FIELD's tables: `IMG_ID, AUTHOR, LAT, LON, S3_Label`, `file, latitude, ...`.
        swap_lat_lon: read the latitude column as longitude and the other way round.

    Raises:
        SourceError: no such file, not UTF-8, a row longer than the header, no columns of coordinates, or an id twice.
        CoordinateError: a coordinate that is missing, not finite or not on Earth.
    """
    path = Path(csv_file)
    if not path.is_file():
        raise SourceError(f"there is no file {path}; expected a CSV with latitude and longitude.")
    table = _read_table(path)
    id_column = find_column("id", list(table.columns))
    latitude = _numbers(table, "latitude", path)
    longitude = _numbers(table, "longitude", path)
    if swap_lat_lon:
        latitude, longitude = longitude, latitude
    ids = None if id_column is None else [str(value) for value in table[id_column]]
    if ids is not None:
        _refuse_duplicates(ids, path)
    check_coordinates(latitude, longitude, ids or [f"row {row + 2}" for row in range(len(table))], str(path))
    return CoordinateTable(ids, latitude, longitude, _optional_columns(table))


def _read_table(path: Path) -> pd.DataFrame:
    """A UTF-8 CSV as text, columns under the names of its first line."""
    try:
        # told of a header, pandas takes the first column for an index where rows have one field more, silently
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8; the first line that is not is line {_first_line_not_utf8(path)}. Save it as UTF-8, "
            "for example with `iconv -f latin1 -t utf-8`."
        ) from error
    except pd.errors.ParserError as error:
        raise SourceError(
            f"{path} cannot be read as CSV: {str(error).strip()}. Does a field hold a comma? Put it between double "
            "quotes."
        ) from error
    except ValueError as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error
    names = [str(name) for name in table.iloc[0]]
    return table[1:].set_axis(names, axis=1).loc[:, ~pd.Index(names).duplicated()]


def _first_line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _numbers(table: pd.DataFrame, name: str, path: Path) -> np.ndarray:
    column = find_column(name, list(table.columns))
    if column is None:
        raise SourceError(
            f"{path} has no column {' or '.join(COLUMN_ALIASES[name])}; "
            f"its columns are {', '.join(map(str, table.columns))}. "
            "Is its first line the header? Rename the column in the file."
        )
    return np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)


def _refuse_duplicates(ids: Sequence[str], path: Path) -> None:
    if len(set(ids)) < len(ids):
        repeated = [(name, count) for name, count in Counter(ids).items() if count > 1]
        raise SourceError(
            f"{path} names {len(repeated)} photos more than once; the first is {repeated[0][0]}, {repeated[0][1]} "
            "times. Which row is right cannot be known: remove the others."
        )


def _optional_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    optional = {}
    for name in ("author", "scene", "country"):
        if column := find_column(name, list(table.columns)):
            optional[name] = [str(value) for value in table[column]]
    scenes = {str(number): scene for number, scene in enumerate(SCENES)}
    if "scene" in optional:
        optional["scene"] = [scenes.get(value, value) for value in optional["scene"]]
    return optional


def list_photos(folder: str | Path) -> list[Path]:
    """All files below a folder that are photos by their name, sorted, hidden ones left out.

    Raises:
        SourceError: no such folder, or no photo in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}; expected a folder of photos.")
    photos = sorted(path for path in root.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    photos = [path for path in photos if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not photos:
        raise SourceError(f"{root} holds no photo; looked for files ending in {', '.join(sorted(PHOTO_SUFFIXES))}.")
    return photos


def records_without_coordinates(folder: str | Path) -> Iterator[PhotoRecord]:
    """Every photo of a folder, for pretraining."""
    for path in list_photos(folder):
        yield PhotoRecord(path.relative_to(folder).as_posix(), str(path))


def records_from_exif(folder: str | Path) -> Iterator[PhotoRecord]:
    """Every photo of a folder; its position is read from its EXIF block when it is packed."""
    for path in list_photos(folder):
        yield PhotoRecord(path.relative_to(folder).as_posix(), str(path), position_in_exif=True)


def records_from_csv(folder: str | Path, csv_file: str | Path, *, swap_lat_lon: bool = False) -> Iterator[PhotoRecord]:
    """The photos that a CSV names, in its order.

    A photo is looked for below `folder` under its id, under its id with `/` written as `_`, and under either with
    `.jpg` appended. One that is nowhere is returned all the same: whoever reads it counts it as missing.

    Raises:
        SourceError: the CSV names no photos, or none of them is in the folder.
        CoordinateError: as `read_coordinate_table`.
    """
    table = read_coordinate_table(csv_file, swap_lat_lon=swap_lat_lon)
    if table.ids is None:
        raise SourceError(
            f"{csv_file} has no column {' or '.join(COLUMN_ALIASES['id'])}: it must name the photo of each row."
        )
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}; expected the folder that holds the photos of {csv_file}.")
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    found = [_find_photo(photo_id, present) for photo_id in table.ids]
    if not any(found):
        raise SourceError(
            f"none of the {len(found)} photos of {csv_file} is in {root}; the first is {table.ids[0]!r}, a file there "
            f"is {min(present, default='(none)')!r}. Ids must be paths relative to that folder."
        )
    for row, (photo_id, name) in enumerate(zip(table.ids, found, strict=True)):
        known = {column: values[row] or None for column, values in table.optional.items()}
        yield PhotoRecord(
            photo_id,
            str(root / (name or photo_id)),
            float(table.latitude[row]),
            float(table.longitude[row]),
            author=known.get("author"),
            scene=known.get("scene"),
            country=known.get("country"),
        )


def open_source(
    folder: str | Path,
    *,
    csv_file: str | Path | None = None,
    exif: bool = False,
    unlabelled: bool = False,
    swap_lat_lon: bool = False,
) -> tuple[Iterator[PhotoRecord], str]:
    """The photos of a folder, and where they came from in words.

    Coordinates come from `csv_file`, else from the CSV that `find_csv` finds, else from the photos' EXIF blocks.

    Raises:
        SourceError: options that exclude each other, or no photos.
        ConfigError: `swap_lat_lon` where no CSV is read.
    """
    root = Path(folder)
    if sum([csv_file is not None, exif, unlabelled]) > 1:
        raise SourceError("--csv, --exif and --unlabelled each say where coordinates come from: choose one of them.")
    looks_for_csv = csv_file is None and not exif and not unlabelled
    if looks_for_csv and (any(root.glob("*.csv")) or root.with_name(f"{root.name}.csv").is_file()):
        csv_file = find_csv(root)
        logger.info("coordinates come from %s", csv_file)
    if swap_lat_lon and csv_file is None:
        raise ConfigError(
            f"--swap_lat_lon swaps two columns of a CSV, but no CSV is read for {root}. Leave it out, or name the CSV "
            "with --csv."
        )
    if unlabelled:
        return records_without_coordinates(root), f"photos of {root.name}, without coordinates"
    if csv_file is not None:
        records = records_from_csv(root, csv_file, swap_lat_lon=swap_lat_lon)
        return records, f"photos of {root.name} with coordinates of {Path(csv_file).name}"
    return records_from_exif(root), f"photos of {root.name} with EXIF positions"


def find_csv(folder: str | Path) -> Path:
    """The CSV that goes with a folder of photos: the only one in it, or `NAME.csv` beside a folder `NAME`.

    Raises:
        SourceError: there is none, or more than one.
    """
    root = Path(folder)
    found = sorted(root.glob("*.csv")) or [file for file in [root.with_name(f"{root.name}.csv")] if file.is_file()]
    if len(found) != 1:
        have = f"several: {', '.join(path.name for path in found)}" if found else "none"
        raise SourceError(f"looked for one CSV in {root} or beside it and found {have}. Name it with --csv.")
    return found[0]


def _find_photo(photo_id: str, present: set[str]) -> str | None:
    flat = photo_id.replace("/", "_")
    return next((name for name in (photo_id, flat, f"{photo_id}.jpg", f"{flat}.jpg") if name in present), None)


def read_gps(data: bytes) -> tuple[float, float]:
    """Latitude and longitude, in degrees, of a photo's EXIF block.

    Raises:
        CoordinateError: there is no position, or it names no hemisphere, is (0, 0), not finite, or not on Earth.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                gps = image.getexif().get_ifd(_GPS_BLOCK)
    except UnidentifiedImageError as error:
        raise CoordinateError("no GPS position: it is no photo that Pillow knows") from error
    except Exception as error:  # broken EXIF raises struct.error, SyntaxError, KeyError, ... in Pillow
        raise CoordinateError(f"its EXIF block cannot be read: {error}") from error
    try:
        latitude = _degrees(gps[2]) * _sign(gps.get(1), "NS")
        longitude = _degrees(gps[4]) * _sign(gps.get(3), "EW")
    except CoordinateError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CoordinateError("no GPS position in its EXIF block") from error
    if not (math.isfinite(latitude) and math.isfinite(longitude)):
        raise CoordinateError(f"its GPS position is not finite: {latitude}, {longitude}")
    if latitude == 0 and longitude == 0:
        raise CoordinateError("its GPS position is (0, 0), which cameras write when they have none")
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise CoordinateError(f"its GPS position is not on Earth: latitude={latitude}, longitude={longitude}")
    return latitude, longitude


def _degrees(parts: Sequence[float]) -> float:
    degrees, minutes, seconds = (float(part) for part in (*parts, 0.0, 0.0)[:3])
    return degrees + minutes / 60 + seconds / 3600


def _sign(reference: str | bytes | None, letters: str) -> int:
    """1 or -1 for the first or the second letter; without one Sydney would lie in the northern hemisphere."""
    text = reference.decode("ascii", "replace") if isinstance(reference, bytes) else reference or ""
    letter = text.strip(" \0").upper()[:1]
    if not letter or letter not in letters:
        raise CoordinateError(
            f"its GPS position names no hemisphere: expected {letters[0]} or {letters[1]}, found {text!r}"
        )
    return 1 if letter == letters[0] else -1
