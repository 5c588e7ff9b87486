import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_shards import EVERYTHING, NUM_PHOTOS, UNEVEN, write_photos
from torch.utils.data import DataLoader

from geomae.data.groups import ParquetShards, PhotoGroups
from geomae.data.stream import PhotoStream, StreamPlace, lanes_per_rank
from geomae.errors import DamagedPhotoError, SourceError

# three workers on a machine of two cores are a test of the order, not of speed
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("shards"), UNEVEN)


def make_stream(files: Sequence[Path], place: StreamPlace | None = None, **options: Any) -> PhotoStream:
    stream = PhotoStream(files, **({"seed": 3, "batch_size": 20, "window_samples": 150} | options))
    stream.place = place
    return stream


class Run:
    """One rank that is trained: takes batches, and keeps the place behind the last one, as a checkpoint does."""

    def __init__(self, files: Sequence[Path], num_workers: int = 0, place: StreamPlace | None = None, **options: Any):
        self.stream = make_stream(files, place, **options)
        loader = DataLoader(self.stream, batch_size=self.stream.batch_size, num_workers=num_workers, collate_fn=list)
        self.batches = iter(loader)
        self.num_batches = 0 if place is None else place.num_batches
        self.num_lanes = self.stream.world_size * max(1, num_workers) if place is None else len(place.positions)
        self.positions: dict[int, int] = {} if place is None else dict(enumerate(place.positions))

    def take(self, number: int) -> list[list[str]]:
        taken = list(itertools.islice(self.batches, number))
        assert [len(batch) for batch in taken] == [self.stream.batch_size] * number
        for batch in taken:
            self.positions[batch[-1]["lane"]] = batch[-1]["position"]
        self.num_batches += number
        return [[sample["id"] for sample in batch] for batch in taken]


def place_of(*runs: Run) -> StreamPlace:
    """What the ranks' checkpoint says: each knows its own lanes."""
    known: dict[int, int] = {}
    for run in runs:
        per_rank = run.num_lanes // run.stream.world_size
        own = range(run.stream.rank * per_rank, (run.stream.rank + 1) * per_rank)
        known |= {lane: run.positions.get(lane, 0) for lane in own}
    return StreamPlace(max(run.num_batches for run in runs), tuple(known[lane] for lane in range(runs[0].num_lanes)))


def batches(files: Sequence[Path], number: int, *, num_workers: int = 0, **options: Any) -> list[list[str]]:
    """Ids of the first batches of one rank."""
    return Run(files, num_workers, **options).take(number)


def lane_ids(files: Sequence[Path], num_ids: int, rank: int, world: int, worker: int, num_workers: int) -> list[str]:
    stream = make_stream(files, rank=rank, world_size=world)
    samples = stream.samples_of_worker(worker, num_workers)
    return [sample["id"] for sample in itertools.islice(samples, num_ids)]


PLACE = ("lane", "position", "num_bad")


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_two_ranks_and_their_workers_see_every_photo_once(files: list[Path], num_workers: int) -> None:
    lanes = max(num_workers, 1)
    per_lane = NUM_PHOTOS // (2 * lanes)  # of the smaller parts; parts differ by one photo at most
    num_batches = lanes * (per_lane // 20)  # whole batches of the first epoch
    seen = Counter(
        photo
        for rank in range(2)
        for batch in batches(files, num_batches, num_workers=num_workers, rank=rank, world_size=2)
        for photo in batch
    )
    assert max(seen.values()) == 1
    assert seen.total() == 2 * num_batches * 20


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("world", "num_workers"), [(1, 1), (2, 1), (2, 3), (3, 4), (7, 5)])
def test_all_lanes_together_cover_each_epoch_exactly(
    files: list[Path], world: int, num_workers: int, shuffle: bool
) -> None:
    num_lanes = world * num_workers
    epochs: list[list[str]] = [[], [], []]
    for rank, worker in itertools.product(range(world), range(num_workers)):
        part = rank * num_workers + worker
        size = NUM_PHOTOS * (part + 1) // num_lanes - NUM_PHOTOS * part // num_lanes
        stream = make_stream(files, rank=rank, world_size=world, shuffle=shuffle)
        ids = [sample["id"] for sample in itertools.islice(stream.samples_of_worker(worker, num_workers), 3 * size)]
        for epoch in range(3):
            epochs[epoch] += ids[epoch * size : (epoch + 1) * size]
    assert [sorted(epoch) for epoch in epochs] == [EVERYTHING] * 3


