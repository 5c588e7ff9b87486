"""Writes photos in the layouts in which the field publishes them, and reads sources back the way users do."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from geomae.data.loading import stream_photos
from geomae.data.photo_index import PhotoIndex
from geomae.data.photos import encode_jpeg
from geomae.data.reading import PhotoReader
from geomae.data.sources import SourceOptions, open_source

COLUMNS = ["image", "latitude", "longitude", "id", "author", "scene", "scene16", "country"]


def photo(number: int, size: int = 400) -> bytes:
    """Bytes that begin like a JPEG and are those of no other number."""
    return b"\xff\xd8\xff\xe0" + np.random.default_rng(number).bytes(size - 4)


def write_file(path: Path, data: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_csv(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV with a header."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header.split(","), *rows])
    return write_file(path, text.getvalue())


def tar_bytes(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], *, mode: str = "w", **options: Any) -> bytes:
    """A tar archive of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def msgpack_bytes(records: Iterable[Mapping[Any, Any]], *, use_bin_type: bool = True) -> bytes:
    """A shard of GeoEstimation: maps one behind the other."""
    return b"".join(msgpack.packb(dict(record), use_bin_type=use_bin_type) for record in records)


def json_bytes(**values: Any) -> bytes:
    """A JSON object."""
    return json.dumps(values).encode()


def images_of(index: PhotoIndex) -> dict[str, bytes | Exception]:
    """What a reader gives for each photo of an index, by its id."""
    read = PhotoReader(index.root).read_all(index.table.to_pylist())
    return dict(zip(index.column("id"), read, strict=True))


def read_source(source: str | Path, **options: Any) -> dict[str, dict[str, Any]]:
    """All rows of a source by id, image as bytes; index, reader and stream must agree on them."""
    index = open_source(source, SourceOptions(**options))
    streamed = list(stream_photos(source, SourceOptions(**options)))
    assert all(sorted(row) == sorted(COLUMNS) for row in streamed)
    rows = {row["id"]: row | {"image": row["image"]["bytes"]} for row in streamed}
    assert len(rows) == len(streamed)
    assert list(rows) == index.column("id")
    assert {photo_id: row["image"] for photo_id, row in rows.items()} == images_of(index)
    for name in COLUMNS[1:3] + COLUMNS[4:]:
        assert [row[name] for row in rows.values()] == index.column(name)
    return rows


def images(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The photos of `read_source` by id."""
    return {photo_id: row["image"] for photo_id, row in rows.items()}


def places(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The coordinates of `read_source` by id."""
    return {photo_id: (row["latitude"], row["longitude"]) for photo_id, row in rows.items()}


def reasons(source: str | Path, **options: Any) -> dict[str, int]:
    """What a source leaves out: how many for each reason."""
    return dict(open_source(source, SourceOptions(**options)).bad.counts)


def left_out(source: str | Path, **options: Any) -> dict[str, str]:
    """What a source leaves out: the reason for each name."""
    return {bad.file: bad.reason for bad in open_source(source, SourceOptions(**options)).bad.listed}


def jpeg_of(number: int) -> bytes:
    """A small photo of one grey level."""
    return encode_jpeg(np.full((32, 40, 3), number, np.uint8), 90)


def write_photos(folder: Path, names: Sequence[str], first: int = 0) -> Path:
    """A folder of photos that differ in their grey level."""
    for number, name in enumerate(names, start=first):
        write_file(folder / name, jpeg_of(number))
    return folder
