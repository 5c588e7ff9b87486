"""Files that are there whole or not at all."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["FULL_DISK", "digest_file", "list_files", "sync_file", "sync_folder", "whole_file", "write_whole"]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an `OSError` says where there is no room: on the disk, of a quota, in a file."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path, *, writer: str | None = None) -> Iterator[BinaryIO]:
    """A file to write to, under a temporary name that then moves into place: no reader sees half of it.

    It is on the disk when this returns; where the disk is full, what was there before stays.

    Args:
        path: its folder exists.
        writer: stands in the temporary name, by default this process's number; one word for all processes where only
            one of them writes at a time: what a killed one has left is then written over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid() if writer is None else writer}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)


def list_files(folder: Path) -> list[Path]:
    """The files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest_file(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Put every file below a folder on the disk, and the folders' own lists of them."""
    for path in folder.rglob("*"):
        sync_file(path)
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Put a file, or a folder's list of its files, on the disk; some filesystems cannot sync folders."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