def test_fewer_row_groups_than_lanes_still_serve_each_photo_once(tmp_path: Path) -> None:
    small = write_photos(tmp_path, [32])
    ids = [lane_ids(small, 4, rank, 2, worker, 4) for rank in range(2) for worker in range(4)]
    assert sorted(itertools.chain(*ids)) == [f"photo-{number:05d}" for number in range(32)]


def test_without_shuffling_photos_come_as_they_are_stored(files: list[Path]) -> None:
    ids = [sample["id"] for sample in itertools.islice(make_stream(files, shuffle=False), 2 * NUM_PHOTOS)]
    assert ids == EVERYTHING * 2


@pytest.mark.parametrize(
    ("num_workers", "num_done"),
    [(0, 1), (0, 26), (0, 77), (1, 40), (2, 7), (2, 26), (2, 77), (3, 1), (3, 28), (3, 77)],
)
def test_resumed_stream_yields_the_samples_an_unbroken_one_would(
    files: list[Path], num_workers: int, num_done: int
) -> None:
    # a rank of two has 501 photos, 25 batches, an epoch: the starts lie in epochs 0 to 3
    unbroken = Run(files, num_workers, rank=1, world_size=2)
    unbroken.take(num_done)
    place = place_of(Run(files, num_workers, rank=0, world_size=2), unbroken)
    resumed = Run(files, num_workers, place, rank=1, world_size=2)
    assert resumed.take(8) == unbroken.take(8)


@settings(max_examples=25, deadline=None)
@given(num_done=st.integers(0, 160), num_lanes=st.integers(1, 6), batch_size=st.integers(1, 40), data=st.data())
def test_resumed_anywhere_with_fewer_workers_the_photos_stay_the_same(
    files: list[Path], num_done: int, num_lanes: int, batch_size: int, data: st.DataObject
) -> None:
    def take(number: int, num_workers: int, place: StreamPlace | None) -> list[dict[str, Any]]:
        """What a DataLoader takes: batch i from worker i % K; in one process, to be quick."""
        stream = make_stream(files, place, batch_size=batch_size)
        workers = [stream.samples_of_worker(worker, num_workers) for worker in range(num_workers)]
        return [s for i in range(number) for s in itertools.islice(workers[i % num_workers], batch_size)]

    fewer = data.draw(st.sampled_from([k for k in range(1, num_lanes + 1) if num_lanes % k == 0]))
    unbroken = take(num_done + 2 * num_lanes, num_lanes, None)
    done = {sample["lane"]: sample["position"] for sample in unbroken[: num_done * batch_size]}
    place = StreamPlace(num_done, tuple(done.get(lane, 0) for lane in range(num_lanes)))
    resumed = take(2 * num_lanes, fewer, place)
    assert resumed == unbroken[num_done * batch_size :]


