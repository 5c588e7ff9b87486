"""Parquet files of strangers, read in bounded memory.

A value that stands once in a dictionary is repeated by a bit, and zeros by the million compress to a few bytes: a file
of some kilobytes can hold a table of terabytes. So a table is read column by column and some rows at a time, and is
counted as it grows. Photos are read in one go where their row group cannot be large.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["MOST_BYTES", "read_groups", "read_table"]

MOST_BYTES = 4 * 2**30  # in memory, of what is read at once
_FIXED_BYTES = 16  # of a value without bytes of its own, with its place and whether it is there
_TEXTS_AT_ONCE = 64
_BYTES_PER_TEXT = 2**16  # on average, beyond the first
_BYTES_OF_FIRST = 2**24
_OF_DICTIONARY_AT_ONCE = 4_096  # texts, each time with all of the dictionary
_NUMBERS_AT_ONCE = 65_536
_BATCHES_JOINED = 1_024
_MOST_COLUMNS = 1_000


def read_table(
    file: str | Path | BinaryIO,
    columns: Sequence[str | tuple[str, str]] | None = None,
    *,
    metadata: pq.FileMetaData | None = None,
) -> pa.Table:
    """Like `pyarrow.parquet.read_table` of one file, for columns of numbers and texts; dictionaries are written out.

    Args:
        file: its path, or it.
        columns: their names, or `(struct, field)`, which is called `struct.field` then; one that is not there is left
            out. None: all but lists and structs.
        metadata: the footer, where that has been read.

    Raises:
        pa.ArrowException: as that; the table would take more than `MOST_BYTES`, or texts more than 64 KiB on average; a
            column that is asked for is a list or a struct; two have one name.
        OSError: as that.
    """
    with pq.ParquetFile(file, metadata=metadata) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        if min(sizes, default=0) < 0:
            raise pa.ArrowInvalid("the footer says that there are fewer rows than none: the file is damaged")
        metadata, chosen = parquet.metadata, _choose_leaves(parquet, columns)
        if not chosen:
            return parquet.read([])
    read: dict[str, pa.ChunkedArray] = {}
    num_bytes = 0
    for name, (number, kind) in chosen.items():
        with pq.ParquetFile(file, metadata=metadata) as parquet:  # keeps its pages
            chunks = _read_leaf(parquet, number, kind, sum(sizes), num_bytes)
        read[name] = pa.chunked_array(chunks, type=kind.value_type if pa.types.is_dictionary(kind) else kind)
        num_bytes += read[name].nbytes
    return _complete(pa.table(read), sum(sizes))


def _choose_leaves(
    parquet: pq.ParquetFile, columns: Sequence[str | tuple[str, str]] | None
) -> dict[str, tuple[int, pa.DataType]]:
    """Place in the schema of Parquet and type in Arrow's, by the name that is asked for."""
    flat = [
        (name, number, kind)
        for name, number, kind in _walk_leaves(parquet.schema_arrow)
        if columns is None or name in columns
    ]
    if sum(_count_leaves(field.type) for field in parquet.schema_arrow) != len(parquet.schema):
        raise pa.ArrowInvalid("its columns have types that cannot be told apart")
    if len(flat) > _MOST_COLUMNS:
        raise pa.ArrowInvalid(f"it has {len(flat):,} columns, more than {_MOST_COLUMNS:,}")
    count = Counter(name for name, *_ in flat)
    chosen = {}
    for name, number, kind in flat:
        shown = name if isinstance(name, str) else ".".join(name)
        if count[name] > 1 or shown in chosen:
            raise pa.ArrowInvalid(f"two of its columns are called {shown}")
        if pa.types.is_nested(_stored(kind)):
            if columns is not None:
                raise pa.ArrowInvalid(f"its column {shown} is a {kind}, neither number nor text")
        elif columns is not None or isinstance(name, str):
            chosen[shown] = (number, kind)
    return chosen


def _walk_leaves(schema: pa.Schema) -> Iterator[tuple[str | tuple[str, str], int, pa.DataType]]:
    """Every column, and every field of a struct as `(struct, field)`, with the place of its first leaf."""
    number = 0
    for field in schema:
        yield field.name, number, field.type
        inside = number
        for part in field.type if pa.types.is_struct(field.type) else ():
            yield (field.name, part.name), inside, part.type
            inside += _count_leaves(part.type)
        number += _count_leaves(field.type)


def _count_leaves(kind: pa.DataType) -> int:
    kind = _stored(kind)
    if not pa.types.is_nested(kind):
        return 1
    return sum(_count_leaves(kind.field(number).type) for number in range(kind.num_fields))


