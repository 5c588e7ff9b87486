"""Parquet files of strangers, read in bounded memory.

A value that stands once in a dictionary is repeated by a bit, and a prefix likewise: a file of some kilobytes can hold
a table of terabytes. What a read may take at most is known from the footer. Where that is too much, a table's texts are
read as their dictionaries and counted before they are written out, and photos are read little by little.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["MOST_BYTES", "read_groups", "read_table"]

MOST_BYTES = 4 * 2**30  # in memory, of what is read at once
_FIXED_BYTES = 16  # of a value without bytes of its own, with its place and whether it is there
_STORED_AS_THEY_ARE = {"PLAIN", "RLE", "BIT_PACKED"}  # encodings of bytes; the two latter are those of levels
_IN_DICTIONARIES = {*_STORED_AS_THEY_ARE, "RLE_DICTIONARY", "PLAIN_DICTIONARY"}


def read_table(file: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Like `pyarrow.parquet.read_table` of one file.

    Raises:
        pa.ArrowException: as that, and where the table would take more than `MOST_BYTES`.
        OSError: as that.
    """
    with pq.ParquetFile(file) as parquet:
        groups = range(parquet.num_row_groups)
        if _most_bytes(parquet, groups, columns) <= MOST_BYTES:
            return read_groups(parquet, groups, columns)
        swelling = [chunk for chunk in _chunks(parquet, groups, columns) if _swells(chunk)]
        texts = {chunk.path_in_schema for chunk in swelling} & set(parquet.schema_arrow.names)
        texts -= {chunk.path_in_schema for chunk in swelling if not _IN_DICTIONARIES.issuperset(chunk.encodings)}
    with pq.ParquetFile(file, read_dictionary=sorted(texts)) as parquet:
        return _write_out(read_groups(parquet, groups, columns, in_dictionaries=texts))


def read_groups(
    parquet: pq.ParquetFile,
    groups: Sequence[int],
    columns: Sequence[str] | None = None,
    *,
    use_threads: bool = True,
    in_dictionaries: frozenset[str] | set[str] = frozenset(),
) -> pa.Table:
    """Like `ParquetFile.read_row_groups`; a column that is not there is left out, as it does.

    Args:
        parquet: an open file.
        groups: the row groups.
        columns: their first names in the schema; None: all.
        use_threads: also in Arrow.
        in_dictionaries: columns that the file was opened to read as their dictionaries.

    Raises:
        pa.ArrowException: as that, and where the table would take more than `MOST_BYTES`.
        IndexError: there is no such row group.
    """
    options = {"columns": None if columns is None else list(columns), "use_threads": use_threads}
    if _most_bytes(parquet, groups, columns, in_dictionaries) <= MOST_BYTES:
        return parquet.read_row_groups(list(groups), **options)
    largest = max(chunk.total_uncompressed_size for chunk in _chunks(parquet, groups, columns))
    num_rows = max(1, min(MOST_BYTES // (16 * max(1, largest)), 65_536))
    batches, total = [], 0
    for batch in parquet.iter_batches(num_rows, list(groups), **options):
        total += batch.nbytes
        _refuse_swollen(total)
        batches.append(batch)
    return pa.Table.from_batches(batches)


def _chunks(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str] | None
) -> Iterator[pq.ColumnChunkMetaData]:
    for number in groups:
        group = parquet.metadata.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            if columns is None or chunk.path_in_schema.partition(".")[0] in columns:
                yield chunk


def _swells(chunk: pq.ColumnChunkMetaData) -> bool:
    """A value of it may be stored once and stand in many rows."""
    return chunk.physical_type == "BYTE_ARRAY" and not _STORED_AS_THEY_ARE.issuperset(chunk.encodings)


def _most_bytes(
    parquet: pq.ParquetFile,
    groups: Sequence[int],
    columns: Sequence[str] | None,
    in_dictionaries: frozenset[str] | set[str] = frozenset(),
) -> int:
    """What the columns take in memory at most."""
    total = 0
    for chunk in _chunks(parquet, groups, columns):
        times = chunk.num_values if _swells(chunk) and chunk.path_in_schema not in in_dictionaries else 1
        total += chunk.num_values * _FIXED_BYTES + chunk.total_uncompressed_size * times
    return total


def _write_out(table: pa.Table) -> pa.Table:
    """The table with its dictionaries written out, where they do not take too much."""
    total = table.nbytes
    for field in table.schema:
        if pa.types.is_dictionary(field.type):
            for chunk in table[field.name].chunks:
                total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    _refuse_swollen(total)
    types = {field.name: field.type for field in table.schema}
    return table.cast(
        pa.schema([(name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in types.items()])
    )


def _refuse_swollen(num_bytes: int) -> None:
    if num_bytes > MOST_BYTES:
        raise pa.ArrowInvalid(
            f"its rows would take more than {MOST_BYTES / 2**30:.0f} GiB of memory at once: it is damaged, or made to "
            "fill memory"
        )
