"""Sources that are not what they seem: what must not be lost, mixed up or mistaken."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_server import FolderHandler, serve
from source_files import (
    images,
    json_bytes,
    left_out,
    photo,
    read_source,
    reasons,
    tar_bytes,
    write_csv,
    write_file,
    write_photos,
    zip_bytes,
)

from geomae.data.filesystems import public_name, public_text
from geomae.data.photos import decode_photo
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import CoordinateError, DamagedPhotoError, SourceError

ROOT = Path(__file__).resolve().parent.parent


def test_partial_table_is_judged_by_the_photos_that_are_here(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({f"p{n}.jpg": photo(n) for n in range(10)} | {"x.jpg": photo(99)}))
    rows = [(f"p{n}.jpg", "" if n == 3 or n >= 80 else n / 2, 5) for n in range(100)]
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", rows)
    assert len(read_source(tmp_path, partial=True)) == 9
    assert left_out(tmp_path, partial=True) == {
        "x.jpg": "no row of the table names it",
        "p3.jpg": "its coordinates are missing, no decimal degrees or not finite",
    }


def test_dots_in_names_of_a_webdataset_do_not_make_samples_of_them(tmp_path: Path) -> None:
    members = {f"2020.{n:02}.jpg": photo(n) for n in range(20)}
    jsons = {f"2020.{n:02}.json": json_bytes(lat=n + 1, lon=n) for n in range(10)}
    write_file(tmp_path / "a.tar", tar_bytes(dict(sorted((members | jsons).items()))))
    assert list(read_source(tmp_path)) == [f"2020.{n:02}" for n in range(10)]
    assert sum(reasons(tmp_path).values()) == 10
    assert images(read_source(tmp_path, unlabelled=True)) == {
        name.removesuffix(".jpg"): data for name, data in members.items()
    }


def test_files_of_another_kind_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(tmp_path, [f"{n}.jpg" for n in range(3)])
    write_file(tmp_path / "00.zip", zip_bytes({f"z{n}.jpg": photo(n, 4000) for n in range(3)}))
    assert len(read_source(tmp_path, unlabelled=True)) == 3
    assert "3 files that are photos (.jpg, .png, ...) are left out, and --kind folder reads them" in caplog.text


def test_nothing_written_as_nan_is_nobody(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n, author in enumerate((float("nan"), None, "", "eve")):
        members |= {f"{n}.jpg": photo(n), f"{n}.json": json_bytes(lat=n + 1, lon=2, author=author)}
    write_file(tmp_path / "w" / "00.tar", tar_bytes(members))
    assert [row["author"] for row in read_source(tmp_path / "w").values()] == [None, None, None, "eve"]
    columns = {
        "image": [photo(n) for n in range(3)],
        "id": [3.0, float("nan"), None],
        "lat": [1.0] * 3,
        "lon": [2.0] * 3,
    }
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table(columns | {"author": [7.0, float("nan"), 7.5]}), tmp_path / "p" / "x.parquet")
    rows = read_source(tmp_path / "p")
    assert list(rows) == ["3", "x-000001", "x-000002"]
    assert [row["author"] for row in rows.values()] == ["7", None, "7.5"]
    write_photos(tmp_path / "f", ["a.jpg", "b.jpg", "c.jpg"])
    rows_of_csv = [("a.jpg", 1, 2, "nan"), ("b.jpg", 1, 2, "NULL"), ("c.jpg", 1, 2, "eve"), ("nan", 1, 2, "eve")]
    write_csv(tmp_path / "f" / "t.csv", "id,latitude,longitude,author", rows_of_csv)
    assert [row["author"] for row in read_source(tmp_path / "f").values()] == [None, None, "eve"]
    assert reasons(tmp_path / "f") == {"it names no photo": 1}


def test_swap_is_not_advised_without_what_speaks_against_it(tmp_path: Path) -> None:
    write_photos(tmp_path, ["a.jpg"])
    rows = [(f"{n}.jpg", 48.5, 8.25) for n in range(50)]
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [*rows, ("a.jpg", 139.69, 35.68)])
    with pytest.raises(
        CoordinateError, match=r"--swap_lat_lon(.|\n)*50 rows are on Earth either way, such as id 0\.jpg"
    ):
        open_source(tmp_path)
    beyond = [(f"b{n}.jpg", 35.68, 139.69) for n in range(50)]  # swapping would take these off the Earth
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [*beyond, ("a.jpg", 139.69, 35.68)])
    with pytest.raises(SourceError, match="none of the 50 photos"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("http://eve:secret@host:80/a/b.tar?token=x", "http://host:80/a/b.tar"),
        ("s3://bucket/mp16/*.tar", "s3://bucket/mp16/*.tar"),
        ("/pictures/alice/mp16/{00..18}.tar", "{00..18}.tar"),
        ("/pictures/alice/{a,b}/00.tar", "{a,b}/00.tar"),
        ("/pictures/alice/mp16", "mp16"),
        ("https://blob/x.tar?se=2026-01-01T00:00:00Z&sig=SECRET#part", "https://blob/x.tar"),
        ("s3://key:p@ss@bucket/My Photos/x", "s3://bucket/My Photos/x"),
        ("zip://*.jpg::https://eve:SECRET@host/p.zip?sig=SECRET", "zip://*.jpg::https://host/p.zip"),
        ("owner/name", "owner/name"),
    ],
)
def test_public_name(source: str, shown: str) -> None:
    assert public_name(source) == shown


def test_public_text_keeps_what_is_no_secret() -> None:
    message = "http://eve:secret@host/p.jpg?x=1: 503, url='http://host/p.jpg?token=2' (is it there?)"
    assert public_text(message) == "http://host/p.jpg 503, url='http://host/p.jpg (is it there?)"
    signed = "https://a:b@c@blob/x.tar?se=2026-01-01T00:00:00Z&x='1'&sig=SECRET gone"
    assert public_text(signed) == "https://blob/x.tar gone"
    assert public_text("at zip://*.jpg::https://a:b@host/p.zip?sig=c: 503") == "at zip://*.jpg::https://host/p.zip 503"
    assert public_text("https://host/p,https://a:b@host/q") == "https://host/p,https://host/q"
    assert public_text("what? a@b is no url") == "what? a@b is no url"


def test_test_photos_of_osv5m_are_not_pretrained_on(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "images" / part / "00", [f"{part}.jpg"])
    assert list(read_source(tmp_path, unlabelled=True)) == ["images/train/00/train.jpg"]
    assert list(read_source(tmp_path, unlabelled=True, split="test")) == ["images/test/00/test.jpg"]


def test_table_of_which_no_row_can_be_used_says_why(tmp_path: Path) -> None:
    write_photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "t.csv", "id,latitude,longitude", [("a.jpg", 0, 0)])
    with pytest.raises(SourceError, match=r"t\.csv has no row that can be used: 1 x its coordinates are \(0, 0\)"):
        open_source(tmp_path)
    write_file(tmp_path / "t.csv", "id;latitude;longitude\na.jpg;1,5;2,5\n")
    with pytest.raises(SourceError, match="save numbers with points"):
        open_source(tmp_path)
    write_file(tmp_path / "t.csv", "id;latitude;longitude\na.jpg;1.5;2.5\n")
    with pytest.raises(SourceError, match="not separated by commas"):
        open_source(tmp_path)


def test_suffix_of_a_table_may_be_shouted(tmp_path: Path) -> None:
    write_photos(tmp_path, ["a.jpg"])
    write_csv(tmp_path / "COORDS.CSV", "id,latitude,longitude", [("a.jpg", 1, 2)])
    assert list(read_source(tmp_path)) == ["a.jpg"]


def test_archives_that_differ_in_their_suffix_alone_keep_their_photos_apart(tmp_path: Path) -> None:
    from source_files import msgpack_bytes

    for number, name in enumerate(("00.msg", "00.msgpack")):
        records = [{"id": f"{n}.jpg", "image": photo(10 * number + n, 500 + number)} for n in range(3)]
        write_file(tmp_path / name, msgpack_bytes(records))
    assert len(read_source(tmp_path, unlabelled=True)) == 6
    assert reasons(tmp_path, unlabelled=True) == {}


@pytest.mark.parametrize("headers", [{"ETag": ""}, {"ETag": "", "Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"}])
def test_archive_by_http_that_was_written_anew_is_indexed_anew(tmp_path: Path, headers: dict[str, str]) -> None:
    """Of the same size: a server that gives no date is not believed, one that does is."""

    class Terse(FolderHandler):
        def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            super().send_file(data, dict(sent))

        def send_header(self, keyword: str, value: str) -> None:
            if value:
                super().send_header(keyword, value)

    sent = dict(headers)
    members = [(f"{n}.jpg", photo(n)) for n in range(4)]
    write_file(tmp_path / "a.tar", tar_bytes(members))
    with serve(Terse, root=tmp_path) as (url, _):
        assert images(read_source(url, unlabelled=True)) == dict(members)
        write_file(tmp_path / "a.tar", tar_bytes(members[::-1]))
        if "Last-Modified" in sent:
            sent["Last-Modified"] = "Thu, 26 Nov 2026 00:00:01 GMT"
        assert images(read_source(url, unlabelled=True)) == dict(members)


def test_test_set_whose_archive_is_cut_off_is_refused(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(4):
        members |= {f"{n}.jpg": photo(n), f"{n}.json": json_bytes(lat=n + 1, lon=2)}
    write_file(tmp_path / "a.tar", tar_bytes(members)[: 6 * 1024])
    assert len(open_source(tmp_path)) < 4
    with pytest.raises(SourceError, match="A test set must be whole"):
        open_source(tmp_path, SourceOptions(for_test=True))


def test_description_is_that_of_this_spelling_and_not_of_the_cached_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_photos(tmp_path / "photos", ["a.jpg"])
    monkeypatch.chdir(tmp_path)
    first = open_source("photos/../photos", SourceOptions(unlabelled=True)).description
    assert open_source(str(tmp_path / "photos"), SourceOptions(unlabelled=True)).description == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos", "is a folder; expected the CSV itself"),
        ("photos/a.jpg", "is a photo; expected a CSV"),
    ],
)
def test_table_that_is_none_is_said_to_be(tmp_path: Path, name: str, message: str) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    with pytest.raises(SourceError, match=message):
        open_source(source, SourceOptions(csv_file=str(tmp_path / name)))


def test_heic_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_file(tmp_path / "a.heic", b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(SourceError, match="it is HEIC, which Pillow does not read: save it as JPEG first"):
        open_source(tmp_path)
    with pytest.raises(DamagedPhotoError, match="it is HEIC"):
        decode_photo((tmp_path / "a.heic").read_bytes(), min_short_side=0)


def test_photo_with_a_json_of_its_own_is_a_photo_whatever_stands_beside_it(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, name in enumerate(("IMG", "IMG.1", "IMG.2")):
        members |= {f"{name}.jpg": photo(number), f"{name}.json": json_bytes(lat=number + 1, lon=2)}
    members |= {"IMG.seg.png": photo(9)}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert images(read_source(tmp_path)) == {"IMG": photo(0), "IMG.1": photo(1), "IMG.2": photo(2)}


def test_name_of_a_city_is_no_id_in_a_parquet_and_that_of_a_photo_is_one_in_a_csv(tmp_path: Path) -> None:
    columns = {"image": [photo(n) for n in range(4)], "name": ["Rome"] * 4, "lat": [1.0] * 4, "lon": [2.0] * 4}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert len(read_source(tmp_path)) == 4
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    write_csv(source / "t.csv", "Name,latitude,longitude", [("a.jpg", 1, 2)])
    assert list(read_source(source)) == ["a.jpg"]


def test_folders_called_like_those_of_osv5m_are_read_whole(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        write_photos(tmp_path / "images" / part, [f"{part}.jpg"])
    assert len(read_source(tmp_path, unlabelled=True)) == 3


def test_table_by_http_without_a_date_is_read_each_time(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])

    class Terse(FolderHandler):
        def send_header(self, keyword: str, value: str) -> None:
            if keyword != "ETag":
                super().send_header(keyword, value)

    with serve(Terse, root=tmp_path) as (url, _):
        for latitude in (10, 77):
            write_csv(tmp_path / "t.csv", "id,latitude,longitude", [("a.jpg", latitude, 5)])
            (row,) = read_source(source, csv_file=f"{url}/t.csv").values()
            assert row["latitude"] == latitude


def test_test_set_of_broken_tars_whose_photos_a_table_names_keeps_them_as_misses(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(4):
        members |= {f"{n}.jpg": photo(n), f"{n}.json": json_bytes(lat=n + 1, lon=2)}
    write_file(tmp_path / "w" / "a.tar", tar_bytes(members)[: 6 * 1024])
    table = write_csv(tmp_path / "t.csv", "id,lat,lon", [(f"{n}", n + 1, 2) for n in range(4)])
    index = open_source(tmp_path / "w", SourceOptions(csv_file=str(table), for_test=True))
    assert len(index) == 4
    counts = reasons(tmp_path / "w", csv_file=str(table))
    assert counts["the archive is damaged or cut off, and what lies behind cannot be read"] == 1
