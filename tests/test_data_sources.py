"""Sources whose coordinates stand in a table or in the photos: msgpack shards, tars, zips, folders."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from source_files import (
    images,
    images_of,
    json_bytes,
    left_out,
    msgpack_bytes,
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
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError, SourceError, TooManyDamagedPhotosError

MP16_HEADER = "IMG_ID,AUTHOR,LAT,LON,S3_Label"
NO_PHOTO = "the table names it, but there is no such photo"
CUT_OFF = "the archive is damaged or cut off, and what lies behind cannot be read"


# GeoEstimation's msgpack shards


def write_msgpack_source(folder: Path) -> Path:
    ids = [f"{number:02x}/0{number}/{number}.jpg" for number in range(6)]
    records = [{"id": photo_id, "image": photo(number)} for number, photo_id in enumerate(ids)]
    write_file(folder / "shard_0.msg", msgpack_bytes(records[:4]))
    # written by msgpack of 2018: no binary type, keys and values are raw
    old = [{b"id": record["id"].encode(), b"image": record["image"]} for record in records[4:]]
    write_file(folder / "shard_1.msg", msgpack_bytes(old, use_bin_type=False))
    rows = [(photo_id, f"author{n % 2}", 10 + n, -20 - n, n % 3) for n, photo_id in enumerate(ids)]
    write_csv(folder / "mp16_places365.csv", MP16_HEADER, rows)
    return folder


def test_msgpack_shards_with_their_csv_are_read(tmp_path: Path) -> None:
    rows = read_source(write_msgpack_source(tmp_path))
    assert images(rows) == {f"{n:02x}/0{n}/{n}.jpg": photo(n) for n in range(6)}
    assert rows["03/03/3.jpg"] | {"image": None} == {
        "image": None,
        "id": "03/03/3.jpg",
        "latitude": 13.0,
        "longitude": -23.0,
        "author": "author1",
        "scene": "indoor",
        "country": None,
    }
    assert [row["scene"] for row in rows.values()] == ["indoor", "natural", "urban"] * 2
    assert open_source(tmp_path).kind == "msgpack"


def test_msgpack_record_without_an_image_is_counted_once(tmp_path: Path) -> None:
    records = [{"id": "a.jpg", "image": photo(0)}, {"id": "b.jpg", "image": None}, {"id": "c.jpg", "image": photo(2)}]
    write_file(tmp_path / "shard_0.msg", msgpack_bytes(records))
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [("a.jpg", 1, 2), ("b.jpg", 3, 4), ("c.jpg", 5, 6)])
    assert images(read_source(tmp_path)) == {"a.jpg": photo(0), "c.jpg": photo(2)}
    assert left_out(tmp_path) == {"shard_0.msg:b.jpg": "its record holds no image"}
    assert reasons(tmp_path, unlabelled=True) == {"its record holds no image": 1}


@pytest.mark.parametrize("damage", ["last record cut", "garbage behind", "garbage first"])
def test_damaged_msgpack_shard_keeps_what_stands_before_and_says_so(tmp_path: Path, damage: str) -> None:
    whole = msgpack_bytes({"id": f"{n}.jpg", "image": photo(n)} for n in range(3))
    data = {"last record cut": whole[:-10], "garbage behind": whole + b"\x00\x01\x02", "garbage first": b"\x07" + whole}
    write_file(tmp_path / "shard_0.msg", data[damage])
    write_file(tmp_path / "shard_1.msg", msgpack_bytes([{"id": "9.jpg", "image": photo(9)}]))
    kept = {"last record cut": [0, 1, 9], "garbage behind": [0, 1, 2, 9], "garbage first": [9]}[damage]
    assert images(read_source(tmp_path, unlabelled=True)) == {f"{n}.jpg": photo(n) for n in kept}
    assert sum(reasons(tmp_path, unlabelled=True).values()) == 1
    assert left_out(tmp_path, unlabelled=True)["shard_0.msg"].startswith(CUT_OFF)


def test_mapping_of_coordinates_is_read_and_mapping_of_cells_is_refused_by_name(tmp_path: Path) -> None:
    write_msgpack_source(tmp_path)
    (tmp_path / "mp16_places365.csv").unlink()
    mapping = write_file(tmp_path / "train_mapping_h3.json", json_bytes(**{"01/01/1.jpg": [48.86, 2.35]}))
    assert places(read_source(tmp_path)) == {"01/01/1.jpg": (48.86, 2.35)}
    mapping.write_bytes(json_bytes(**{"01/01/1.jpg": [12, 345, 6789]}))
    with pytest.raises(SourceError, match=r"train_mapping_h3\.json maps ids to cells, such as 01/01/1\.jpg: \[12, 345"):
        open_source(tmp_path)
    assert len(read_source(tmp_path, unlabelled=True)) == 6
    table = write_csv(tmp_path / "elsewhere" / "t.csv", MP16_HEADER, [("02/02/2.jpg", "a", 5, 6, 0)])
    assert places(read_source(tmp_path, csv_file=str(table))) == {"02/02/2.jpg": (5.0, 6.0)}


# MP16-Pro's tars


def write_mp16_pro(folder: Path, members: dict[str, bytes], **tar_options: Any) -> Path:
    """One of its tars, and the table of all its photos: ids with `_` where members have `/`."""
    write_file(folder / "mp-16-images00", tar_bytes(members, **tar_options))
    rows = [(name.replace("/", "_"), "someone", n, 2 * n, "Norway") for n, name in enumerate(members, start=1)]
    write_csv(folder / "metadata" / "MP16_Pro_places365.csv", "IMG_ID,AUTHOR,LAT,LON,country", rows)
    return folder


def test_mp16_pro_tars_without_suffix_join_their_flattened_ids(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {"45/77/1.jpg": photo(1, 6000), "46/78/2.jpg": photo(2, 6000)})
    rows = read_source(tmp_path)
    assert images(rows) == {"45_77_1.jpg": photo(1, 6000), "46_78_2.jpg": photo(2, 6000)}
    assert places(rows) == {"45_77_1.jpg": (1.0, 2.0), "46_78_2.jpg": (2.0, 4.0)}
    assert {row["country"] for row in rows.values()} == {"Norway"}
    assert open_source(tmp_path).kind == "tar"


@pytest.mark.parametrize("prefix", ["mp-16-images/", "./", "/data/flickr/mp16/", "../../etc/", "a/b/c/d/"])
def test_members_below_other_folders_join_the_same_ids(tmp_path: Path, prefix: str) -> None:
    write_file(tmp_path / "mp-16-images00", tar_bytes({f"{prefix}45/77/1.jpg": photo(1, 6000)}))
    write_csv(tmp_path / "metadata" / "t.csv", "IMG_ID,LAT,LON", [("45_77_1.jpg", 1, 2)])
    assert images(read_source(tmp_path)) == {"45_77_1.jpg": photo(1, 6000)}


def test_dead_members_of_mp16_pro_are_counted_once_and_by_their_size(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {"a/1.jpg": photo(1, 5120), "a/2.jpg": photo(2, 5121), "a/3.jpg": b""})
    assert list(read_source(tmp_path)) == ["a_2.jpg"]
    assert reasons(tmp_path) == {"fewer than 5,121 bytes: dead photos": 2}
    assert left_out(tmp_path)["mp-16-images00:a/1.jpg"] == "5120 bytes: a dead photo"
    assert list(read_source(tmp_path, min_photo_bytes=1)) == ["a_1.jpg", "a_2.jpg"]


def test_small_members_of_other_tars_are_photos(tmp_path: Path) -> None:
    write_file(tmp_path / "thumbnails.tar", tar_bytes({"a.jpg": photo(1, 500)}))
    assert list(read_source(tmp_path, unlabelled=True)) == ["a.jpg"]


def test_dead_members_that_the_table_does_not_name_are_not_its_loss(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {"a/1.jpg": photo(1, 6000), "a/2.jpg": photo(2, 100)})
    table = write_csv(tmp_path / "some.csv", "IMG_ID,LAT,LON", [("a_1.jpg", 1, 2)])
    assert reasons(tmp_path, csv_file=str(table)) == {}


def test_truncated_tar_keeps_the_photos_before_the_cut(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {f"a/{n}.jpg": photo(n, 6000) for n in range(4)})
    path = tmp_path / "mp-16-images00"
    path.write_bytes(path.read_bytes()[: 2 * (512 + 6144) + 3000])  # headers of 512, photos padded to 6,144
    assert images(read_source(tmp_path)) == {f"a_{n}.jpg": photo(n, 6000) for n in range(2)}
    assert reasons(tmp_path) == {f"{CUT_OFF} within a/2.jpg": 1, NO_PHOTO: 2}
    assert reasons(tmp_path, partial=True) == {f"{CUT_OFF} within a/2.jpg": 1}


def test_tar_cut_between_two_members_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {f"a/{n}.jpg": photo(n, 6000) for n in range(4)})
    path = tmp_path / "mp-16-images00"
    path.write_bytes(path.read_bytes()[: 2 * (512 + 6144)])
    assert len(read_source(tmp_path)) == 2
    assert reasons(tmp_path, partial=True) == {CUT_OFF: 1}


def test_corrupted_header_in_the_middle_is_reported_with_its_place(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {f"a/{n}.jpg": photo(n, 6000) for n in range(4)})
    path = tmp_path / "mp-16-images00"
    data = bytearray(path.read_bytes())
    data[2 * 6656 : 2 * 6656 + 512] = b"\x55" * 512
    path.write_bytes(data)
    assert list(read_source(tmp_path, partial=True)) == ["a_0.jpg", "a_1.jpg"]
    assert left_out(tmp_path, partial=True)["mp-16-images00"] == f"{CUT_OFF}: no header stands at byte 13312"


def test_tar_of_mp16_pro_that_is_an_error_page_is_named(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {"a/1.jpg": photo(1, 6000)})
    write_file(tmp_path / "mp-16-images01", "<html>Access to dataset Jia-py/MP16-Pro is restricted</html>" * 20)
    write_file(tmp_path / "mp-16-images02", b"")
    assert list(read_source(tmp_path)) == ["a_1.jpg"]
    assert reasons(tmp_path) == {"the archive cannot be read": 2}
    assert "no uncompressed tar archive" in left_out(tmp_path)["mp-16-images01"]
    (tmp_path / "mp-16-images00").unlink()
    with pytest.raises(
        SourceError, match=r"no photo that can be used: .*The first is mp-16-images01: .*no uncompressed"
    ):
        open_source(tmp_path, SourceOptions(unlabelled=True))


def test_partial_download_does_not_count_the_photos_of_the_other_tars(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {f"a/{n}.jpg": photo(n, 6000) for n in range(3)})
    write_file(tmp_path / "mp-16-images00", tar_bytes({"a/1.jpg": photo(1, 6000), "b/9.jpg": photo(9, 6000)}))
    assert reasons(tmp_path) == {NO_PHOTO: 2}
    assert reasons(tmp_path, partial=True) == {"no row of the table names it": 1}
    with pytest.raises(TooManyDamagedPhotosError, match=r"2 of 3 photos of .* --max_bad_fraction") as refusal:
        open_source(tmp_path).bad.refuse_above(0.1, 3, "MP16-Pro")
    assert NO_PHOTO in str(refusal.value)


def test_links_are_not_followed_and_counted_where_they_are_wanted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("1.jpg", tarfile.REGTYPE), ("2.jpg", tarfile.SYMTYPE), ("3.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "" if kind == tarfile.REGTYPE else "/etc/passwd"
            member.size = 300 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(photo(1, 300)))
    write_file(tmp_path / "00.tar", buffer.getvalue())
    assert list(read_source(tmp_path, unlabelled=True)) == ["1.jpg"]
    assert sorted(left_out(tmp_path, unlabelled=True)) == ["00.tar:2.jpg", "00.tar:3.jpg"]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_that_are_not_ascii_are_whole(tmp_path: Path, tar_format: int) -> None:
    names = [f"{'sub/' * 60}{'x' * 120}.jpg", "Málaga/Køge.jpg"]
    data = tar_bytes({name: photo(n) for n, name in enumerate(names)}, format=tar_format)
    write_file(tmp_path / "00.tar", data)
    assert images(read_source(tmp_path, unlabelled=True)) == {name: photo(n) for n, name in enumerate(names)}


@pytest.mark.parametrize("name", ["00.tar.gz", "00.tgz"])
def test_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, tar_bytes({"a.jpg": photo(1)}, mode="w:gz"))
    with pytest.raises(SourceError, match=r"Compressed tars cannot be read here and there: decompress them first"):
        open_source(tmp_path, SourceOptions(unlabelled=True))


def test_compressed_tar_under_a_tar_s_name_is_named_among_whole_ones(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({"a.jpg": photo(1)}, mode="w:gz"))
    write_file(tmp_path / "01.tar", tar_bytes({"b.jpg": photo(2)}))
    assert list(read_source(tmp_path, unlabelled=True)) == ["b.jpg"]
    assert "decompress it first" in left_out(tmp_path, unlabelled=True)["00.tar"]


def test_hidden_members_and_what_macos_adds_are_no_photos(tmp_path: Path) -> None:
    members = {"a/1.jpg": photo(1), "a/._1.jpg": photo(2), "__MACOSX/a/1.jpg": photo(3), "a/notes.txt": b"x"}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert list(read_source(tmp_path, unlabelled=True)) == ["a/1.jpg"]
    assert reasons(tmp_path, unlabelled=True) == {}


def test_photos_of_one_name_in_two_tars_keep_apart_and_copies_do_not(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({"1.jpg": photo(1, 300), "same.jpg": photo(3)}))
    write_file(tmp_path / "01.tar", tar_bytes({"1.jpg": photo(2, 400), "same.jpg": photo(3)}))
    expected = {"00/1.jpg": photo(1, 300), "01/1.jpg": photo(2, 400), "same.jpg": photo(3)}
    assert images(read_source(tmp_path, unlabelled=True)) == expected
    assert reasons(tmp_path, unlabelled=True) == {"the source holds its id again": 1}


def test_tar_without_any_table_says_how_to_name_one(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({"1.jpg": photo(1)}))
    with pytest.raises(SourceError, match=r"no CSV was found in it or beside it\. Name the table with --csv"):
        open_source(tmp_path)


def test_table_of_other_photos_is_refused_with_what_ids_must_be(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {"a/1.jpg": photo(1, 6000)})
    table = write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [("zzz", 1, 2)])
    with pytest.raises(SourceError, match=r"no photo that can be used: 1 x .* Ids in .*t\.csv must be names of photos"):
        open_source(tmp_path, SourceOptions(csv_file=str(table)))


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
        "its coordinates are missing or not finite": 3,
        "its coordinates are (0, 0), which stands for none": 1,
        "the table names it again": 1,
        "the table names it several times with different coordinates": 2,
        "it names no photo": 1,
        NO_PHOTO: 1,
    }
    assert {"a", "b", "c", "d", "e", "f", "g", "gone", "row 211"} == set(left_out(folder))


def test_two_photos_for_one_id_keep_the_first_and_count_the_other(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "1.jpg", photo(1))
    write_file(tmp_path / "b" / "1.jpg", photo(2))
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [("1", 1, 2)])
    assert images(read_source(tmp_path)) == {"1": photo(1)}
    assert left_out(tmp_path) == {"b/1.jpg": "another photo has the same id"}


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
        "c.jpg": "no GPS position: it is no photo that Pillow knows",
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
