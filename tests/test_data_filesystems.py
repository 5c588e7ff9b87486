"""Files by URL: memory:// in this process, and http:// from a server on this machine."""

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_server import FolderHandler, serve
from source_files import (
    images,
    images_of,
    json_bytes,
    msgpack_bytes,
    photo,
    places,
    read_source,
    tar_bytes,
    write_csv,
    write_file,
    zip_bytes,
)
from torch.utils.data import DataLoader

from geomae.data import filesystems
from geomae.data.filesystems import RemoteError, expand_pattern, list_files, open_file
from geomae.data.loading import stream_photos
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import SourceError

CSV = "id,latitude,longitude\na,1,2\nb,3,4\n"


def parquet_bytes() -> bytes:
    columns = {"image": [photo(0), photo(1)], "id": ["a", "b"], "lat": [1.0, 3.0], "lon": [2.0, 4.0]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def write_every_kind(folder: Path) -> dict[str, Path]:
    """The photos a and b, once in each kind of source."""
    files: dict[str, dict[str, bytes | str]] = {
        "msgpack": {
            "shard_0.msg": msgpack_bytes([{"id": "a", "image": photo(0)}, {"id": "b", "image": photo(1)}]),
            "mp16.csv": CSV,
        },
        "webdataset": {
            "00.tar": tar_bytes({"a.jpg": photo(0), "a.json": json_bytes(latitude=1, longitude=2)}),
            "01.tar": tar_bytes({"b.jpg": photo(1), "b.json": json_bytes(latitude=3, longitude=4)}),
        },
        "tar": {
            "mp-00": tar_bytes({"x/a.jpg": photo(0)}),
            "mp-01": tar_bytes({"x/b.jpg": photo(1)}),
            "metadata/t.csv": CSV,
        },
        "zip": {"00.zip": zip_bytes({"a.jpg": photo(0), "b.jpg": photo(1)}, 8), "t.csv": CSV},
        "parquet": {"data.parquet": parquet_bytes()},
        "folder": {"a.jpg": photo(0), "sub/b.jpg": photo(1), ".hidden.jpg": photo(2), "t.csv": CSV},
    }
    for kind, contents in files.items():
        for name, data in contents.items():
            write_file(folder / kind / name, data)
    return {kind: folder / kind for kind in files}


KINDS = ["msgpack", "webdataset", "tar", "zip", "parquet", "folder"]


@pytest.fixture
def memory() -> Iterator[Any]:
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    with serve(FolderHandler, root=tmp_path) as served:
        yield served


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_memory(tmp_path: Path, memory: Any, kind: str) -> None:
    folder = write_every_kind(tmp_path)[kind]
    memory.put(str(folder), "/data/", recursive=True)
    rows = read_source(f"memory://data/{kind}")
    assert images(rows) == {"a": photo(0), "b": photo(1)}
    assert places(rows) == {"a": (1.0, 2.0), "b": (3.0, 4.0)}
    assert open_source(f"memory://data/{kind}").kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_a_web_server_s_folder(tmp_path: Path, server: tuple[str, Any], kind: str) -> None:
    write_every_kind(tmp_path)
    rows = read_source(f"{server[0]}/{kind}/")
    assert images(rows) == {"a": photo(0), "b": photo(1)}
    assert places(rows) == {"a": (1.0, 2.0), "b": (3.0, 4.0)}


@pytest.mark.parametrize(
    ("file", "table"),
    [("msgpack/shard_0.msg", "msgpack/mp16.csv"), ("tar/mp-00", "tar/metadata/t.csv"), ("zip/00.zip", "zip/t.csv")],
)
def test_single_archive_is_read_by_its_url(tmp_path: Path, server: tuple[str, Any], file: str, table: str) -> None:
    write_every_kind(tmp_path)
    rows = read_source(f"{server[0]}/{file}", csv_file=f"{server[0]}/{table}")
    assert places(rows)["a"] == (1.0, 2.0)
    assert images(rows)["a"] == photo(0)
    assert read_source(f"{server[0]}/parquet/data.parquet")["b"]["image"] == photo(1)


def test_photos_of_an_archive_come_in_parts_and_neighbours_in_one(tmp_path: Path, server: tuple[str, Any]) -> None:
    address, handler = server
    write_file(tmp_path / "00.tar", tar_bytes({f"{n}.jpg": photo(n, 20_000) for n in range(300)}))
    index = open_source(f"{address}/00.tar", SourceOptions(unlabelled=True))
    handler.requests.clear()
    assert images_of(index.take([3, 4, 5, 290])) == {f"{n}.jpg": photo(n, 20_000) for n in (3, 4, 5, 290)}
    ranges = [asked for method, _, asked in handler.requests if method == "GET"]
    assert len(ranges) == 2
    assert None not in ranges


def test_listing_one_large_file_does_not_download_it(tmp_path: Path, server: tuple[str, Any]) -> None:
    address, handler = server
    write_file(tmp_path / "mp-16-images00", b"\0" * 10**6)
    (entry,) = list_files(f"{address}/mp-16-images00")
    assert (entry.path, entry.size) == (f"{address}/mp-16-images00", 10**6)
    assert [method for method, _, _ in handler.requests] == ["HEAD"]


def test_workers_of_a_loader_read_remote_photos_after_this_process_did(tmp_path: Path, server: tuple[str, Any]) -> None:
    expected = {}
    for number in range(250):
        expected[f"{number}.jpg"] = photo(number)
        write_file(tmp_path / "photos" / f"{number}.jpg", photo(number))
    stream = stream_photos(f"{server[0]}/photos", SourceOptions(unlabelled=True))
    assert next(iter(stream))["image"]["bytes"] == photo(0)
    loader = DataLoader(stream, batch_size=10, num_workers=2, collate_fn=list)
    read = [(row["id"], row["image"]["bytes"]) for batch in loader for row in batch]
    assert len(read) == 250
    assert dict(read) == expected


def test_numbered_urls_are_written_with_braces(tmp_path: Path, server: tuple[str, Any]) -> None:
    for number in range(3):
        members = {f"{number}.jpg": photo(number), f"{number}.json": json_bytes(lat=number + 1, lon=number)}
        write_file(tmp_path / f"{number:02d}.tar", tar_bytes(members))
    rows = read_source(f"{server[0]}/{{00..02}}.tar")
    assert images(rows) == {f"{n}": photo(n) for n in range(3)}
    with pytest.raises(SourceError, match=r"there is nothing at http://127\.0\.0\.1:\d+/03\.tar"):
        open_source(f"{server[0]}/{{00..03}}.tar")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x/{08..10}.tar", ["x/08.tar", "x/09.tar", "x/10.tar"]),
        ("x/{a,b}/{1..2}", ["x/a/1", "x/a/2", "x/b/1", "x/b/2"]),
        ("http://host/a?b=c", ["http://host/a?b=c"]),
        ("plain", ["plain"]),
    ],
)
def test_patterns_stand_for_what_a_shell_makes_of_them(pattern: str, expected: list[str]) -> None:
    assert expand_pattern(pattern) == expected


