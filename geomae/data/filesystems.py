"""Files wherever they are: local paths, and URLs of every file system that fsspec knows (s3, gs, hf, http, memory)."""

import contextlib
import errno
import glob
import io
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from geomae.errors import SourceError

__all__ = [
    "PASSWORD",
    "FileEntry",
    "RemoteError",
    "bytes_of",
    "expand_pattern",
    "is_pattern",
    "is_url",
    "join",
    "list_files",
    "open_file",
    "path_exists",
    "public_name",
    "public_text",
    "remote_entry",
    "size_of",
    "stat_remote",
]

# What file systems call the things that change when a file does; a size alone may stay the same.
_STATE_KEYS = (
    *("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created"),
    *("md5Hash", "oid", "blob_id"),
)
PASSWORD = re.compile(r"(?<=://)[^\s/]*@")
"""`user:password@` of an address, also of one within another: `zip://*.jpg::https://user:password@host/photos.zip`."""
_QUERY = re.compile(r"(\w+://[^\s?]*)\?\S*")
_MAX_PATHS = 1_000_000  # that one pattern may stand for
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
_BRACES = re.compile(r"\{([^{}]*)\}")
_READ_ATTEMPTS = 3  # of a remote read; servers of millions of photos fail now and then
_MAX_REQUESTS = 16  # to a server at once
_PAUSE_SECONDS = 0.5  # before the second attempt, twice as long before the third
_SECONDS_OF_SILENCE = 60.0  # of a web server, after which a request to it has failed; aiohttp would wait for 300
_NO_RANGES = ("range requests", "Cannot seek streaming")  # what fsspec's http says of servers without them


class RemoteError(SourceError):
    """A server or a network failed: another time it may not, so nothing may be concluded from it."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a listing."""

    path: str  # a local path or a URL
    size: int | None  # bytes; None where a remote listing does not tell
    state: int  # another number when the file has changed
    is_dated: bool = True  # false: the listing tells too little for that


def is_url(path: str | Path) -> bool:
    """Whether fsspec has to open it."""
    return "://" in str(path)


