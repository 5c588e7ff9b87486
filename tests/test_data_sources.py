from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geomae.data.sources import (
    find_csv,
    list_photos,
    open_source,
    read_coordinate_table,
    read_gps,
    records_from_csv,
    records_without_coordinates,
)
from geomae.errors import ConfigError, CoordinateError, SourceError

MakePhoto = Callable[..., Path]


def write_csv(folder: Path, text: str, name: str = "photos.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def jpeg_with_gps(gps: dict[int, object]) -> bytes:
    import io

    exif = Image.Exif()
    exif.get_ifd(0x8825).update(gps)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_the_field_s_tables_are_read_with_their_ids_authors_and_scenes(shared_data: Path) -> None:
    expected = {"im2gps_places365.csv": 237, "im2gps3k_places365.csv": 2997, "yfcc25600_places365.csv": 25600}
    for name, num_rows in expected.items():
        table = read_coordinate_table(shared_data / "geotags" / name)
        assert len(table) == num_rows
        assert table.ids is not None
        assert len(set(table.ids)) == num_rows
        assert set(table.optional) == {"author", "scene"}
        assert set(table.optional["scene"]) == {"indoor", "natural", "urban"}


def test_im2gps3k_scenes_are_those_of_the_thesis(shared_data: Path) -> None:
    scenes = read_coordinate_table(shared_data / "geotags" / "im2gps3k_places365.csv").optional["scene"]
    assert [scenes.count(name) for name in ("urban", "natural", "indoor")] == [1607, 845, 545]


def test_table_without_ids_is_read(shared_data: Path) -> None:
    table = read_coordinate_table(shared_data / "geotags" / "mp16_coordinates_100k.csv")
    assert table.ids is None
    assert len(table) == 100_000


def test_swapped_columns_are_refused_with_the_option_that_helps(tmp_path: Path) -> None:
    swapped = write_csv(tmp_path, "IMG_ID,LAT,LON\na.jpg,139.69,35.68\nb.jpg,2.35,48.86\n")
    with pytest.raises(CoordinateError, match=r"1 of 2 rows .* id a\.jpg(.|\n)*--swap_lat_lon"):
        read_coordinate_table(swapped)
    table = read_coordinate_table(swapped, swap_lat_lon=True)
    assert table.latitude.tolist() == [35.68, 48.86]
    assert table.longitude.tolist() == [139.69, 2.35]


@pytest.mark.parametrize("value", ["", "nan", "inf", "north", "91", "-90.0001"])
def test_coordinate_that_is_missing_or_not_on_earth_names_its_row(tmp_path: Path, value: str) -> None:
    table = write_csv(tmp_path, f"id,latitude,longitude\ngood,1,2\nodd,{value},3\n")
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
    csv_file = write_csv(tmp_path_factory.mktemp("table"), f"id,latitude,longitude\nx,{latitude!r},{longitude!r}\n")
    if -90 <= latitude <= 90 and -180 <= longitude <= 180:
        table = read_coordinate_table(csv_file)
        assert (table.latitude[0], table.longitude[0]) == pytest.approx((latitude, longitude), rel=1e-12)
    else:
        with pytest.raises(CoordinateError):
            read_coordinate_table(csv_file)


def test_ids_that_look_like_numbers_keep_their_zeros(tmp_path: Path) -> None:
    table = read_coordinate_table(write_csv(tmp_path, "id,latitude,longitude\n000123,1,2\n"))
    assert table.ids == ["000123"]


def test_table_without_coordinates_lists_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no column latitude or lat; its columns are id, where"):
        read_coordinate_table(write_csv(tmp_path, "id,where\na,there\n"))


def test_repeated_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"names 1 photos more than once; the first is a, 2 times"):
        read_coordinate_table(write_csv(tmp_path, "id,latitude,longitude\na,1,2\na,3,4\n"))


@pytest.mark.parametrize("rows", ["a,1,2,3\nb,1,2,3\n", "a,1,2,\nb,1,2,\n", "a,1,2\nb,1,2,3\n"])
def test_row_longer_than_the_header_is_refused_by_its_line(tmp_path: Path, rows: str) -> None:
    line = 2 if rows.startswith("a,1,2,") else 3
    with pytest.raises(SourceError, match=rf"Expected 3 fields in line {line}, saw 4.*double quotes"):
        read_coordinate_table(write_csv(tmp_path, f"id,latitude,longitude\n{rows}"))


def test_table_that_is_not_utf8_is_refused_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "photos.csv"
    path.write_bytes("id,latitude,longitude\nKøge.jpg,55,12\nMálaga.jpg,37,-4\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"photos\.csv is not UTF-8; .* line 2\. Save it as UTF-8"):
        read_coordinate_table(path)
    path.write_bytes('\ufeff"id",latitude,longitude\nKøge.jpg,55,12\n'.encode())
    assert read_coordinate_table(path).ids == ["Køge.jpg"]


@pytest.mark.parametrize("text", ["", "id,latitude,longitude\na,1,2\nb,1,2,3,4,5\n"])
def test_broken_csv_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match=r"photos\.csv cannot be read as CSV"):
        read_coordinate_table(write_csv(tmp_path, text))


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file .*gone\.csv"):
        read_coordinate_table(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"no folder .*gone"):
        list_photos(tmp_path / "gone")
    with pytest.raises(SourceError, match="holds no photo"):
        list_photos(tmp_path)


