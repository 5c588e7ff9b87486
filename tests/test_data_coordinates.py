"""Tables of coordinates: read, refused or sifted; and their rows joined to photos."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import write_csv, write_file

from geomae.data.coordinates import (
    CoordinateTable,
    join_rows,
    load_table,
    read_coordinate_table,
    sift_coordinates,
    sift_table,
)
from geomae.data.damage import BadTally
from geomae.errors import CoordinateError, SourceError


def table_of(folder: Path, text: str) -> Path:
    return write_file(folder / "photos.csv", text)


def test_the_field_s_tables_are_read_with_their_ids_authors_and_scenes(shared_data: Path) -> None:
    expected = {"im2gps_places365.csv": 237, "im2gps3k_places365.csv": 2997, "yfcc25600_places365.csv": 25600}
    for name, num_rows in expected.items():
        table = read_coordinate_table(shared_data / "geotags" / name)
        assert len(table) == num_rows
        assert table.ids is not None
        assert len(set(table.ids)) == num_rows
        assert set(table.optional) == {"author", "scene", "scene16"}
        assert set(table.optional["scene16"]) <= {str(number) for number in range(16)}
        assert set(table.optional["scene"]) == {"indoor", "natural", "urban"}


def test_im2gps3k_scenes_are_those_of_the_thesis(shared_data: Path) -> None:
    scenes = read_coordinate_table(shared_data / "geotags" / "im2gps3k_places365.csv").optional["scene"]
    assert [scenes.count(name) for name in ("urban", "natural", "indoor")] == [1607, 845, 545]


def test_table_without_ids_is_read(shared_data: Path) -> None:
    table = read_coordinate_table(shared_data / "geotags" / "mp16_coordinates_100k.csv")
    assert table.ids is None
    assert len(table) == 100_000


def test_real_tables_lose_no_row_when_they_are_sifted(shared_data: Path) -> None:
    bad = BadTally()
    table = load_table(shared_data / "geotags" / "yfcc25600_places365.csv")
    assert len(sift_table(table, "yfcc25600", bad)) + len(bad) == 25600
    assert len(bad) == 0


def test_real_table_with_swapped_headers_is_recognised(shared_data: Path) -> None:
    table = load_table(shared_data / "geotags" / "im2gps3k_places365.csv", swap_lat_lon=True)
    with pytest.raises(CoordinateError, match=r"1060 of 2997 rows(.|\n)*--swap_lat_lon"):
        sift_table(table, "im2gps3k", BadTally())


def test_swapped_columns_are_refused_with_the_option_that_helps(tmp_path: Path) -> None:
    swapped = table_of(tmp_path, "IMG_ID,LAT,LON\na.jpg,139.69,35.68\nb.jpg,2.35,48.86\n")
    with pytest.raises(CoordinateError, match=r"1 of 2 rows .* id a\.jpg(.|\n)*--swap_lat_lon"):
        read_coordinate_table(swapped)
    table = read_coordinate_table(swapped, swap_lat_lon=True)
    assert table.latitude.tolist() == [35.68, 48.86]
    assert table.longitude.tolist() == [139.69, 2.35]


def test_swapped_table_with_missing_values_is_refused_with_the_option_all_the_same(tmp_path: Path) -> None:
    rows = "".join(f"p{n},{100 + n % 80},{n % 90}\n" for n in range(100))
    swapped = load_table(table_of(tmp_path, f"id,latitude,longitude\nnone,,\n{rows}"))
    with pytest.raises(CoordinateError, match=r"--swap_lat_lon"):
        sift_table(swapped, "photos.csv", BadTally())


def test_single_slip_of_a_pen_among_many_rows_is_not_taken_for_swapped_columns(tmp_path: Path) -> None:
    rows = "".join(f"p{n},{n % 90},{n % 180}\n" for n in range(200))
    bad = BadTally()
    table = sift_table(load_table(table_of(tmp_path, f"id,lat,lon\nslip,139.7,35.7\n{rows}")), "photos.csv", bad)
    assert len(table) == 198  # p0 and p180 are at (0, 0)
    assert bad.counts["its coordinates are not on Earth"] == 1


def test_two_of_a_hundred_rows_are_enough_to_ask_about_a_swap(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,{139.7 if n < 2 else 48},{35.7 if n < 2 else 8}\n" for n in range(100))
    with pytest.raises(CoordinateError, match="2 of 100 rows"):
        sift_table(load_table(table_of(tmp_path, f"id,latitude,longitude\n{rows}")), "a table", BadTally())


@pytest.mark.parametrize("value", ["", "nan", "inf", "north", "91", "-90.0001"])
def test_coordinate_that_is_missing_or_not_on_earth_names_its_row(tmp_path: Path, value: str) -> None:
    table = table_of(tmp_path, f"id,latitude,longitude\ngood,1,2\nodd,{value},3\n")
    with pytest.raises(CoordinateError, match=r"1 of 2 rows of .*photos\.csv .* id odd"):
        read_coordinate_table(table)


@settings(max_examples=50, deadline=None)
@given(
    latitude=st.floats(allow_nan=True, allow_infinity=True),
    longitude=st.floats(allow_nan=True, allow_infinity=True),
)
def test_exactly_the_points_on_earth_are_accepted(
    tmp_path_factory: pytest.TempPathFactory, latitude: float, longitude: float
) -> None:
    csv_file = table_of(tmp_path_factory.mktemp("table"), f"id,latitude,longitude\nx,{latitude!r},{longitude!r}\n")
    if -90 <= latitude <= 90 and -180 <= longitude <= 180:
        table = read_coordinate_table(csv_file)
        assert (table.latitude[0], table.longitude[0]) == pytest.approx((latitude, longitude), rel=1e-12)
    else:
        with pytest.raises(CoordinateError):
            read_coordinate_table(csv_file)


DEGREES = st.one_of(
    st.floats(-90, 90), st.floats(-400, 400), st.sampled_from([0.0, -0.0, 90.0, -180.0, 180.0, np.nan, np.inf])
)


@settings(max_examples=200, deadline=None)
@given(points=st.lists(st.tuples(DEGREES, DEGREES), max_size=30))
def test_every_coordinate_is_kept_or_counted_exactly_once(points: list[tuple[float, float]]) -> None:
    latitude, longitude = np.array(points, dtype=np.float64).reshape(-1, 2).T
    bad = BadTally()
    ids = [f"p{n}" for n in range(len(points))]
    try:
        good = sift_coordinates(latitude, longitude, ids, "photos.csv", bad)
    except CoordinateError:  # swapped: some latitude is beyond a pole that is a longitude on Earth
        assert any(90 < abs(lat) <= 180 and abs(lon) <= 90 for lat, lon in points)
        return
    left_out = Counter(photo.file for photo in bad.listed)
    assert all(left_out[name] == (0 if kept else 1) for name, kept in zip(ids, good, strict=True))
    for (lat, lon), kept in zip(points, good, strict=True):
        on_earth = -90 <= lat <= 90 and -180 <= lon <= 180
        assert kept == (on_earth and (lat != 0 or lon != 0))


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("abcde") | st.just(""), st.integers(-95, 95), st.integers(0, 2))))
def test_every_row_of_a_table_is_kept_or_counted_exactly_once(rows: list[tuple[str, int, int]]) -> None:
    names = [name for name, _, _ in rows]
    latitude, longitude = (np.array([row[n] for row in rows], dtype=np.float64) for n in (1, 2))
    bad = BadTally()
    table = CoordinateTable(names, latitude, longitude, {"author": names})
    try:
        kept = sift_table(table, "photos.csv", bad)
    except CoordinateError:
        assert any(abs(lat) > 90 for _, lat, _ in rows)
        return
    assert len(kept) + len(bad) == len(rows)
    assert kept.ids is not None
    assert len(set(kept.ids)) == len(kept)
    assert kept.optional["author"] == kept.ids
    usable = {row for row in rows if row[0] and abs(row[1]) <= 90 and row[1:] != (0, 0)}
    agreed = {name for name, count in Counter(name for name, _, _ in usable).items() if count == 1}
    assert set(kept.ids) == agreed


def test_rows_that_repeat_one_another_leave_one_and_rows_that_disagree_none(tmp_path: Path) -> None:
    text = "id,latitude,longitude\na,1,2\nb,1,2\na,1,2\nc,1,2\na,1,2\nc,1,3\n"
    bad = BadTally()
    assert sift_table(load_table(table_of(tmp_path, text)), "photos.csv", bad).ids == ["a", "b"]
    assert dict(bad.counts) == {
        "the table names it several times with different coordinates": 2,
        "the table names it again": 2,
    }


NAMES = st.lists(
    st.tuples(st.sampled_from(["", "x/", "../", "/data/"]), st.sampled_from("abc"), st.sampled_from(["/", "_"]))
)


@settings(max_examples=200, deadline=None)
@given(photos=NAMES, ids=st.lists(st.sampled_from(["a/1.jpg", "b_1.jpg", "c/1", "d/1.jpg", "1.jpg"]), unique=True))
def test_photos_join_the_rows_that_are_called_like_them(photos: list[tuple[str, str, str]], ids: list[str]) -> None:
    names = [f"{prefix}{letter}{separator}1.jpg" for prefix, letter, separator in photos]
    rows, steps = join_rows(names, ids)
    assert [step == 0 for step in steps[rows >= 0]] == [
        name in ids for name, row in zip(names, rows, strict=True) if row >= 0
    ]
    assert rows.dtype == np.int64
    for (_, letter, separator), row in zip(photos, rows, strict=True):
        named = next((n for n, photo_id in enumerate(ids) if photo_id.startswith(letter)), None)
        by_base = ids.index("1.jpg") if "1.jpg" in ids and separator == "/" else -1
        assert row == (by_base if named is None else named)


@pytest.mark.parametrize(
    ("name", "photo_id"),
    [
        ("45/77/1.jpg", "45/77/1.jpg"),
        ("45/77/1.jpg", "45_77_1.jpg"),
        ("45_77_1.jpg", "45/77/1.jpg"),
        ("45_77_1.JPG", "45/77/1"),
        ("images/45/77/1.webp", "45_77_1"),
        ("a/b/c/d/1.jpg", "1"),
        ("photo.of.me@1.jpg", "photo.of.me@1"),
        ("1.5.jpg", "1.5.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9"),  # macOS writes accents apart
        ("photos\\1.jpg", "photos/1.jpg"),  # zips made on Windows
    ],
)
def test_spellings_of_one_photo_are_one(name: str, photo_id: str) -> None:
    assert join_rows(["other.jpg", name], ["zzz", photo_id])[0].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("name", "photo_id"), [("a/1.jpg", "b/1.jpg"), ("1.jpg", "11.jpg"), ("a/b/c/d/e/1.jpg", "1"), ("1.txt", "1")]
)
def test_different_photos_do_not_join(name: str, photo_id: str) -> None:
    assert join_rows([name], [photo_id])[0].tolist() == [-1]


def test_exact_name_wins_over_one_that_is_merely_like_it() -> None:
    assert join_rows(["a_1.jpg", "a/1.jpg"], ["a/1.jpg", "a_1.jpg"])[0].tolist() == [1, 0]


def test_how_far_a_name_is_fetched_is_counted() -> None:
    names = ["1.jpg", "1.png", "a/1.jpg", "a/b/1.jpg", "2.jpg"]
    rows, steps = join_rows(names, ["1.jpg"])
    assert rows.tolist() == [0, 0, 0, 0, -1]
    assert steps[:4].tolist() == [0, 1, 2, 3]


def test_ids_that_look_like_numbers_keep_their_zeros(tmp_path: Path) -> None:
    assert read_coordinate_table(table_of(tmp_path, "id,latitude,longitude\n000123,1,2\n")).ids == ["000123"]


def test_latitudes_are_float64(tmp_path: Path) -> None:
    table = read_coordinate_table(table_of(tmp_path, "id,latitude,longitude\na,12.3456789012345,2\n"))
    assert table.latitude.dtype == np.float64
    assert table.latitude[0] == 12.3456789012345


def test_table_without_coordinates_lists_its_columns(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError,
        match=r"no column latitude or lat and no column longitude or lon or lng or long; its columns are id, where",
    ):
        read_coordinate_table(table_of(tmp_path, "id,where\na,there\n"))


def test_table_without_ids_cannot_be_sifted(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"photos\.csv has no column file or .*it must name each row's photo"):
        sift_table(load_table(table_of(tmp_path, "latitude,longitude\n1,2\n")), "photos.csv", BadTally())


def test_repeated_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"names 1 photos more than once; the first is a, 2 times"):
        read_coordinate_table(table_of(tmp_path, "id,latitude,longitude\na,1,2\na,3,4\n"))


@pytest.mark.parametrize("rows", ["a,1,2,3\nb,1,2,3\n", "a,1,2,\nb,1,2,\n", "a,1,2\nb,1,2,3\n"])
def test_row_longer_than_the_header_is_refused_by_its_line(tmp_path: Path, rows: str) -> None:
    line = 2 if rows.startswith("a,1,2,") else 3
    with pytest.raises(SourceError, match=rf"Expected 3 fields in line {line}, saw 4.*double quotes"):
        read_coordinate_table(table_of(tmp_path, f"id,latitude,longitude\n{rows}"))


def test_table_that_is_not_utf8_is_refused_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "photos.csv"
    path.write_bytes("id,latitude,longitude\nKøge.jpg,55,12\nMálaga.jpg,37,-4\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"photos\.csv is not UTF-8; .* line 2\. Save it as UTF-8"):
        read_coordinate_table(path)
    path.write_bytes('\ufeff"id",latitude,longitude\nKøge.jpg,55,12\n'.encode())
    assert read_coordinate_table(path).ids == ["Køge.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a CSV with a header"),
        ("id,latitude,longitude\n", "has a header and no rows"),
        ("id,latitude,longitude\na,1,2\nb,1,2,3,4,5\n", "cannot be read as CSV"),
        ("id;latitude;longitude\na;1.5;2.5\n", "Its fields are not separated by commas"),
    ],
)
def test_broken_csv_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=rf"photos\.csv .*{message}"):
        read_coordinate_table(table_of(tmp_path, text))


def test_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file .*gone\.csv"):
        read_coordinate_table(tmp_path / "gone.csv")


def test_columns_of_strangers_are_found_whatever_their_case_and_order(tmp_path: Path) -> None:
    header = "lng, Latitude,S3_Label,User,Img_File,country"
    table = read_coordinate_table(write_csv(tmp_path / "t.csv", header, [(2.5, 1.5, 0, "me", "a.jpg", "NO")]))
    assert (table.ids, table.latitude.tolist(), table.longitude.tolist()) == (["a.jpg"], [1.5], [2.5])
    assert table.optional == {"author": ["me"], "scene": ["indoor"], "country": ["NO"]}


# Mapping JSON


def test_mapping_of_coordinates_is_a_table(tmp_path: Path) -> None:
    mapping = {
        "45/77/1.jpg": [48.86, 2.35],
        "b": [-33, 151],
        "c": [1, 2, 3],
        "d": "x",
        "e": [True, 1],
        "f": [10**400, 0],
    }
    table = load_table(write_file(tmp_path / "m.json", json.dumps(mapping)))
    assert table.ids == list(mapping)
    assert table.latitude[:2].tolist() == [48.86, -33.0]
    assert table.longitude[:2].tolist() == [2.35, 151.0]
    bad = BadTally()
    assert sift_table(table, "m.json", bad).ids == ["45/77/1.jpg", "b"]
    assert dict(bad.counts) == {"its coordinates are missing, no decimal degrees or not finite": 4}


def test_id_that_a_mapping_names_twice_is_not_lost_unseen(tmp_path: Path) -> None:
    table = load_table(write_file(tmp_path / "m.json", '{"a": [1, 2], "b": [3, 4], "a": [5, 6]}'))
    bad = BadTally()
    assert sift_table(table, "m.json", bad).ids == ["b"]
    assert len(bad) == 2


def test_mapping_of_cells_is_refused_with_what_to_pass_instead(tmp_path: Path) -> None:
    path = write_file(tmp_path / "mp16_mapping_h3.json", '{"45/77/1.jpg": [103, 2417, 9046]}')
    with pytest.raises(SourceError, match=r"cells, such as 45/77/1\.jpg: \[103, 2417, 9046\].*--csv.*--unlabelled"):
        load_table(path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '"text"', '{"a": [1, 2]', "[" * 100_000])
def test_json_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match=r"m\.json (cannot be read as JSON|is no mapping)"):
        load_table(write_file(tmp_path / "m.json", text))
