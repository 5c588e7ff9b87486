"""Tables of coordinates: CSVs under the field's column names, and mapping JSONs; checked, or sifted and counted."""

import json
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geomae.columns import COLUMN_ALIASES, OPTIONAL_COLUMNS, as_utf8, find_column, show_columns, tidy_text
from geomae.data.damage import BadTally
from geomae.data.filesystems import is_url, open_file, path_exists, public_text
from geomae.errors import CoordinateError, SourceError
from geomae.geography import check_coordinates, find_off_earth

__all__ = [
    "PHOTO_SUFFIXES",
    "CoordinateTable",
    "join_rows",
    "load_table",
    "read_coordinate_table",
    "sift_coordinates",
    "sift_table",
]

logger = logging.getLogger(__name__)

# HEIC is listed although Pillow cannot read it: such photos are then counted and named, not silently absent
PHOTO_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jp2",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".avif",
        ".heic",
        ".heif",
        ".ppm",
    }
)

_SWAPPED_SHARE = 0.01  # more rows that only swapping brings to Earth are no typing errors
_NAMES_OF_IDS = ("path", "name")  # where none of the usual names stands
_NO_ID = frozenset({"nan", "NaN"})  # what programs write where there is none
_NOTHING = frozenset({"nan", "null", "none"})  # photos without an author are not all of one author
_CSV_CHUNK_ROWS = 2**18
_MAX_PREFIX_FOLDERS = 4  # folders that an archive may put in front of the names of a table


@dataclass(frozen=True)
class CoordinateTable:
    """A table of photos, columns under our names.

    `ids` is None where the file names no photos; `latitude` and `longitude` are `(n,)` float64 degrees; `optional`
    holds those of `OPTIONAL_COLUMNS` that the file has.
    """

    ids: list[str] | None
    latitude: np.ndarray
    longitude: np.ndarray
    optional: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.latitude)

    def take(self, rows: np.ndarray) -> "CoordinateTable":
        """Some rows, by their numbers."""
        ids = None if self.ids is None else [self.ids[row] for row in rows]
        optional = {name: [values[row] for row in rows] for name, values in self.optional.items()}
        return CoordinateTable(ids, self.latitude[rows], self.longitude[rows], optional)


def read_coordinate_table(csv_file: str | Path, *, swap_lat_lon: bool = False) -> CoordinateTable:
    """Read a CSV under any of the field's column names and refuse it where one row is wrong: for tests and experiments.

    Args:
        csv_file: a CSV with a header, as FIELD's tables have: `IMG_ID, AUTHOR, LAT, LON, S3_Label`, `file, latitude`.
        swap_lat_lon: read the latitude column as longitude and the other way round.

    Raises:
        SourceError: no such file, not UTF-8, a row longer than the header, no columns of coordinates, or an id twice.
        CoordinateError: a coordinate that is missing, not finite or not on Earth.
    """
    table = load_table(csv_file, swap_lat_lon=swap_lat_lon)
    if table.ids is not None:
        _refuse_duplicates(table.ids, str(csv_file))
    names = table.ids or [f"row {row + 2}" for row in range(len(table))]
    check_coordinates(table.latitude, table.longitude, names, str(csv_file))
    return table


def load_table(file: str | Path, *, swap_lat_lon: bool = False) -> CoordinateTable:
    """Read a CSV or a mapping JSON as it is, local or by URL; coordinates that are no numbers become NaN.

    Raises:
        SourceError: no such file, not UTF-8, a row longer than the header, or no columns of coordinates.
    """
    path = str(file)
    if not path_exists(path):
        raise SourceError(f"there is no file {public_text(path)}; expected a CSV with latitude and longitude.")
    if not is_url(path) and not Path(path).is_file():
        raise SourceError(f"{path} is a folder; expected the CSV itself.")
    if Path(path).suffix.lower() in PHOTO_SUFFIXES:
        raise SourceError(f"{path} is a photo; expected a CSV with latitude and longitude.")
    table = _load_mapping(path) if path.lower().endswith(".json") else _load_csv(path)
    return replace(table, latitude=table.longitude, longitude=table.latitude) if swap_lat_lon else table


