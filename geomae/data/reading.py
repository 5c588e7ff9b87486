"""From a row of an index to the bytes of a photo, wherever they lie."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from geomae.bounded_parquet import read_groups
from geomae.columns import find_column
from geomae.data.archives import Storage
from geomae.data.filesystems import is_url, join, open_file, public_text
from geomae.data.last_used import LastUsed
from geomae.data.photos import MAX_PHOTO_BYTES
from geomae.errors import DamagedPhotoError, SourceError

__all__ = ["PhotoReader", "explain_unread"]

_MAX_OPEN_FILES = 64
_MAX_REQUESTS = 16  # to a server at once, for files of their own
_MAX_GAP = 2**16  # bytes between two photos that are rather read than a second request made
_MAX_SPAN = 2**26  # bytes of one request


class PhotoReader:
    """Reads photos of one source; keeps the files used last open. Not to be shared by processes or threads."""

    def __init__(self, root: str, max_open_files: int = _MAX_OPEN_FILES) -> None:
        self.root = root
        self._open: LastUsed[str, Any] = LastUsed(max_open_files, _close)
        self._group: tuple[tuple[str, int], pa.ChunkedArray] | None = None

    def close(self) -> None:
        """Close the files that are open; it can be used again."""
        self._group = None
        self._open.close()

    def __del__(self) -> None:
        self.close()

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The encoded photo of a row with `file`, `storage`, `offset` and `size`.

        Raises:
            OSError: the file is absent, cannot be read, or its server fails.
            DamagedPhotoError: there is no such photo, its archive is cut off, or it is larger than any photo.
        """
        try:
            return self._read(row)
        except SourceError as error:  # of a URL: an index that can be made has a protocol that is known
            raise OSError(str(error)) from error

    def _read(self, row: Mapping[str, Any]) -> bytes:
        storage = Storage(row["storage"])
        if storage is Storage.MISSING:
            raise DamagedPhotoError("it is named, but there is no such photo")
        if storage is Storage.PARQUET:
            return self._from_parquet(row["file"], row["offset"], row["size"])
        if row["size"] > MAX_PHOTO_BYTES:
            raise DamagedPhotoError(f"{row['size']:,} bytes are more than the {MAX_PHOTO_BYTES:,} of any photo")
        if storage is Storage.WHOLE:
            return self._whole(row["file"])
        data = self._range(row["file"], row["offset"], row["size"])
        return _inflate(data) if storage is Storage.DEFLATED else data

    def read_all(self, rows: Sequence[Mapping[str, Any]]) -> list[bytes | OSError | DamagedPhotoError]:
        """The photos of several rows, or why there is none; remote ones come in few requests, or several at once."""
        if not (is_url(self.root) or any(is_url(row["file"]) for row in rows)):
            return [self._try(self.read, row) for row in rows]
        spans = self._fetch_spans(rows)
        with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
            whole = {n: pool.submit(self._try, self.read, row) for n, row in enumerate(rows) if _is_whole(row)}
            results = {n: future.result() for n, future in whole.items()}
        for number, row in enumerate(rows):
            if number in spans:
                inflates = row["storage"] == Storage.DEFLATED
                results[number] = self._try(_inflate, spans[number]) if inflates else spans[number]
            elif number not in results:
                results[number] = self._try(self.read, row)
        return [results[number] for number in range(len(rows))]

    def _try(self, read: Callable[[Any], bytes], what: Any) -> bytes | OSError | DamagedPhotoError:
        try:
            return read(what)
        except (OSError, DamagedPhotoError) as error:
            return error

    def _fetch_spans(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, bytes]:
        """The bytes of those rows that lie in archives, by their place in `rows`."""
        ranged = [n for n, row in enumerate(rows) if row["storage"] in (Storage.STORED, Storage.DEFLATED)]
        ranged = [n for n in ranged if rows[n]["size"] <= MAX_PHOTO_BYTES]
        ranged.sort(key=lambda n: (rows[n]["file"], rows[n]["offset"]))
        found: dict[int, bytes] = {}
        for begin, stop in _runs(ranged, rows):
            members = ranged[begin:stop]
            first = rows[members[0]]["offset"]
            end = max(rows[n]["offset"] + rows[n]["size"] for n in members)
            with contextlib.suppress(OSError, DamagedPhotoError, SourceError):  # then each is read by itself
                data = self._range(rows[members[0]]["file"], first, end - first)
                for n in members:
                    found[n] = data[rows[n]["offset"] - first : rows[n]["offset"] - first + rows[n]["size"]]
        return found

    def _whole(self, name: str) -> bytes:
        with open_file(join(self.root, name), whole=True) as file:
            data = file.read(MAX_PHOTO_BYTES + 1)
        if len(data) > MAX_PHOTO_BYTES:
            raise DamagedPhotoError(f"more bytes than the {MAX_PHOTO_BYTES:,} of any photo")
        return data

    def _range(self, name: str, offset: int, size: int) -> bytes:
        file: BinaryIO = self._file(name)
        if is_url(join(self.root, name)):
            file.seek(offset)
            data = file.read(size)
        else:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise DamagedPhotoError(f"its archive ends within it: {name}")
        return data

    def _from_parquet(self, name: str, group: int, row: int) -> bytes:
        if self._group is None or self._group[0] != (name, group):
            self._group = None
            try:
                file = self._file(name, parquet=True)
                column = find_column("image", file.schema_arrow.names) or "image"
                self._group = (name, group), read_groups(file, [group], [column])[0]
            except (pa.ArrowException, IndexError, UnicodeDecodeError) as error:
                raise DamagedPhotoError(f"its row group cannot be read: {group} of {name}: {error}") from error
        if row >= len(self._group[1]):
            raise DamagedPhotoError(f"its file has changed: row group {group} of {name} ends before it")
        value = self._group[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DamagedPhotoError("its row holds no bytes of a photo")
        if len(data) > MAX_PHOTO_BYTES:
            raise DamagedPhotoError(f"{len(data):,} bytes are more than the {MAX_PHOTO_BYTES:,} of any photo")
        return data

    def _file(self, name: str, *, parquet: bool = False) -> Any:
        def open_it() -> Any:
            file = open_file(join(self.root, name))
            return pq.ParquetFile(file) if parquet else file

        return self._open.get(name, open_it)


def explain_unread(error: Exception) -> str:
    """Why a photo cannot be read, for records: without the secrets of a URL."""
    return public_text(f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _close(file: Any) -> None:
    """Arrow leaves open what it did not open itself."""
    if isinstance(file, pq.ParquetFile):
        file.close(force=True)
    else:
        file.close()


def _is_whole(row: Mapping[str, Any]) -> bool:
    return bool(row["storage"] == Storage.WHOLE)


def _runs(ranged: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """Begin and end of stretches of `ranged` whose bytes are neighbours in one file."""
    begin = 0
    for place in range(1, len(ranged) + 1):
        if place < len(ranged):
            first, last, row = (rows[ranged[number]] for number in (begin, place - 1, place))
            near = 0 <= row["offset"] - last["offset"] - last["size"] <= _MAX_GAP
            if last["file"] == row["file"] and near and row["offset"] + row["size"] - first["offset"] <= _MAX_SPAN:
                continue
        if place > begin:
            yield begin, place
        begin = place


def _inflate(data: bytes) -> bytes:
    """Inflate a member of a zip archive, as far as a photo may be large: a bomb stops there."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        photo = inflater.decompress(data, MAX_PHOTO_BYTES + 1)
    except zlib.error as error:
        raise DamagedPhotoError(f"cannot be inflated: {error}") from error
    if len(photo) > MAX_PHOTO_BYTES:
        raise DamagedPhotoError(f"it inflates to more than the {MAX_PHOTO_BYTES:,} bytes of any photo")
    if not inflater.eof:
        raise DamagedPhotoError("cannot be inflated: it breaks off")
    return photo
