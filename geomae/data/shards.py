"""The packed layout: parquet shards of 100-row groups beside one `manifest.json`; written once, atomically, resumably.

    DIR/train-00000-of-00008.parquet    image {bytes, path}, latitude, longitude, id (, author, scene, country)
    DIR/manifest.json                   what was packed, from what, how, and which photos were damaged

A shard is a pure function of its `ShardTask`, whose digest is stored inside the file: a killed run started again keeps
the shards that are finished and match, and writes the others anew.
"""

import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from geomae.data.manifest import BadPhoto, ShardReport, forget_splits
from geomae.errors import SourceError, TooManyDamagedPhotosError

__all__ = [
    "OPTIONAL_COLUMNS",
    "ROWS_PER_GROUP",
    "BadPhoto",
    "PhotoRow",
    "ShardReport",
    "ShardTask",
    "build_shards",
    "digest_of",
    "is_packed",
    "list_shards",
    "photo_schema",
    "read_coordinates",
    "read_ids",
    "shard_name",
]

ROWS_PER_GROUP = 100  # groups of 100 stream at 19.7k rows a core-second, groups of 1,250 at 11.7k
OPTIONAL_COLUMNS = ("author", "scene", "country")

_SHARD_PATTERN = re.compile(r"(?P<split>[a-z0-9_]+)-(?P<index>\d{5})-of-(?P<total>\d{5})\.parquet")
_METADATA_KEY = b"geomae"


@dataclass(frozen=True)
class PhotoRow:
    """One packed photo: JPEG bytes and what is known of it; coordinates in degrees."""

    id: str
    image: bytes
    latitude: float | None = None
    longitude: float | None = None
    author: str | None = None
    scene: str | None = None
    country: str | None = None


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: `payload` is handed to the row maker, `digest` tells whether a finished file still fits."""

    file: str
    split: str
    num_photos: int
    digest: str
    payload: Any


RowMaker = Callable[[Any], Iterator[PhotoRow | BadPhoto]]


def shard_name(split: str, index: int, num_shards: int) -> str:
    """File name of a shard, as the Hub names them."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.parquet"


