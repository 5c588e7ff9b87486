"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

__all__ = ["sync_file", "sync_folder", "write_whole"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, under a temporary name, then move it into place: no reader sees half of it.

    It is on the disk when this returns; where the disk is full, what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)


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
