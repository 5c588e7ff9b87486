"""The packed layout: parquet shards of 100-row groups beside one `manifest.json`; written once, atomically, resumably.

    DIR/train-00000-of-00008.parquet    image {bytes, path}, latitude, longitude, id (, author, scene, scene16, country)
    DIR/manifest.json                   what was packed, from what, how, and which photos were damaged

A shard is a pure function of its `ShardTask`, whose digest is stored inside the file: a killed run started again keeps
the shards that are finished and match, and writes the others anew.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

from geomae.bounded_parquet import read_table
from geomae.data.damage import BadPhoto, BadTally
from geomae.data.layout import SHARD_PATTERN, list_shards
from geomae.data.manifest import ShardReport, mark_splits, read_finished_splits, refuse_other_photos
from geomae.data.photo_index import OPTIONAL_COLUMNS
from geomae.data.runners import run_tasks
from geomae.documents import parse_json
from geomae.errors import SourceError

__all__ = [
    "OPTIONAL_COLUMNS",
    "ROWS_PER_GROUP",
    "BadPhoto",
    "PhotoRow",
    "ShardReport",
    "ShardTask",
    "build_shards",
    "digest_of",
    "only_run",
    "photo_schema",
    "read_coordinates",
    "read_labels",
    "shard_digest",
]

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 100  # groups of 100 stream at 19.7k rows a core-second, groups of 1,250 at 11.7k
_METADATA_KEY = b"geomae"
_LABELS = ("id", "latitude", "longitude", "author")


@dataclass(frozen=True)
class PhotoRow:
    """One packed photo: JPEG bytes and what is known of it; coordinates in degrees."""

    id: str
    image: bytes
    latitude: float | None = None
    longitude: float | None = None
    author: str | None = None
    scene: str | None = None
    scene16: str | None = None
    country: str | None = None


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: `payload` is handed to the row maker."""

    file: str
    split: str
    num_photos: int
    digest: str  # tells whether a finished file still fits
    payload: Any
    photos_digest: str = ""  # of the ids and coordinates alone: which photos these are, whatever became of their files


RowMaker = Callable[[Any], Iterator[PhotoRow | BadPhoto]]


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
    path: Path,
    rows: Iterable[PhotoRow | BadPhoto],
    *,
    optional_columns: Sequence[str],
    digest: str,
    photos_digest: str = "",
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
        record = {"digest": digest, "photos_digest": photos_digest, "bad": [asdict(photo) for photo in bad]}
        writer.add_key_value_metadata({_METADATA_KEY: json.dumps(record).encode()})
    stored = _read_record(path)
    if stored is not None and stored.num_rows > num_photos and stored.record.get("photos_digest") == photos_digest:
        temporary.unlink()
        if stored.record.get("digest") == digest:  # fewer photos could be read this time
            return stored.num_rows, stored.bad()
        raise SourceError(_explain_fewer(path, stored.num_rows, num_photos, bad))
    os.replace(temporary, path)
    return num_photos, tuple(bad)


@dataclass(frozen=True)
class _Stored:
    num_rows: int
    record: dict[str, Any]

    def bad(self) -> tuple[BadPhoto, ...]:
        return tuple(BadPhoto(**photo) for photo in self.record["bad"])


