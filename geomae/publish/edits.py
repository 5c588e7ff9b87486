"""Whether a person has changed a folder since it was built: their words must not be lost when it is built again."""

import json
from pathlib import Path

from geomae.files import digest_file, list_files, write_whole

__all__ = ["find_edits", "note_files"]


def note_files(folder: Path) -> None:
    """Write down the digest of every file, beside the folder: within, it would be uploaded."""
    write_whole(_note_of(folder), json.dumps(_digests(folder), indent=2) + "\n")


def find_edits(folder: Path) -> list[str]:
    """Names of files that were changed, added or removed since `note_files`; all where there is no note."""
    try:
        noted = dict(json.loads(_note_of(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        noted = {}
    found = _digests(folder)
    return sorted(name for name in noted.keys() | found.keys() if noted.get(name) != found.get(name))


def _note_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.built.json")


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in list_files(folder)}
