from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from spheres import draw_photos

from geomae.errors import SourceError
from geomae.geocells import (
    Geocells,
    build_geocells,
    draft_by_kmeans,
    draft_by_s2,
    read_geocells,
    write_geocells,
)

PHOTOS_DEG = draw_photos(1000)
COLUMNS = ["partition", "cell", "latitude", "longitude", "num_photos", "area_km2", "spread_km", "parent", "s2_token"]


@pytest.fixture(scope="module")
def geocells() -> Geocells:
    return build_geocells(PHOTOS_DEG, draft_by_s2(PHOTOS_DEG, max_photos=[200, 50], min_photos=5)).geocells


def assert_equal(one: Geocells, other: Geocells) -> None:
    for first, second in zip(one.partitions, other.partitions, strict=True):
        for name in ("centroids_deg", "num_photos", "area_km2", "spread_km", "parents"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert first.s2_tokens == second.s2_tokens


def test_geocells_come_back_from_their_file_to_the_last_bit(tmp_path: Path, geocells: Geocells) -> None:
    again = read_geocells(write_geocells(tmp_path / "geocells.parquet", geocells))
    assert_equal(again, geocells)
    assert again.partitions[0].parents is None
    np.testing.assert_array_equal(again.assign(PHOTOS_DEG), geocells.assign(PHOTOS_DEG))


def test_cells_by_kmeans_come_back_without_names(tmp_path: Path) -> None:
    geocells = build_geocells(PHOTOS_DEG, draft_by_kmeans(PHOTOS_DEG, num_cells=[3, 9, 20])).geocells
    again = read_geocells(write_geocells(tmp_path / "geocells.parquet", geocells))
    assert_equal(again, geocells)
    assert [partition.s2_tokens for partition in again.partitions] == [None] * 3


def test_the_file_has_a_row_for_each_cell_of_each_partition(tmp_path: Path, geocells: Geocells) -> None:
    table = pa.parquet.read_table(write_geocells(tmp_path / "geocells.parquet", geocells))
    assert table.column_names == COLUMNS
    assert len(table) == sum(geocells.num_geocells)
    assert set(table["partition"].to_pylist()) == {0, 1}
    assert table["parent"].null_count == geocells.num_geocells[0]


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path, geocells: Geocells) -> None:
    file = tmp_path / "geocells.parquet"
    file.write_text("something older")
    write_geocells(file, geocells)
    assert [path.name for path in tmp_path.iterdir()] == ["geocells.parquet"]
    assert_equal(read_geocells(file), geocells)


def test_an_interrupted_write_leaves_the_older_file(
    tmp_path: Path, geocells: Geocells, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_geocells(tmp_path / "geocells.parquet", geocells)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_geocells(file, Geocells(geocells.partitions[:1]))
    assert_equal(read_geocells(file), geocells)


def test_a_missing_file_is_named_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is no file .*cells.parquet; `python -m geomae.geocells build`"):
        read_geocells(tmp_path / "cells.parquet")


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_file_is_refused(tmp_path: Path, geocells: Geocells, kept: int) -> None:
    file = write_geocells(tmp_path / "geocells.parquet", geocells)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"geocells.parquet cannot be read as parquet"):
        read_geocells(file)


def test_a_table_of_something_else_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"id": ["a"], "latitude": [1.0], "longitude": [2.0]}), tmp_path / "photos.parquet")
    with pytest.raises(SourceError, match=r"lacks the columns partition, cell, num_photos.* has id, latitude"):
        read_geocells(tmp_path / "photos.parquet")


def test_columns_of_another_type_are_refused(tmp_path: Path, geocells: Geocells) -> None:
    table = pa.parquet.read_table(write_geocells(tmp_path / "geocells.parquet", geocells))
    words = table.set_column(2, "latitude", pa.array(["north"] * len(table)))
    pa.parquet.write_table(words, tmp_path / "geocells.parquet")
    with pytest.raises(SourceError, match=r"geocells.parquet holds no geocells: .*north"):
        read_geocells(tmp_path / "geocells.parquet")


def test_a_file_without_cells_is_refused(tmp_path: Path, geocells: Geocells) -> None:
    table = pa.parquet.read_table(write_geocells(tmp_path / "geocells.parquet", geocells))
    pa.parquet.write_table(table[:0], tmp_path / "geocells.parquet")
    with pytest.raises(SourceError, match="has the columns of geocells and no cells"):
        read_geocells(tmp_path / "geocells.parquet")


@pytest.mark.parametrize(
    "level, change, words",
    [
        (1, lambda p: {"parents": p.parents * 0}, "partition 1 does not nest"),
        (1, lambda p: {"parents": p.parents + 1}, "partition 1 does not nest"),
        (1, lambda p: {"parents": None}, "partition 1 has no parents"),
        (0, lambda p: {"parents": np.zeros(len(p), int)}, "partition 0 has parents, and none is coarser"),
        (1, lambda p: {"centroids_deg": p.centroids_deg + 90}, "partition 1 has a centroid that is not on Earth"),
        (0, lambda p: {"num_photos": p.num_photos * 0}, "partition 0 has a count, an area or a spread"),
        (0, lambda p: {"area_km2": p.area_km2 * np.nan}, "partition 0 has a count, an area or a spread"),
    ],
)
def test_cells_that_no_model_could_use_are_refused(
    tmp_path: Path, geocells: Geocells, level: int, change: object, words: str
) -> None:
    changed = list(geocells.partitions)
    changed[level] = replace(changed[level], **change(changed[level]))
    write_geocells(tmp_path / "geocells.parquet", Geocells(tuple(changed)))
    with pytest.raises(SourceError, match=words):
        read_geocells(tmp_path / "geocells.parquet")


def test_a_file_that_lacks_a_partition_between_two_is_refused(tmp_path: Path, geocells: Geocells) -> None:
    table = pa.parquet.read_table(write_geocells(tmp_path / "geocells.parquet", geocells))
    numbers = pa.array(table["partition"].to_numpy() * 2, pa.int32())
    pa.parquet.write_table(table.set_column(0, "partition", numbers), tmp_path / "geocells.parquet")
    with pytest.raises(SourceError, match="partition 1 has no cells"):
        read_geocells(tmp_path / "geocells.parquet")
