"""Walks through archives of photos: where each member's bytes lie, without unpacking anything.

A member's name is only ever a name: nothing is written under it, so absolute names, `..` and links lead nowhere.
"""

import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO

import msgpack

from geomae.columns import as_utf8
from geomae.data.photos import MAX_PHOTO_BYTES
from geomae.errors import SourceError

__all__ = ["Member", "Storage", "is_hidden", "is_tar", "walk_msgpack", "walk_tar", "walk_zip"]

_TAR_MAGIC_AT, _TAR_MAGIC = 257, b"ustar"
_ZIP_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE APPNOTE 6.3, section 4.3.7
_ENCRYPTED = 0x1
_LARGEST_OFFSET = 2**62  # what a zip64 directory may claim does not fit into an index
_MAX_VALUES = 4096  # of a list or a mapping in a msgpack record: a list takes its memory when it is announced
_BROKEN_OFF = "the archive is damaged or cut off, and what lies behind cannot be read"


class Storage(IntEnum):
    """How the bytes of a photo lie in their file."""

    WHOLE = 0  # the file is the photo
    STORED = 1  # as they are, `size` bytes from `offset`
    DEFLATED = 2  # `size` bytes from `offset`, to be inflated
    PARQUET = 3  # in row `size` of row group `offset`
    MISSING = 4  # nowhere: a table names the photo, and there is none


@dataclass(frozen=True)
class Member:
    """One member of an archive; `problem` says why it cannot be used."""

    name: str  # empty: the problem is the archive's
    offset: int = 0
    size: int = 0
    storage: Storage = Storage.STORED
    problem: str | None = None
    lost_bytes: int = 0  # of the archive, that the problem makes unreadable; -1 where it was cut off: nobody knows


def is_hidden(name: str) -> bool:
    """Whether a member is what macOS keeps beside each file, or hidden otherwise."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in name.split("/"))


def is_tar(file: BinaryIO) -> bool:
    """Whether the file is an uncompressed tar archive, whatever its name; it is left at its beginning."""
    file.seek(_TAR_MAGIC_AT)
    magic = file.read(len(_TAR_MAGIC))
    file.seek(0)
    return magic == _TAR_MAGIC


def walk_tar(file: BinaryIO, size: int) -> Iterator[Member]:
    """The regular files of an uncompressed tar archive, in order.

    Args:
        file: seekable.
        size: bytes of the archive: members that reach beyond are cut off.

    Raises:
        SourceError: it is no tar archive, or a compressed one, which cannot be read here and there.
    """
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closed below; here its errors are explained)
    except SourceError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise SourceError(
            f"it is no uncompressed tar archive ({error}): decompress it first, for example with gunzip"
        ) from error
    with archive:
        while True:
            try:
                member = archive.next()
            except SourceError:
                raise
            except (tarfile.TarError, ValueError, OverflowError) as error:
                yield Member("", problem=f"{_BROKEN_OFF}: {error}", lost_bytes=size - archive.offset)
                return
            if member is None:
                if problem := _explain_end(file, archive.offset):
                    is_cut = archive.offset + tarfile.BLOCKSIZE > size
                    yield Member("", problem=problem, lost_bytes=-1 if is_cut else size - archive.offset)
                return
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers all of them
            name = as_utf8(member.name.removeprefix("./"))
            if member.issym() or member.islnk() or member.issparse():
                yield Member(name, problem="it is a link or has holes: its bytes are not in its place")
            elif member.isreg() and member.offset_data + member.size > size:
                yield Member("", problem=f"{_BROKEN_OFF}: within {name}", lost_bytes=-1)
                return
            elif member.isreg():
                yield Member(name, member.offset_data, member.size)


def _explain_end(file: BinaryIO, offset: int) -> str | None:
    """Why a walk ended where it did, unless at the block of zeros that closes an archive; tarfile says nothing."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"{_BROKEN_OFF}: it has no end mark"
    return f"{_BROKEN_OFF}: no header stands at byte {offset}" if any(block) else None


def walk_zip(file: BinaryIO) -> Iterator[Member]:
    """The files of a zip archive, in the order of their bytes.

    Raises:
        SourceError: it is no zip archive, or its directory is cut off.
    """
    try:
        archive = zipfile.ZipFile(file)
    except SourceError:
        raise
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise SourceError(f"it is no whole zip archive: {error}") from error
    storages = {zipfile.ZIP_STORED: Storage.STORED, zipfile.ZIP_DEFLATED: Storage.DEFLATED}
    with archive:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            if not info.filename:
                yield Member("", problem="a member of the archive has no name")
                continue
            if info.is_dir():
                continue
            if info.flag_bits & _ENCRYPTED or info.compress_type not in storages:
                yield Member(info.filename, problem="it is encrypted, or compressed otherwise than by deflate")
                continue
            file.seek(max(0, info.header_offset))  # a directory may claim what lies before the archive
            header = file.read(_ZIP_LOCAL_HEADER.size)
            if info.header_offset < 0 or len(header) < _ZIP_LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                yield Member(info.filename, problem="the archive holds no header where its directory says")
                continue
            name_length, extra_length = _ZIP_LOCAL_HEADER.unpack(header)[-2:]
            offset = info.header_offset + _ZIP_LOCAL_HEADER.size + name_length + extra_length
            if offset + info.compress_size > _LARGEST_OFFSET:
                yield Member(info.filename, problem="the archive's directory names a place that no file has")
                continue
            yield Member(info.filename, offset, info.compress_size, storages[info.compress_type])


def walk_msgpack(file: BinaryIO, size: int) -> Iterator[Member]:
    """The photos of a msgpack shard: concatenated maps with the keys `id` and `image`, as bytes or text.

    Args:
        file: at its beginning.
        size: its bytes.

    Source: TIBHannover/GeoEstimation (Müller-Budack, Pustu-Iren and Ewerth, 2018), its shards of 4,096 photos.
    """
    unpacker = msgpack.Unpacker(
        file,
        raw=True,
        strict_map_key=False,
        max_buffer_size=2 * MAX_PHOTO_BYTES,
        max_bin_len=MAX_PHOTO_BYTES,
        max_array_len=_MAX_VALUES,
        max_map_len=_MAX_VALUES,
    )
    while True:
        start = unpacker.tell()
        try:
            yield _read_record(unpacker)
        except msgpack.OutOfData:
            if file.tell() > start:  # of a whole shard nothing is left
                yield Member("", problem=f"{_BROKEN_OFF}: in its last record", lost_bytes=-1)
            return
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            yield Member("", problem=f"{_BROKEN_OFF}: {error or type(error).__name__}", lost_bytes=size - start)
            return


def _read_record(unpacker: Any) -> Member:
    """One map; the image's bytes are the last ones of its value."""
    name, image, end = "", None, 0
    try:
        num_fields = unpacker.read_map_header()
    except ValueError:  # the published shards have None where a photo was missing
        if unpacker.unpack() is not None:
            raise
        return Member("", problem="its record is None")
    for _ in range(num_fields):
        key, value = unpacker.unpack(), unpacker.unpack()
        if key in (b"id", "id"):
            name = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        elif key in (b"image", "image"):
            image, end = value, unpacker.tell()
    if not isinstance(image, bytes) or not image:
        return Member(name, problem="its record holds no image")
    if not name:
        return Member(name, problem="its record holds no id")
    return Member(name, end - len(image), len(image))
