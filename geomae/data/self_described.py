"""Sources whose photos come with their coordinates: WebDataset tars, and parquet with an image column."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from geomae.bounded_parquet import read_table
from geomae.columns import COLUMN_ALIASES, as_utf8, find_column, show_columns, tidy_text
from geomae.data.archives import Member, Storage, is_hidden, walk_tar
from geomae.data.coordinates import PHOTO_SUFFIXES, sift_coordinates
from geomae.data.damage import BadTally, BrokenArchive, count_broken
from geomae.data.filesystems import FileEntry, RemoteError, bytes_of, open_file, path_exists, public_name
from geomae.data.listing import Listing, suffix_of
from geomae.data.photo_index import OPTIONAL_COLUMNS, PhotoIndex, name_apart
from geomae.documents import parse_json
from geomae.errors import SourceError
from geomae.geography import check_coordinates

__all__ = ["parquet_beside", "read_parquet_rows", "read_webdataset"]

logger = logging.getLogger(__name__)

_MAX_JSON_BYTES = 2**20
_MOST_ROWS = 2**24  # of one parquet file; each becomes some Python objects
_KNOWN = ("id", "latitude", "longitude", *OPTIONAL_COLUMNS)


def read_webdataset(
    listing: Listing,
    entries: Sequence[FileEntry],
    *,
    labelled: bool,
    swap_lat_lon: bool = False,
    strict: bool = False,
    lost_are_named: bool = False,
) -> PhotoIndex:
    """The photos of WebDataset tars, with what the JSON of the same name says of them.

    img2dataset's tars have coordinates in their JSONs or in the parquet of the same name where it was told to save
    them (`--save_additional_columns`).

    Args:
        listing: of the source.
        entries: its tars.
        labelled: only photos with coordinates.
        swap_lat_lon: what says latitude is longitude.
        strict: refuse the source where the coordinates of one photo are wrong.
        lost_are_named: a table names the photos that a broken archive has lost.

    Raises:
        SourceError: `labelled`, and no photo comes with coordinates.
        CoordinateError: latitude and longitude are swapped; `strict`, and coordinates that are not on Earth.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("key", "file", "storage", "offset", "size", "state", *_KNOWN)}
    bad = BadTally()
    broken: list[BrokenArchive] = []
    num_photos: Counter[str] = Counter()
    keys_seen: set[str] = set()
    for entry in tqdm(entries, desc="index", unit=" tars", disable=len(entries) < 2):
        name, shown = listing.name(entry), listing.public_name(entry)
        beside = _read_parquet_beside(entry.path, bad) if labelled else {}
        for sample in _walk_samples(entry, shown, bad, broken):
            record = sample.record(labelled, shown, bad)
            if record is None:
                continue
            record |= beside.get(sample.key.rpartition("/")[2], {})
            keys_seen |= record.keys()
            photo = sample.photo
            num_photos[shown] += 1
            place = (sample.key, name, int(photo.storage), photo.offset, photo.size, entry.state)
            for column, value in zip(rows, (*place, *_pick(record)), strict=True):
                rows[column].append(value)
    count_broken(broken, {} if lost_are_named else num_photos, entries, bad)
    rows["id"] = _complete_ids(rows)
    index = PhotoIndex.from_columns(listing.root, {name: rows[name] for name in rows if name != "key"}, bad=bad)
    if not labelled:
        return _forget_places(index)
    return _keep_labelled(index, keys_seen, entries[0].path, swap_lat_lon=swap_lat_lon, strict=strict)


@dataclass(frozen=True)
class _Sample:
    """A photo of a WebDataset and the JSON of its key: read already, or why it cannot be."""

    key: str
    photo: Member
    json: dict[str, Any] | str

    def record(self, labelled: bool, tar: str, bad: BadTally) -> dict[str, Any] | None:
        """What is known of the photo; None where that cannot be read and matters, which is counted."""
        if isinstance(self.json, dict):
            return dict(self.json)
        if not labelled:
            return {}
        bad.add(f"{tar}:{self.key}", f"its JSON cannot be read: {self.json}", kind="its JSON cannot be read")
        return None


