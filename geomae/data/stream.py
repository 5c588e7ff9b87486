"""Parquet shards -> an endless stream of samples whose order is a pure function, so that a resumed run can jump.

One epoch: the row groups of all shards are put in a random order, the rows inside each group too, and the long line
that results is cut into equal stretches, one for each consumer (rank x worker). A consumer shuffles its stretch in
windows of about 2,048 rows. Every draw comes from (seed, epoch, place), never from what was drawn before.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.utils.data
from datasets import Features, Image, IterableDataset

from geomae.data.shards import OPTIONAL_COLUMNS, is_packed, list_shards, photo_schema
from geomae.data.sources import find_csv, records_from_csv
from geomae.errors import ConfigError, SourceError

__all__ = ["PhotoStream", "load_photos"]

_MAX_OPEN_FILES = 64  # per worker; a shard's footer is parsed each time it is opened

# Which draw a random generator is for; it stands in the seed, so that no two draws share their numbers.
_GROUP_ORDER, _ROW_ORDER, _WINDOW_ORDER = 0, 1, 2


@dataclass(frozen=True)
class _RowGroup:
    file: str
    index: int  # within the file
    num_rows: int
    first_row: int  # number of its first row, counted over all files


class PhotoStream(torch.utils.data.IterableDataset):
    """Photos without end, epoch after epoch, each exactly once per epoch over all ranks and workers.

    Give it to a `DataLoader` with the same `batch_size`, any `num_workers`, no sampler and no shuffle; every batch is
    full. Do not let Accelerate shard it again: it knows its rank.

    Samples are dictionaries: `image` {bytes, path} undecoded, `latitude`, `longitude` (degrees or None), `id`, what
    else the shards hold, and `augmentation_seed`, an int that is a pure function of seed, epoch and row.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        window_samples: int = 2048,
        start_batch: int = 0,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Read the footers of all shards, and no photo.

        Args:
            files: parquet shards, in an order that is the same on every rank.
            seed: of every draw.
            batch_size: photos a batch of the DataLoader; it deals batches, not photos, to its workers.
            rank: of this process, 0 to `world_size - 1`.
            world_size: number of processes.
            window_samples: photos shuffled together; a worker holds that many undecoded photos in memory.
            start_batch: batches that this rank has already trained on; the stream continues behind them.
            columns: what to read; all columns by default.

        Raises:
            SourceError: no photos, fewer photos than processes, or shards with different columns.
        """
        super().__init__()
        self.files = [str(file) for file in files]
        self.seed, self.batch_size, self.start_batch = seed, batch_size, start_batch
        self.rank, self.world_size, self.window_samples = rank, world_size, window_samples
        self._check_options()
        self._groups, self.columns = _read_footers(self.files, columns)
        self.num_photos = sum(group.num_rows for group in self._groups)
        self._check_enough_photos(world_size)

    def _check_options(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise SourceError(
                f"rank={self.rank} does not exist among world_size={self.world_size} processes, counted from 0."
            )
        if min(self.batch_size, self.window_samples) < 1 or min(self.start_batch, self.seed) < 0:
            raise SourceError(
                f"batch_size={self.batch_size} and window_samples={self.window_samples} must be at least 1, "
                f"start_batch={self.start_batch} and seed={self.seed} at least 0."
            )

    def _check_enough_photos(self, num_consumers: int) -> None:
        if self.num_photos < num_consumers:
            raise SourceError(
                f"{self.num_photos} photos in {len(self.files)} shards are not enough for {num_consumers} consumers "
                f"({self.world_size} processes x {num_consumers // self.world_size} workers), which need one each. "
                "Use fewer processes or workers, or pack more photos."
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples of this worker, from `start_batch` on, without end."""
        worker = torch.utils.data.get_worker_info()
        num_workers = 1 if worker is None else worker.num_workers
        self._check_enough_photos(self.world_size * num_workers)
        # datasets deals a list in gen_kwargs to the workers of the DataLoader: each gets its own number.
        # Without features it passes rows through untouched; with them it takes ten times as long as reading them does
        stream = IterableDataset.from_generator(
            _stream_of_workers,
            gen_kwargs={"workers": list(range(num_workers)), "stream": self, "num_workers": num_workers},
        )
        return iter(stream)

    def samples_of_worker(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        """What worker `worker` of `num_workers` yields, from `start_batch` on.

        The DataLoader takes batch i of this run from worker i % K. In the unbroken run, that batch was number
        `start_batch + i`, so each worker continues as the one whose turn it would have been.
        """
        role = (self.start_batch + worker) % num_workers
        num_batches_done = (self.start_batch - role + num_workers - 1) // num_workers
        consumer, num_consumers = self.rank * num_workers + role, self.world_size * num_workers
        begin, end = _stretch(self.num_photos, consumer, num_consumers)
        epoch, num_skipped = divmod(num_batches_done * self.batch_size, end - begin)
        reader = _GroupReader(self.columns)
        while True:
            yield from self._epoch_of_consumer(epoch, begin, end, num_skipped, reader)
            epoch, num_skipped = epoch + 1, 0

    def _epoch_of_consumer(
        self, epoch: int, begin: int, end: int, num_skipped: int, reader: "_GroupReader"
    ) -> Iterator[dict[str, Any]]:
        """Places `begin` to `end` of the epoch's line, without the first `num_skipped`; whole windows are jumped."""
        order = self._rng(_GROUP_ORDER, epoch).permutation(len(self._groups))
        starts = np.cumsum([0, *(self._groups[index].num_rows for index in order)])
        for window in range(begin, end, self.window_samples):
            window_end = min(window + self.window_samples, end)
            if num_skipped >= window_end - window:
                num_skipped -= window_end - window
                continue
            yield from self._read_window(epoch, order, starts, window, window_end, num_skipped, reader)
            num_skipped = 0

    def _read_window(
        self,
        epoch: int,
        order: np.ndarray,
        starts: np.ndarray,
        begin: int,
        end: int,
        num_skipped: int,
        reader: "_GroupReader",
    ) -> Iterator[dict[str, Any]]:
        """Places `begin` to `end` in the window's own random order; row groups without a wanted row are not read."""
        places = begin + self._rng(_WINDOW_ORDER, epoch, begin).permutation(end - begin)[num_skipped:]
        positions = np.searchsorted(starts, places, side="right") - 1
        rows: list[dict[str, Any]] = [{}] * len(places)
        for position in np.unique(positions):
            group = self._groups[order[position]]
            row_order = self._rng(_ROW_ORDER, epoch, group.first_row).permutation(group.num_rows)
            wanted = np.flatnonzero(positions == position)
            indices = row_order[places[wanted] - starts[position]]
            seeds = _mix(self.seed, epoch, group.first_row + indices)
            for slot, row, row_seed in zip(wanted, reader.read(group, indices), seeds, strict=True):
                rows[slot] = {**row, "augmentation_seed": int(row_seed)}
        rows.reverse()
        while rows:  # a window of undecoded photos is the worker's largest possession: it is freed as it goes
            yield rows.pop()

    def _rng(self, purpose: int, epoch: int, place: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, epoch, place))