def test_stars_find_local_files_and_those_in_memory(tmp_path: Path, memory: Any) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        write_file(tmp_path / name, b"x")
        memory.pipe(f"/stars/{name}", b"x")
    assert expand_pattern(str(tmp_path / "*.tar")) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    assert [path.rpartition("/")[2] for path in expand_pattern("memory://stars/*.tar")] == ["a.tar", "b.tar"]


def test_folder_whose_name_is_a_pattern_stands_for_itself(tmp_path: Path) -> None:
    write_file(tmp_path / "a[1]{2,3}" / "a.jpg", photo(1))
    assert list(read_source(tmp_path / "a[1]{2,3}", unlabelled=True)) == ["a.jpg"]


def test_names_that_urls_encode_are_read_under_their_own(tmp_path: Path, server: tuple[str, Any]) -> None:
    write_file(tmp_path / "photos" / "Køge 1.jpg", photo(1))
    write_csv(tmp_path / "photos" / "t.csv", "id,lat,lon", [("Køge 1.jpg", 1, 2)])
    assert images(read_source(f"{server[0]}/photos")) == {"Køge 1.jpg": photo(1)}


def test_server_without_ranges_gives_folders_and_says_why_not_archives(tmp_path: Path) -> None:
    write_file(tmp_path / "photos" / "a.jpg", photo(1))
    big = tar_bytes({f"{n}.jpg": photo(n, 10**6) for n in range(9)})  # more than is read ahead
    write_file(tmp_path / "tars" / "00.tar", big)
    with serve(FolderHandler, root=tmp_path, has_ranges=False) as (address, _):
        assert images(read_source(f"{address}/photos", unlabelled=True)) == {"a.jpg": photo(1)}
        with pytest.raises(SourceError, match=r"gives no parts of files \(it ignores Range requests\).*Download"):
            open_source(f"{address}/tars/00.tar", SourceOptions(unlabelled=True))


