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


@pytest.mark.parametrize("columns", [None, ["author", "latitude"], ["id"]])
@pytest.mark.parametrize(
    "options", [{}, {"column_encoding": {"id": "DELTA_BYTE_ARRAY"}, "use_dictionary": ["author", "image.bytes"]}]
)
def test_tables_are_read_as_pyarrow_reads_them(
    options: dict[str, Any], columns: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet", row_group_size=2_000, **options)
    expected = pq.read_table(tmp_path / "table.parquet", columns=columns)
    for most_bytes in (bounded_parquet.MOST_BYTES, 20 * TABLE.nbytes):  # groups in one go; bit by bit
        monkeypatch.setattr(bounded_parquet, "MOST_BYTES", most_bytes)
        table = read_table(tmp_path / "table.parquet", columns)
        assert table.equals(expected.drop_columns(["image", "tags"]) if columns is None else expected)
        with pq.ParquetFile(tmp_path / "table.parquet") as parquet:
            assert read_groups(parquet, [0, 1, 2], columns, use_threads=False).equals(expected)
            if columns is None:
                assert read_groups(parquet, [1]).equals(expected.slice(2_000, 2_000))


def test_a_table_without_rows_is_read(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet").equals(TABLE.slice(0, 0).drop_columns(["image", "tags"]))


MEGABYTE = 2**20
IN_STRUCT = pa.struct([("name", pa.large_string()), ("rank", pa.int64())])
OF_STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), IN_STRUCT]
SWOLLEN = [*OF_STRINGS, pa.binary(), pa.large_binary(), pa.binary(MEGABYTE)]


@pytest.mark.parametrize("kind", SWOLLEN, ids=lambda kind: str(kind).partition("<")[0])
def test_a_text_that_is_stored_once_cannot_fill_the_memory(
    kind: pa.DataType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"id": swollen(kind, 500)}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**18
    columns: Any = [("id", "name")] if pa.types.is_struct(kind) else ["id"]
    monkeypatch.setattr(bounded_parquet, "MOST_BYTES", 128 * MEGABYTE)
    with counted_memory() as memory, pytest.raises(pa.ArrowInvalid, match="it is damaged, or made to fill memory"):
        read_table(tmp_path / "bomb.parquet", columns)
    assert memory.max_memory() <= 150 * MEGABYTE


def swollen(kind: pa.DataType, num_rows: int) -> pa.Array:
    """One text of a megabyte, again and again."""
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [swollen(kind.field(0).type, num_rows), pa.array(range(num_rows))], fields=list(kind)
        )
    text = repeated("x" * MEGABYTE if kind in OF_STRINGS else b"x" * MEGABYTE, num_rows)
    return text if pa.types.is_dictionary(kind) else text.cast(text.type.value_type).cast(kind)


@pytest.mark.parametrize(
    ("num_columns", "num_rows", "megabytes", "encoding"),
    [
        (1, 256, 1, "PLAIN"),
        (1, 256, 1, "DELTA_LENGTH_BYTE_ARRAY"),
        (1, 256, 1, "DELTA_BYTE_ARRAY"),
        (8, 32, 1, "PLAIN"),
        (16, 1, 32, "PLAIN"),
    ],
)
def test_texts_that_compress_well_cannot_fill_the_memory(
    num_columns: int, num_rows: int, megabytes: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number:04d}" + "x" * (megabytes * MEGABYTE - 4) for number in range(num_rows)]
    columns = {str(number): texts for number in range(num_columns)}
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": dict.fromkeys(columns, encoding)}
    pq.write_table(pa.table(columns), tmp_path / "bomb.parquet", compression="zstd", **options)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**17
    monkeypatch.setattr(bounded_parquet, "MOST_BYTES", 32 * MEGABYTE)
    with counted_memory() as memory, pytest.raises(pa.ArrowInvalid, match="it is damaged, or made to fill memory"):
        read_table(tmp_path / "bomb.parquet")
    assert memory.max_memory() <= 300 * MEGABYTE  # 64 rows, twice while they grow, and a page