def _load_csv(path: str) -> CoordinateTable:
    table = _read_csv(path)
    names = list(table.columns)
    if missing := [name for name in ("latitude", "longitude") if find_column(name, names) is None]:
        raise SourceError(_explain_columns(path, missing, table.attrs["header"]))
    # of a table of photos; in a table with the photos in it a name may be a city's
    id_column = find_column("id", names) or next((name for name in names if name.lower() in _NAMES_OF_IDS), None)
    ids = None if id_column is None else ["" if value in _NO_ID else value for value in table[id_column].tolist()]
    return CoordinateTable(ids, _numbers(table, "latitude"), _numbers(table, "longitude"), _optional(table))


def _read_csv(path: str) -> pd.DataFrame:
    """The columns of a UTF-8 CSV that we know, as text, under the names of its first line, which is in `attrs`."""
    # told of a header, pandas takes the first column for an index where rows have one field more, silently
    options: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        with open_file(path, whole=True) as file, pd.read_csv(file, **options, chunksize=_CSV_CHUNK_ROWS) as chunks:
            first = next(chunks)
            names = [str(name) for name in first.iloc[0]]
            known = [find_column(ours, names) for ours in COLUMN_ALIASES]
            known += [name for name in names if name.lower() in _NAMES_OF_IDS]
            kept = [place for place, name in enumerate(names) if name in known and name not in names[:place]]
            # MP-16's table has 17 columns: 2.9 GB, of which a fifth is wanted
            table = pd.concat([first[1:][kept], *(chunk[kept] for chunk in chunks)], ignore_index=True)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8; the first line that is not is line {_first_line_not_utf8(path)}. Save it as UTF-8, "
            "for example with `iconv -f latin1 -t utf-8`."
        ) from error
    except pd.errors.ParserError as error:
        raise SourceError(
            f"{path} cannot be read as CSV: {str(error).strip()}. Does a field hold a comma, or a number one for a "
            "point? Put fields with commas between double quotes, and save numbers with points."
        ) from error
    except pd.errors.EmptyDataError as error:
        raise SourceError(f"{path} is empty; expected a CSV with a header and a row for each photo.") from error
    except ValueError as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error
    if not len(table):
        raise SourceError(f"{path} has a header and no rows; expected a row for each photo.")
    table = table.set_axis([names[place] for place in kept], axis=1)
    table.attrs["header"] = names
    return table


def _first_line_not_utf8(path: str) -> int:
    with open_file(path, whole=True) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    column = find_column(name, list(table.columns))
    assert column is not None
    return np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)


def _explain_columns(path: str, missing: Sequence[str], header: Sequence[str]) -> str:
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        advice = "Its fields are not separated by commas: save it as CSV with commas, and numbers with points."
    else:
        advice = "Is its first line the header? Rename the columns in the file."
    looked_for = " and no column ".join(" or ".join(COLUMN_ALIASES[name]) for name in missing)
    return f"{path} has no column {looked_for}; its columns are {show_columns(header)}. {advice}"


def _optional(table: pd.DataFrame) -> dict[str, list[str]]:
    optional = {}
    for name in OPTIONAL_COLUMNS:
        if column := find_column(name, list(table.columns)):
            codes, values = pd.factorize(table[column])  # each text once in memory, not once for each of its photos
            texts = ["" if str(value).casefold() in _NOTHING else str(value) for value in values]
            texts = [text and tidy_text(name, text) for text in texts]
            optional[name] = [texts[code] for code in codes.tolist()]
    return optional


