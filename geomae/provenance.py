"""What made a file: the commit of this code and the versions of the libraries, for every record that is written."""

import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from geomae import __version__
from geomae.data.filesystems import public_text

__all__ = ["find_commit", "find_versions", "shown_command", "shown_config", "shown_path"]

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = "HIDDEN"  # what a command shows in a secret's place

_SECRET_KEYS = r"(?i)-*(.*[_-])?(token|password|passwd|secret|credentials?|(api|access|secret|private)[_-]?key)"
# A path from the root, of a home or of `file:`, where a word may begin: not the `//` of a URL or the `/` of `a/b`.
_ABSOLUTE = re.compile(r"(?:(?<=[\s\"'=,:;(\[{])|^)(?:file:/*|~[\w.-]*)?/(?!/)[^\s\"',;)\]}]+")


# `C:\\Users\\alice\\photos`, `\\\\server\\share\\photos`, `alice@host:photos` of scp and rsync (not the one in a URL)
_WINDOWS = re.compile(r"(?<![\w\\])(?:[A-Za-z]:[\\/]|\\\\)[^\s\"',;)\]}]+")
_REMOTE = re.compile(r"(?<![\w/@.])[\w.+-]+@[\w.-]+:(?!\d+(?:/|\b))[^\s\"',;)\]}]*")


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
    if _git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT))) is None:
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
    """A configuration that others may see.

    Left out are the values of keys that name a secret (`token`, `hub_token`, `password`, `api_key`, ...), and from
    texts, also in lists and mappings, passwords and queries of URLs. An absolute path, or one that leads two folders up
    or more, is shortened to one below the working directory or to its name, also in the midst of a text.
    """
    return {name: _shown_value(value) for name, value in config.items() if not _is_secret(name)}


def shown_command(argv: Sequence[str]) -> str:
    """A command line that others may see, quoted for a shell: `shown_config` for words.

    Args:
        argv: words; what follows the name of a secret, as a word of its own or behind `=`, becomes `HIDDEN`.
    """
    words: list[str] = []
    hides = False
    for word in argv:
        name, equals, value = word.partition("=")
        is_option = re.fullmatch(r"-*[\w-]+", name) is not None
        if hides and not word.startswith("--"):
            words.append(HIDDEN)
        elif equals and is_option:
            words.append(f"{name}={HIDDEN if _is_secret(name) else _shown_text(value)}")
        else:
            words.append(_shown_text(word))
        hides = word.startswith("--") and not equals and _is_secret(word)
    return shlex.join(words)


def _is_secret(name: object) -> bool:
    return re.fullmatch(_SECRET_KEYS, str(name)) is not None


def _shown_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return shown_config(value)
    if isinstance(value, list | tuple):
        return [_shown_value(each) for each in value]
    return _shown_text(str(value)) if isinstance(value, str | Path) else value


def _shown_text(text: str) -> str:
    if text.startswith("/"):  # a whole path, which may have spaces
        return shown_path(text)
    if text.startswith("../.."):
        return Path(text).name
    text = _WINDOWS.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], text)
    text = _REMOTE.sub(lambda match: PurePosixPath(match[0].partition(":")[2]).name or HIDDEN, text)
    return _ABSOLUTE.sub(lambda match: shown_path(re.sub(r"^(file:/*(?=/)|~[^/]*)", "", match[0])), public_text(text))


def _git(*arguments: str) -> str | None:
    """What git prints in the checkout; None where there is no git, no checkout, or an error."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