def _walk_samples(entry: FileEntry, name: str, bad: BadTally, broken: list[BrokenArchive]) -> Iterator[_Sample]:
    """The samples of one tar; what is broken of it is counted, or added to `broken`."""
    try:
        with open_file(entry.path, whole=True) as file:
            members = walk_tar(file, bytes_of(entry))
            group: list[tuple[Member, dict[str, Any] | str]] = []
            key = None
            for member in members:
                if member.lost_bytes:
                    broken.append(BrokenArchive(name, str(member.problem), member.lost_bytes))
                elif member.problem is not None and suffix_of(member.name) in PHOTO_SUFFIXES:
                    bad.add(f"{name}:{member.name}", member.problem)
                if member.problem is not None or is_hidden(member.name):
                    continue
                if _key_of(member.name) != key:
                    yield from _pair(group)
                    key, group = _key_of(member.name), []
                is_json = suffix_of(member.name) == ".json"
                group.append((member, _read_json(file, member) if is_json else {}))
            yield from _pair(group)
    except RemoteError:
        raise
    except SourceError as error:  # one broken archive among many is counted like one broken photo
        broken.append(BrokenArchive(name, f"the archive cannot be read: {error}", -1))
    except OSError as error:
        raise SourceError(f"{public_name(entry.path)} cannot be read: {error}.") from error


def _key_of(name: str) -> str:
    """What the members of a sample share: the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _pair(group: Sequence[tuple[Member, dict[str, Any] | str]]) -> Iterator[_Sample]:
    """The photos among the members of a key, each with the JSON of its own name, or of the key, where there is one.

    What is called like another photo and more (`7.seg.png` beside `7.jpg`) and has no JSON of its own belongs to that
    one and is no photo.
    """
    jsons = {_stem(member): record for member, record in group if suffix_of(member.name) == ".json"}
    photos = [member for member, _ in group if suffix_of(member.name) in PHOTO_SUFFIXES]
    stems = {_stem(photo) for photo in photos}
    named = [(photo, _shorter_stems(photo)) for photo in photos]
    kept = [(photo, shorter) for photo, shorter in named if _stem(photo) in jsons or stems.isdisjoint(shorter)]
    for photo, shorter in kept:
        record = next((jsons[name] for name in (_stem(photo), *shorter) if name in jsons), None)
        if record is None:  # `7.meta.json` beside `7.jpg` alone
            record = next(iter(jsons.values()), {}) if len(kept) == 1 else {}
        yield _Sample(_stem(photo), photo, record)


def _shorter_stems(member: Member) -> list[str]:
    """`a/7.1` and `a/7` for `a/7.1.seg.png`."""
    folder, slash, base = _stem(member).rpartition("/")
    return [folder + slash + base[:end] for end in range(len(base) - 1, 0, -1) if base[end] == "."]


def _stem(member: Member) -> str:
    return member.name.rpartition(".")[0]


def _read_json(file: BinaryIO, member: Member) -> dict[str, Any] | str:
    """The record, or why it cannot be read; the walk goes on where it was."""
    if member.size > _MAX_JSON_BYTES:
        return f"{member.size:,} bytes are more than {_MAX_JSON_BYTES:,}"
    file.seek(member.offset)
    try:
        record = parse_json(file.read(member.size))
    except ValueError as error:
        return str(error)
    return record if isinstance(record, dict) else "it is no object"


def _read_parquet_beside(tar_file: str, bad: BadTally) -> dict[str, dict[str, Any]]:
    """What img2dataset's `00000.parquet` says of the photos of `00000.tar`, by their keys."""
    path = parquet_beside(tar_file)
    if not path_exists(path):
        return {}
    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            names = [field.name for field in parquet.schema_arrow if not pa.types.is_nested(field.type)]
            known = [column for name in _KNOWN if (column := find_column(name, names))]
            if "key" not in names:
                return {}
            _refuse_too_long(parquet)
            rows = read_table(file, ["key", *known], metadata=parquet.metadata).to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        bad.add(
            public_name(path).rpartition("/")[2], f"cannot be read as parquet: {error}", kind="the file cannot be read"
        )
        return {}
    return {str(row["key"]): {name: value for name, value in row.items() if value is not None} for row in rows}


def parquet_beside(tar_file: str) -> str:
    """Where img2dataset writes what it knows of a tar's photos."""
    return f"{tar_file.removesuffix('.tar')}.parquet"


