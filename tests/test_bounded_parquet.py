"""Parquet is read as pyarrow reads it, as long as it fits; what would swell is refused before it does."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geomae import bounded_parquet
from geomae.bounded_parquet import read_groups, read_table

NUM_ROWS = 5_000
TABLE = pa.table(
    {
        "id": [f"{number * 7919 % 2**32:08x}" for number in range(NUM_ROWS)],
        "author": pa.array([None if number % 3 else f"author {number % 7}" for number in range(NUM_ROWS)]),
        "latitude": np.linspace(-90, 90, NUM_ROWS),
        "image": pa.StructArray.from_arrays(
            [pa.array([bytes([number % 5]) * 40 for number in range(NUM_ROWS)]), pa.nulls(NUM_ROWS, pa.string())],
            ["bytes", "path"],
        ),
        "tags": pa.array([["a", "b"][: number % 3] for number in range(NUM_ROWS)]),
    }
)
POOLS: list[pa.MemoryPool] = []  # what was read from one may outlive the test


def repeated(value: Any, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([value]))


@contextlib.contextmanager
def counted_memory() -> Iterator[pa.MemoryPool]:
    """What Arrow takes meanwhile, at its peak."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(counted := pa.proxy_memory_pool(usual))
    POOLS.append(counted)
    try:
        yield counted
    finally:
        pa.set_memory_pool(usual)


@pytest.mark.parametrize("columns", [None, ["author", "latitude"], ["image"]])
@pytest.mark.parametrize(
    "options", [{}, {"column_encoding": {"id": "DELTA_BYTE_ARRAY"}, "use_dictionary": ["author", "image.bytes"]}]
)
def test_tables_are_read_as_pyarrow_reads_them(
    options: dict[str, Any], columns: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet", row_group_size=2_000, **options)
    expected = pq.read_table(tmp_path / "table.parquet", columns=columns)
    for most_bytes in (bounded_parquet.MOST_BYTES, 20 * TABLE.nbytes):  # in one go; in its dictionaries, bit by bit
        monkeypatch.setattr(bounded_parquet, "MOST_BYTES", most_bytes)
        table = read_table(tmp_path / "table.parquet", columns)
        assert table.equals(expected)
        with pq.ParquetFile(tmp_path / "table.parquet") as parquet:
            assert read_groups(parquet, [0, 1, 2], columns, use_threads=False).equals(expected)
            if columns is None:
                assert read_groups(parquet, [1]).equals(expected.slice(2_000, 2_000))


def test_a_table_without_rows_is_read(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet").equals(TABLE.slice(0, 0))


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_text_that_is_stored_once_cannot_fill_the_memory(kind: str, tmp_path: Path) -> None:
    value = "x" * 2**20 if kind == "text" else b"x" * 2**20
    pq.write_table(pa.table({"id": repeated(value, 5_000)}), tmp_path / "bomb.parquet", store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**18
    with counted_memory() as memory, pytest.raises(pa.ArrowInvalid, match="more than 4 GiB of memory at once: it is"):
        read_table(tmp_path / "bomb.parquet")
    assert 0 < memory.max_memory() <= 2**25


def test_numbers_without_end_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"latitude": np.zeros(10**6)}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**14
    monkeypatch.setattr(bounded_parquet, "MOST_BYTES", 2**20)
    with pytest.raises(pa.ArrowInvalid, match="would take more than"):
        read_table(tmp_path / "bomb.parquet")


def test_a_row_group_of_photos_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = pa.StructArray.from_arrays(
        [repeated(b"x" * 2**20, 3_000), pa.nulls(3_000, pa.string())], ["bytes", "path"]
    )
    pq.write_table(pa.table({"image": photos}), tmp_path / "bomb.parquet", store_schema=False)
    monkeypatch.setattr(bounded_parquet, "MOST_BYTES", 2**28)
    with pq.ParquetFile(tmp_path / "bomb.parquet") as parquet, pytest.raises(pa.ArrowInvalid, match="would take more"):
        read_groups(parquet, [0], ["image"])
    with pq.ParquetFile(tmp_path / "bomb.parquet") as parquet, pytest.raises((IndexError, pa.ArrowException)):
        read_groups(parquet, [7], ["image"])


@pytest.mark.parametrize("columns", [["latitude"], ["latitude", "longitude"]])
def test_what_a_damaged_file_holds_too_little_of_is_no_table(columns: list[str], tmp_path: Path) -> None:
    path, good = tmp_path / "damaged.parquet", io.BytesIO()
    pq.write_table(pa.table({name: [1.0, 2.0, 3.0] for name in columns}), good, compression="none")
    said = set()
    footer = int.from_bytes(good.getvalue()[-8:-4], "little") + 8
    for place in range(len(good.getvalue()) - footer):
        damaged = bytearray(good.getvalue())
        damaged[place] = 2
        path.write_bytes(damaged)
        for read in (read_table, read_all_groups):
            try:
                table = read(path)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                said.add(str(error).partition(" can be read")[0].partition(" named")[0])
            else:
                assert {len(table[name]) for name in table.column_names} <= {3}, place
    assert {"the footer says 3 rows, and 1", "Column 1"} & said


def read_all_groups(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as parquet:
        return read_groups(parquet, range(parquet.num_row_groups))
