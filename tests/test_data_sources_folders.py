"""Folders and zips: coordinates in a table beside them, as OSV-5M's, or in the photos; and options of every source."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from source_files import (
    images,
    images_of,
    left_out,
    photo,
    places,
    read_source,
    reasons,
    tar_bytes,
    write_csv,
    write_file,
    zip_bytes,
)

from geomae.data.archives import Storage
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError, SourceError

NO_PHOTO = "the table names it, but there is no such photo"


# Folders, and OSV-5M's zips


@pytest.mark.parametrize(
    "header", ["IMG_ID,LAT,LON", "IMG_FILE,LAT,LON", "id,latitude,longitude", "file_name,latitude,longitude"]
)
@pytest.mark.parametrize("spelling", ["45/77/1.jpg", "45_77_1.jpg", "45/77/1", "45_77_1", "1.jpg", "1"])
def test_folder_is_joined_with_every_family_of_headers_and_ids(tmp_path: Path, header: str, spelling: str) -> None:
    write_file(tmp_path / "photos" / "45" / "77" / "1.jpg", photo(1))
    write_file(tmp_path / "photos" / "45" / "78" / "2.jpg", photo(2))
    write_csv(tmp_path / "photos" / "t.csv", header, [(spelling, 1.5, -2.5)])
    rows = read_source(tmp_path / "photos")
    assert images(rows) == {spelling: photo(1)}
    assert places(rows) == {spelling: (1.5, -2.5)}


@pytest.mark.parametrize("photo_id", ["a/b/1.jpg", "a/b/1"])
def test_flattened_files_are_joined_with_ids_that_are_paths(tmp_path: Path, photo_id: str) -> None:
    write_file(tmp_path / "photos" / "a_b_1.jpg", photo(1))
    write_csv(tmp_path / "photos.csv", "id,latitude,longitude", [(photo_id, 1, 2)])
    assert images(read_source(tmp_path / "photos")) == {photo_id: photo(1)}


OSV5M_HEADER = "id,latitude,longitude,thumb_original_url,country,region,sub-region,city,sequence"


def write_osv5m(root: Path, *, zipped: bool) -> Path:
    """Its layout: train.csv and test.csv at the top, images/{train,test}/NN.zip below."""
    splits = {"train": {"00": [101, 102], "01": [103]}, "test": {"00": [201]}}
    for split, parts in splits.items():
        numbers = [number for part in parts.values() for number in part]
        rows = [(n, n / 10, -n / 10, "", "NO", "", "", "Oslo", f"seq{n}") for n in numbers]
        write_csv(root / f"{split}.csv", OSV5M_HEADER, rows)
        for part, numbers in parts.items():
            folder = root / "images" / split
            members = {f"{part}/{number}.jpg": photo(number) for number in numbers}
            compression = zipfile.ZIP_DEFLATED if part == "00" else zipfile.ZIP_STORED
            if zipped:
                write_file(folder / f"{part}.zip", zip_bytes(members, compression))
            for name, data in {} if zipped else members.items():
                write_file(folder / name, data)
    return root


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "images/train"])
def test_osv5m_is_read_from_its_zips_and_unzipped(tmp_path: Path, zipped: bool, below: str) -> None:
    root = write_osv5m(tmp_path / "osv5m", zipped=zipped)
    options = {} if below else {"csv_file": str(root / "train.csv")}
    rows = read_source(root / below, **options)
    assert images(rows) == {str(n): photo(n) for n in (101, 102, 103)}
    assert places(rows)["103"] == (10.3, -10.3)
    assert {row["country"] for row in rows.values()} == {"NO"}
    assert reasons(root / below, **options) == {}


def test_table_from_elsewhere_reads_all_parts_of_osv5m(tmp_path: Path) -> None:
    root = write_osv5m(tmp_path / "osv5m", zipped=True)
    table = write_csv(tmp_path / "train.csv", "id,latitude,longitude", [(103, 1, 2), (201, 3, 4)])
    assert images(read_source(root, csv_file=str(table))) == {"103": photo(103), "201": photo(201)}


def test_osv5m_s_top_asks_which_of_its_two_tables(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"found several: test\.csv, train\.csv\. Name it with --csv"):
        open_source(write_osv5m(tmp_path, zipped=True))


def test_stored_and_deflated_members_lie_as_the_zip_says(tmp_path: Path) -> None:
    write_file(tmp_path / "00.zip", zip_bytes({"s.jpg": photo(1)}, zipfile.ZIP_STORED))
    write_file(tmp_path / "01.zip", zip_bytes({"d.jpg": photo(2)}, zipfile.ZIP_DEFLATED))
    index = open_source(tmp_path, SourceOptions(unlabelled=True))
    assert index.column("storage") == [Storage.STORED, Storage.DEFLATED]
    assert images_of(index) == {"s.jpg": photo(1), "d.jpg": photo(2)}


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_odd_compression_are_counted_by_name(tmp_path: Path, compression: int) -> None:
    write_file(tmp_path / "00.zip", zip_bytes({"a.jpg": photo(1), "a.txt": b"x"}, compression))
    write_file(tmp_path / "01.zip", zip_bytes({"b.jpg": photo(2)}))
    assert list(read_source(tmp_path, unlabelled=True)) == ["b.jpg"]
    assert list(left_out(tmp_path, unlabelled=True)) == ["00.zip:a.jpg"]


def test_encrypted_member_is_counted_by_name(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.jpg": photo(1), "b.jpg": photo(2)}))
    data[data.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag of the directory's first entry
    write_file(tmp_path / "00.zip", bytes(data))
    assert images(read_source(tmp_path, unlabelled=True)) == {"b.jpg": photo(2)}
    assert "encrypted" in left_out(tmp_path, unlabelled=True)["00.zip:a.jpg"]


def test_zip_bomb_stops_where_no_photo_is_so_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "00.zip", zip_bytes({"bomb.jpg": b"\0" * 10**6, "a.jpg": photo(1)}, zipfile.ZIP_DEFLATED))
    monkeypatch.setattr("geomae.data.reading.MAX_PHOTO_BYTES", 5000)
    read = images_of(open_source(tmp_path, SourceOptions(unlabelled=True)))
    assert read["a.jpg"] == photo(1)
    assert isinstance(read["bomb.jpg"], DamagedPhotoError)
    assert "inflates to more than the 5,000 bytes" in str(read["bomb.jpg"])


def test_truncated_zip_among_whole_ones_is_counted_and_named(tmp_path: Path) -> None:
    write_file(tmp_path / "00.zip", zip_bytes({"a.jpg": photo(1)})[:-30])
    write_file(tmp_path / "01.zip", zip_bytes({"b.jpg": photo(2)}))
    assert list(read_source(tmp_path, unlabelled=True)) == ["b.jpg"]
    assert reasons(tmp_path, unlabelled=True) == {"the archive cannot be read": 1}
    assert "it is no whole zip archive" in left_out(tmp_path, unlabelled=True)["00.zip"]


def test_zip_member_whose_bytes_are_damaged_is_named_when_it_is_read(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.jpg": b"zeros" * 200, "b.jpg": photo(2)}, zipfile.ZIP_DEFLATED))
    data[30 + len("a.jpg")] |= 0b110  # the first byte behind the header: no block has that type
    write_file(tmp_path / "00.zip", bytes(data))
    read = images_of(open_source(tmp_path, SourceOptions(unlabelled=True)))
    assert read["b.jpg"] == photo(2)
    assert isinstance(read["a.jpg"], DamagedPhotoError)


def test_unlabelled_folder_is_every_photo_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.jpeg", "a/d.webp", "._b.jpg", ".thumbs/b.jpg", "notes.txt"):
        write_file(tmp_path / name, photo(len(name)))
    rows = read_source(tmp_path, unlabelled=True)
    assert list(rows) == ["a/c.jpeg", "a/d.webp", "b.JPG"]
    assert {(row["latitude"], row["longitude"]) for row in rows.values()} == {(None, None)}


def test_links_of_a_folder_that_lead_in_circles_end(tmp_path: Path) -> None:
    write_file(tmp_path / "photos" / "sub" / "a.jpg", photo(1))
    (tmp_path / "photos" / "sub" / "up").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "a_link").symlink_to(tmp_path / "photos" / "sub", target_is_directory=True)
    (tmp_path / "photos" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list(read_source(tmp_path / "photos", unlabelled=True)) == ["sub/a.jpg"]


def test_photo_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    for number in range(2):
        write_file(tmp_path / f"{number}.jpg", photo(number))
    index = open_source(tmp_path, SourceOptions(unlabelled=True))
    (tmp_path / "0.jpg").unlink()
    read = images_of(index)
    assert isinstance(read["0.jpg"], FileNotFoundError)
    assert read["1.jpg"] == photo(1)


def test_names_with_spaces_backslashes_and_percent_signs_are_read(tmp_path: Path) -> None:
    for number, name in enumerate(["a b.jpg", "c\\d.jpg", "50%20.jpg", "Køge.jpg"]):
        write_file(tmp_path / name, photo(number))
    expected = {"50%20.jpg": photo(2), "Køge.jpg": photo(3), "a b.jpg": photo(0), "c\\d.jpg": photo(1)}
    assert images(read_source(tmp_path, unlabelled=True)) == expected


# Tables with errors


def test_what_a_table_gets_wrong_is_counted_under_reasons_that_say_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in [*"abcdefg", *(f"good{n}" for n in range(200))]:
        write_file(folder / f"{name}.jpg", photo(1))
    rows: list[tuple[object, ...]] = [(f"good{n}", 1, 2) for n in range(200)]
    rows += [("a", 95.5, 2), ("b", "nan", 2), ("c", "", ""), ("d", 0, 0), ("e", 1, 2), ("e", 1, 2), ("f", 1, 2)]
    rows += [("f", 3, 4), ("gone", 1, 2), ("", 1, 2), ("g", "north", 2)]
    write_csv(folder / "t.csv", "id,latitude,longitude", rows)
    assert len(read_source(folder)) == 201
    assert reasons(folder) == {
        "its coordinates are not on Earth": 1,
        "its coordinates are missing, no decimal degrees or not finite": 3,
        "its coordinates are (0, 0), which stands for none": 1,
        "the table names it again": 1,
        "the table names it several times with different coordinates": 2,
        "it names no photo": 1,
        NO_PHOTO: 1,
    }
    assert {"a", "b", "c", "d", "e", "f", "g", "gone", "row 211"} == set(left_out(folder))


def test_row_that_fits_two_photos_equally_well_takes_neither(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "1.jpg", photo(1))
    write_file(tmp_path / "b" / "1.jpg", photo(2))
    write_file(tmp_path / "2.jpg", photo(3))
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [("1", 1, 2), ("2", 3, 4)])
    assert images(read_source(tmp_path)) == {"2": photo(3)}
    assert left_out(tmp_path) == {"1": "several photos fit its row of the table equally well"}
    with pytest.raises(SourceError, match=r"1 rows .* the first is '1', which is 'a/1\.jpg' or 'b/1\.jpg'"):
        open_source(tmp_path, SourceOptions(for_test=True))


def test_photo_whose_name_is_nearest_to_the_id_gets_the_row(tmp_path: Path) -> None:
    write_file(tmp_path / "_thumbs" / "1.jpg", photo(1))
    write_file(tmp_path / "1.jpeg", photo(2))
    write_file(tmp_path / "1.jpg", photo(3))
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [("1.jpg", 1, 2)])
    assert images(read_source(tmp_path)) == {"1.jpg": photo(3)}
    assert set(left_out(tmp_path)) == {"_thumbs/1.jpg", "1.jpeg"}


def test_swapped_table_is_refused_with_the_option_that_reads_it(tmp_path: Path) -> None:
    write_file(tmp_path / "tokyo.jpg", photo(1))
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [("tokyo.jpg", 139.69, 35.68)])
    with pytest.raises(CoordinateError, match=r"t\.csv are on Earth only if (.|\n)* --swap_lat_lon"):
        open_source(tmp_path)
    assert places(read_source(tmp_path, swap_lat_lon=True)) == {"tokyo.jpg": (35.68, 139.69)}


# Positions in the photos, and the choice between tables


def write_geotagged(path: Path, latitude: tuple[float, float, float] | None) -> Path:
    from PIL import Image

    exif = Image.Exif()
    if latitude is not None:
        exif.get_ifd(0x8825).update({1: "N", 2: latitude, 3: "W", 4: (10.0, 30.0, 0.0)})
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", exif=exif)
    return write_file(path, buffer.getvalue())


def test_folder_without_a_table_takes_positions_from_exif(tmp_path: Path) -> None:
    write_geotagged(tmp_path / "a.jpg", (48.0, 30.0, 0.0))
    write_geotagged(tmp_path / "b.jpg", None)
    write_file(tmp_path / "c.jpg", "no photo")
    assert places(read_source(tmp_path)) == {"a.jpg": (48.5, -10.5)}
    assert left_out(tmp_path) == {
        "b.jpg": "no GPS position in its EXIF block",
        "c.jpg": "no GPS position: it is no photo in a format that is read here",
    }


def test_positions_are_read_from_photos_in_archives_too(tmp_path: Path) -> None:
    data = write_geotagged(tmp_path / "a.jpg", (48.0, 30.0, 0.0)).read_bytes()
    write_file(tmp_path / "tars" / "00.tar", tar_bytes({"x/a.jpg": data, "x/b.jpg": photo(1)}))
    assert places(read_source(tmp_path / "tars", exif=True)) == {"x/a.jpg": (48.5, -10.5)}
    assert sum(reasons(tmp_path / "tars", exif=True).values()) == 1


def test_where_coordinates_come_from_is_said_in_words(tmp_path: Path) -> None:
    write_geotagged(tmp_path / "photos" / "a.jpg", (48.0, 30.0, 0.0))
    folder = tmp_path / "photos"
    assert open_source(folder).description == "photos of photos with EXIF positions"
    unlabelled = open_source(folder, SourceOptions(unlabelled=True))
    assert unlabelled.description == "photos of photos, without coordinates"
    write_csv(tmp_path / "photos.csv", "id,latitude,longitude", [("a.jpg", 1, 2)])
    assert places(read_source(folder)) == {"a.jpg": (1.0, 2.0)}
    assert open_source(folder).description == "photos of photos with coordinates of photos.csv"
    assert places(read_source(folder, exif=True)) == {"a.jpg": (48.5, -10.5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exif": True, "unlabelled": True}, "choose one of them"),
        ({"csv_file": "a.csv", "exif": True}, "choose one of them"),
        ({"kind": "tarball"}, "kind is 'tarball'; it must be auto or one of packed, msgpack"),
        ({"swap_lat_lon": True, "exif": True}, "--swap_lat_lon swaps two columns of a table, but none is read"),
        ({"swap_lat_lon": True, "unlabelled": True}, "--swap_lat_lon swaps two columns of a table, but none is read"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceOptions(**options)


def test_swapping_columns_where_no_table_is_found_is_refused(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    make_photo("photos/a.jpg")
    with pytest.raises(ConfigError, match=r"none is read for .*photos\. Name it with --csv"):
        open_source(tmp_path / "photos", SourceOptions(swap_lat_lon=True))


def test_absent_folder_and_folder_without_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is nothing at .*gone\."):
        open_source(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"holds no files"):
        open_source(tmp_path)