def _complete_ids(rows: dict[str, list[Any]]) -> list[str]:
    """Ids of the JSONs; keys where there is none, which other tars may use again for other photos."""
    without = [row for row, photo_id in enumerate(rows["id"]) if photo_id is None]
    key, file, size = ([rows[name][row] for row in without] for name in ("key", "file", "size"))
    named = dict(zip(without, name_apart(key, file, size), strict=True))
    return [named[row] if photo_id is None else photo_id for row, photo_id in enumerate(rows["id"])]


def _pick(record: dict[str, Any]) -> tuple[Any, ...]:
    """Our columns of a record under any of their names, in the order of `_KNOWN`."""
    columns = _find_known(tuple(record))
    values = {name: None if column is None else record[column] for name, column in zip(_KNOWN, columns, strict=True)}
    for name in ("latitude", "longitude"):
        values[name] = _number(values[name])
    values["id"] = _text(values["id"])
    for name in OPTIONAL_COLUMNS:
        text = _text(values[name])
        values[name] = text and tidy_text(name, text)
    return tuple(values[name] for name in _KNOWN)


@lru_cache(maxsize=1024)
def _find_known(names: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(find_column(name, names) for name in _KNOWN)


def _text(value: Any) -> str | None:
    """What a table says, as text; None for nothing. Whole numbers that a missing one made floats are whole again."""
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value) if value.is_integer() else value)
    return None if value in (None, "") else as_utf8(str(value))


