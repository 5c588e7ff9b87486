import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from geomae.data.shards import PhotoRow, list_shards, shard_name, write_shard
from geomae.data.stream import PhotoStream, load_photos
from geomae.errors import ConfigError, SourceError

# three workers on a machine of two cores are a test of the order, not of speed
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

NUM_PHOTOS = 1003  # a prime-like count: no number of ranks, workers or photos of a batch divides it


def write_photos(folder: Path, sizes: list[int], split: str = "train") -> list[Path]:
    """Shards of `sizes` rows; the image bytes are the photo's number, undecodable, for the stream must not look."""
    folder.mkdir(parents=True, exist_ok=True)
    number = itertools.count()
    for index, size in enumerate(sizes):
        rows = [PhotoRow(f"photo-{(n := next(number)):05d}", b"%d" % n, n % 90, n % 180) for _ in range(size)]
        write_shard(folder / shard_name(split, index, len(sizes)), rows, optional_columns=(), digest="")
    return list_shards(folder, split)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards that do not divide into 100-row groups; one of them is empty."""
    return write_photos(tmp_path_factory.mktemp("shards"), [456, 0, 47, 500])


def batches(files: list[Path], number: int, *, num_workers: int = 0, **options: Any) -> list[list[str]]:
    """Ids of the first batches of one rank."""
    arguments = {"seed": 3, "batch_size": 20, "window_samples": 150} | options
    stream = PhotoStream(files, **arguments)
    loader = DataLoader(stream, batch_size=arguments["batch_size"], num_workers=num_workers, collate_fn=list)
    taken = [[sample["id"] for sample in batch] for batch in itertools.islice(loader, number)]
    assert len(taken) == number
    return taken


def consumer_ids(files: list[Path], num_ids: int, rank: int, world: int, worker: int, num_workers: int) -> list[str]:
    stream = PhotoStream(files, seed=3, batch_size=20, window_samples=150, rank=rank, world_size=world)
    samples = stream.samples_of_worker(worker, num_workers)
    return [sample["id"] for sample in itertools.islice(samples, num_ids)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_two_ranks_and_their_workers_see_every_photo_once(files: list[Path], num_workers: int) -> None:
    consumers = max(num_workers, 1)
    per_consumer = NUM_PHOTOS // (2 * consumers)  # of the smaller parts; parts differ by one photo at most
    num_batches = consumers * (per_consumer // 20)  # whole batches of the first epoch
    seen = Counter(
        photo
        for rank in range(2)
        for batch in batches(files, num_batches, num_workers=num_workers, rank=rank, world_size=2)
        for photo in batch
    )
    assert max(seen.values()) == 1
    assert seen.total() == 2 * num_batches * 20


@pytest.mark.parametrize(("world", "num_workers"), [(1, 1), (2, 1), (2, 3), (3, 4), (7, 5)])
def test_all_consumers_together_cover_each_epoch_exactly(files: list[Path], world: int, num_workers: int) -> None:
    num_consumers = world * num_workers
    epochs: list[list[str]] = [[], [], []]
    for rank, worker in itertools.product(range(world), range(num_workers)):
        part = rank * num_workers + worker
        size = NUM_PHOTOS * (part + 1) // num_consumers - NUM_PHOTOS * part // num_consumers
        ids = consumer_ids(files, 3 * size, rank, world, worker, num_workers)
        for epoch in range(3):
            epochs[epoch] += ids[epoch * size : (epoch + 1) * size]
    everything = sorted(f"photo-{number:05d}" for number in range(NUM_PHOTOS))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3


def test_fewer_row_groups_than_consumers_still_serve_each_photo_once(tmp_path: Path) -> None:
    small = write_photos(tmp_path, [32])
    ids = [consumer_ids(small, 4, rank, 2, worker, 4) for rank in range(2) for worker in range(4)]
    assert sorted(itertools.chain(*ids)) == [f"photo-{number:05d}" for number in range(32)]


@pytest.mark.parametrize(
    ("num_workers", "start_batch"),
    [(0, 1), (0, 26), (0, 77), (1, 40), (2, 7), (2, 26), (2, 77), (3, 1), (3, 28), (3, 77)],
)
def test_resumed_stream_yields_the_samples_an_unbroken_one_would(
    files: list[Path], num_workers: int, start_batch: int
) -> None:
    # a rank of two has 501 photos, 25 batches, an epoch: the starts lie in epochs 0 to 3
    unbroken = batches(files, start_batch + 8, num_workers=num_workers, rank=1, world_size=2)
    resumed = batches(files, 8, num_workers=num_workers, rank=1, world_size=2, start_batch=start_batch)
    assert resumed == unbroken[start_batch:]


def test_resumed_stream_repeats_the_augmentation_seeds(files: list[Path]) -> None:
    def seeds(start_batch: int, number: int) -> list[int]:
        stream = PhotoStream(files, seed=3, batch_size=20, start_batch=start_batch)
        return [sample["augmentation_seed"] for sample in itertools.islice(stream, number)]

    assert seeds(0, 1200)[1100:] == seeds(55, 100)


def test_a_jump_does_not_read_what_it_skips(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: read.append(i) or original(self, i, **options)
    )
    next(iter(PhotoStream(files, seed=0, batch_size=10, window_samples=100, start_batch=10_000)))
    assert len(read) <= 4  # a window of 100 rows touches four groups at most: two shards end in short ones


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
    first, second = np.array_split(consumer_ids(files, 2 * NUM_PHOTOS, 0, 1, 0, 1), 2)
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
    assert set(sample) == {"image", "latitude", "longitude", "id", "augmentation_seed"}


def test_only_the_columns_asked_for_are_read(files: list[Path]) -> None:
    sample = next(iter(PhotoStream(files, seed=0, batch_size=1, columns=["id"])))
    assert set(sample) == {"id", "augmentation_seed"}


def test_stream_knows_the_size_of_an_epoch(files: list[Path]) -> None:
    assert PhotoStream(files, seed=0, batch_size=1, rank=1, world_size=4).num_photos == NUM_PHOTOS


def test_more_consumers_than_photos_are_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = write_photos(tmp_path, [3])
    with pytest.raises(SourceError, match=r"3 photos in 1 shards are not enough for 4 .* fewer processes or workers"):
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
        ({"start_batch": -1}, "start_batch=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"columns": ["lat"]}, "no column 'lat'; it has image, latitude"),
    ],
)
def test_impossible_options_are_refused_by_name(files: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        PhotoStream(files, **({"seed": 0, "batch_size": 1} | options))


def test_no_shards_or_no_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no shards were given"):
        PhotoStream([], seed=0, batch_size=1)
    with pytest.raises(SourceError, match="no photo at all"):
        PhotoStream(write_photos(tmp_path, [0]), seed=0, batch_size=1)


def test_shards_with_different_columns_are_refused(files: list[Path], tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match=r"other\.parquet has the columns"):
        PhotoStream([*files, tmp_path / "other.parquet"], seed=0, batch_size=1)


def test_columns_that_are_not_read_may_differ(files: list[Path], tmp_path: Path) -> None:
    table = pq.read_table(files[0])
    pq.write_table(table.append_column("scene", pa.array(["urban"] * len(table))), tmp_path / "scenes.parquet")
    stream = PhotoStream([files[0], tmp_path / "scenes.parquet"], seed=0, batch_size=1, columns=["image", "id"])
    assert stream.num_photos == 2 * len(table)
    assert {tuple(sample) for sample in itertools.islice(stream, stream.num_photos)} == {
        ("image", "id", "augmentation_seed")
    }


def test_broken_shard_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match=r"broken\.parquet cannot be read"):
        PhotoStream([tmp_path / "broken.parquet"], seed=0, batch_size=1)


def test_packed_split_loads_map_style_once_and_in_order(tmp_path: Path) -> None:
    write_photos(tmp_path, [120, 30], split="test_im2gps")
    dataset = load_photos(tmp_path, "test_im2gps")
    assert dataset["id"] == [f"photo-{number:05d}" for number in range(150)]
    assert dataset[7]["image"]["bytes"] == b"7"
    assert str(dataset.split) == "test_im2gps"


def test_swapping_the_columns_of_a_packed_folder_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, [10], split="test")
    with pytest.raises(ConfigError, match=r"--swap_lat_lon .* is a packed folder"):
        load_photos(tmp_path, "test", swap_lat_lon=True)


def test_changed_shards_are_not_served_from_a_cache(tmp_path: Path) -> None:
    write_photos(tmp_path, [10], split="test")
    assert len(load_photos(tmp_path, "test")) == 10
    write_photos(tmp_path, [11], split="test")
    assert len(load_photos(tmp_path, "test")) == 11


@pytest.mark.parametrize(
    "header", ["file,latitude,longitude", "IMG_ID,LAT,LON", "IMG_FILE,LAT,LON", "id,latitude,longitude"]
)
def test_folder_with_a_csv_loads_map_style(tmp_path: Path, make_photo: Callable[..., Path], header: str) -> None:
    for name in ("a.jpg", "sub/b.jpg"):
        make_photo(f"photos/{name}")
    (tmp_path / "photos.csv").write_text(f"{header}\nsub/b.jpg,1.5,-2.5\na.jpg,3,4\n")
    dataset = load_photos(tmp_path / "photos", "test")
    assert dataset["id"] == ["sub/b.jpg", "a.jpg"]
    assert dataset[0] == {
        "image": {"bytes": None, "path": str(tmp_path / "photos" / "sub" / "b.jpg")},
        "latitude": 1.5,
        "longitude": -2.5,
        "id": "sub/b.jpg",
    }


def test_real_geotagged_photos_load_map_style(shared_data: Path) -> None:
    dataset = load_photos(shared_data / "photos" / "geotagged", "test")
    assert len(dataset) == 32
    assert all(Path(image["path"]).is_file() for image in dataset["image"])


def test_missing_split_lists_those_that_are_there(tmp_path: Path) -> None:
    write_photos(tmp_path, [10], split="train")
    with pytest.raises(SourceError, match=r"no split 'validation'.*it holds the splits train"):
        load_photos(tmp_path, "validation")


def test_datasets_reads_the_shards_as_images(tmp_path: Path) -> None:
    metadata = pq.read_schema(write_photos(tmp_path, [3])[0]).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