def _load_mapping(path: str) -> CoordinateTable:
    """The thesis's `{id: [latitude, longitude]}`; GeoEstimation's lists of cells by the same name are refused.

    Raises:
        SourceError: it is neither.
    """
    try:
        with open_file(path, whole=True) as file:
            pairs: Any = json.load(file, object_pairs_hook=_Pairs)  # of a dict, an id that comes twice is lost unseen
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise SourceError(f"{path} is no mapping of ids: expected {{id: [latitude, longitude], ...}}.")
    first_id, first = pairs[0]
    if _is_cells(first):
        raise SourceError(
            f"{path} maps ids to cells, such as {first_id}: {first}, and not to coordinates: GeoEstimation's kind. "
            "Pass the CSV of the coordinates (mp16_places365.csv) with --csv, or pack without any with --unlabelled."
        )
    points = np.full((len(pairs), 2), np.nan)
    for row, (_, value) in enumerate(pairs):
        if isinstance(value, list) and len(value) == 2:
            points[row] = [_float(number) for number in value]
    return CoordinateTable([as_utf8(name) for name, _ in pairs], points[:, 0].copy(), points[:, 1].copy(), {})


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, ids that come twice included."""


def _float(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.inf


def _is_cells(value: object) -> bool:
    return isinstance(value, list) and len(value) > 2 and all(isinstance(cell, int) for cell in value)


def _refuse_duplicates(ids: Sequence[str], path: str) -> None:
    if len(set(ids)) < len(ids):
        repeated = [(name, count) for name, count in Counter(ids).items() if count > 1]
        raise SourceError(
            f"{path} names {len(repeated)} photos more than once; the first is {repeated[0][0]}, {repeated[0][1]} "
            "times. Which row is right cannot be known: remove the others."
        )


def sift_table(table: CoordinateTable, source: str, bad: BadTally) -> CoordinateTable:
    """The rows of a table that can be used; the others are counted in `bad`.

    Left out are coordinates that are missing, not finite, not on Earth or (0, 0), and ids that come twice: rows that
    repeat one another leave the first, rows that disagree leave none.

    Raises:
        SourceError: the table names no photos.
        CoordinateError: latitude and longitude are swapped.
    """
    if table.ids is None:
        raise SourceError(
            f"{source} has no column {' or '.join(COLUMN_ALIASES['id'])}: it must name each row's photo. Rename the "
            "column that does."
        )
    named = np.array([bool(photo_id) for photo_id in table.ids], dtype=bool)
    if not named.all():
        bad.add_all([f"row {row + 2}" for row in np.flatnonzero(~named).tolist()], "it names no photo")
        table = table.take(np.flatnonzero(named))
    good = sift_coordinates(table.latitude, table.longitude, table.ids or [], source, bad)
    table = table.take(np.flatnonzero(good)) if not good.all() else table
    ids = pd.Index(table.ids)
    repeats = ids.duplicated(keep=False)
    if not repeats.any():
        return table
    points = pd.DataFrame({"id": ids, "latitude": table.latitude, "longitude": table.longitude})[repeats]
    first = points.groupby("id")[["latitude", "longitude"]].transform("first")
    agrees = (points[["latitude", "longitude"]] == first).all(axis=1)
    disagrees = ~agrees.groupby(points["id"]).transform("all")
    again = points["id"].duplicated() & ~disagrees
    bad.add_all(list(points["id"][disagrees]), "the table names it several times with different coordinates")
    bad.add_all(list(points["id"][again]), "the table names it again")
    return table.take(np.setdiff1d(np.arange(len(table)), np.union1d(points.index[disagrees], points.index[again])))


def sift_coordinates(
    latitude: np.ndarray, longitude: np.ndarray, ids: Sequence[str], source: str, bad: BadTally
) -> np.ndarray:
    """Which of n coordinates can be used, `(n,)` bool; the others are counted in `bad`.

    Args:
        latitude: `(n,)` degrees.
        longitude: `(n,)` degrees.
        ids: n names.
        source: for the message.
        bad: counts them.

    Raises:
        CoordinateError: so many lie off the Earth, and on it when swapped, that the columns must be.
    """
    off_earth, off_if_swapped = find_off_earth(latitude, longitude), find_off_earth(longitude, latitude)
    helped, harmed = off_earth & ~off_if_swapped, off_if_swapped & ~off_earth
    if helped.sum() > max(_SWAPPED_SHARE * len(helped), harmed.sum()):
        raise CoordinateError(_explain_swap(latitude, longitude, ids, source, helped, off_earth))
    finite = np.isfinite(latitude) & np.isfinite(longitude)
    null_island = (latitude == 0) & (longitude == 0)
    for chosen, reason in (
        (~finite, "its coordinates are missing, no decimal degrees or not finite"),
        (finite & off_earth, "its coordinates are not on Earth"),
        (null_island, "its coordinates are (0, 0), which stands for none"),
    ):
        bad.add_all([ids[row] for row in np.flatnonzero(chosen).tolist()], reason)
    return ~(off_earth | null_island)


def _explain_swap(
    latitude: np.ndarray,
    longitude: np.ndarray,
    ids: Sequence[str],
    source: str,
    helped: np.ndarray,
    off_earth: np.ndarray,
) -> str:
    def show(row: int) -> str:
        return f"id {ids[row]}: latitude={latitude[row]:g}, longitude={longitude[row]:g}"

    first = int(np.argmax(helped))
    undecided = np.flatnonzero(~off_earth)
    message = (
        f"{int(helped.sum())} of {len(helped)} rows of {source} are on Earth only if latitude and longitude are "
        f"swapped; the first is {show(first)}.\n"
        "  Pass --swap_lat_lon to read them the other way round; leave it out if it is there."
    )
    if len(undecided) > len(helped) / 2:  # of Europe, for example: a typing error looks the same
        message += (
            f"\n  {len(undecided)} rows are on Earth either way, such as {show(int(undecided[0]))}. If that is right "
            "as it stands, nothing is swapped: correct or delete the rows that are off the Earth."
        )
    return message


def join_rows(names: Sequence[str], ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The row of a table that belongs to each photo.

    A photo belongs to the id that is its name; else to the one that is its name with `/` written as `_`, without the
    suffix of a photo, and without up to four of its first folders: archives and tables each have their own habits.

    Args:
        names: n names of photos, paths in a folder or an archive.
        ids: of the table, unique.

    Returns:
        `(n,)` int64, -1 where no id fits; and `(n,)` int8, how far it was fetched: 0 where the name is the id, 1 where
        it is but for its spelling, and 1 more for each folder that was left out.
    """
    exact = pd.Index(ids)
    rows = exact.get_indexer(pd.Index(names))
    steps = np.zeros(len(names), dtype=np.int8)
    keys = pd.Series([_key(photo_id) for photo_id in ids])
    first = ~keys.duplicated()
    index, row_of_key = pd.Index(keys[first]), np.flatnonzero(first)
    missing = np.flatnonzero(rows < 0)
    paths = [names[row] for row in missing.tolist()]
    for step in range(1, _MAX_PREFIX_FOLDERS + 2):
        if not len(missing):
            break
        found = index.get_indexer(pd.Index([_key(path) for path in paths]))
        rows[missing[found >= 0]], steps[missing[found >= 0]] = row_of_key[found[found >= 0]], step
        longer = [place for place, path in enumerate(paths) if found[place] < 0 and "/" in path]
        missing, paths = missing[longer], [paths[place].partition("/")[2] for place in longer]
    return np.asarray(rows, dtype=np.int64), steps


def _key(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    key = (stem if dot and f".{suffix.lower()}" in PHOTO_SUFFIXES else name).replace("/", "_").replace("\\", "_")
    return key if key.isascii() else unicodedata.normalize("NFC", key)  # macOS writes accents apart