def _stretch(num_photos: int, consumer: int, num_consumers: int) -> tuple[int, int]:
    """Begin and end of a consumer's part of the line; parts differ by one photo at most."""
    return num_photos * consumer // num_consumers, num_photos * (consumer + 1) // num_consumers


def _mix(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """63-bit numbers that look independent for each (seed, epoch, row).

    Source: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators", the SplitMix64 finaliser.
    """
    offset = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = offset + rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)


def _stream_of_workers(workers: list[int], stream: PhotoStream, num_workers: int) -> Iterator[dict[str, Any]]:
    for worker in workers:
        yield from stream.samples_of_worker(worker, num_workers)


class _GroupReader:
    """Reads rows of row groups, keeping the files it used last open."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def read(self, group: _RowGroup, indices: np.ndarray) -> list[dict[str, Any]]:
        """The rows of one group, in the order of `indices`."""
        table = self._file(group.file).read_row_group(group.index, columns=self._columns, use_threads=False)
        if table.num_rows != group.num_rows:
            raise SourceError(f"{group.file} changed while it was read: pack into a new folder instead.")
        return table.take(pa.array(indices)).to_pylist()

    def _file(self, name: str) -> pq.ParquetFile:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) == _MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[name] = pq.ParquetFile(name)
        return self._open[name]


def _read_footers(files: Sequence[str], columns: Sequence[str] | None) -> tuple[list[_RowGroup], list[str]]:
    """All row groups of all files that hold rows, and the columns to read."""
    if not files:
        raise SourceError("no shards were given: pass the parquet files of a split, as list_shards returns them.")
    groups, first_row = [], 0
    wanted: pa.Schema | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{file} cannot be read as parquet: {error}. Pack it anew.") from error
        wanted = _pick_columns(schema, columns, file) if wanted is None else wanted
        if not _pick_columns(schema, columns, file).equals(wanted):
            raise SourceError(f"{file} has the columns {schema.names}, {files[0]} has {wanted.names}: they differ.")
        for index in range(metadata.num_row_groups):
            num_rows = metadata.row_group(index).num_rows
            groups.append(_RowGroup(file, index, num_rows, first_row))
            first_row += num_rows
    groups = [group for group in groups if group.num_rows]
    if not groups:
        raise SourceError(f"the shards hold no photo at all: {', '.join(files[:3])}{' ...' if len(files) > 3 else ''}.")
    assert wanted is not None
    return groups, wanted.names


def _pick_columns(schema: pa.Schema, columns: Sequence[str] | None, file: str) -> pa.Schema:
    """The part of a shard's schema that is read, without metadata: what else a shard holds may differ."""
    if missing := [name for name in columns or () if name not in schema.names]:
        raise SourceError(f"{file} has no column {missing[0]!r}; it has {', '.join(schema.names)}.")
    return pa.schema([schema.field(name) for name in columns or schema.names])