def _read_record(path: Path) -> _Stored | None:
    """What a shard says of itself; None where there is none, or it is not whole."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return None
    return _Stored(metadata.num_rows, _own_record(metadata))


def _own_record(metadata: pq.FileMetaData) -> dict[str, Any]:
    """What `write_shard` keeps in the footer; nothing in a stranger's parquet."""
    try:
        record = parse_json((metadata.metadata or {}).get(_METADATA_KEY, b"{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _explain_fewer(path: Path, num_stored: int, num_photos: int, bad: Sequence[BadPhoto]) -> str:
    """A source that has suffered since it was packed does not take with it what was saved of it."""
    lost = f"; the first that is left out is {bad[0].file}: {bad[0].reason}" if bad else ""
    return (
        f"{path} holds {num_stored} photos and would be replaced by one that holds {num_photos} of them{lost}. Mend "
        "the source, choose another --output_dir, or delete the file to have it replaced."
    )


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
    ray_address: str | None = None,
    max_bad_fraction: float = 1.0,
    left_out: BadTally | None = None,
    description: str = "pack",
) -> list[ShardReport]:
    """Write every shard that is not there yet, on several processes or a Ray cluster, with a progress bar.

    Args:
        output_dir: see `only_run`; on a cluster, on storage that all its machines share.
        tasks: what to write; the result does not depend on where and in what order.
        make_rows: picklable; turns the payload of a task into rows, in order.
        optional_columns: which of `OPTIONAL_COLUMNS` to write.
        num_processes: 1 works in this process.
        ray_address: of a Ray cluster, `auto` for the one at hand, `local` for a new one here; None: no Ray.
        max_bad_fraction: the share of damaged photos that stops the run.
        left_out: photos of the source that no task has, for that share.
        description: label of the progress bar.

    Raises:
        SourceError: `output_dir` holds shards that another plan wrote or that hold more photos than the new ones
            would, a process that worked on a shard was killed, or Ray is not installed.
        TooManyDamagedPhotosError: more than `max_bad_fraction` of the photos were left out.
    """
    _prepare_folder(output_dir, tasks)
    reports = _find_finished(output_dir, tasks)
    missing = [task for task in tasks if task.file not in reports]
    num_photos = sum(task.num_photos for task in tasks)
    num_done = num_photos - sum(task.num_photos for task in missing)
    bad = BadTally.of(photo for report in reports.values() for photo in report.bad) + (left_out or BadTally())
    work = ShardWork(output_dir, make_rows, tuple(optional_columns))
    total = num_photos + len(left_out or ())
    with (
        _rewriting(output_dir, missing),
        tqdm(total=num_photos, initial=num_done, desc=description, unit=" photos", mininterval=0.5) as bar,
    ):
        for report in run_tasks(missing, work, num_processes=num_processes, ray_address=ray_address, bar=bar):
            reports[report.file] = report
            bad = BadTally.of(report.bad) + bad
            bad.refuse_above(max_bad_fraction, total, "the source")  # not hours later
    bad.refuse_above(max_bad_fraction, total, "the source")
    return [reports[task.file] for task in tasks]


@contextmanager
def _rewriting(output_dir: Path, tasks: Sequence[ShardTask]) -> Iterator[None]:
    """The splits of the tasks are unfinished meanwhile; whole again where the run stops before it replaced a shard."""
    splits = {task.split for task in tasks}
    before = _states(output_dir, tasks)
    mark_splits(output_dir, splits, is_finished=False)
    try:
        yield
    except BaseException:
        if _states(output_dir, tasks) == before:
            mark_splits(output_dir, splits, is_finished=True)
        raise


def _states(output_dir: Path, tasks: Sequence[ShardTask]) -> list[int | None]:
    paths = [output_dir / task.file for task in tasks]
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


@contextmanager
def only_run(output_dir: Path, *, option: str = "--output_dir") -> Iterator[None]:
    """Two runs into one folder would delete each other's files; the lock of a run that was killed is free.

    Args:
        output_dir: made if absent.
        option: what names it.

    Raises:
        SourceError: another run is writing into it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".pack.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise SourceError(
            f"another run is writing into {output_dir}. Wait until it has finished, or choose another {option}."
        ) from error
    except NotImplementedError:
        logger.warning("%s is on a file system without locks: see to it that no other run writes into it", output_dir)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class ShardWork:
    """What is done for each task, wherever that is."""

    output_dir: Path
    make_rows: RowMaker
    optional_columns: tuple[str, ...]

    def __call__(self, task: ShardTask, count: Callable[[int], object]) -> ShardReport:
        """Write one shard; `count` is told of every photo."""

        def counted() -> Iterator[PhotoRow | BadPhoto]:
            for row in self.make_rows(task.payload):
                yield row
                count(1)

        path = self.output_dir / task.file
        columns = self.optional_columns
        num_photos, bad = write_shard(
            path, counted(), optional_columns=columns, digest=task.digest, photos_digest=task.photos_digest
        )
        return ShardReport(task.file, task.split, num_photos, _sha256(path), bad, task.photos_digest)


def _prepare_folder(output_dir: Path, tasks: Sequence[ShardTask]) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    _refuse_other_shards(output_dir, tasks)
    refuse_other_photos(output_dir, {split: _digests(tasks, split) for split in {task.split for task in tasks}})
    for stale in output_dir.glob(".*.tmp"):  # what a killed run was writing
        stale.unlink()


def _digests(tasks: Sequence[ShardTask], split: str) -> list[str]:
    return [task.photos_digest for task in tasks if task.split == split]


def _refuse_other_shards(output_dir: Path, tasks: Sequence[ShardTask]) -> None:
    planned, splits = {task.file for task in tasks}, {task.split for task in tasks}
    for path in sorted(output_dir.glob("*.parquet")):
        match = SHARD_PATTERN.fullmatch(path.name)
        if match and match["split"] in splits and path.name not in planned:
            raise SourceError(
                f"{output_dir} already holds {path.name}, which this run would not write: its photos would be mixed "
                f"with others. Choose another --output_dir, or delete the {match['split']} shards there."
            )


def _find_finished(output_dir: Path, tasks: Sequence[ShardTask]) -> dict[str, ShardReport]:
    """The shards that are there and fit; hashed by several threads, for 100 GB take minutes."""
    splits = read_finished_splits(output_dir)
    listed = {shard["file"]: shard["sha256"] for entry in splits.values() for shard in entry["shards"]}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda task: _finished_report(output_dir, task, listed.get(task.file)), tasks)
        return {report.file: report for report in found if report is not None}


def shard_digest(metadata: pq.FileMetaData) -> str | None:
    """What `ShardTask.digest` was when a shard was written; None for a stranger's parquet."""
    return _own_record(metadata).get("digest")


def _finished_report(output_dir: Path, task: ShardTask, listed_sha256: str | None) -> ShardReport | None:
    """The report of a shard that is there, whole and what the task asks for, with photos that may pass now."""
    path = output_dir / task.file
    stored = _read_record(path)
    if stored is None or stored.record.get("digest") != task.digest:
        return None
    bad = stored.bad()
    if any(photo.may_pass for photo in bad):
        logger.warning("%s is written anew: photos of it could not be read, which may be otherwise now", path)
        return None
    sha256 = _sha256(path)
    if listed_sha256 not in (None, sha256):
        logger.warning("%s is written anew: it is not the file that the manifest lists", path)
        return None
    return ShardReport(task.file, task.split, stored.num_rows, sha256, bad, task.photos_digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_labels(path: str | Path, *, apart_from: Collection[str] = ()) -> dict[str, pa.Table]:
    """What each split of a packed folder holds, photos apart, in the shards that are there, finished or not.

    Args:
        path: the packed folder; it may be absent.
        apart_from: splits that are not read.

    Returns:
        For each split a table of `id`, `latitude`, `longitude` and, where it is known, `author`.

    Raises:
        SourceError: a shard cannot be read.
    """
    found: dict[str, list[pa.Table]] = {}
    for file in sorted(Path(path).glob("*.parquet")):
        match = SHARD_PATTERN.fullmatch(file.name)
        if match and match["split"] not in apart_from:
            try:
                known = [name for name in _LABELS if name in pq.read_schema(file).names]
                found.setdefault(match["split"], []).append(read_table(file, known))
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"{file} cannot be read: {error}. Delete it, and pack its split anew.") from error
    return {split: pa.concat_tables(tables) for split, tables in found.items()}


def read_coordinates(path: str | Path, split: str) -> np.ndarray:
    """All coordinates of a split, without reading a photo.

    Returns:
        `(n, 2)` float64 latitude and longitude in degrees, in the order of the shards; NaN where unlabelled.
    """
    columns = ["latitude", "longitude"]
    table = pa.concat_tables([read_table(file, columns) for file in list_shards(path, split)])
    return np.stack([table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in columns], axis=1)
