"""Parquet is read as pyarrow reads it, as long as it fits; what would swell is refused before it does."""

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


def repeated(value: Any, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([value]))


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
    before = pa.total_allocated_bytes()
    with pytest.raises(pa.ArrowInvalid, match="more than 4 GiB of memory at once: it is damaged, or made to fill"):
        read_table(tmp_path / "bomb.parquet")
    assert pa.total_allocated_bytes() <= before + 2**20


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
