"""Photos in groups of about a hundred rows that are read together: of packed shards, or of any other source's index."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geomae.bounded_parquet import read_groups
from geomae.data.archives import Storage
from geomae.data.filesystems import is_url, open_file
from geomae.data.last_used import LastUsed
from geomae.data.photo_index import PhotoIndex
from geomae.data.reading import PhotoReader, explain_unread
from geomae.data.shards import ROWS_PER_GROUP, digest_of, shard_digest
from geomae.errors import ConfigError, SourceError

__all__ = ["SUBSETS", "GroupReader", "GroupSource", "IndexedPhotos", "ParquetShards", "PhotoGroups", "RowGroup"]

SUBSETS = ("first_half", "last_half")

_MAX_OPEN_FILES = 256  # of a worker, over all its sources; a shard's footer is parsed each time it is opened
_FEWEST_OPEN_FILES = 4  # of a source that is being read


class GroupReader(Protocol):
    """Reads rows; made in the process that uses it."""

    def read(self, group: int, rows: np.ndarray) -> list[dict[str, Any]]:
        """Some rows of a group, by their numbers in it, in that order.

        A photo that cannot be read has no bytes, and `read_error` says why.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class GroupSource(Protocol):
    """Photos whose rows are read group by group; it can be pickled, and holds no open file."""

    group_sizes: list[int]  # rows of each group, in the source's order
    columns: list[str]  # what a row holds
    name: str  # for messages

    @property
    def fingerprint(self) -> str:
        """Another one for other photos."""
        ...

    def open(self, max_open_files: int = _MAX_OPEN_FILES) -> GroupReader:
        """A reader for this process, which keeps so many files open at most."""
        ...


@dataclass(frozen=True)
class RowGroup:
    """Rows of one group of one source: `num_rows` of them behind the first `skip`."""

    source: int
    index: int
    skip: int
    num_rows: int
    first_row: int  # number of its first row among all rows of all sources


class PhotoGroups:
    """The row groups of one or several sources, or of a part of each."""

    def __init__(self, sources: Sequence[GroupSource], *, subset: str | None = None, limit: int | None = None) -> None:
        """Choose rows; none is read.

        Args:
            sources: in an order that is the same on every machine; all have the same columns.
            subset: `first_half` or `last_half` of the rows of each source, which share no row and leave out none.
            limit: the first so many rows of that, dealt to the sources by their sizes.

        Raises:
            SourceError: there are no photos, or the sources have different columns.
            ConfigError: the subset is unknown, or the limit is not positive.
        """
        if subset not in (None, *SUBSETS):
            raise ConfigError(f"subset is {subset!r}; it must be null or one of {', '.join(SUBSETS)}")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; it must be at least 1 photo, or null")
        for source in sources:
            if set(source.columns) != set(sources[0].columns):
                raise SourceError(
                    f"{source.name} has the columns {source.columns}, {sources[0].name} has {sources[0].columns}: "
                    "they differ."
                )
        self.sources = list(sources)
        self.columns = list(sources[0].columns) if sources else []
        ranges = [_choose_half(sum(source.group_sizes), subset) for source in sources]
        self.groups = list(self._cut(_limit(ranges, limit)))
        self.num_photos = sum(group.num_rows for group in self.groups)
        self._part = subset, limit
        if not self.num_photos:
            named = ", ".join(source.name for source in sources[:3])
            raise SourceError(f"the shards hold no photo at all: {named}{' ...' if len(sources) > 3 else ''}.")

    @cached_property
    def fingerprint(self) -> str:
        """Another one for other photos; what a checkpoint keeps, and a run that saves none need not compute."""
        return digest_of([source.fingerprint for source in self.sources], *self._part)

    def _cut(self, ranges: Sequence[tuple[int, int]]) -> "list[RowGroup]":
        """The groups, and parts of groups, within a range of rows of each source."""
        groups: list[RowGroup] = []
        first_row = 0
        for number, (source, (begin, end)) in enumerate(zip(self.sources, ranges, strict=True)):
            starts = pairwise(accumulate(source.group_sizes, initial=0))
            for index, (start, stop) in enumerate(starts):
                low, high = max(start, begin), min(stop, end)
                if low < high:
                    groups.append(RowGroup(number, index, low - start, high - low, first_row + low))
            first_row += sum(source.group_sizes)
        return groups

    def open(self) -> "_Readers":
        """A reader of all sources for this process."""
        return _Readers(self.sources)


