"""Sources that are not what they seem: what must not be lost, mixed up, overwritten or told to strangers."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_server import FolderHandler, serve
from PIL import Image
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
    zip_bytes,
)

from geomae.data.__main__ import main
from geomae.data.filesystems import public_name, public_text
from geomae.data.photos import encode_jpeg
from geomae.data.runners import run_tasks
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, CoordinateError, SourceError

ROOT = Path(__file__).resolve().parent.parent


def jpeg(number: int) -> bytes:
    """A small photo of one grey level."""
    return encode_jpeg(np.full((32, 40, 3), number, np.uint8), 90)


def write_photos(folder: Path, names: list[str], first: int = 0) -> Path:
    for number, name in enumerate(names, start=first):
        write_file(folder / name, jpeg(number))
    return folder


def pack(source: Path | str, output_dir: Path, *options: str) -> int:
    return main(["pack", str(source), "--output_dir", str(output_dir), "--num_processes", "1", *options])


def stored(output_dir: Path, column: str = "id", split: str = "*") -> list[Any]:
    return [
        value
        for file in sorted(output_dir.glob(f"{split}-0*.parquet"))
        for value in pq.read_table(file)[column].to_pylist()
    ]


def manifest(output_dir: Path) -> dict[str, Any]:
    return dict(json.loads((output_dir / "manifest.json").read_text()))


def test_finished_split_is_not_overwritten_by_a_folder_of_the_same_name(tmp_path: Path, capsys: Any) -> None:
    write_photos(tmp_path / "x" / "photos", ["a.jpg", "b.jpg"])
    write_photos(tmp_path / "y" / "photos", ["c.jpg", "d.jpg"])
    assert pack(tmp_path / "x" / "photos", tmp_path / "out", "--unlabelled") == 0
    assert pack(tmp_path / "y" / "photos", tmp_path / "out", "--unlabelled") == 2
    assert "holds a finished split 'train' of other photos" in capsys.readouterr().err
    assert sorted(stored(tmp_path / "out")) == ["a.jpg", "b.jpg"]
    assert manifest(tmp_path / "out")["num_photos"] == 2


def test_source_that_has_suffered_does_not_take_its_shards_with_it(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(20)])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    for n in range(1):
        write_file(source / f"{n}.jpg", b"gone bad")
    assert pack(source, tmp_path / "out", "--unlabelled") == 2
    assert "holds 20 photos and would be replaced by one that holds 19; the first" in capsys.readouterr().err
    assert len(stored(tmp_path / "out")) == 20
    next(tmp_path.glob("out/train-*")).unlink()
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert manifest(tmp_path / "out")["num_photos"] == 19


def test_photos_that_could_not_be_read_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(30)])

    class Fails(FolderHandler):
        is_down = True

        def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            if type(self).is_down and self.path.endswith("/7.jpg") and self.command == "GET":
                self.send(503, b"")
            else:
                super().send_file(data, headers)

    with serve(Fails, root=folder) as (url, handler):
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        entry = manifest(tmp_path / "out")
        assert (entry["num_photos"], entry["num_bad"]) == (29, 1)
        assert entry["bad"][0]["reason"].startswith("cannot be read: ")
        assert set(entry["bad"][0]) == {"file", "reason"}
        handler.is_down = False
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        assert (manifest(tmp_path / "out")["num_photos"], manifest(tmp_path / "out")["num_bad"]) == (30, 0)
        handler.requests.clear()
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        assert not [path for method, path, _ in handler.requests if method == "GET" and path.endswith(".jpg")]


def test_shard_that_is_not_the_one_of_the_manifest_is_written_anew(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(5)])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    (shard,) = tmp_path.glob("out/train-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + b"\0" * 8 + whole[608:])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert shard.read_bytes() == whole


def test_second_run_into_a_folder_waits_for_nothing_and_breaks_nothing(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "out").mkdir()
    hold = (
        "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); print('held'); sys.stdin.read()"
    )
    command = [sys.executable, "-u", "-c", hold, str(tmp_path / "out" / ".pack.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert pack(source, tmp_path / "out", "--unlabelled") == 2
        assert "another run is writing into" in capsys.readouterr().err
        other.kill()  # its lock dies with it
    assert pack(source, tmp_path / "out", "--unlabelled") == 0


def test_side_longer_than_any_jpeg_is_one_bad_photo(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(20)])
    Image.new("L", (70_000, 100)).save(source / "wide.png")
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert manifest(tmp_path / "out")["bad"] == [
        {"file": "wide.png", "reason": "70000 x 100 has a side of more than the 65,500 pixels of any JPEG"}
    ]


def test_reasons_of_the_manifest_sum_to_all_bad_photos(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for n in range(80):
        write_file(source / f"{n}.jpg", jpeg(n)[: -20 - n])
    assert pack(source, tmp_path / "out", "--unlabelled", "--max_bad_fraction", "1") in (0, 2)
    write_photos(source, [f"good{n}.jpg" for n in range(20)])
    assert pack(source, tmp_path / "whole", "--unlabelled", "--max_bad_fraction", "1") == 0
    entry = manifest(tmp_path / "whole")["splits"]["train"]
    assert sum(entry["num_bad_by_reason"].values()) == entry["num_bad"] == 80
    assert len(entry["num_bad_by_reason"]) < 5


def test_partial_table_is_judged_by_the_photos_that_are_here(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({f"p{n}.jpg": photo(n) for n in range(10)} | {"x.jpg": photo(99)}))
    rows = [(f"p{n}.jpg", "" if n == 3 or n >= 80 else n / 2, 5) for n in range(100)]
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", rows)
    assert len(read_source(tmp_path, partial=True)) == 9
    assert left_out(tmp_path, partial=True) == {
        "x.jpg": "no row of the table names it",
        "p3.jpg": "its coordinates are missing or not finite",
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


def test_output_inside_the_source_is_refused_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    assert pack(source, source / "packed", "--unlabelled") == 2
    assert "lies in the source" in capsys.readouterr().err
    assert not (source / "packed").exists()


def test_authors_that_only_the_source_knows_split_it(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(40):
        members |= {f"{n:02}.jpg": jpeg(n), f"{n:02}.json": json_bytes(author=f"a{n % 4}", image_id=f"{n:02}")}
    write_file(tmp_path / "w" / "00.tar", tar_bytes(members))
    table = write_csv(tmp_path / "t.csv", "id,latitude,longitude", [(f"{n:02}", n, n) for n in range(40)])
    assert pack(tmp_path / "w", tmp_path / "out", "--csv", str(table), "--validation_fraction", "0.5") == 0
    train, validation = (set(stored(tmp_path / "out", "author", split)) for split in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation


def test_split_without_authors_and_authors_on_both_sides_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, first in (("one", 0), ("two", 10)):
        write_photos(tmp_path / name, [f"{n}.jpg" for n in range(first, first + 4)], first)
        rows = [(f"{n}.jpg", n + 1, n, "eve") for n in range(first, first + 4)]
        write_csv(tmp_path / name / "t.csv", "id,latitude,longitude,author", rows)
    assert pack(tmp_path / "one", tmp_path / "out") == 0
    assert pack(tmp_path / "two", tmp_path / "out", "--split_name", "validation") == 0
    assert "1 authors of these photos, such as eve, have photos in the split 'train'" in caplog.text
    assert pack(tmp_path / "one", tmp_path / "half", "--unlabelled", "--validation_fraction", "0.5") == 0
    assert "no author is known: the split is by photo" in caplog.text


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


def test_records_name_no_secrets_and_no_folders(tmp_path: Path) -> None:
    folder = tmp_path / "home_of_alice"
    write_file(folder / "00.tar", tar_bytes({"a.jpg": jpeg(1), "b.jpg": b"junk", "c.jpg": jpeg(3)}))
    write_file(folder / "t.csv", "id,latitude,longitude\na,1,2\nb,3,4\nc,5,6\nd,7,8\n")
    with serve(FolderHandler, root=folder) as (url, _):
        signed = url.replace("http://", "http://eve:PASSWORD@")
        options = ["--csv", f"{url}/t.csv?token=SECRET", "--max_bad_fraction", "1"]
        assert pack(f"{signed}/00.tar?token=SECRET", tmp_path / "out", *options) == 0
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "00.tar" in text
    assert not [secret for secret in ("SECRET", "PASSWORD", str(tmp_path)) if secret in text]
    assert (
        pack(f"{folder}/{{00..00}}.tar", tmp_path / "two", "--csv", str(folder / "t.csv"), "--max_bad_fraction", "1")
        == 0
    )
    assert "home_of_alice" not in (tmp_path / "two" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("http://eve:secret@host:80/a/b.tar?token=x", "http://host:80/a/b.tar"),
        ("s3://bucket/mp16/*.tar", "s3://bucket/mp16/*.tar"),
        ("/home/alice/mp16/{00..18}.tar", "{00..18}.tar"),
        ("/home/alice/{a,b}/00.tar", "{a,b}/00.tar"),
        ("/home/alice/mp16", "mp16"),
        ("owner/name", "owner/name"),
    ],
)
def test_public_name(source: str, shown: str) -> None:
    assert public_name(source) == shown


def test_public_text_keeps_what_is_no_secret() -> None:
    message = "http://eve:secret@host/p.jpg?x=1: 503, url='http://host/p.jpg?token=2' (is it there?)"
    assert public_text(message) == "http://host/p.jpg: 503, url='http://host/p.jpg' (is it there?)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlabelled", "--partial"], "--partial is about a table"),
        (["--unlabelled", "--validation_fraction", "nan"], "validation_fraction=nan"),
        (["--source_split", "train"], "--source_split is of packed folders"),
        (
            ["--unlabelled", "--min_photo_bytes", "100000"],
            "has no photo that can be used: 1 x fewer than 100,000 bytes",
        ),
    ],
)
def test_options_are_honoured_or_refused(tmp_path: Path, capsys: Any, options: list[str], message: str) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    write_csv(source / "t.csv", "id,latitude,longitude", [("a.jpg", 1, 2)])
    assert pack(source, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_packed_splits_are_not_mixed_by_naming_the_kind(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    with pytest.raises(ConfigError, match="whose splits --kind parquet would mix"):
        open_source(tmp_path / "out", SourceOptions(kind="parquet", unlabelled=True))
    with pytest.raises(ConfigError, match="--min_photo_bytes is for photos in files"):
        open_source(tmp_path / "out", SourceOptions(min_photo_bytes=5, unlabelled=True))


def test_test_photos_of_osv5m_are_not_pretrained_on(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "images" / part / "00", [f"{part}.jpg"])
    assert list(read_source(tmp_path, unlabelled=True)) == ["images/train/00/train.jpg"]
    assert list(read_source(tmp_path, unlabelled=True, split="test")) == ["images/test/00/test.jpg"]


def test_output_that_is_a_file_is_one_line(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    write_file(tmp_path / "out", b"")
    assert pack(source, tmp_path / "out", "--unlabelled") == 2
    assert "FileExistsError: " in capsys.readouterr().err


def _die(task: int, count: Any) -> int:
    os._exit(task)


def test_worker_that_is_killed_is_explained() -> None:
    from tqdm import tqdm

    with (
        tqdm(disable=True) as bar,
        pytest.raises(SourceError, match="smaller --num_processes: finished shards are kept"),
    ):
        list(run_tasks([9, 9], _die, num_processes=2, ray_address=None, bar=bar))


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


def test_cut_archives_count_for_what_they_have_lost(tmp_path: Path, capsys: Any) -> None:
    for tar in range(10):
        members: dict[str, bytes] = {}
        for n in range(20):
            members |= {f"{tar}-{n}.jpg": jpeg(n), f"{tar}-{n}.json": json_bytes(lat=n + 1, lon=2)}
        whole = tar_bytes(members)
        write_file(tmp_path / "w" / f"{tar}.tar", whole if tar < 3 else whole[: len(whole) // 2])
    assert pack(tmp_path / "w", tmp_path / "out") == 2
    assert "the archive is damaged or cut off" in capsys.readouterr().err


def test_description_is_that_of_this_spelling_and_not_of_the_cached_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_photos(tmp_path / "photos", ["a.jpg"])
    monkeypatch.chdir(tmp_path)
    first = open_source("photos/../photos", SourceOptions(unlabelled=True)).description
    assert open_source(str(tmp_path / "photos"), SourceOptions(unlabelled=True)).description == first
