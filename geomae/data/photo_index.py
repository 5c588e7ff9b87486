"""The index of a source: one row a photo, saying where its bytes lie and what is known of it. No photo is in it.

All kinds of sources become such an index, so that packing, streaming and judging read them in one way.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from geomae.columns import OPTIONAL_COLUMNS
from geomae.data.archives import Storage
from geomae.data.damage import BadTally
from geomae.documents import parse_json

__all__ = ["INDEX_SCHEMA", "OPTIONAL_COLUMNS", "PLACE_COLUMNS", "PhotoIndex", "name_apart"]

PLACE_COLUMNS = ("id", "file", "storage", "offset", "size", "state")  # what is known of a photo without any table

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),  # below the index's root
        ("storage", pa.int8()),  # a Storage
        ("offset", pa.int64()),
        ("size", pa.int64()),  # bytes; -1 where unknown
        ("state", pa.int64()),  # another number when the file has changed
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        *((name, pa.string()) for name in OPTIONAL_COLUMNS),
    ]
)


@dataclass(frozen=True)
class PhotoIndex:
    """Photos of a source in its own order; coordinates in degrees, null where unlabelled."""

    root: str  # folder or URL that `file` is below
    table: pa.Table  # of INDEX_SCHEMA
    kind: str = "folder"
    description: str = ""  # where the photos came from, in words
    bad: BadTally = field(default_factory=BadTally)  # photos that the source names and that cannot be used
    saved_at: str | None = None  # the file that this very index was loaded from

    @classmethod
    def from_columns(cls, root: str, columns: dict[str, Any], **about: Any) -> "PhotoIndex":
        """An index of n photos.

        Args:
            root: folder or URL.
            columns: `id`, and any of the others of INDEX_SCHEMA, n entries each; absent ones are null, or what a file
                of its own needs: `file` is the id, `storage` WHOLE.
            about: the remaining fields.
        """
        num_rows = len(columns["id"])
        defaults = {"file": columns["id"], "storage": [Storage.WHOLE] * num_rows, "offset": [0] * num_rows}
        defaults |= {"size": [-1] * num_rows, "state": [0] * num_rows}
        arrays = [
            _as_array(columns.get(name, defaults.get(name)), num_rows, type_)
            for name, type_ in zip(INDEX_SCHEMA.names, INDEX_SCHEMA.types, strict=True)
        ]
        return cls(root, pa.table(arrays, schema=INDEX_SCHEMA), **about)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as Python values."""
        return list(self.table[name].to_pylist())

    def known_columns(self) -> list[str]:
        """Those of `OPTIONAL_COLUMNS` that any photo fills."""
        return [name for name in OPTIONAL_COLUMNS if self.table[name].null_count < len(self)]

    def take(self, rows: Sequence[int] | np.ndarray) -> "PhotoIndex":
        """Some photos, by their row numbers, in a table of their own."""
        return replace(self, saved_at=None, table=self.table.take(pa.array(np.asarray(rows, dtype=np.int64))))

    def digest(self, columns: Sequence[str] = tuple(INDEX_SCHEMA.names)) -> str:
        """A hash of all rows, wherever the root is: of the same photos, unchanged, at the same places."""
        hashed = hashlib.blake2b(digest_size=16)
        for name in columns:
            column = self.table[name].combine_chunks()
            hashed.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
            if pa.types.is_string(column.type):
                column = column.fill_null("")
                hashed.update(pc.binary_length(column).to_numpy().tobytes())
                hashed.update("".join(column.to_pylist()).encode())
            else:
                hashed.update(column.fill_null(0).to_numpy().tobytes())
        return hashed.hexdigest()

    def is_labelled(self) -> bool:
        """Whether every photo has coordinates."""
        return not (self.table["latitude"].null_count or self.table["longitude"].null_count)

    def save(self, path: Path) -> None:
        """Write the index where `load` maps it into memory."""
        about = {"root": self.root, "kind": self.kind, "description": self.description, "bad": self.bad.to_json()}
        schema = INDEX_SCHEMA.with_metadata({b"geomae": json.dumps(about).encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                writer.write_table(self.table.replace_schema_metadata(schema.metadata), max_chunksize=65536)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # of a disk that is full

    @classmethod
    def load(cls, path: Path) -> "PhotoIndex":
        """Map a saved index: processes share its memory.

        Raises:
            OSError: there is none.
            pa.ArrowInvalid: the file is not whole.
        """
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        about = parse_json(table.schema.metadata[b"geomae"])
        bad = BadTally.from_json(about.pop("bad"))
        return cls(table=table.replace_schema_metadata(None), bad=bad, saved_at=str(path), **about)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a saved index by its file's name, any other by its rows alone: Arrow adds what they were cut from."""
        if self.saved_at is not None:
            return {"saved_at": self.saved_at}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, INDEX_SCHEMA) as writer:
            writer.write_table(self.table)
        return {**self.__dict__, "table": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["saved_at"] is not None:
            self.__dict__.update(PhotoIndex.load(Path(state["saved_at"])).__dict__)
        else:
            self.__dict__.update(state, table=pa.ipc.open_stream(state["table"]).read_all())


def _as_array(values: Any, num_rows: int, type_: pa.DataType) -> pa.Array:
    if values is None:
        return pa.nulls(num_rows, type_)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(type_)
    array = pa.array(values, type_, from_pandas=True)
    if type_ == pa.string():  # a table's empty field says nothing
        return pc.if_else(pc.equal(array, ""), None, array)
    return array


def name_apart(names: list[str], files: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Ids of photos that archives call by `names`: with the archive's name in front where two have one name.

    Photos of one name and one size are taken for one photo, which keeps its name, and is there again.
    """
    photos = pd.DataFrame({"name": names, "size": sizes})
    contested = photos.drop_duplicates()["name"].duplicated(keep=False)
    ambiguous = set(photos["name"][contested.index[contested]])
    if not ambiguous:
        return names
    archives = {file: str(PurePosixPath(file).with_suffix("")) for file in set(files)}
    if len(set(archives.values())) < len(archives):  # 00.msg and 00.msgpack
        archives = {file: file for file in archives}
    return [f"{archives[file]}/{name}" if name in ambiguous else name for name, file in zip(names, files, strict=True)]
