"""Parquet files of strangers, read in bounded memory.

A value that stands once in a dictionary is repeated by a bit: a file of some kilobytes can hold a table of terabytes.
So the texts of a table are read as their dictionaries and counted before they are written out; photos are read in one
go only where their row group cannot be large.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["MOST_BYTES", "read_groups", "read_table"]

MOST_BYTES = 4 * 2**30  # in memory, of what is read at once
_FIXED_BYTES = 16  # of a value without bytes of its own, with its place and whether it is there
_ROWS_AT_ONCE = 4_096  # of texts that are stored as differences, which cannot be read as a dictionary


def read_table(file: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Like `pyarrow.parquet.read_table` of one file; a column that is not there is left out.

    Raises:
        pa.ArrowException: as that, and where the table would take more than `MOST_BYTES`.
        OSError: as that.
    """
    with pq.ParquetFile(file) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        _refuse_swollen(metadata.num_rows * metadata.num_columns * _FIXED_BYTES)
        texts = [field.name for field in schema if _is_text(field.type) and (columns is None or field.name in columns)]
    wanted = None if columns is None else list(columns)
    try:
        with pq.ParquetFile(file, read_dictionary=texts) as parquet:
            table = parquet.read(columns=wanted)
    except (OSError, pa.ArrowNotImplementedError) as error:
        if "Not yet implemented" not in str(error):
            raise
        with pq.ParquetFile(file) as parquet:
            return _complete(_read_little_by_little(parquet, _ROWS_AT_ONCE, columns=wanted), metadata.num_rows)
    return _write_out(_complete(table, metadata.num_rows), schema)


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
    return _complete(_read_little_by_little(parquet, num_rows, row_groups=list(groups), **options), total)


def _complete(table: pa.Table, num_rows: int) -> pa.Table:
    """The table, of which a damaged file may hold fewer rows than its footer says, or not of every column."""
    table.validate()
    if len(table) != num_rows:
        raise pa.ArrowInvalid(f"the footer says {num_rows:,} rows, and {len(table):,} can be read: the file is damaged")
    return table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _read_little_by_little(parquet: pq.ParquetFile, num_rows: int, **options: Any) -> pa.Table:
    batches, total = [], 0
    for batch in parquet.iter_batches(num_rows, **options):
        total += batch.nbytes
        _refuse_swollen(total)
        batches.append(batch)
    return pa.Table.from_batches(batches) if batches else parquet.schema_arrow.empty_table()


def _write_out(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with its dictionaries written out, where they do not take too much."""
    total = table.nbytes
    for field in table.schema:
        if pa.types.is_dictionary(field.type):
            for chunk in table[field.name].chunks:
                total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    _refuse_swollen(total)
    return table.cast(pa.schema([schema.field(name) for name in table.column_names], table.schema.metadata))


def _refuse_swollen(num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise pa.ArrowInvalid(
            f"its rows would take more than {MOST_BYTES / 2**30:.0f} GiB of memory at once: it is damaged, or made to "
            "fill memory"
        )
