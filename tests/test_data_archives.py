"""Walks through archives: members and their places, without unpacking anything."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from source_files import msgpack_bytes, photo, tar_bytes, zip_bytes

from geomae.data.archives import Member, Storage, is_hidden, is_tar, walk_msgpack, walk_tar, walk_zip
from geomae.errors import SourceError

PHOTOS = {"a.jpg": photo(1, 300), "sub/b.jpg": photo(2, 5000), "c.jpg": photo(3, 1)}


def cut(data: bytes, member: Member) -> bytes:
    return data[member.offset : member.offset + member.size]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_tar_lie_where_they_are_said_to(tar_format: int) -> None:
    data = tar_bytes(PHOTOS, format=tar_format)
    members = list(walk_tar(io.BytesIO(data), len(data)))
    assert {member.name: cut(data, member) for member in members} == PHOTOS
    assert {member.problem for member in members} == {None}


def test_members_of_msgpack_shards_lie_where_they_are_said_to() -> None:
    for binary in (True, False):
        data = msgpack_bytes(({"id": name, "image": image} for name, image in PHOTOS.items()), use_bin_type=binary)
        members = list(walk_msgpack(io.BytesIO(data), len(data)))
        assert {member.name: cut(data, member) for member in members} == PHOTOS


def test_keys_of_a_msgpack_record_may_stand_in_any_order_among_others() -> None:
    record = {"url": "http://x", "image": photo(1), "size": [1, 2], "id": 77, "exif": {"a": None}}
    data = msgpack_bytes([record, {"id": "no image"}, {"image": photo(2)}])
    first, second, third = walk_msgpack(io.BytesIO(data), len(data))
    assert (first.name, cut(data, first)) == ("77", photo(1))
    assert (second.name, second.problem) == ("no image", "its record holds no image")
    assert third.problem == "its record holds no id"


def test_empty_shard_is_whole() -> None:
    assert list(walk_msgpack(io.BytesIO(b""), 0)) == []
    data = tar_bytes({})
    assert list(walk_tar(io.BytesIO(data), len(data))) == []
    assert list(walk_zip(io.BytesIO(zip_bytes({})))) == []


def test_members_of_a_zip_come_in_the_order_of_their_bytes() -> None:
    data = zip_bytes(PHOTOS, zipfile.ZIP_STORED)
    members = list(walk_zip(io.BytesIO(data)))
    assert {member.name: cut(data, member) for member in members} == PHOTOS
    assert [member.offset for member in members] == sorted(member.offset for member in members)
    assert {member.storage for member in members} == {Storage.STORED}


def test_zip_whose_members_have_longer_headers_than_its_directory_says_is_read() -> None:
    """Zips that are streamed out reserve 20 bytes for a size that they do not know yet."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in PHOTOS.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(data)
    members = walk_zip(io.BytesIO(buffer.getvalue()))
    assert {member.name: cut(buffer.getvalue(), member) for member in members} == PHOTOS


def test_zip_behind_other_bytes_is_read_as_unzip_reads_it() -> None:
    data = b"#!/bin/sh\nexit 0\n" + zip_bytes(PHOTOS, zipfile.ZIP_STORED)
    assert {member.name: cut(data, member) for member in walk_zip(io.BytesIO(data))} == PHOTOS


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="no uncompressed tar archive"):
        list(walk_tar(io.BytesIO(data), len(data)))
    with pytest.raises(SourceError, match="no whole zip archive"):
        list(walk_zip(io.BytesIO(data)))
    assert not is_tar(io.BytesIO(data))


def test_tar_is_known_by_its_bytes_and_left_at_its_beginning() -> None:
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO(tar_bytes(PHOTOS, format=tar_format))
        assert is_tar(file)
        assert file.tell() == 0


def test_walking_a_tar_does_not_remember_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tarfile.TarFile] = []
    original = tarfile.open

    def remember(*args: object, **options: object) -> tarfile.TarFile:
        opened.append(original(*args, **options))  # type: ignore[call-overload]
        return opened[-1]

    data = tar_bytes({f"{number}.jpg": b"x" for number in range(1000)})
    monkeypatch.setattr(tarfile, "open", remember)
    assert sum(1 for _ in walk_tar(io.BytesIO(data), len(data))) == 1000
    assert len(opened[0].members) <= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a/b.jpg", False),
        ("./a.jpg", False),
        ("../a.jpg", False),
        ("._a.jpg", True),
        ("a/.thumbs/b.jpg", True),
        ("__MACOSX/a.jpg", True),
        ("MACOSX/a.jpg", False),
    ],
)
def test_hidden_members_are_known_by_their_names(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden
