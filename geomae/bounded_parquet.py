"""Parquet files of strangers, read in bounded memory.

A value that stands once in a dictionary is repeated by a bit: a file of some kilobytes can hold a table of terabytes.
So the texts of a table are read as their dictionaries and counted before they are written out, of each row group no
more rows are read at once than its footer says, and lists, whose length nothing bounds, are not read at all. Photos are
read in one go where their row group cannot be large.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["MOST_BYTES", "read_groups", "read_table"]

MOST_BYTES = 4 * 2**30  # in memory, of what is read at once
_FIXED_BYTES = 16  # of a value without bytes of its own, with its place and whether it is there
_BATCHES_JOINED = 4_096  # of one row each

_Leaves = dict[str, int]  # places in the schema of Parquet, by their paths


def read_table(
    file: str | Path | BinaryIO, columns: Sequence[str] | None = None, *, metadata: pq.FileMetaData | None = None
) -> pa.Table:
    """Like `pyarrow.parquet.read_table` of one file; a column that is not there is left out.

    Args:
        file: its path, or it.
        columns: names, `struct.field` for a part of a struct; None: all but lists.
        metadata: the footer, where that has been read.

    Raises:
        pa.ArrowException: as that; the table would take more than `MOST_BYTES`; a column that is asked for holds lists;
            two columns have one name.
        OSError: as that.
    """
    with pq.ParquetFile(file, metadata=metadata) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
        leaves = _choose_leaves(parquet.schema, columns)
        if not leaves:
            return parquet.read([])
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if sum(sizes) == 0:
            return schema.empty_table().select(list(_by_columns(leaves, schema.names)))
    try:
        table = _read_leaves(file, metadata, leaves, sizes)
    except (OSError, pa.ArrowNotImplementedError) as error:
        _refuse_unless_differences(error)
        table = _read_apart(file, metadata, leaves, sizes, schema.names)
    return _write_out(_complete(table, sum(sizes)), schema)


def _choose_leaves(schema: pq.ParquetSchema, columns: Sequence[str] | None) -> _Leaves:
    chosen: _Leaves = {}
    for number in range(len(schema)):
        leaf = schema.column(number)
        if columns is not None and not any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns):
            continue
        if leaf.max_repetition_level > 0:
            if columns is not None:
                raise pa.ArrowInvalid(f"its column {leaf.path} holds lists")
        elif leaf.path in chosen:
            raise pa.ArrowInvalid(f"two of its columns are called {leaf.path}")
        else:
            chosen[leaf.path] = number
    return chosen


def _read_leaves(file: Any, metadata: pq.FileMetaData, leaves: _Leaves, sizes: Sequence[int]) -> pa.Table:
    """The rows of row groups of these sizes, with dictionaries for texts."""
    parts = [metadata.schema.column(number) for number in leaves.values()]
    _refuse_swollen(sum(sizes) * sum(max(part.length, _FIXED_BYTES) for part in parts))
    texts = [number for part, number in zip(parts, leaves.values(), strict=True) if part.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(file, metadata=metadata, read_dictionary=texts) as parquet:
        return _join(
            batch
            for group, size in enumerate(sizes)
            for batch in parquet.iter_batches(max(1, size), row_groups=[group], columns=list(leaves))
        )


def _read_apart(
    file: Any, metadata: pq.FileMetaData, leaves: _Leaves, sizes: Sequence[int], names: Sequence[str]
) -> pa.Table:
    """The rows, column by column: one row at a time where a text is stored as its difference to the one before."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name, own in _by_columns(leaves, names).items():
        try:
            table = _read_leaves(file, metadata, own, sizes)
        except (OSError, pa.ArrowNotImplementedError) as error:
            _refuse_unless_differences(error)
            with pq.ParquetFile(file, metadata=metadata) as parquet:
                table = _join(parquet.iter_batches(1, columns=list(own), use_threads=False))
        columns[name] = table[0]
        _refuse_swollen(sum(column.nbytes for column in columns.values()))
    return pa.table(columns)


def _by_columns(leaves: _Leaves, names: Sequence[str]) -> dict[str, _Leaves]:
    found: dict[str, _Leaves] = {}
    for path, number in leaves.items():
        found.setdefault(path if path in names else path.partition(".")[0], {})[path] = number
    return found


def _refuse_unless_differences(error: Exception) -> None:
    if "Not yet implemented" not in str(error):
        raise error


def _join(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    tables: list[pa.Table] = []
    some: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        total += batch.nbytes
        _refuse_swollen(total)
        some.append(batch)
        if len(some) == _BATCHES_JOINED:
            tables.append(pa.Table.from_batches(some).combine_chunks())
            some = []
    return pa.concat_tables([*tables, pa.Table.from_batches(some)] if some else tables)


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
    return _complete(_join(parquet.iter_batches(num_rows, row_groups=list(groups), **options)), total)


def _complete(table: pa.Table, num_rows: int) -> pa.Table:
    """The table, of which a damaged file may hold fewer rows than its footer says, or not of every column."""
    table.validate()
    if len(set(names := table.column_names)) < len(names):
        raise pa.ArrowInvalid(f"two of its columns are called {max(names, key=names.count)}")
    if len(table) != num_rows:
        raise pa.ArrowInvalid(f"the footer says {num_rows:,} rows, and {len(table):,} can be read: the file is damaged")
    return table


def _write_out(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with its dictionaries written out, where they do not take too much."""
    swollen = sum(_bytes_of_texts(chunk) for column in table.columns for chunk in column.chunks)
    _refuse_swollen(table.nbytes + swollen)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        written = pa.chunked_array([_without_dictionaries(chunk) for chunk in column.chunks])
        kind = schema.field(name).type
        columns[name] = written if pa.types.is_nested(kind) else written.cast(kind)
    return pa.table(columns)


def _bytes_of_texts(array: pa.Array) -> int:
    if pa.types.is_struct(array.type):
        return sum(_bytes_of_texts(array.field(number)) for number in range(array.type.num_fields))
    if not pa.types.is_dictionary(array.type):
        return 0
    return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0


def _without_dictionaries(array: pa.Array) -> pa.Array:
    if pa.types.is_struct(array.type):
        fields = [_without_dictionaries(array.field(number)) for number in range(array.type.num_fields)]
        names = [array.type.field(number).name for number in range(array.type.num_fields)]
        return pa.StructArray.from_arrays(fields, names, mask=array.is_null())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _refuse_swollen(num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise pa.ArrowInvalid(
            f"its rows would take more than {MOST_BYTES / 2**30:.0f} GiB of memory at once: it is damaged, or made to "
            "fill memory"
        )