def _number(value: Any) -> float | None:
    """A number, or text that is one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _keep_labelled(
    index: PhotoIndex, keys_seen: set[str], source: str, *, swap_lat_lon: bool, strict: bool
) -> PhotoIndex:
    """The photos with coordinates that can be used; the others are counted, or refused."""
    latitude, longitude = (
        index.table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("latitude", "longitude")
    )
    if len(index) and not (np.isfinite(latitude) & np.isfinite(longitude)).any():
        seen = show_columns(sorted(map(as_utf8, keys_seen))) or "no columns"
        raise SourceError(
            f"no photo of {source} comes with coordinates: looked for {' or '.join(COLUMN_ALIASES['latitude'])} and "
            f"{' or '.join(COLUMN_ALIASES['longitude'])} among {seen}. Name "
            "their table with --csv, or pack for pretraining with --unlabelled (img2dataset keeps coordinates with "
            "--save_additional_columns)."
        )
    if swap_lat_lon:
        latitude, longitude = longitude, latitude
        columns = {name: index.table[name] for name in index.table.column_names}
        index = PhotoIndex.from_columns(
            index.root, columns | {"latitude": latitude, "longitude": longitude}, bad=index.bad
        )
    if strict:
        check_coordinates(latitude, longitude, index.column("id"), source)
        return index
    good = sift_coordinates(latitude, longitude, index.column("id"), source, index.bad)
    return index if good.all() else index.take(np.flatnonzero(good))


def _forget_places(index: PhotoIndex) -> PhotoIndex:
    columns = {name: index.table[name] for name in index.table.column_names if name not in ("latitude", "longitude")}
    return PhotoIndex.from_columns(index.root, columns, bad=index.bad)


def read_parquet_rows(
    listing: Listing, entries: Sequence[FileEntry], *, labelled: bool, swap_lat_lon: bool = False, strict: bool = False
) -> PhotoIndex:
    """The rows of parquet files that have an image column; a struct such as WebDataset's `json` is looked into.

    Args: as `read_webdataset`.

    Raises:
        SourceError: a file has no image column, or `labelled` and there are no coordinates.
        CoordinateError: as `read_webdataset`.
    """
    with ThreadPoolExecutor(8) as pool:  # remote footers wait for the network
        parts = list(pool.map(lambda entry: _read_one_parquet(listing, entry), entries))
    bad = BadTally()
    keys_seen: set[str] = set()
    tables = []
    for entry, part in zip(entries, parts, strict=True):
        if isinstance(part, str):
            bad.add(listing.public_name(entry), part, kind="the file cannot be read")
        else:
            keys_seen |= part[1]
            tables.append(part[0].table)
    if not tables:
        raise SourceError(
            f"none of the {len(entries)} parquet files can be read; the first is {bad.listed[0].file}: "
            f"{bad.listed[0].reason}"
        )
    index = PhotoIndex(listing.root, pa.concat_tables(tables), bad=bad)
    if not labelled:
        return _forget_places(index)
    return _keep_labelled(index, keys_seen, entries[0].path, swap_lat_lon=swap_lat_lon, strict=strict)


def _read_one_parquet(listing: Listing, entry: FileEntry) -> tuple[PhotoIndex, set[str]] | str:
    """The rows of one file and the names of its columns; or why it cannot be read."""
    name = listing.name(entry)
    try:
        with open_file(entry.path) as file, pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check_image_column(schema, entry.path)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
            places = _find_places(schema)
            _refuse_too_long(parquet)
            wanted = [(column, field) if field else column for column, field in places.values()]
            table = read_table(file, wanted, metadata=parquet.metadata)
        picked = {
            own: _as_ours(own, table[f"{column}.{field}" if field else column])
            for own, (column, field) in places.items()
        }
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        return f"cannot be read as parquet: {error}"
    defaults = [f"{name.removesuffix('.parquet')}-{row:06d}" for row in range(len(table))]
    picked["id"] = [own or default for own, default in zip(picked.get("id", defaults), defaults, strict=True)]
    picked["file"], picked["state"] = [name] * len(table), [entry.state] * len(table)
    picked["storage"] = [int(Storage.PARQUET)] * len(table)
    picked["offset"] = np.repeat(np.arange(len(sizes)), sizes)
    picked["size"] = np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)])
    return PhotoIndex.from_columns(listing.root, picked), set(_spell_columns(schema))


def _refuse_too_long(parquet: pq.ParquetFile) -> None:
    if parquet.metadata.num_rows > _MOST_ROWS:
        raise pa.ArrowInvalid(
            f"the footer says {parquet.metadata.num_rows:,} rows, more than {_MOST_ROWS:,} in one file: it is damaged"
        )


def _check_image_column(schema: pa.Schema, path: str) -> None:
    image = find_column("image", schema.names)
    if image is None:
        raise SourceError(
            f"{path} has no column {' or '.join(COLUMN_ALIASES['image'])}; it has {show_columns(schema.names)}."
        )
    if schema.names.count(image) > 1:
        raise SourceError(f"{path} has two columns that are called {image}; leave one of them.")
    type_ = schema.field(image).type
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        type_ = type_.field("bytes").type
    if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
        raise SourceError(
            f"the column {image} of {path} holds {type_}, not the bytes of photos: expected binary, or a struct with "
            "`bytes` as `datasets` writes it."
        )


def _spell_columns(schema: pa.Schema) -> dict[str, tuple[str, str | None]]:
    """Where each name stands: a column, or a field of a struct column; of two with one name, nobody knows which."""
    found: dict[str, tuple[str, str | None]] = {}
    count = Counter(schema.names)
    columns = [field for field in schema if count[field.name] == 1]
    for field in columns:
        if pa.types.is_struct(field.type):
            inside = Counter(field.type.field(number).name for number in range(field.type.num_fields))
            for name in (name for name, times in inside.items() if times == 1):
                found.setdefault(name, (field.name, name))
    return found | {field.name: (field.name, None) for field in columns if not pa.types.is_struct(field.type)}


def _find_places(schema: pa.Schema) -> dict[str, tuple[str, str | None]]:
    """Where our columns stand in a stranger's table, the photos and what is no number or text apart."""
    image = find_column("image", schema.names)
    spelled = {}
    for name, (column, field) in _spell_columns(schema).items():
        kind = schema.field(column).type
        if column != image and not pa.types.is_nested(kind.field(field).type if field else kind):
            spelled[name] = (column, field)
    found = {name: find_column(name, list(spelled)) for name in _KNOWN}
    return {name: spelled[column] for name, column in found.items() if column is not None}


def _as_ours(name: str, column: pa.ChunkedArray) -> Any:
    """A column of a stranger's table with the type that ours has."""
    if name in ("latitude", "longitude"):
        try:
            return column.cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return [_number(value) for value in column.to_pylist()]
    return [text and tidy_text(name, text) for text in map(_text, column.to_pylist())]
