"""What made a file: the commit of this code and the versions of the libraries, for every record that is written."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from geomae import __version__
from geomae.data.filesystems import public_text

__all__ = ["find_commit", "find_versions", "shown_config", "shown_path"]

ROOT = Path(__file__).resolve().parents[1]


def find_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python, of GeoMAE and of those of `packages` that are installed."""
    versions = {"python": platform.python_version(), "geomae": __version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def find_commit() -> str | None:
    """The checkout's commit, with `+changes` if tracked code differs from it; None outside a checkout or without git.

    Numbers, and the pages filled from them, change by being recorded: they are not code.
    """
    # Installed inside somebody else's repository, that repository's commit would say nothing.
    if _git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(ROOT))) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!*.md")
    return None if commit is None else commit + ("+changes" if changes else "")


def shown_path(path: str | Path) -> str:
    """A path that means something on another machine: relative below the working directory, else the file's name."""
    path = Path(path)
    if not path.is_absolute():
        return path.as_posix()
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name


def shown_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that others may see: without tokens, passwords in URLs, and absolute paths."""
    return {name: _shown_value(value) for name, value in config.items() if not name.endswith("_token")}


def _shown_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return shown_config(value)
    if isinstance(value, list):
        return [_shown_value(each) for each in value]
    if isinstance(value, str):
        return shown_path(value) if value.startswith("/") else public_text(value)
    return value


def _git(*arguments: str) -> str | None:
    """What git prints in the checkout; None where there is no git, no checkout, or an error."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