def test_a_long_text_among_short_ones_is_read(tmp_path: Path) -> None:
    texts = ["x" * 10 * MEGABYTE, *map(str, range(100))]
    pq.write_table(pa.table({"id": texts}), tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet")["id"].to_pylist() == texts


@pytest.mark.parametrize(
    "values", [[f"{number:0100d}" for number in range(3_000)], list(range(3_000))], ids=["texts", "numbers"]
)
def test_dictionaries_are_written_out(values: list[Any], tmp_path: Path) -> None:
    names = pa.array([None if number % 7 == 0 else values[number % 3_000] for number in range(20_000)])
    pq.write_table(pa.table({"author": names.dictionary_encode()}), tmp_path / "table.parquet", row_group_size=9_000)
    assert read_table(tmp_path / "table.parquet")["author"].equals(pa.chunked_array([names]))


def test_more_columns_than_tables_have_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({str(number): [0] for number in range(1_001)}), tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet", ["5"]).to_pydict() == {"5": [0]}
    with pytest.raises(pa.ArrowInvalid, match="it has 1,001 columns, more than 1,000"):
        read_table(tmp_path / "table.parquet")


def test_lists_and_structs_are_left_out_or_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet").column_names == ["id", "author", "latitude"]
    for name in ("tags", "image"):
        with pytest.raises(pa.ArrowInvalid, match=f"its column {name} is a .*, neither number nor text"):
            read_table(tmp_path / "table.parquet", ["id", name])


def test_fields_are_told_apart_from_columns_with_dots(tmp_path: Path) -> None:
    geo = pa.StructArray.from_arrays(
        [pa.array([[1], []]), pa.array([1.5, None])], ["tags", "lat"], mask=pa.array([False, True])
    )
    table = pa.table({"a": [1, 2], "a.b": [[3], [4]], "x.geo": geo, "x.geo.lat": [5, 6], "x": ["q", None]})
    pq.write_table(table, tmp_path / "table.parquet")
    read = read_table(tmp_path / "table.parquet", ["x", "a", ("x.geo", "lat"), ("x", "geo"), ("a", "b")])
    assert read.to_pydict() == {"a": [1, 2], "x.geo.lat": [1.5, None], "x": ["q", None]}
    assert read_table(tmp_path / "table.parquet", ["x.geo.lat"]).to_pydict() == {"x.geo.lat": [5, 6]}
    with pytest.raises(pa.ArrowInvalid, match=r"its column x.geo.tags is a list"):
        read_table(tmp_path / "table.parquet", [("x.geo", "tags")])


def test_footer_that_counts_fewer_rows_than_none_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "damaged.parquet", io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2, 3, 4, 5, 6]}), good, row_group_size=3, compression="none")
    size, said = len(good.getvalue()), set()
    for place in range(size - 8 - int.from_bytes(good.getvalue()[-8:-4], "little"), size - 8):
        damaged = bytearray(good.getvalue())
        damaged[place] = 1  # -1, where it is a number of rows
        path.write_bytes(damaged)
        try:
            read_table(path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said.add(str(error))
    assert "the footer says that there are fewer rows than none: the file is damaged" in said


@pytest.mark.parametrize("columns", [[], ["none of them"]])
def test_rows_without_columns_are_counted(columns: list[str], tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet")
    assert len(read_table(tmp_path / "table.parquet", columns)) == NUM_ROWS


def test_two_columns_of_one_name_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["id", "id", "latitude"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for columns in (None, ["id"]):
        with pytest.raises(pa.ArrowInvalid, match="two of its columns are called id"):
            read_table(tmp_path / "twice.parquet", columns)
        with (
            pq.ParquetFile(tmp_path / "twice.parquet") as parquet,
            pytest.raises(pa.ArrowInvalid, match="two of its columns are called id"),
        ):
            read_groups(parquet, [0], columns)
    assert read_table(tmp_path / "twice.parquet", ["latitude"]).to_pydict() == {"latitude": [3]}


def test_what_is_not_asked_for_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({str(number): np.zeros(1_000) for number in range(100)}), tmp_path / "wide.parquet")
    monkeypatch.setattr(bounded_parquet, "MOST_BYTES", 100_000)
    assert read_table(tmp_path / "wide.parquet", ["3", "17"]).shape == (1_000, 2)
    with pytest.raises(pa.ArrowInvalid, match="would take more than"):
        read_table(tmp_path / "wide.parquet")


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