def public_name(source: str) -> str:
    """What a record may say of a source: a folder's name without the folders above it, a URL without its secrets."""
    if is_url(source):
        protocol, _, rest = source.partition("://")
        return PASSWORD.sub("", f"{protocol}://{re.split(r'[?#]', rest)[0]}")
    if is_pattern(source) or os.path.isabs(source) or os.path.exists(source):
        parts = Path(os.path.abspath(source)).parts
        first = next((place for place, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)
        return "/".join(parts[first:])
    return source


def public_text(text: str) -> str:
    """A message in which no URL has a password or a query, where tokens stand."""
    return _QUERY.sub(r"\1", PASSWORD.sub("", text))


def is_pattern(path: str) -> bool:
    """Whether `expand_pattern` makes several paths of it."""
    return any(letter in path for letter in "{*[") or ("?" in path and not path.startswith("http"))


def join(root: str, name: str) -> str:
    """A name below a root; the root may be empty, and the name then stands alone."""
    if not root:
        return name
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


def open_file(path: str, *, whole: bool = False) -> BinaryIO:
    """Open a local file or a URL for reading.

    Args:
        path: what to open.
        whole: it will be read from end to end, not here and there.

    Raises:
        OSError: there is no such file, or the server does not answer.
        RemoteError: later, where a read fails three times.
        SourceError: the URL's file system is unknown or its package is not installed.
    """
    if not is_url(path):
        return open(path, "rb")
    with _explained(path):
        cache = {"cache_type": "readahead", "block_size": 2**23} if whole else {"cache_type": "none"}
        file_system, name = _file_system(path)
        try:
            file = file_system.open(name, "rb", **cache)
        except FileNotFoundError as error:  # http says so of a server that is down, too
            raise FileNotFoundError(
                errno.ENOENT, "there is no such file, or its server fails", public_name(path)
            ) from error
    return cast(BinaryIO, _RemoteFile(path, file))


class _RemoteFile(io.RawIOBase):
    """A remote file whose reads are tried again when they fail, and fail by the name of the file."""

    def __init__(self, path: str, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._named():
            return int(self._file.seek(offset, whence) or self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        position = self._file.tell()
        for attempt in range(_READ_ATTEMPTS):
            try:
                with self._named():
                    return bytes(self._file.read(-1 if size is None else size))
            except RemoteError as error:
                if attempt + 1 == _READ_ATTEMPTS or isinstance(error.__cause__, ValueError):
                    raise
            time.sleep(_PAUSE_SECONDS * 2**attempt)
            self.seek(position)
        raise AssertionError("the last attempt returns or raises")

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if not any(words in str(error) for words in _NO_RANGES):
                raise
            raise RemoteError(
                f"the server of {public_name(self._path)} gives no parts of files (it ignores Range requests), so "
                "archives cannot be read from it. Download the file, or serve it with a server that does."
            ) from error
        except Exception as error:  # aiohttp, botocore and others have families of errors of their own
            problem = str(error).replace(self._path, public_name(self._path))
            raise RemoteError(
                public_text(f"{public_name(self._path)} cannot be read: {type(error).__name__}: {problem}.")
            ) from error


def _file_system(path: str) -> tuple[Any, str]:
    """The file system of a URL, and its own name for the file; a timeout in a user's configuration of fsspec stands."""
    if "http" in path:
        from fsspec.implementations import http

        timeout = http.aiohttp.ClientTimeout(total=300.0, sock_connect=30.0, sock_read=_SECONDS_OF_SILENCE)
        for protocol in ("http", "https"):
            fsspec.config.conf.setdefault(protocol, {}).setdefault("client_kwargs", {}).setdefault("timeout", timeout)
    return cast("tuple[Any, str]", url_to_fs(path))


def path_exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    if not is_url(path):
        return os.path.exists(path)
    with _explained(path):
        file_system, name = _file_system(path)
        return bool(file_system.exists(name))


def list_files(root: str) -> list[FileEntry]:
    """All files at or below a path or URL, sorted by path; hidden files and folders are left out.

    Raises:
        SourceError: there is nothing, or it cannot be listed.
    """
    try:
        found = _list_remote(root) if is_url(root) else _list_local(root)
    except OSError as error:
        raise SourceError(public_text(f"{root} cannot be listed: {error}.")) from error
    if not found:
        shown = public_name(root) if is_url(root) else root
        absent = f"there is nothing at {shown}{', or its server does not answer' if is_url(root) else ''}."
        raise SourceError(f"{shown} holds no files." if path_exists(root) else absent)
    return found


def _list_local(root: str) -> list[FileEntry]:
    if os.path.isfile(root):
        return [_local_entry(root, os.stat(root))]
    if not os.path.isdir(root):
        return []
    entries: list[FileEntry] = []
    folders, links, seen = [root], list[str](), set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # links can lead in circles, and come last: a folder keeps its own name
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as items:
            for item in items:
                if item.name.startswith("."):
                    continue
                if item.is_dir():
                    (links if item.is_symlink() else folders).append(item.path)
                elif item.is_file():
                    entries.append(_local_entry(item.path, item.stat()))
        links.sort(reverse=True)
    return sorted(entries, key=lambda entry: entry.path)


def _local_entry(path: str, stat: os.stat_result) -> FileEntry:
    # the mode too: a photo that was made readable is packed again
    return FileEntry(path, stat.st_size, stat.st_mtime_ns + stat.st_mode)


def _list_remote(root: str) -> list[FileEntry]:
    with _explained(root):
        file_system, name = _file_system(root)
        try:
            info: dict[str, Any] = file_system.info(name)
            # http calls everything a file; its folders are pages of links
            if info.get("type") == "file" and not str(info.get("mimetype")).startswith("text/html"):
                return [remote_entry(root, info)]
            found: dict[str, dict[str, Any]] = file_system.find(name, detail=True)
        except FileNotFoundError:
            return []
    entries = [
        remote_entry(_below(root, path, name, file_system), info)
        for path, info in found.items()
        if not any(part.startswith(".") for part in path.removeprefix(name).split("/"))
    ]
    return sorted(entries, key=lambda entry: entry.path)


def remote_entry(path: str, info: dict[str, Any]) -> FileEntry:
    """A URL with what its file system says of it, under that system's own names."""
    size = info.get("size")
    is_dated = any(info.get(key) is not None for key in _STATE_KEYS)
    return FileEntry(path, None if size is None else int(size), _state_of(info), is_dated)


def stat_remote(entries: Sequence[FileEntry]) -> list[FileEntry]:
    """The same files, those asked for one by one of which the listing told too little: pages of links tell nothing."""
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        return list(pool.map(lambda entry: entry if entry.is_dated else _stat_one(entry), entries))


def _stat_one(entry: FileEntry) -> FileEntry:
    with _explained(entry.path):
        file_system, name = _file_system(entry.path)
        try:
            return remote_entry(entry.path, file_system.info(name))
        except FileNotFoundError:  # it fails when it is opened, which says so
            return entry


def _below(root: str, path: str, name: str, file_system: Any) -> str:
    """A path that a file system lists below `name`, as a URL below `root`: each spells its own paths otherwise."""
    if path.startswith(f"{name.rstrip('/')}/"):
        return join(root, path[len(name.rstrip("/")) + 1 :])
    return _unstrip(file_system, path)


def _unstrip(file_system: Any, path: str) -> str:
    return path if is_url(path) else str(file_system.unstrip_protocol(path))


def _state_of(info: dict[str, Any]) -> int:
    text = repr([(key, str(info[key])) for key in (*_STATE_KEYS, "size") if info.get(key) is not None])
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


def bytes_of(entry: FileEntry) -> int:
    """Bytes of a listed file; its server is asked where the listing does not tell."""
    return size_of(entry.path) if entry.size is None else entry.size


def size_of(path: str) -> int:
    """Bytes of a file."""
    if not is_url(path):
        return os.path.getsize(path)
    with _explained(path):
        file_system, name = _file_system(path)
        size = file_system.size(name)
    if size is None:
        with open_file(path) as file:
            return file.seek(0, io.SEEK_END)
    return int(size)


def expand_pattern(path: str) -> list[str]:
    """The paths that `{00..18}`, `{a,b}`, `*`, `?` and `[...]` stand for; a path that exists stands for itself.

    Numbers in braces keep the width of the first one, as in a shell: `{08..10}` is 08, 09, 10.
    """
    if not is_url(path) and os.path.exists(path):
        return [path]
    match = _BRACES.search(path)
    if match:
        if math.prod(_num_choices(inside) for inside in _BRACES.findall(path)) > _MAX_PATHS:
            raise SourceError(f"{public_name(path)} stands for more than {_MAX_PATHS:,} paths: name them in parts.")
        parts = [path[: match.start()] + choice + path[match.end() :] for choice in _choices(match[1])]
        return [expanded for part in parts for expanded in expand_pattern(part)]
    if not any(letter in path for letter in "*?["):
        return [path]
    if not is_url(path):
        return sorted(glob.glob(path)) or [path]
    if path.startswith(("http://", "https://")):
        return [path]  # `?` begins a query there
    with _explained(path):
        file_system, name = _file_system(path)
        return sorted(_unstrip(file_system, found) for found in file_system.glob(name)) or [path]


def _num_choices(inside: str) -> int:
    numbers = _RANGE.fullmatch(inside)
    return inside.count(",") + 1 if numbers is None else max(0, int(numbers[2]) - int(numbers[1]) + 1)


def _choices(inside: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        yield from inside.split(",")
        return
    for number in range(int(numbers[1]), int(numbers[2]) + 1):
        yield f"{number:0{len(numbers[1])}d}"


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Say by name what a URL lacks."""
    protocol = path.partition("://")[0]
    try:
        yield
    except ImportError as error:
        raise SourceError(f"{public_name(path)} cannot be opened without another package: {error}.") from error
    except SourceError:
        raise
    except ValueError as error:
        if "rotocol" not in str(error):  # an address that is none, a path with a zero byte
            raise SourceError(public_text(f"{public_name(path)} cannot be opened: {error}.")) from error
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise SourceError(f"{public_name(path)} cannot be opened: {protocol}:// is not one of {known}.") from error
    except OSError:
        raise
    except Exception as error:  # aiohttp, botocore and others have families of errors of their own
        raise SourceError(public_text(f"{path} cannot be reached: {type(error).__name__}: {error}")) from error
