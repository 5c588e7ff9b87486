"""Photos -> an endless stream of samples whose order is a pure function, so that a resumed run can jump.

One epoch: the row groups of all shards are put in a random order, the rows inside each group too, and the long line
that results is cut into equal stretches, one for each lane. A lane shuffles its stretch in windows of about 2,048 rows.
Every draw comes from (seed, epoch, place), never from what was drawn before.

A run has as many lanes as ranks x workers at its start, and keeps them: a checkpoint holds the place reached in each
lane, and a run that is resumed with other workers deals the same lanes to them. Damaged photos are passed over, so that
every batch is full, and the places count them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data

from geomae.data.groups import ParquetShards, PhotoGroups
from geomae.errors import DamagedPhotoError, SourceError

__all__ = ["PhotoStream", "StreamPlace"]

logger = logging.getLogger(__name__)

# Which draw a random generator is for; it stands in the seed, so that no two draws share their numbers.
_GROUP_ORDER, _ROW_ORDER, _WINDOW_ORDER = 0, 1, 2
_MAX_DAMAGED_IN_A_ROW = 10_000

Sample = dict[str, Any]


@dataclass(frozen=True)
class StreamPlace:
    """How far a run has come: what a checkpoint keeps of a stream."""

    num_batches: int  # of each rank; tells whose turn it is
    positions: tuple[int, ...]  # of every lane of all ranks: rows read since the stream's beginning, damaged ones too


class PhotoStream(torch.utils.data.IterableDataset):
    """Photos without end, epoch after epoch, each exactly once per epoch over all ranks and workers.

    Give it to a `DataLoader` with the same `batch_size`, any `num_workers`, no sampler and no shuffle; every batch is
    full. Do not let Accelerate shard it again: it knows its rank.

    Samples are dictionaries: `image` {bytes, path} undecoded, `latitude`, `longitude` (degrees or None), `id`, what
    else the source knows; `augmentation_seed`, an int that is a pure function of seed, epoch and row; and the place
    behind them: `lane`, `position`, and `num_bad`, the photos of the lane passed over since the sample before. Where
    there is a `prepare`, its samples take the place of the undecoded ones.
    """

    def __init__(
        self,
        photos: PhotoGroups | Sequence[str | Path],
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        window_samples: int = 2048,
        shuffle: bool = True,
        prepare: Callable[[Sample], Sequence[Sample]] | None = None,
        crops_per_photo: int = 1,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Read the footers of all shards, and no photo.

        Args:
            photos: groups of any sources, or parquet shards in an order that is the same on every rank.
            seed: of every draw.
            batch_size: samples a batch of the DataLoader; it deals batches, not samples, to its workers.
            rank: of this process, 0 to `world_size - 1`.
            world_size: number of processes.
            window_samples: photos shuffled together; a lane holds that many undecoded photos in memory.
            shuffle: false: the order of the source, in every epoch.
            prepare: makes samples of a sample in the worker; raises DamagedPhotoError or OSError for a photo that
                cannot be used, which is then named in the log, counted and passed over.
            crops_per_photo: samples that `prepare` makes of each photo; divides `batch_size`.
            columns: of parquet shards, what to read; all columns by default.

        Raises:
            SourceError: no photos, fewer photos than processes, or shards with different columns.
        """
        super().__init__()
        if not isinstance(photos, PhotoGroups):
            photos = PhotoGroups([ParquetShards(photos, columns=columns)])
        self.photos, self.num_photos = photos, photos.num_photos
        self.seed, self.batch_size, self.shuffle = seed, batch_size, shuffle
        self.rank, self.world_size, self.window_samples = rank, world_size, window_samples
        self.prepare, self.crops_per_photo = prepare, crops_per_photo
        self.place: StreamPlace | None = None
        """Where to begin; None: at the beginning, with a lane for each worker."""
        self._check_options()
        self._check_enough_photos(world_size)

    def _check_options(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise SourceError(
                f"rank={self.rank} does not exist among world_size={self.world_size} processes, counted from 0."
            )
        if min(self.batch_size, self.window_samples) < 1 or self.seed < 0:
            raise SourceError(
                f"batch_size={self.batch_size} and window_samples={self.window_samples} must be at least 1, "
                f"seed={self.seed} at least 0."
            )
        if self.crops_per_photo < 1 or self.batch_size % self.crops_per_photo:
            raise SourceError(
                f"batch_size={self.batch_size} must be a multiple of crops_per_photo={self.crops_per_photo}."
            )

    def _check_enough_photos(self, num_lanes: int) -> None:
        if self.num_photos < num_lanes:
            raise SourceError(
                f"{self.num_photos} photos are not enough for {num_lanes} consumers "
                f"({self.world_size} processes x {num_lanes // self.world_size} workers), which need one each. "
                "Use fewer processes or workers, or pack more photos."
            )

    def __iter__(self) -> Iterator[Sample]:
        """Samples of this worker, from `place` on, without end."""
        worker = torch.utils.data.get_worker_info()
        num_workers = 1 if worker is None else worker.num_workers
        lanes_per_rank(self.place, self.world_size, num_workers)
        self._check_enough_photos(self.world_size * num_workers)
        return self.samples_of_worker(0 if worker is None else worker.id, num_workers)

    def samples_of_worker(self, worker: int, num_workers: int) -> Iterator[Sample]:
        """What worker `worker` of `num_workers` yields, from `place` on.

        Batch b of a rank comes from its lane b % L, and the DataLoader takes batch i of this run from worker i % K.
        So worker w serves the lanes whose turn comes at its batches: where K divides L they are its own.
        """
        num_lanes = lanes_per_rank(self.place, self.world_size, num_workers)
        num_batches = 0 if self.place is None else self.place.num_batches
        turns = [(num_batches + worker + turn * num_workers) % num_lanes for turn in range(num_lanes // num_workers)]
        reader = self.photos.open()
        lanes = [
            self._samples_of_lane(self.rank * num_lanes + lane, self.world_size * num_lanes, reader) for lane in turns
        ]
        while True:
            for lane in lanes:
                yield from islice(lane, self.batch_size)

    def _samples_of_lane(self, lane: int, num_lanes: int, reader: Any) -> Iterator[Sample]:
        """The lane's samples, prepared, without the damaged ones."""
        begin, end = _stretch(self.num_photos, lane, num_lanes)
        position = 0 if self.place is None else self.place.positions[lane]
        num_bad = 0
        for row in self._rows_of_lane(begin, end, position, reader):
            position += 1
            try:
                samples = [row] if self.prepare is None else self.prepare(row)
            except (DamagedPhotoError, OSError) as error:
                logger.warning("left out damaged photo %s: %s", row["id"], error)
                num_bad += 1
                if num_bad >= min(_MAX_DAMAGED_IN_A_ROW, end - begin):
                    raise DamagedPhotoError(
                        f"the last {num_bad} photos are all damaged; the last is {row['id']}: {error}. Look at the "
                        "source of the photos, or pack it anew."
                    ) from error
                continue
            for sample in samples:
                yield {**sample, "lane": lane, "position": position, "num_bad": num_bad}
                num_bad = 0

    def _rows_of_lane(self, begin: int, end: int, position: int, reader: Any) -> Iterator[Sample]:
        """Rows of a lane, epoch after epoch, behind the first `position` of them."""
        epoch, num_skipped = divmod(position, end - begin)
        while True:
            yield from self._rows_of_epoch(epoch, begin, end, num_skipped, reader)
            epoch, num_skipped = epoch + 1, 0

    def _rows_of_epoch(self, epoch: int, begin: int, end: int, num_skipped: int, reader: Any) -> Iterator[Sample]:
        """Places `begin` to `end` of the epoch's line, without the first `num_skipped`; whole windows are jumped."""
        groups = self.photos.groups
        order = self._permutation(len(groups), _GROUP_ORDER, epoch)
        starts = np.cumsum([0, *(groups[index].num_rows for index in order)])
        for window in range(begin, end, self.window_samples):
            window_end = min(window + self.window_samples, end)
            if num_skipped >= window_end - window:
                num_skipped -= window_end - window
                continue
            yield from self._read_window(epoch, order, starts, window, window_end, num_skipped, reader)
            num_skipped = 0

    def _read_window(
        self, epoch: int, order: np.ndarray, starts: np.ndarray, begin: int, end: int, num_skipped: int, reader: Any
    ) -> Iterator[Sample]:
        """Places `begin` to `end` in the window's own random order; row groups without a wanted row are not read."""
        places = begin + self._permutation(end - begin, _WINDOW_ORDER, epoch, begin)[num_skipped:]
        positions = np.searchsorted(starts, places, side="right") - 1
        rows: list[Sample] = [{}] * len(places)
        for position in np.unique(positions):
            group = self.photos.groups[order[position]]
            row_order = self._permutation(group.num_rows, _ROW_ORDER, epoch, group.first_row)
            wanted = np.flatnonzero(positions == position)
            indices = row_order[places[wanted] - starts[position]]
            seeds = _mix(self.seed, epoch, group.first_row + indices)
            for slot, row, row_seed in zip(wanted, reader.read(group, indices), seeds, strict=True):
                row["augmentation_seed"] = int(row_seed)
                rows[slot] = row
        rows.reverse()
        while rows:  # a window of undecoded photos is the worker's largest possession: it is freed as it goes
            yield rows.pop()

    def _permutation(self, length: int, purpose: int, epoch: int, place: int = 0) -> np.ndarray:
        if not self.shuffle:
            return np.arange(length)
        return np.random.default_rng((self.seed, purpose, epoch, place)).permutation(length)


def lanes_per_rank(place: StreamPlace | None, world_size: int, num_workers: int) -> int:
    """Lanes that each rank serves.

    Raises:
        SourceError: the lanes of a resumed run cannot be dealt evenly to these processes and workers.
    """
    if place is None:
        return num_workers
    num_lanes, rest = divmod(len(place.positions), world_size)
    if rest or num_lanes % num_workers:
        possible = [str(number) for number in range(1, num_lanes + 1) if num_lanes % number == 0]
        raise SourceError(
            f"the run that is resumed reads {len(place.positions)} lanes of photos, which cannot be dealt evenly to "
            f"{world_size} processes x {num_workers} workers; resume with dataloader_num_workers "
            f"{', '.join(possible) or '(none fits)'}."
        )
    return num_lanes


def _stretch(num_photos: int, lane: int, num_lanes: int) -> tuple[int, int]:
    """Begin and end of a lane's part of the line; parts differ by one photo at most."""
    return num_photos * lane // num_lanes, num_photos * (lane + 1) // num_lanes


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
