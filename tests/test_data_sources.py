"""Archives whose coordinates stand in a table: GeoEstimation's msgpack shards, and tars as MP16-Pro's."""

import io
import tarfile
from pathlib import Path
from typing import Any

import msgpack
import pytest
from source_files import (
    images,
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
)

from geomae.data.sources import SourceOptions, open_source
from geomae.errors import SourceError, TooManyDamagedPhotosError

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
        "scene16": None,
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
    num_lost = {"last record cut": 1, "garbage behind": 1, "garbage first": 3}[damage]
    assert sum(reasons(tmp_path, unlabelled=True).values()) == num_lost
    assert left_out(tmp_path, unlabelled=True)["shard_0.msg"].startswith(CUT_OFF)


def test_none_among_the_records_of_a_msgpack_shard_costs_no_photo(tmp_path: Path) -> None:
    before, behind = (msgpack_bytes({"id": f"{n}.jpg", "image": photo(n)} for n in ns) for ns in ((0, 1), (3, 4)))
    write_file(tmp_path / "shard_0.msg", before + msgpack.packb(None) + behind)
    assert images(read_source(tmp_path, unlabelled=True)) == {f"{n}.jpg": photo(n) for n in (0, 1, 3, 4)}
    assert reasons(tmp_path, unlabelled=True) == {"its record is None": 1}


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
    assert reasons(tmp_path) == {CUT_OFF: 1, NO_PHOTO: 2}
    assert reasons(tmp_path, partial=True) == {CUT_OFF: 1}
    assert left_out(tmp_path, partial=True)["mp-16-images00"] == f"{CUT_OFF}: within a/2.jpg"


def test_photos_that_a_broken_archive_has_lost_are_estimated_where_no_table_names_them(tmp_path: Path) -> None:
    write_mp16_pro(tmp_path, {f"a/{n}.jpg": photo(n, 6000) for n in range(40)})
    path = tmp_path / "mp-16-images00"
    path.write_bytes(path.read_bytes()[: 39 * (512 + 6144)])
    whole = path.read_bytes()
    write_file(tmp_path / "mp-16-images01", whole[: 2 * 6656] + b"\x55" * (20 * 6656))
    for options in ({"unlabelled": True}, {"partial": True}):
        lost = left_out(tmp_path, **options)["mp-16-images01"]
        assert lost.endswith("; about 20 photos are lost")
        assert reasons(tmp_path, **options)[CUT_OFF] == 1 + 20
    assert reasons(tmp_path)[CUT_OFF] == 2


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
    assert left_out(tmp_path, partial=True)["mp-16-images00"].startswith(f"{CUT_OFF}: no header stands at byte 13312")


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
    with pytest.raises(
        TooManyDamagedPhotosError, match=r"2 of 3 photos cannot be used \(MP16-Pro\).* --max_bad_fraction"
    ) as refusal:
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


def test_tar_of_a_folder_itself_gives_names_without_its_dot(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({"./a/1.jpg": photo(1)}))
    assert list(read_source(tmp_path, unlabelled=True)) == ["a/1.jpg"]


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


@pytest.mark.parametrize("for_test", [False, True])
def test_table_of_other_photos_is_refused_with_an_example_of_both(tmp_path: Path, for_test: bool) -> None:
    write_mp16_pro(tmp_path, {"a/1.jpg": photo(1, 6000)})
    table = write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [("zzz", 1, 2)])
    with pytest.raises(
        SourceError, match=r"none of the 1 photos of .*t\.csv is there; the first is 'zzz', a photo there is 'a/1\.jpg'"
    ):
        open_source(tmp_path, SourceOptions(csv_file=str(table), for_test=for_test))