def load_photos(
    path: str | Path, split: str, *, csv_file: str | Path | None = None, swap_lat_lon: bool = False
) -> datasets.Dataset:
    """A map-style data set, for validation and tests: every photo once, in a fixed order, undecoded.

    Args:
        path: a packed folder, or a folder of photos with a CSV of their coordinates.
        split: which split of a packed folder; the name of the result for a folder of photos.
        csv_file: the CSV; by default the only one in the folder, or the one beside it that is called after it.
        swap_lat_lon: read that CSV's latitude column as longitude and the other way round.

    Returns:
        Rows of `image` {bytes, path}, `latitude`, `longitude` (degrees), `id` and what else is known. From a packed
        folder the bytes are inside; from a folder of photos `bytes` is None and `path` names the file.

    Raises:
        SourceError: there are no such photos.
        ConfigError: `swap_lat_lon` for a packed folder, where no CSV is read.
    """
    if csv_file is None and is_packed(path):
        if swap_lat_lon:
            raise ConfigError(
                f"--swap_lat_lon swaps two columns of a CSV, but {path} is a packed folder. Leave it out; if its "
                "coordinates are swapped, pack the photos again with --swap_lat_lon."
            )
        files = [str(file) for file in list_shards(path, split)]
        dataset = datasets.Dataset.from_parquet(files, split=datasets.NamedSplit(split))
        return dataset.cast_column("image", Image(decode=False))
    records = list(records_from_csv(path, csv_file or find_csv(path), swap_lat_lon=swap_lat_lon))
    columns: dict[str, list[Any]] = {"image": [{"bytes": None, "path": record.file} for record in records]}
    columns |= {name: [getattr(record, name) for record in records] for name in ("latitude", "longitude", "id")}
    columns |= {name: values for name in OPTIONAL_COLUMNS if any(values := [getattr(r, name) for r in records])}
    features = Features.from_arrow_schema(photo_schema([name for name in OPTIONAL_COLUMNS if name in columns]))
    features["image"] = Image(decode=False)
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