@pytest.mark.parametrize(("world", "num_workers", "batch_size"), [(1, 4, 20), (1, 2, 10), (2, 1, 7), (4, 1, 20)])
def test_epoch_is_finished_once_by_other_processes_workers_and_batches(
    files: list[Path], world: int, num_workers: int, batch_size: int
) -> None:
    first = [Run(files, 2, rank=rank, world_size=2) for rank in range(2)]
    seen = [photo for run in first for batch in run.take(9) for photo in batch]
    place = place_of(*first)
    assert len(place.positions) == 4
    rest = []
    for rank in range(world):
        stream = make_stream(files, place, rank=rank, world_size=world, batch_size=batch_size)
        for worker in range(num_workers):
            lanes = lanes_per_rank(place, world, num_workers)
            own = {
                rank * lanes + (place.num_batches + worker + n * num_workers) % lanes
                for n in range(lanes // num_workers)
            }
            left = {lane: NUM_PHOTOS * (lane + 1) // 4 - NUM_PHOTOS * lane // 4 - place.positions[lane] for lane in own}
            for sample in stream.samples_of_worker(worker, num_workers):
                if left[sample["lane"]]:
                    left[sample["lane"]] -= 1
                    rest.append(sample["id"])
                if not any(left.values()):
                    break
    assert sorted(seen + rest) == EVERYTHING


def test_workers_that_the_lanes_cannot_be_dealt_to_are_refused_with_those_that_fit(files: list[Path]) -> None:
    with pytest.raises(SourceError, match=r"reads 4 lanes .* 1 processes x 3 workers; .*num_workers 1, 2, 4"):
        next(make_stream(files, StreamPlace(8, (40, 40, 40, 40))).samples_of_worker(0, 3))
    with pytest.raises(SourceError, match="3 processes x 1 workers"):
        iter(make_stream(files, StreamPlace(8, (40, 40, 40, 40)), world_size=3))


def test_resumed_stream_repeats_the_augmentation_seeds(files: list[Path]) -> None:
    def seeds(place: StreamPlace | None, number: int) -> list[int]:
        return [sample["augmentation_seed"] for sample in itertools.islice(make_stream(files, place), number)]

    assert seeds(None, 1200)[1100:] == seeds(StreamPlace(55, (1100,)), 100)


def test_a_jump_does_not_read_what_it_skips(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: read.append(i) or original(self, i, **options)
    )
    next(iter(make_stream(files, StreamPlace(10_000, (100_000,)), batch_size=10, window_samples=100)))
    assert len(read) <= 4  # a window of 100 rows touches four groups at most: two shards end in short ones


def refuse_every_tenth(sample: dict[str, Any]) -> list[dict[str, Any]]:
    if sample["id"].endswith("7"):
        raise DamagedPhotoError("made so")
    return [sample]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_photos_are_passed_over_and_batches_stay_full(
    files: list[Path], num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(files, num_workers, prepare=refuse_every_tenth)
    with caplog.at_level(logging.WARNING):
        good = [photo for batch in run.take(44) for photo in batch]  # 903 good ones are 45 batches and a bit
    assert len(set(good)) == len(good)
    assert not [photo for photo in good if photo.endswith("7")]
    if num_workers == 0:  # a worker's log is its own
        assert "left out damaged photo photo-00007: made so" in caplog.text


def test_damaged_photos_are_counted_once_each(files: list[Path]) -> None:
    samples = list(itertools.islice(make_stream(files, prepare=refuse_every_tenth), 2 * 903))
    num_bad = sum(sample["num_bad"] for sample in samples)
    assert samples[-1]["position"] - num_bad == 2 * 903
    assert 199 <= num_bad <= 200  # 100 of each epoch end in 7; the last may come behind the last good one


@pytest.mark.parametrize("num_done", [3, 40, 101])
def test_resumption_counts_damaged_photos_too(files: list[Path], num_done: int) -> None:
    unbroken = Run(files, 2, prepare=refuse_every_tenth)
    unbroken.take(num_done)
    resumed = Run(files, 2, place_of(unbroken), prepare=refuse_every_tenth)
    assert resumed.take(6) == unbroken.take(6)


def test_stream_of_only_damaged_photos_ends_with_a_reason(files: list[Path]) -> None:
    def refuse(sample: dict[str, Any]) -> list[dict[str, Any]]:
        raise DamagedPhotoError("made so")

    with pytest.raises(DamagedPhotoError, match=r"last 1003 photos are all damaged; .*made so"):
        next(iter(make_stream(files, prepare=refuse)))


def test_crops_of_a_photo_stay_together_and_share_its_place(files: list[Path]) -> None:
    stream = make_stream(files, prepare=lambda sample: [{**sample, "crop": n} for n in range(4)], crops_per_photo=4)
    samples = list(itertools.islice(stream, 4 * NUM_PHOTOS))
    assert [sample["crop"] for sample in samples] == list(range(4)) * NUM_PHOTOS
    assert sorted(sample["id"] for sample in samples[::4]) == EVERYTHING
    assert [sample["position"] for sample in samples[::4]] == list(range(1, NUM_PHOTOS + 1))
    with pytest.raises(SourceError, match="batch_size=20 must be a multiple of crops_per_photo=3"):
        make_stream(files, crops_per_photo=3)


def test_a_part_is_shuffled_and_resumed_like_a_whole(files: list[Path]) -> None:
    groups = PhotoGroups([ParquetShards(files)], subset="last_half")
    stream = PhotoStream(groups, seed=1, batch_size=10, window_samples=64)
    two_epochs = [sample["id"] for sample in itertools.islice(stream, 2 * 502)]
    assert sorted(two_epochs[:502]) == sorted(two_epochs[502:]) == EVERYTHING[501:]
    assert two_epochs[:502] != two_epochs[502:]
    stream.place = StreamPlace(60, (600,))
    assert [sample["id"] for sample in itertools.islice(stream, 100)] == two_epochs[600:700]


def test_augmentation_seeds_differ_between_photos_and_between_epochs(files: list[Path]) -> None:
    samples = list(itertools.islice(PhotoStream(files, seed=0, batch_size=10), 2 * NUM_PHOTOS))
    seeds = [sample["augmentation_seed"] for sample in samples]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_augmentation_seed_of_a_photo_does_not_depend_on_ranks_or_workers(files: list[Path]) -> None:
    def seeds(rank: int, world: int, worker: int, num_workers: int, number: int) -> dict[str, int]:
        stream = PhotoStream(files, seed=0, batch_size=10, rank=rank, world_size=world)
        samples = itertools.islice(stream.samples_of_worker(worker, num_workers), number)
        return {sample["id"]: sample["augmentation_seed"] for sample in samples}

    alone = seeds(0, 1, 0, 1, NUM_PHOTOS)
    shared = seeds(1, 2, 2, 3, NUM_PHOTOS // 6)
    assert shared.items() <= alone.items()


def test_order_changes_with_the_epoch_and_the_seed(files: list[Path]) -> None:
    first, second = np.array_split(lane_ids(files, 2 * NUM_PHOTOS, 0, 1, 0, 1), 2)
    assert sorted(first) == sorted(second)
    assert (first != second).mean() > 0.9
    other = [sample["id"] for sample in itertools.islice(PhotoStream(files, seed=4, batch_size=20), NUM_PHOTOS)]
    assert (first != np.array(other)).mean() > 0.9


def test_shuffle_breaks_up_neighbours(tmp_path: Path) -> None:
    many = write_photos(tmp_path, [2000, 2000])
    numbers = [
        int(sample["image"]["bytes"]) for sample in itertools.islice(PhotoStream(many, seed=0, batch_size=64), 4000)
    ]
    assert np.mean(np.abs(np.diff(numbers)) < 100) < 0.1  # stored neighbours share a row group of 100
    assert abs(np.corrcoef(np.arange(4000), numbers)[0, 1]) < 0.3


def test_samples_carry_undecoded_bytes_and_all_columns(files: list[Path]) -> None:
    sample = next(iter(PhotoStream(files, seed=0, batch_size=1)))
    number = int(sample["id"].removeprefix("photo-"))
    assert sample["image"]["bytes"] == b"%d" % number
    assert (sample["latitude"], sample["longitude"]) == (number % 90, number % 180)
    assert set(sample) == {"image", "latitude", "longitude", "id", "augmentation_seed", *PLACE}


def test_only_the_columns_asked_for_are_read(files: list[Path]) -> None:
    sample = next(iter(PhotoStream(files, seed=0, batch_size=1, columns=["id"])))
    assert set(sample) == {"id", "augmentation_seed", *PLACE}


def test_stream_knows_the_size_of_an_epoch(files: list[Path]) -> None:
    assert PhotoStream(files, seed=0, batch_size=1, rank=1, world_size=4).num_photos == NUM_PHOTOS


def test_more_consumers_than_photos_are_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = write_photos(tmp_path, [3])
    with pytest.raises(SourceError, match=r"3 photos are not enough for 4 .* fewer processes or workers"):
        PhotoStream(three, seed=0, batch_size=1, world_size=4)
    stream = PhotoStream(three, seed=0, batch_size=1, world_size=2)
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: SimpleNamespace(id=0, num_workers=2))
    with pytest.raises(SourceError, match="2 processes x 2 workers"):
        iter(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"columns": ["lat"]}, "no column 'lat'; it has image, latitude"),
    ],
)
def test_impossible_options_are_refused_by_name(files: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        PhotoStream(files, **({"seed": 0, "batch_size": 1} | options))


def test_columns_that_are_not_read_may_differ(files: list[Path], tmp_path: Path) -> None:
    table = pq.read_table(files[0])
    pq.write_table(table.append_column("scene", pa.array(["urban"] * len(table))), tmp_path / "scenes.parquet")
    stream = PhotoStream([files[0], tmp_path / "scenes.parquet"], seed=0, batch_size=1, columns=["image", "id"])
    assert stream.num_photos == 2 * len(table)
    assert {tuple(sample) for sample in itertools.islice(stream, stream.num_photos)} == {
        ("image", "id", "augmentation_seed", *PLACE)
    }
