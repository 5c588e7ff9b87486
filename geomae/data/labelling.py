"""Coordinates for photos: from a table that names them, or from their own EXIF blocks; what does not fit is counted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from geomae.data.archives import Storage
from geomae.data.coordinates import CoordinateTable, join_rows, load_table, read_coordinate_table, sift_table
from geomae.data.damage import BadTally
from geomae.data.exif import read_gps
from geomae.data.filesystems import is_url, join, public_name
from geomae.data.photo_index import OPTIONAL_COLUMNS, PLACE_COLUMNS, PhotoIndex
from geomae.data.reading import PhotoReader, explain_unread
from geomae.errors import CoordinateError, DamagedPhotoError, SourceError

__all__ = ["SpoiltPhoto", "TableOptions", "drop_repeats", "explain_emptiness", "label_by_exif", "label_by_table"]

logger = logging.getLogger(__name__)

_STRANGER = "no row of the table names it"


@dataclass(frozen=True)
class SpoiltPhoto:
    """A photo that its archive holds and that cannot be used; whether anyone wants it, the table says."""

    name: str
    archive: str
    reason: str
    kind: str

    def count(self, bad: BadTally) -> None:
        """Count it as bad."""
        bad.add(f"{self.archive}:{self.name}", self.reason, kind=self.kind)


@dataclass(frozen=True)
class TableOptions:
    """How a table of coordinates is read."""

    swap_lat_lon: bool = False  # it has longitude where it says latitude
    partial: bool = False  # it names more photos than there are here: those are not bad
    for_test: bool = False  # it decides: it must be right in every row, and photos it does not name are ignored


def label_by_table(
    index: PhotoIndex, table_file: str, options: TableOptions, spoilt: Sequence[SpoiltPhoto] = ()
) -> PhotoIndex:
    """The photos that a table names, in its order, under its ids; what does not fit is counted in `index.bad`.

    Args:
        index: photos under the names that their source gives them.
        table_file: CSV or mapping JSON.
        options: how it is read.
        spoilt: photos that the source holds and that cannot be used: counted where the table names them.

    Raises:
        SourceError: no photo is named, or for a test a row fits several.
        CoordinateError: latitude and longitude are swapped; for a test, a coordinate is not on Earth.
    """
    bad, names = index.bad, index.column("id")
    table = _read_table(table_file, options, names, spoilt, bad)
    ids: list[str] = table.ids or []
    rows, steps = join_rows(names, ids)
    if len(names) and not (rows >= 0).any():
        raise SourceError(_explain_no_join(table_file, ids, names, bad))
    order = _match(rows, steps, names, ids, bad, for_test=options.for_test)
    absent = np.setdiff1d(np.arange(len(ids)), rows[rows >= 0])
    labelled = _with_columns(index.take(order), table.take(rows[order]))
    if options.for_test:
        bad.add_all([names[photo] for photo in np.flatnonzero(rows < 0).tolist()], _STRANGER)
        return _append_missing(labelled, table.take(absent)) if len(absent) else labelled
    absent = _count_spoilt(spoilt, ids, absent, bad)
    if not options.partial:
        bad.add_all([ids[row] for row in absent], "the table names it, but there is no such photo")
        if num_strangers := int((rows < 0).sum()):
            shown = public_name(table_file)
            logger.warning("%d of %d photos are named by no usable row of %s", num_strangers, len(names), shown)
    return labelled


def _read_table(
    file: str, options: TableOptions, names: Sequence[str], spoilt: Sequence[SpoiltPhoto], bad: BadTally
) -> CoordinateTable:
    """The rows that can be used; of a table that names more photos than are here, those of photos that are."""
    if options.for_test:
        table = read_coordinate_table(file, swap_lat_lon=options.swap_lat_lon)
        return table if table.ids is not None else sift_table(table, file, bad)  # which refuses it
    table = load_table(file, swap_lat_lon=options.swap_lat_lon)
    if not options.partial or table.ids is None:
        return sift_table(table, public_name(file), bad)
    unique = list(dict.fromkeys(table.ids))
    rows, _ = join_rows(names, unique)
    bad.add_all([names[photo] for photo in np.flatnonzero(rows < 0).tolist()], _STRANGER)
    rows_of_spoilt = join_rows([photo.name for photo in spoilt], unique)[0] if spoilt else np.empty(0, dtype=np.int64)
    for photo in np.flatnonzero(rows_of_spoilt < 0).tolist():
        spoilt[photo].count(bad)
    here = {unique[row] for row in np.union1d(rows, rows_of_spoilt).tolist() if row >= 0}
    wanted = table.take(np.array([row for row, name in enumerate(table.ids) if name in here], dtype=np.int64))
    return sift_table(wanted, public_name(file), bad)


def _explain_no_join(table_file: str, ids: Sequence[str], names: Sequence[str], bad: BadTally) -> str:
    if not ids and bad:
        return f"{public_name(table_file)} has no row that can be used: {explain_emptiness(bad)}"
    return (
        f"none of the {len(ids)} photos of {public_name(table_file)} is there; the first is "
        f"{next(iter(ids), None)!r}, a photo there is {names[0]!r}. Ids must be names of photos, or paths with `/` or "
        "`_`, with or without .jpg."
    )


def _match(
    rows: np.ndarray, steps: np.ndarray, names: Sequence[str], ids: Sequence[str], bad: BadTally, *, for_test: bool
) -> np.ndarray:
    """The photo of each row that has one, in the table's order: the one whose name is nearest to the id.

    Where two are equally near and not the same photo again, which one is meant cannot be known: it is none.
    """
    joined = np.flatnonzero(rows >= 0)
    order = joined[np.lexsort((joined, steps[joined], rows[joined]))]
    first = np.concatenate([[True], np.diff(rows[order]) > 0])[: len(order)]
    best = order[first]
    if first.all():
        return best
    of_row = dict(zip(rows[best].tolist(), best.tolist(), strict=True))
    others = order[~first].tolist()
    rivals = [n for n in others if steps[n] == steps[of_row[int(rows[n])]] and names[n] != names[of_row[int(rows[n])]]]
    contested = np.unique(rows[rivals]) if rivals else np.empty(0, dtype=np.int64)
    if for_test and len(contested):
        row = int(contested[0])
        raise SourceError(
            f"{len(contested)} rows of the table of a test set fit several photos; the first is {ids[row]!r}, which is "
            f"{names[of_row[row]]!r} or {next(names[n] for n in rivals if rows[n] == row)!r}. Name photos in full."
        )
    if not for_test:
        bad.add_all([ids[row] for row in contested.tolist()], "several photos fit its row of the table equally well")
        decided = ~np.isin(rows[others], contested)
        bad.add_all([names[n] for n in order[~first][decided].tolist()], "another photo fits its row of the table")
    return best[~np.isin(rows[best], contested)]


def _count_spoilt(spoilt: Sequence[SpoiltPhoto], ids: Sequence[str], absent: np.ndarray, bad: BadTally) -> np.ndarray:
    """Count the spoilt photos that are wanted, once each; returns the absent rows that are left to explain."""
    if not spoilt:
        return absent
    rows, _ = join_rows([photo.name for photo in spoilt], ids)
    unexplained = set(absent.tolist())
    for photo, row in zip(spoilt, rows.tolist(), strict=True):
        if row in unexplained:
            photo.count(bad)
            unexplained.discard(row)
    return np.array(sorted(unexplained), dtype=np.int64)


def _with_columns(index: PhotoIndex, table: CoordinateTable) -> PhotoIndex:
    columns: dict[str, Any] = {name: index.table[name] for name in PLACE_COLUMNS}
    columns |= {name: index.table[name] for name in OPTIONAL_COLUMNS}  # what the source knows and the table does not
    columns |= {"id": table.ids, "latitude": table.latitude, "longitude": table.longitude, **table.optional}
    return PhotoIndex.from_columns(index.root, columns, bad=index.bad)


def _append_missing(index: PhotoIndex, table: CoordinateTable) -> PhotoIndex:
    """A test set keeps the photos that it lacks: they count as misses."""
    columns: dict[str, Any] = {"id": table.ids, "storage": [int(Storage.MISSING)] * len(table)}
    columns |= {"latitude": table.latitude, "longitude": table.longitude, **table.optional}
    missing = PhotoIndex.from_columns(index.root, columns)
    return replace(index, table=pa.concat_tables([index.table, missing.table]))


def label_by_exif(index: PhotoIndex) -> PhotoIndex:
    """The photos whose EXIF block has a position."""
    kept, points = [], []
    reader = PhotoReader(index.root)
    rows = index.table.select([*PLACE_COLUMNS]).to_pylist()
    for number, row in enumerate(tqdm(rows, desc="positions", unit=" photos", disable=len(rows) < 1000)):
        try:
            points.append(_read_position(index.root, row, reader))
            kept.append(number)
        except CoordinateError as error:
            index.bad.add(row["id"], str(error))
        except (OSError, DamagedPhotoError) as error:
            index.bad.add(row["id"], explain_unread(error))
    kept_index = index.take(kept)
    columns: dict[str, Any] = {name: kept_index.table[name] for name in kept_index.table.column_names}
    coordinates_deg = np.array(points, dtype=np.float64).reshape(-1, 2)
    columns |= {"latitude": coordinates_deg[:, 0], "longitude": coordinates_deg[:, 1]}
    return PhotoIndex.from_columns(index.root, columns, bad=index.bad)


def _read_position(root: str, row: dict[str, Any], reader: PhotoReader) -> tuple[float, float]:
    path = join(root, row["file"])
    if row["storage"] == Storage.WHOLE and not is_url(path):
        with open(path, "rb") as file:  # the head of the file is enough
            return read_gps(file)
    return read_gps(reader.read(row))


def drop_repeats(index: PhotoIndex, *, strict: bool) -> PhotoIndex:
    """The first photo of each id; a test set in which one comes twice is refused."""
    ids = pd.Series(index.column("id"), dtype=object)
    again = ids.duplicated()
    if not again.any():
        return index
    if strict:
        raise SourceError(
            f"{int(again.sum())} photos of a test set have the id of another; the first is {ids[again].iloc[0]}. "
            "Remove the others, or name the table that tells them apart with --csv."
        )
    index.bad.add_all(ids[again].tolist(), "the source holds its id again")
    return index.take(np.flatnonzero(~again))


def explain_emptiness(bad: BadTally) -> str:
    """Why nothing is left of a source."""
    if not bad:
        return "it holds none."
    first = bad.listed[0]
    return f"{bad.describe()}. The first is {first.file}: {first.reason.rstrip('.')}."