def test_request_that_fails_once_is_made_again(
    tmp_path: Path, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_PAUSE_SECONDS", 0.01)
    address, handler = server
    write_file(tmp_path / "00.tar", tar_bytes({"a.jpg": photo(1)}))
    index = open_source(f"{address}/00.tar", SourceOptions(unlabelled=True))
    handler.num_failures = 2
    assert images_of(index) == {"a.jpg": photo(1)}
    handler.num_failures = 100
    (error,) = images_of(index).values()
    assert isinstance(error, OSError)
    assert "503" in str(error)


def test_server_that_falls_silent_has_failed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaks = threading.Event()

    class Silent(FolderHandler):
        def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            if self.command == "GET":
                speaks.wait(30)
            super().send_file(data, headers)

    monkeypatch.setattr(filesystems, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(filesystems, "_SECONDS_OF_SILENCE", 0.2)
    monkeypatch.setattr("fsspec.config.conf", {})
    write_file(tmp_path / "a.bin", b"0123456789")
    with serve(Silent, root=tmp_path) as (address, _), open_file(f"{address}/a.bin") as file:
        begin = time.monotonic()
        with pytest.raises(RemoteError, match=r"a\.bin cannot be read: \w*Timeout"):
            file.read(4)
        assert time.monotonic() - begin < 10
        speaks.set()
        assert file.read(4) == b"0123"


def test_server_that_fails_while_it_is_indexed_leaves_nothing_behind(
    tmp_path: Path, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_PAUSE_SECONDS", 0.01)
    address, handler = server
    write_file(tmp_path / "00.tar", tar_bytes({"a.jpg": photo(1)}))
    handler.num_failures = 100
    with pytest.raises(SourceError, match=r"00\.tar cannot be read: .*503"):
        open_source(f"{address}/00.tar", SourceOptions(unlabelled=True, kind="tar"))
    handler.num_failures = 0
    assert len(open_source(f"{address}/00.tar", SourceOptions(unlabelled=True, kind="tar"))) == 1


def test_file_that_vanishes_from_a_server_is_a_file_not_found(tmp_path: Path, server: tuple[str, Any]) -> None:
    write_file(tmp_path / "photos" / "a.jpg", photo(1))
    index = open_source(f"{server[0]}/photos", SourceOptions(unlabelled=True))
    (tmp_path / "photos" / "a.jpg").unlink()
    (error,) = images_of(index).values()
    assert isinstance(error, FileNotFoundError)
    assert error.strerror == "there is no such file, or its server fails"


def test_changed_file_on_a_server_is_indexed_anew(tmp_path: Path, server: tuple[str, Any]) -> None:
    for kind, write in (("00.tar", tar_bytes), ("00.zip", zip_bytes)):
        for number in range(2):
            write_file(tmp_path / kind, write({f"{number}.jpg": photo(number)}))
            assert list(read_source(f"{server[0]}/{kind}", unlabelled=True)) == [f"{number}.jpg"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "there is nothing at memory://nowhere"),
        ("http://127.0.0.1:9/a.tar", "there is nothing at http://127.0.0.1:9/a.tar"),
        ("wormhole://bucket/a.tar", "wormhole:// is not one of .*memory"),
    ],
)
def test_urls_that_lead_nowhere_are_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(url)


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/mp16", "s3fs"), ("gs://bucket/mp16", "gcsfs")])
def test_missing_package_of_a_file_system_is_named(url: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(SourceError, match=rf"{url} cannot be opened without another package: .*{package}"):
            open_source(url)
    else:
        pytest.skip(f"{package} is installed")


def test_remote_file_is_read_like_a_local_one(tmp_path: Path, server: tuple[str, Any]) -> None:
    data = photo(5, 100_000)
    write_file(tmp_path / "a.bin", data)
    for path in (f"{server[0]}/a.bin", str(tmp_path / "a.bin")):
        for whole in (True, False):
            with open_file(path, whole=whole) as file:
                assert file.read(10) == data[:10]
                assert file.tell() == 10
                assert file.seek(-7, io.SEEK_END) == len(data) - 7
                assert file.read() == data[-7:]
                assert file.read() == b""
                assert file.seek(50) == 50
                assert file.read(0) == b""
                assert file.read(5) == data[50:55]


def test_state_of_a_local_file_changes_with_its_bytes_and_its_mode(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.jpg", b"12")
    states = {list_files(str(file))[0].state}
    file.chmod(0o600)
    states.add(list_files(str(file))[0].state)
    os.utime(file, ns=(1, 1))
    states.add(list_files(str(file))[0].state)
    assert len(states) == 3


def test_neighbours_of_a_remote_archive_come_in_one_request(tmp_path: Path) -> None:
    members = {f"{n}.jpg": photo(n) for n in range(20)}
    write_file(tmp_path / "a.tar", tar_bytes(members))
    with serve(FolderHandler, root=tmp_path) as (url, handler):
        index = open_source(url, SourceOptions(unlabelled=True))
        handler.requests.clear()
        assert images_of(index) == members
        assert len([request for request in handler.requests if request[0] == "GET"]) == 1