@pytest.mark.parametrize(
    ("photo_id", "file"),
    [("a/b/1.jpg", "a/b/1.jpg"), ("a/b/1.jpg", "a_b_1.jpg"), ("a/b/1", "a/b/1.jpg"), ("a/b/1", "a_b_1.jpg")],
)
def test_photos_are_found_under_the_spellings_of_their_ids(
    tmp_path: Path, make_photo: MakePhoto, photo_id: str, file: str
) -> None:
    make_photo(f"photos/{file}")
    (record,) = records_from_csv(tmp_path / "photos", write_csv(tmp_path, f"id,latitude,longitude\n{photo_id},1,2\n"))
    assert record.id == photo_id
    assert Path(record.file) == tmp_path / "photos" / file


def test_csv_whose_photos_are_elsewhere_is_refused_with_an_example(tmp_path: Path, make_photo: MakePhoto) -> None:
    make_photo("photos/other.jpg")
    table = write_csv(tmp_path, "id,latitude,longitude\na.jpg,1,2\n")
    with pytest.raises(
        SourceError, match=r"none of the 1 photos .* the first is 'a\.jpg', a file there is 'other\.jpg'"
    ):
        list(records_from_csv(tmp_path / "photos", table))


def test_photos_are_listed_from_sub_folders_without_hidden_files(tmp_path: Path, make_photo: MakePhoto) -> None:
    for name in ("b.JPG", "a/c.jpeg", "._b.jpg", ".thumbs/b.jpg"):
        make_photo(name)
    (tmp_path / "notes.txt").write_text("no photo")
    records = records_without_coordinates(tmp_path)
    assert [(record.id, record.latitude) for record in records] == [("a/c.jpeg", None), ("b.JPG", None)]


def test_positions_of_real_photos_agree_with_their_table(shared_data: Path) -> None:
    folder = shared_data / "photos" / "geotagged"
    table = read_coordinate_table(folder.with_suffix(".csv"))
    assert table.ids is not None
    positions = {}
    for photo_id, latitude, longitude in zip(table.ids, table.latitude, table.longitude, strict=True):
        if not photo_id.startswith("mapillary"):
            positions[photo_id] = (latitude, longitude)
            assert read_gps((folder / photo_id).read_bytes()) == pytest.approx((latitude, longitude), abs=1e-6)
    assert len(positions) == 26


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Issue 308.jpg", r"\(0, 0\)"),
        ("Nikon D5000.jpg", "not finite"),
        ("Multiple ICC segments.jpg", "no GPS position"),
        ("beach.jpg", "no photo"),
    ],
)
def test_positions_that_mean_nothing_are_refused(shared_data: Path, name: str, reason: str) -> None:
    with pytest.raises(CoordinateError, match=reason):
        read_gps((shared_data / "odd_images" / name).read_bytes())


def test_hemispheres_and_minutes_are_read() -> None:
    south_west = {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 45.0, 0.0)}
    assert read_gps(jpeg_with_gps(south_west)) == pytest.approx((-33.51, -70.75))
    with pytest.raises(CoordinateError, match="not on Earth"):
        read_gps(jpeg_with_gps({**south_west, 2: (133.0, 0.0, 0.0)}))
    with pytest.raises(CoordinateError, match="no GPS position"):
        read_gps(jpeg_with_gps({1: "N", 2: (1.0, 2.0, 3.0)}))


@pytest.mark.parametrize("wrong", [{1: None}, {3: None}, {1: ""}, {3: "N"}])
def test_position_without_a_hemisphere_is_refused(wrong: dict[int, str | None]) -> None:
    sydney = {1: "S", 2: (33.0, 51.0, 0.0), 3: "E", 4: (151.0, 12.0, 0.0)}
    assert read_gps(jpeg_with_gps(sydney)) == pytest.approx((-33.85, 151.2))
    with pytest.raises(CoordinateError, match="names no hemisphere"):
        read_gps(jpeg_with_gps({tag: value for tag, value in {**sydney, **wrong}.items() if value is not None}))


@pytest.mark.parametrize("option", ["exif", "unlabelled", None])
def test_swapping_columns_where_no_csv_is_read_is_refused(
    tmp_path: Path, make_photo: MakePhoto, option: str | None
) -> None:
    make_photo("photos/a.jpg")
    if option:
        write_csv(tmp_path, "id,latitude,longitude\na.jpg,1,2\n")
    with pytest.raises(ConfigError, match=r"--swap_lat_lon swaps two columns of a CSV, but no CSV is read"):
        open_source(tmp_path / "photos", swap_lat_lon=True, **({option: True} if option else {}))


def test_source_is_chosen_by_what_is_there(tmp_path: Path, make_photo: MakePhoto) -> None:
    make_photo("photos/a.jpg")
    folder = tmp_path / "photos"
    assert next(open_source(folder)[0]).position_in_exif
    assert not next(open_source(folder, unlabelled=True)[0]).position_in_exif
    write_csv(tmp_path, "id,latitude,longitude\na.jpg,1,2\n")
    records, source = open_source(folder)
    assert next(records).latitude == 1.0
    assert source == "photos of photos with coordinates of photos.csv"
    assert next(open_source(folder, exif=True)[0]).position_in_exif


def test_sources_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="choose one of them"):
        open_source(tmp_path, exif=True, unlabelled=True)


def test_several_csvs_ask_which_one(tmp_path: Path) -> None:
    write_csv(tmp_path, "", "one.csv")
    write_csv(tmp_path, "", "two.csv")
    with pytest.raises(SourceError, match=r"several: one\.csv, two\.csv\. Name it with --csv"):
        find_csv(tmp_path)


def test_latitudes_are_float64(tmp_path: Path) -> None:
    table = read_coordinate_table(write_csv(tmp_path, "id,latitude,longitude\na,12.3456789012345,2\n"))
    assert table.latitude.dtype == np.float64
    assert table.latitude[0] == 12.3456789012345
