"""Answers of a long run, shard by shard, on disk: what is finished is not computed again, and nothing is mixed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError
from geomae.files import whole_file, write_whole

__all__ = ["AnswerParts"]

_MERGED = "merged"
_ROWS_AT_ONCE = 1024  # of a part, in memory, while parts are merged


class AnswerParts:
    """A folder of parquet files of `answer_schema`, one for each shard of the list of photos, and a manifest.

    Args:
        folder: exists.
        num_photos: of the whole list.
        shard_size: photos of each shard but the last.
    """

    def __init__(self, folder: Path, num_photos: int, shard_size: int) -> None:
        self.folder, self.num_photos, self.shard_size = folder, num_photos, shard_size

    @classmethod
    def claim(cls, folder: Path, manifest: Mapping[str, Any], *, shard_size: int) -> "AnswerParts":
        """The parts of a run, new or begun before: then its shards keep their size.

        Args:
            folder: exists.
            manifest: what the answers follow from, and `num_photos`.
            shard_size: photos of a shard of a new run.

        Raises:
            ConfigError: the parts there are those of another model, other photos or other options.
        """
        path = folder / "manifest.json"
        if not path.exists():
            write_whole(path, json.dumps({**manifest, "shard_size": shard_size}, indent=2) + "\n")
        begun = _read_manifest(path)
        differing = [name for name in manifest if begun.get(name) != manifest[name]]
        if differing and not any(folder.glob("part-*.parquet")):  # nothing of that run would be lost
            path.unlink()
            return cls.claim(folder, manifest, shard_size=shard_size)
        if differing:
            sides = "; ".join(f"{name} was {begun.get(name)} and is now {manifest[name]}" for name in differing)
            raise ConfigError(
                f"{folder} holds the parts of another run: {sides}. Give the options, the model and the photos of that "
                "run to finish it, or remove the folder to begin anew."
            )
        return cls(folder, manifest["num_photos"], begun["shard_size"])

    @classmethod
    def claimed(cls, folder: Path) -> "AnswerParts":
        """Those that another process has claimed."""
        manifest = _read_manifest(folder / "manifest.json")
        return cls(folder, manifest["num_photos"], manifest["shard_size"])

    def missing(self) -> list[range]:
        """The rows of each shard that is not finished."""
        starts = range(0, self.num_photos, self.shard_size)
        shards = [range(start, min(start + self.shard_size, self.num_photos)) for start in starts]
        return [rows for rows in shards if not self._is_whole(rows.start)]

    def _is_whole(self, start: int) -> bool:
        """Whether a shard can be read; one that a broken disk has cut off is computed again."""
        try:
            pq.read_metadata(self._path(start))
        except (OSError, pa.ArrowInvalid):
            return False
        return True

    def write(self, start: int, table: pa.Table) -> None:
        """Finish the shard that begins at a row: its file is there whole, on the disk, or not at all."""
        with whole_file(self._path(start)) as file:
            pq.write_table(table, file, compression="zstd")

    @staticmethod
    def are_merged(folder: Path) -> bool:
        """Whether a run was killed between the last byte of its answers and the end of its parts."""
        return (folder / _MERGED).is_file()

    def note_merge(self) -> None:
        """Say that the answers are about to be in their place: a file of that name is then this run's own."""
        write_whole(self.folder / _MERGED, "")

    def answers(self) -> Iterator[pa.RecordBatch]:
        """The answers in the order of the list, some at a time, without the photos that have none."""
        for batch in self._read():
            yield batch.filter(pc.is_null(batch["problem"])).drop_columns(["problem"])

    def problems(self) -> Iterator[dict[str, str]]:
        """`id` and `problem` of each photo without an answer."""
        for batch in self._read(["id", "problem"]):
            yield from batch.filter(pc.is_valid(batch["problem"])).to_pylist()

    def remove(self) -> None:
        """Remove the folder, and all that is in it."""
        shutil.rmtree(self.folder)

    def _read(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.num_photos, self.shard_size):
            with pq.ParquetFile(self._path(start)) as file:
                yield from file.iter_batches(_ROWS_AT_ONCE, columns=columns)

    def _path(self, start: int) -> Path:
        return self.folder / f"part-{start // self.shard_size:06d}.parquet"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = dict(parse_json(read_text(path)))
        return {**manifest, "num_photos": int(manifest["num_photos"]), "shard_size": int(manifest["shard_size"])}
    except (OSError, KeyError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"{path} cannot be read: {problem!r}. Remove {path.parent}, and the run begins anew"
        ) from problem