class _Readers:
    """Readers of several sources, which share the number of files that a process may hold open."""

    def __init__(self, sources: Sequence[GroupSource]) -> None:
        self._sources = sources
        self._files_each = max(_FEWEST_OPEN_FILES, _MAX_OPEN_FILES // len(sources))
        self._open: LastUsed[int, GroupReader] = LastUsed(_MAX_OPEN_FILES // self._files_each, GroupReader.close)

    def read(self, group: RowGroup, rows: np.ndarray) -> list[dict[str, Any]]:
        """Some of a group's rows, counted from its own first one."""
        reader = self._open.get(group.source, lambda: self._sources[group.source].open(self._files_each))
        return reader.read(group.index, rows + group.skip)


def _choose_half(num_rows: int, subset: str | None) -> tuple[int, int]:
    middle = num_rows // 2
    return {"first_half": (0, middle), "last_half": (middle, num_rows)}.get(subset or "", (0, num_rows))


def _limit(ranges: Sequence[tuple[int, int]], limit: int | None) -> list[tuple[int, int]]:
    total = sum(end - begin for begin, end in ranges)
    if limit is None or limit >= total:
        return list(ranges)
    shares = [limit * done // total for done in accumulate((end - begin for begin, end in ranges), initial=0)]
    return [
        (begin, begin + after - before) for (begin, _), (before, after) in zip(ranges, pairwise(shares), strict=True)
    ]


class ParquetShards:
    """Packed shards, or parquet files with the same columns."""

    def __init__(self, files: Sequence[str | Path], *, columns: Sequence[str] | None = None) -> None:
        """Read the footers of all files, and no photo.

        Args:
            files: in an order that is the same on every rank.
            columns: what to read; all columns by default.

        Raises:
            SourceError: no files, one that cannot be read, or files with different columns.
        """
        if not files:
            raise SourceError("no shards were given: pass the parquet files of a split, as list_shards returns them.")
        self.files = [str(file) for file in files]
        self.name = self.files[0]
        with ThreadPoolExecutor(8) as pool:  # a thousand shards, or footers that come by network
            footers = list(pool.map(_read_footer, self.files))
        wanted = _pick_columns(footers[0][1], columns, self.files[0])
        for file, (_, schema, _) in zip(self.files, footers, strict=True):
            if not _pick_columns(schema, columns, file).equals(wanted):
                raise SourceError(
                    f"{file} has the columns {schema.names}, {self.files[0]} has {wanted.names}: they differ."
                )
        self.columns = list(wanted.names)
        self.fingerprint = digest_of(
            [(Path(file).name, digest) for file, (_, _, digest) in zip(self.files, footers, strict=True)]
        )
        self.group_sizes = [size for sizes, _, _ in footers for size in sizes]
        self.places = [(file, index) for file, (sizes, _, _) in enumerate(footers) for index in range(len(sizes))]

    def num_rows_of_files(self) -> list[int]:
        """Rows of each file."""
        totals = [0] * len(self.files)
        for (file, _), size in zip(self.places, self.group_sizes, strict=True):
            totals[file] += size
        return totals

    def open(self, max_open_files: int = _MAX_OPEN_FILES) -> "_ShardReader":
        """A reader that keeps the files it used last open."""
        return _ShardReader(self, max_open_files)


def _read_footer(file: str) -> tuple[list[int], pa.Schema, str]:
    """Rows of each group, the columns, and what tells the file from others of its name."""
    try:
        with open_file(file) as opened, pq.ParquetFile(opened) as parquet:
            metadata = parquet.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            return sizes, parquet.schema_arrow, digest_of(sizes, shard_digest(metadata))
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{file} cannot be read as parquet: {error}. Pack it anew.") from error


def _pick_columns(schema: pa.Schema, columns: Sequence[str] | None, file: str) -> pa.Schema:
    """The part of a shard's schema that is read, without metadata: what else a shard holds may differ."""
    if missing := [name for name in columns or () if name not in schema.names]:
        raise SourceError(f"{file} has no column {missing[0]!r}; it has {', '.join(schema.names)}.")
    return pa.schema([schema.field(name) for name in columns or schema.names])


class _ShardReader:
    def __init__(self, shards: ParquetShards, max_open_files: int) -> None:
        self._shards = shards
        self._open: LastUsed[str, pq.ParquetFile] = LastUsed(max_open_files, lambda file: file.close(force=True))
        self._sizes: dict[str, int] = {}  # of files that are mapped, in bytes

    def close(self) -> None:
        """Close what is open."""
        self._open.close()

    def read(self, group: int, rows: np.ndarray) -> list[dict[str, Any]]:
        """The rows of one row group, in the order of `rows`; of one that is damaged, rows without photos."""
        number, index = self._shards.places[group]
        name = self._shards.files[number]
        try:
            file = self._file(name)
            self._refuse_shrunken(name)
            table = read_groups(file, [index], self._shards.columns, use_threads=False)
        except (OSError, pa.ArrowException, SourceError) as error:  # of one group among thousands
            return [self._unreadable(name, index, row, error) for row in rows.tolist()]
        if table.num_rows != self._shards.group_sizes[group]:
            raise SourceError(f"{name} changed while it was read: pack into a new folder instead.")
        return _take_rows(table, rows)

    def _unreadable(self, name: str, group: int, row: int, error: Exception) -> dict[str, Any]:
        place = f"{Path(name).name}, row group {group}, row {row}"
        problem = f"its row group cannot be read: {str(error).strip().splitlines()[0]}"
        empty = {"image": {"bytes": None, "path": None}, "id": place, "read_error": problem}
        return dict.fromkeys(self._shards.columns) | empty

    def _file(self, name: str) -> pq.ParquetFile:
        return self._open.get(name, lambda: self._open_parquet(name))

    def _open_parquet(self, name: str) -> pq.ParquetFile:
        if is_url(name):
            return pq.ParquetFile(open_file(name))
        self._sizes[name] = os.path.getsize(name)
        return pq.ParquetFile(name, memory_map=True)

    def _refuse_shrunken(self, name: str) -> None:
        """Reading a mapped file behind its end kills the process."""
        with contextlib.suppress(FileNotFoundError):  # what is mapped stays readable
            if name in self._sizes and (size := os.path.getsize(name)) < self._sizes[name]:
                raise SourceError(f"{name} has shrunk from {self._sizes[name]} to {size} bytes while it was read")


def _take_rows(table: pa.Table, rows: np.ndarray) -> list[dict[str, Any]]:
    """Some rows of a table as `take` and `to_pylist` give them, in a fifth of the time for photos."""
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        column = table[name]
        whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if name == "image" and pa.types.is_struct(whole.type) and not whole.null_count:
            parts = {
                whole.type.field(part).name: _take_values(whole.field(part), rows)
                for part in range(whole.type.num_fields)
            }
            columns[name] = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
        else:
            columns[name] = _take_values(whole, rows)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _take_values(array: pa.Array, rows: np.ndarray) -> list[Any]:
    if not pa.types.is_binary(array.type) or array.null_count:
        return list(array.take(pa.array(rows)).to_pylist())
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    view = memoryview(data)
    return [bytes(view[begin:end]) for begin, end in zip(bounds[rows].tolist(), bounds[rows + 1].tolist(), strict=True)]


class IndexedPhotos:
    """The photos of any source, by its index; neighbours in an archive make a group."""

    def __init__(self, index: PhotoIndex, *, columns: Sequence[str] | None = None) -> None:
        """Cut an index into groups.

        Args:
            index: what `open_source` returns.
            columns: what to read; by default all that the index knows.

        Raises:
            SourceError: a column that the index lacks.
        """
        self.index = index
        self.name = index.description or index.root
        known = ["image", "latitude", "longitude", "id", *index.known_columns()]
        if missing := [name for name in columns or () if name not in known]:
            raise SourceError(f"{self.name} has no column {missing[0]!r}; it has {', '.join(known)}.")
        self.columns = list(columns or known)
        self.group_sizes = _group_neighbours(index)
        self.starts = list(accumulate(self.group_sizes, initial=0))

    @cached_property
    def fingerprint(self) -> str:
        """Half a second for a million photos."""
        return self.index.digest()

    def open(self, max_open_files: int = _MAX_OPEN_FILES) -> "_IndexReader":
        """A reader that keeps the files it used last open."""
        return _IndexReader(self, max_open_files)


def _group_neighbours(index: PhotoIndex) -> list[int]:
    """Sizes of runs of rows: a hundred of them, or a row group of a parquet file, in one file where files hold many."""
    num_rows = len(index)
    if num_rows == 0:
        return []
    storage = index.table["storage"].to_numpy()
    alone = (storage == Storage.WHOLE) | (storage == Storage.MISSING)
    file = index.table["file"].combine_chunks().dictionary_encode()
    codes = (file if isinstance(file, pa.DictionaryArray) else file.combine_chunks()).indices.to_numpy().copy()
    codes[alone] = -1
    offset = np.where(storage == Storage.PARQUET, index.table["offset"].to_numpy(), 0)
    breaks = np.flatnonzero((np.diff(codes) != 0) | (np.diff(offset) != 0)) + 1
    bounds = [0, *breaks.tolist(), num_rows]
    sizes: list[int] = []
    for begin, end in pairwise(bounds):
        most = end - begin if storage[begin] == Storage.PARQUET else ROWS_PER_GROUP
        sizes += [min(most, end - start) for start in range(begin, end, most)]
    return sizes


class _IndexReader:
    def __init__(self, photos: IndexedPhotos, max_open_files: int) -> None:
        self._photos = photos
        self._reader = PhotoReader(photos.index.root, max_open_files)

    def close(self) -> None:
        """Close what is open."""
        self._reader.close()

    def read(self, group: int, rows: np.ndarray) -> list[dict[str, Any]]:
        """Rows of one group; a photo that cannot be read has no bytes, and `read_error` says why."""
        start, columns = self._photos.starts[group], self._photos.columns
        part = self._photos.index.table.slice(start, self._photos.group_sizes[group])
        chosen = part.take(pa.array(rows)).to_pylist()
        if "image" not in columns:
            return [{name: row[name] for name in columns} for row in chosen]
        in_order = sorted(range(len(chosen)), key=lambda n: (chosen[n]["file"], chosen[n]["offset"]))
        read = dict(zip(in_order, self._reader.read_all([chosen[n] for n in in_order]), strict=True))
        return [_to_sample(row, read[number], columns) for number, row in enumerate(chosen)]


def _to_sample(row: dict[str, Any], photo: bytes | Exception, columns: Sequence[str]) -> dict[str, Any]:
    data = photo if isinstance(photo, bytes) else None
    sample = {name: row[name] for name in columns if name != "image"}
    sample["image"] = {"bytes": data, "path": None}
    if not isinstance(photo, bytes):
        sample["read_error"] = explain_unread(photo)
    return sample
