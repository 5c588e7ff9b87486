"""A folder's list of its own files: written last, so that what was cut off or has changed since can be named."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from geomae.documents import parse_json, read_text
from geomae.files import digest_file, list_files, write_whole

__all__ = ["CHECKSUMS_FILE", "find_damage", "refresh_checksums", "write_checksums"]

CHECKSUMS_FILE = "checksums.json"
NUM_THREADS = 4  # hashing releases the interpreter; weights and optimizer are two large files


def write_checksums(folder: Path) -> None:
    """Note the size and the SHA-256 of every file below a folder in its `checksums.json`."""
    names = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    names = sorted(name for name in names if name != CHECKSUMS_FILE)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        known = dict(zip(names, pool.map(_describe, [folder / name for name in names]), strict=True))
    write_whole(folder / CHECKSUMS_FILE, json.dumps({"files": known}, indent=2) + "\n")


def refresh_checksums(folder: Path, names: Iterable[str]) -> None:
    """Take over files that were changed or added on purpose; nothing where the folder has no list."""
    path = folder / CHECKSUMS_FILE
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["files"] |= {name: _describe(folder / name) for name in names}
        write_whole(path, json.dumps(content, indent=2) + "\n")


def find_damage(folder: Path, *, is_thorough: bool = True) -> str | None:
    """What is wrong with a folder that `write_checksums` has left, in words; None: nothing.

    Files that the list does not name may be there.

    Args:
        folder: of a checkpoint.
        is_thorough: read every file; otherwise only their sizes are looked at.
    """
    try:
        known: dict[str, dict[str, Any]] = parse_json(read_text(folder / CHECKSUMS_FILE))["files"]
        sizes = {name: int(entry["bytes"]) for name, entry in known.items()}
        digests = {name: str(entry["sha256"]) for name, entry in known.items()}
    except FileNotFoundError:
        return f"{CHECKSUMS_FILE}, which is written last, is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({type(error).__name__})"
    if not known:
        return f"{CHECKSUMS_FILE} names no file"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes, and had {size} when it was saved"
    if not is_thorough:
        return None
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found_digests = pool.map(_digest, [folder / name for name in digests])
        changed = [name for name, digest in zip(digests, found_digests, strict=True) if digests[name] != digest]
    return f"{changed[0]} is not what was saved: its SHA-256 is another" if changed else None


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str | None:
    """None: it cannot be read."""
    try:
        return digest_file(path)
    except OSError:
        return None