def digest_of(*parts: object) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def photo_schema(optional_columns: Sequence[str] = (), extra: dict[str, Any] | None = None) -> pa.Schema:
    """The Arrow schema of a shard; its metadata makes `datasets` read `image` as an `Image()`.

    Args:
        optional_columns: which of `OPTIONAL_COLUMNS` the source knows.
        extra: our own record of the shard, kept under the key `geomae`.
    """
    strings = ["id", *optional_columns]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "float64", "_type": "Value"} for name in ("latitude", "longitude")}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in strings}
    fields = [pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    fields += [pa.field(name, pa.float64()) for name in ("latitude", "longitude")]
    fields += [pa.field(name, pa.string()) for name in strings]
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    if extra is not None:
        metadata[_METADATA_KEY] = json.dumps(extra).encode()
    return pa.schema(fields, metadata=metadata)


def write_shard(
    path: Path, rows: Iterable[PhotoRow | BadPhoto], *, optional_columns: Sequence[str], digest: str
) -> tuple[int, tuple[BadPhoto, ...]]:
    """Write one shard under a temporary name and move it into place when it is complete.

    Returns:
        The number of photos written, and the ones left out.
    """
    schema = photo_schema(optional_columns)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    num_photos, bad, group = 0, [], list[PhotoRow]()
    with pq.ParquetWriter(
        temporary, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:  # JPEG is dense
        for row in rows:
            if isinstance(row, BadPhoto):
                bad.append(row)
                continue
            group.append(row)
            num_photos += 1
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(_to_table(group, schema), row_group_size=ROWS_PER_GROUP)
                group.clear()
        if group:
            writer.write_table(_to_table(group, schema), row_group_size=ROWS_PER_GROUP)
        record = {"digest": digest, "bad": [asdict(photo) for photo in bad]}
        writer.add_key_value_metadata({_METADATA_KEY: json.dumps(record).encode()})
    os.replace(temporary, path)
    return num_photos, tuple(bad)


def _to_table(rows: Sequence[PhotoRow], schema: pa.Schema) -> pa.Table:
    columns: dict[str, list[Any]] = {"image": [{"bytes": row.image, "path": _file_name(row.id)} for row in rows]}
    columns |= {name: [getattr(row, name) for row in rows] for name in schema.names if name != "image"}
    return pa.table(columns, schema=schema)


def _file_name(photo_id: str) -> str:
    name = photo_id.replace("/", "_")
    return name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg"


def build_shards(
    output_dir: Path,
    tasks: Sequence[ShardTask],
    make_rows: RowMaker,
    *,
    optional_columns: Sequence[str] = (),
    num_processes: int = 1,
    max_bad_fraction: float = 1.0,
    description: str = "pack",
) -> list[ShardReport]:
    """Write every shard that is not there yet, on several processes, with a progress bar.

    Args:
        output_dir: made if absent.
        tasks: what to write; the result does not depend on `num_processes`.
        make_rows: picklable; turns the payload of a task into rows, in order.
        optional_columns: which of `OPTIONAL_COLUMNS` to write.
        num_processes: 1 works in this process.
        max_bad_fraction: the share of damaged photos that stops the run.
        description: label of the progress bar.

    Raises:
        SourceError: `output_dir` holds shards that another plan wrote.
        TooManyDamagedPhotosError: more than `max_bad_fraction` of the photos were left out.
    """
    _prepare_folder(output_dir, tasks)
    reports = {task.file: report for task in tasks if (report := _finished_report(output_dir, task)) is not None}
    missing = [task for task in tasks if task.file not in reports]
    forget_splits(output_dir, {task.split for task in missing})
    num_photos = sum(task.num_photos for task in tasks)
    num_done = num_photos - sum(task.num_photos for task in missing)
    with tqdm(
        total=num_photos, initial=num_done, desc=description, unit=" photos", mininterval=0.5, smoothing=0.05
    ) as bar:
        for report in _run_tasks(output_dir, missing, make_rows, tuple(optional_columns), num_processes, bar):
            reports[report.file] = report
            _refuse_too_many_bad(reports.values(), num_photos, max_bad_fraction)  # now, not hours later
    _refuse_too_many_bad(reports.values(), num_photos, max_bad_fraction)
    return [reports[task.file] for task in tasks]


def _prepare_folder(output_dir: Path, tasks: Sequence[ShardTask]) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    _refuse_other_shards(output_dir, tasks)
    for stale in output_dir.glob(".*.parquet.*.tmp"):  # what a killed run was writing
        stale.unlink()


def _refuse_other_shards(output_dir: Path, tasks: Sequence[ShardTask]) -> None:
    planned, splits = {task.file for task in tasks}, {task.split for task in tasks}
    for path in sorted(output_dir.glob("*.parquet")):
        match = _SHARD_PATTERN.fullmatch(path.name)
        if match and match["split"] in splits and path.name not in planned:
            raise SourceError(
                f"{output_dir} already holds {path.name}, which this run would not write: its photos would be mixed "
                f"with others. Choose another --output_dir, or delete the {match['split']} shards there."
            )


def _refuse_too_many_bad(reports: Iterable[ShardReport], num_photos: int, max_bad_fraction: float) -> None:
    bad = [photo for report in reports for photo in report.bad]
    if len(bad) > max_bad_fraction * num_photos:
        raise TooManyDamagedPhotosError(
            f"{len(bad)} of {num_photos} photos cannot be used, more than the allowed share {max_bad_fraction:g}; the "
            f"first is {bad[0].file}: {bad[0].reason}. Mend the source, or allow more with --max_bad_fraction."
        )


def _finished_report(output_dir: Path, task: ShardTask) -> ShardReport | None:
    path = output_dir / task.file
    if not path.is_file():
        return None
    try:
        file_metadata = pq.read_metadata(path)
        record = json.loads((file_metadata.metadata or {}).get(_METADATA_KEY, b"{}"))
    except (pa.ArrowInvalid, OSError, ValueError):
        return None
    if record.get("digest") != task.digest:
        return None
    bad = tuple(BadPhoto(**photo) for photo in record["bad"])
    return ShardReport(task.file, task.split, file_metadata.num_rows, _sha256(path), bad)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_tasks(
    output_dir: Path,
    tasks: Sequence[ShardTask],
    make_rows: RowMaker,
    optional_columns: tuple[str, ...],
    num_processes: int,
    bar: "tqdm[Any]",
) -> Iterator[ShardReport]:
    if num_processes <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield _run_task(output_dir, task, make_rows, optional_columns, bar.update)
        return
    # spawn: a forked child of a process that has already run OpenCV, Arrow or torch threads can hang
    context = multiprocessing.get_context("spawn")
    num_made = context.Value("q", 0)
    initargs = (output_dir, make_rows, optional_columns, num_made)
    pool = ProcessPoolExecutor(min(num_processes, len(tasks)), context, _start_worker, initargs)
    try:
        pending: set[Future[ShardReport]] = {pool.submit(_run_task_in_worker, task) for task in tasks}
        start = bar.n
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(start + num_made.value - bar.n)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_task(
    output_dir: Path,
    task: ShardTask,
    make_rows: RowMaker,
    optional_columns: tuple[str, ...],
    count: Callable[[int], object],
) -> ShardReport:
    def counted() -> Iterator[PhotoRow | BadPhoto]:
        for row in make_rows(task.payload):
            yield row
            count(1)

    path = output_dir / task.file
    num_photos, bad = write_shard(path, counted(), optional_columns=optional_columns, digest=task.digest)
    return ShardReport(task.file, task.split, num_photos, _sha256(path), bad)


_worker_arguments: tuple[Any, ...] = ()  # set once in each spawned process, so that a task carries only itself


def _start_worker(output_dir: Path, make_rows: RowMaker, optional_columns: tuple[str, ...], num_made: Any) -> None:
    global _worker_arguments
    cv2.setNumThreads(1)  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def count(number: int) -> None:
        with num_made.get_lock():
            num_made.value += number

    _worker_arguments = (output_dir, make_rows, optional_columns, count)


def _die_with_parent() -> None:
    """Otherwise the workers of a parent that was killed wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_task_in_worker(task: ShardTask) -> ShardReport:
    output_dir, make_rows, optional_columns, count = _worker_arguments
    return _run_task(output_dir, task, make_rows, optional_columns, count)


def is_packed(path: str | Path) -> bool:
    """Whether the folder holds packed shards, of any split."""
    return any(_SHARD_PATTERN.fullmatch(file.name) for file in Path(path).glob("*.parquet"))


def list_shards(path: str | Path, split: str) -> list[Path]:
    """The shards of one split, in order.

    Raises:
        SourceError: the folder holds no such split, or not all of its shards.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(Path(path).glob("*.parquet")):
        if match := _SHARD_PATTERN.fullmatch(file.name):
            found.setdefault(match["split"], []).append((int(match["total"]), file))
    if split not in found:
        have = f"it holds the splits {', '.join(sorted(found))}" if found else "it holds no packed shards at all"
        raise SourceError(
            f"{path} has no split {split!r} (files {split}-00000-of-*.parquet); {have}. "
            "Make one with `python -m geomae.data pack` or `python -m geomae.data earth`."
        )
    total = found[split][0][0]
    if any(count != total for count, _ in found[split]) or len(found[split]) != total:
        raise SourceError(
            f"{path} holds {len(found[split])} shards of {split!r} where their names promise {total}. "
            "Was the run that wrote them stopped? Start it again with the same options: it finishes what is missing."
        )
    return [file for _, file in found[split]]


def read_ids(path: str | Path, *, apart_from: Collection[str] = ()) -> dict[str, list[str]]:
    """The ids that each split of a packed folder holds, in the shards that are there, finished or not.

    Args:
        path: the packed folder; it may be absent.
        apart_from: splits that are not read.

    Raises:
        SourceError: a shard cannot be read.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(Path(path).glob("*.parquet")):
        match = _SHARD_PATTERN.fullmatch(file.name)
        if match and match["split"] not in apart_from:
            try:
                ids = pq.read_table(file, columns=["id"])["id"].to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"{file} cannot be read: {error}. Delete it, and pack its split anew.") from error
            found.setdefault(match["split"], []).extend(ids)
    return found


def read_coordinates(path: str | Path, split: str) -> np.ndarray:
    """All coordinates of a split, without reading a photo.

    Returns:
        `(n, 2)` float64 latitude and longitude in degrees, in the order of the shards; NaN where unlabelled.
    """
    columns = ["latitude", "longitude"]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in list_shards(path, split)])
    return np.stack([table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in columns], axis=1)