def _stored(kind: pa.DataType) -> pa.DataType:
    return _stored(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _rows_at_once(leaf: pq.ColumnSchema, kind: pa.DataType) -> tuple[int, int]:
    """How many rows of a column to read at once, and what a value takes at least, in bytes."""
    if leaf.physical_type == "BYTE_ARRAY":
        return _OF_DICTIONARY_AT_ONCE if pa.types.is_dictionary(kind) else _TEXTS_AT_ONCE, _FIXED_BYTES
    width = max(_FIXED_BYTES, leaf.length)
    return max(1, _NUMBERS_AT_ONCE * _FIXED_BYTES // width), width


def _read_leaf(parquet: pq.ParquetFile, number: int, kind: pa.DataType, num_rows: int, before: int) -> list[pa.Array]:
    """A column, in chunks; `before` bytes are in memory already."""
    at_once, width = _rows_at_once(parquet.schema.column(number), kind)
    _refuse_swollen(before + num_rows * width)
    options = {"row_groups": range(parquet.num_row_groups), "column_indices": [number], "use_threads": False}
    joined: list[pa.Array] = []
    pending: list[pa.Array] = []
    num_bytes = num_read = 0
    for batch in parquet.reader.iter_batches(at_once, **options):
        array = batch.column(0)
        array = pc.struct_field(array, [0]) if pa.types.is_struct(array.type) else array
        num_bytes, num_read = num_bytes + _bytes_written_out(array), num_read + len(array)
        _refuse_swollen(before + num_bytes)
        if num_bytes > _BYTES_OF_FIRST + num_read * max(width, _BYTES_PER_TEXT):
            raise pa.ArrowInvalid(
                f"its texts take more than {_BYTES_PER_TEXT // 1024} KiB each: it is damaged, or made to fill memory"
            )
        pending.append(array.dictionary_decode() if pa.types.is_dictionary(array.type) else array)
        if len(pending) == _BATCHES_JOINED:
            joined += _join(pending)
            pending = []
    return joined + _join(pending)


def _bytes_written_out(array: pa.Array) -> int:
    """Of an array, or of the one that its dictionary makes of its indices."""
    if not pa.types.is_dictionary(array.type):
        return array.nbytes
    values = array.dictionary
    is_view = pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type)
    values = values.cast(pa.large_binary()) if is_view else values
    is_text = pa.types.is_large_binary(values.type) or pa.types.is_large_string(values.type)
    if not (is_text or pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return len(array) * _FIXED_BYTES
    return (pc.sum(pc.binary_length(values).take(array.indices)).as_py() or 0) + len(array) * _FIXED_BYTES


def _join(arrays: list[pa.Array]) -> list[pa.Array]:
    table = pa.Table.from_arrays([pa.chunked_array(arrays)], ["_"]) if arrays else None
    return [] if table is None else list(table.combine_chunks()[0].chunks)


def read_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str] | None = None, *, use_threads: bool = True
) -> pa.Table:
    """Like `ParquetFile.read_row_groups`; a column that is not there is left out.

    Args:
        parquet: an open file. What its footer says of its sizes is believed.
        groups: the row groups.
        columns: their first names in the schema; None: all.
        use_threads: also in Arrow.

    Raises:
        pa.ArrowException: as that, and where the rows would take more than `MOST_BYTES`.
        IndexError: there is no such row group.
    """
    options = {"columns": None if columns is None else list(columns), "use_threads": use_threads}
    # not of single columns: pyarrow 24 aborts the process when it is asked for those of a footer that is damaged
    sizes = [(group.num_rows, group.total_byte_size) for group in map(parquet.metadata.row_group, groups)]
    total = sum(num_rows for num_rows, _ in sizes)
    if sum(num_rows * (num_bytes + _FIXED_BYTES) for num_rows, num_bytes in sizes) <= MOST_BYTES:
        return _complete(parquet.read_row_groups(list(groups), **options), total)
    largest = max(num_bytes for _, num_bytes in sizes)
    num_rows = max(1, min(MOST_BYTES // (16 * max(1, largest)), 65_536))
    batches, num_bytes = [], 0
    for batch in parquet.iter_batches(num_rows, row_groups=list(groups), **options):
        num_bytes += batch.nbytes
        _refuse_swollen(num_bytes)
        batches.append(batch)
    return _complete(pa.Table.from_batches(batches), total)


def _complete(table: pa.Table, num_rows: int) -> pa.Table:
    """The table, of which a damaged file may hold fewer rows than its footer says, or not of every column."""
    table.validate()
    for name, times in Counter(table.column_names).most_common(1):
        if times > 1:
            raise pa.ArrowInvalid(f"two of its columns are called {name}")
    if len(table) != num_rows:
        raise pa.ArrowInvalid(f"the footer says {num_rows:,} rows, and {len(table):,} can be read: the file is damaged")
    return table


def _refuse_swollen(num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise pa.ArrowInvalid(
            f"its rows would take more than {MOST_BYTES / 2**30:.0f} GiB of memory at once: it is damaged, or made to "
            "fill memory"
        )
