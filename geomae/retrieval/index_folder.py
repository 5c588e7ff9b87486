"""An index on disk: `photos.faiss`, `places.parquet` and `index.json`, which says what made it. Whole or not there."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from geomae.bounded_parquet import read_table
from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError, SourceError
from geomae.files import sync_file, sync_folder
from geomae.retrieval.vector_index import import_faiss

__all__ = [
    "PhotoPlaces",
    "RetrievalIndex",
    "read_index",
    "read_record",
    "refuse_existing_index",
    "refuse_other_embedder",
    "write_index",
]

VECTORS, PLACES, RECORD = "photos.faiss", "places.parquet", "index.json"
RECORDED = ("checkpoint", "embedder_sha256", "bf16", "photos", "split", "num_photos", "kind", "commit")  # at least


@dataclass(frozen=True)
class PhotoPlaces:
    """Where the photos of an index were taken, in the order of its vectors."""

    ids: list[str]  # n unique names
    coordinates_deg: NDArray[np.float64]  # (n, 2) latitude and longitude
    authors: list[str] | None = None  # n photographers; None where no author is known


@dataclass(frozen=True)
class RetrievalIndex:
    """Photos that answer for others."""

    vectors: Any  # a faiss.Index of n vectors of length 1
    places: PhotoPlaces
    record: dict[str, Any]  # of index.json


def refuse_existing_index(output_dir: str | Path) -> None:
    """ConfigError where the folder is there and not empty: an index is written whole, never into another one."""
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output_dir {output_dir} is not empty: delete it, or choose another folder for the index")


def write_index(output_dir: str | Path, index: RetrievalIndex) -> list[Path]:
    """Write an index into a new folder.

    Returns:
        The paths of its files.

    Raises:
        ConfigError: the folder is not empty.
    """
    faiss, folder = import_faiss(), Path(output_dir)
    refuse_existing_index(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        faiss.write_index(index.vectors, str(temporary / VECTORS))
        columns: dict[str, Any] = {
            "id": pa.array(index.places.ids, pa.string()),
            "latitude": index.places.coordinates_deg[:, 0],
            "longitude": index.places.coordinates_deg[:, 1],
        }
        if index.places.authors is not None:
            columns["author"] = pa.array(index.places.authors, pa.string())
        pq.write_table(pa.table(columns), temporary / PLACES)
        text = json.dumps(index.record, indent=2, allow_nan=False, ensure_ascii=False)
        (temporary / RECORD).write_text(text + "\n", encoding="utf-8")
        sync_folder(temporary)
        os.replace(temporary, folder)  # an empty folder gives way
        sync_file(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / name for name in (VECTORS, PLACES, RECORD)]


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `index.json` says of an index, without its photos.

    Raises:
        SourceError: the folder is no index, or the file is damaged.
    """
    folder = Path(folder)
    missing = [name for name in (VECTORS, PLACES, RECORD) if not (folder / name).is_file()]
    if missing:
        raise SourceError(
            f"{folder} is not an index of photos: it has no {', '.join(missing)}. Make one with "
            f"`python -m geomae.retrieval index --checkpoint DIR --photos DIR --output_dir {folder}`"
        )
    try:
        record = parse_json(read_text(folder / RECORD))
    except ValueError as problem:
        raise _damaged(folder / RECORD, problem) from problem
    lacking = [name for name in RECORDED if not isinstance(record, dict) or name not in record]
    if lacking:
        raise _damaged(folder / RECORD, f"it does not say {', '.join(lacking)}")
    return dict(record)


def read_index(folder: str | Path) -> RetrievalIndex:
    """The index that `write_index` wrote.

    Raises:
        SourceError: the folder is no index, a file is damaged, or the files do not belong together.
        ConfigError: there is no faiss.
    """
    folder, faiss = Path(folder), import_faiss()
    record = read_record(folder)
    try:
        table = read_table(folder / PLACES)
        coordinates_deg = np.stack([table[name].to_numpy() for name in ("latitude", "longitude")], axis=1)
        ids = table["id"].to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError) as problem:
        raise _damaged(folder / PLACES, problem) from problem
    try:
        vectors = faiss.read_index(str(folder / VECTORS))
    except (RuntimeError, MemoryError) as problem:
        raise _damaged(folder / VECTORS, problem) from problem
    if vectors.ntotal != len(table):
        raise SourceError(
            f"{folder} holds {vectors.ntotal} vectors and {len(table)} places: its files are not of one index. "
            "Make it anew"
        )
    authors = table["author"].to_pylist() if "author" in table.column_names else None
    return RetrievalIndex(vectors, PhotoPlaces(ids, coordinates_deg, authors), record)


def _damaged(file: Path, problem: object) -> SourceError:
    return SourceError(
        f"{file} of the index is damaged: {problem}. Delete the folder, and make it anew with "
        "`python -m geomae.retrieval index`"
    )


def refuse_other_embedder(record: dict[str, Any], digest: str, checkpoint: str, *, bf16: bool) -> None:
    """ConfigError where an index was embedded in another way than the photos that are to search it.

    Args:
        record: of the index.
        digest: `embedder_digest` of the checkpoint that is to search it.
        checkpoint: for the message.
        bf16: whether that runs in bfloat16.
    """
    if record["embedder_sha256"] != digest:
        raise ConfigError(
            f"the index was made with {record['checkpoint']} (digest {record['embedder_sha256'][:12]}), and "
            f"{checkpoint} has other weights or another architecture ({digest[:12]}): search with the checkpoint that "
            "made it, or make another index with `python -m geomae.retrieval index`"
        )
    if record["bf16"] != bf16:
        raise ConfigError(
            f"the index was made with bf16={record['bf16']}, and the search has bf16={bf16}: the vectors differ; give "
            f"--bf16 {str(record['bf16']).lower()}"
        )
