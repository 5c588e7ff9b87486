"""Sources as data sets of `datasets`: map-style for tests, streamed for looking at them."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from source_files import COLUMNS, json_bytes, msgpack_bytes, photo, tar_bytes, write_csv, write_file, zip_bytes
from torch.utils.data import DataLoader

from geomae.data.collate import PhotoCollator
from geomae.data.layout import shard_name
from geomae.data.loading import find_absent, load_photos, stream_photos
from geomae.data.shards import PhotoRow, write_shard
from geomae.data.sources import SourceOptions
from geomae.errors import ConfigError, CoordinateError, SourceError

MakePhoto = Callable[..., Path]


def write_packed(folder: Path, shard_sizes: list[int], split: str) -> None:
    first = 0
    for shard, size in enumerate(shard_sizes):
        rows = [PhotoRow(f"photo-{n:05d}", b"%d" % n, n % 90, n % 180) for n in range(first, first + size)]
        path = folder / shard_name(split, shard, len(shard_sizes))
        write_shard(path, iter(rows), optional_columns=(), digest="test")
        first += size


# Packed folders


def test_packed_split_loads_map_style_once_and_in_order(tmp_path: Path) -> None:
    write_packed(tmp_path, [120, 30], "test_im2gps")
    dataset = load_photos(tmp_path, "test_im2gps")
    assert dataset["id"] == [f"photo-{number:05d}" for number in range(150)]
    assert dataset[7]["image"]["bytes"] == b"7"
    assert str(dataset.split) == "test_im2gps"


def test_swapping_the_columns_of_a_packed_folder_is_refused(tmp_path: Path) -> None:
    write_packed(tmp_path, [10], "test")
    with pytest.raises(ConfigError, match=r"--swap_lat_lon .* is a packed folder"):
        load_photos(tmp_path, "test", swap_lat_lon=True)


def test_changed_shards_are_not_served_from_a_cache(tmp_path: Path) -> None:
    write_packed(tmp_path, [10], "test")
    assert len(load_photos(tmp_path, "test")) == 10
    write_packed(tmp_path, [11], "test")
    assert len(load_photos(tmp_path, "test")) == 11


def test_missing_split_lists_those_that_are_there(tmp_path: Path) -> None:
    write_packed(tmp_path, [10], "train")
    with pytest.raises(SourceError, match=r"no split 'validation'.*it holds the splits train"):
        load_photos(tmp_path, "validation")


def test_no_packed_photo_is_absent(tmp_path: Path) -> None:
    write_packed(tmp_path, [3, 2], "test")
    assert find_absent(load_photos(tmp_path, "test")).tolist() == [False] * 5


# Test sets: a table decides


def test_absent_photos_are_told_from_damaged_ones(
    tmp_path: Path, make_photo: MakePhoto, caplog: pytest.LogCaptureFixture
) -> None:
    make_photo("photos/a.jpg")
    write_file(tmp_path / "photos/b.jpg", b"not a photo")
    write_file(tmp_path / "photos/c.jpg", b"")
    (tmp_path / "photos.csv").write_text("id,latitude,longitude\na.jpg,3,4\nd.jpg,3,4\nb.jpg,1,2\nc.jpg,1,2\n")
    dataset = load_photos(tmp_path / "photos", "test")
    absent = [name for name, is_absent in zip(dataset["id"], find_absent(dataset), strict=True) if is_absent]
    assert absent == ["d.jpg"]
    assert f"1 of the 4 photos that the table names are not in {tmp_path / 'photos'}; the first is d.jpg" in caplog.text


def test_a_source_without_one_photo_of_its_table_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "photos" / "0.tar", tar_bytes({"a.jpg": b"", "b.jpg": b""}))  # gone: no byte is left of them
    table = tmp_path / "photos.csv"
    table.write_text("id,latitude,longitude\na.jpg,3,4\nb.jpg,1,2\n")
    with pytest.raises(SourceError, match=r"not one of the 2 photos that the table names is in .*, such as a\.jpg"):
        load_photos(tmp_path / "photos", "test", csv_file=table)


@pytest.mark.parametrize(
    "header", ["file,latitude,longitude", "IMG_ID,LAT,LON", "IMG_FILE,LAT,LON", "id,latitude,longitude"]
)
def test_folder_with_a_csv_loads_map_style(tmp_path: Path, make_photo: MakePhoto, header: str) -> None:
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


def test_files_that_a_test_table_does_not_name_are_ignored(tmp_path: Path) -> None:
    """Im2GPS3k's zip holds 3,000 files, and 2,997 have labels."""
    for number in range(3000):
        write_file(tmp_path / "photos" / f"{number}.jpg", b"x")
    labelled = [number for number in range(3000) if number not in (17, 1500, 2999)]
    table = write_csv(tmp_path / "im2gps3k.csv", "IMG_ID,LAT,LON", [(f"{n}.jpg", 1, 2) for n in labelled])
    dataset = load_photos(tmp_path / "photos", "test", csv_file=table)
    assert dataset["id"] == [f"{number}.jpg" for number in labelled]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "msgpack"])
def test_photos_that_are_named_and_missing_stay_and_count_as_damaged(
    tmp_path: Path, make_photo: MakePhoto, kind: str
) -> None:
    data = {name: make_photo(f"made/{name}", seed=n).read_bytes() for n, name in enumerate(("a.jpg", "b.jpg"))}
    source = tmp_path / "source"
    if kind == "folder":
        for name, content in data.items():
            write_file(source / name, content)
    archives = {"tar": tar_bytes(data), "zip": zip_bytes(data, zipfile.ZIP_DEFLATED)}
    archives["msgpack"] = msgpack_bytes({"id": name, "image": content} for name, content in data.items())
    if kind != "folder":
        write_file(source / f"0.{'msg' if kind == 'msgpack' else kind}", archives[kind])
    rows = [("gone.jpg", 1, 2), ("b.jpg", 3, 4), ("a.jpg", 5, 6), ("../../secret.jpg", 7, 8)]
    write_file(tmp_path / "secret.jpg", data["a.jpg"])
    write_csv(source / "t.csv", "IMG_ID,LAT,LON", rows)
    dataset = load_photos(source, "test")
    assert sorted(dataset["id"]) == sorted(name for name, _, _ in rows)
    samples = {sample["id"]: sample for sample in dataset}
    for name in ("gone.jpg", "../../secret.jpg"):
        assert not samples[name]["image"]["bytes"]
        assert samples[name]["image"]["path"] is None
    batch = PhotoCollator(16, augment=False)([dataset[n] for n in range(4)])
    assert batch["ids"] == ["b.jpg", "a.jpg"]
    assert batch["num_bad"] == 2
    assert batch["coordinates_deg"].tolist() == [[3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("rows", [[("a.jpg", 91, 2)], [("a.jpg", "", "")], [("a.jpg", 1, 2), ("b.jpg", 2, "nan")]])
def test_test_table_with_one_wrong_coordinate_is_refused(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    write_file(tmp_path / "a.jpg", photo(1))
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [(f"good{n}.jpg", 1, 2) for n in range(200)] + rows)
    with pytest.raises(CoordinateError, match=r"1 of 20\d rows of .*t\.csv are not on Earth"):
        load_photos(tmp_path, "test")


def test_test_table_that_names_a_photo_twice_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jpg", photo(1))
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON", [("a.jpg", 1, 2), ("a.jpg", 1, 2)])
    with pytest.raises(SourceError, match="names 1 photos more than once"):
        load_photos(tmp_path, "test")


def test_records_of_a_test_set_are_strict_too(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2), "b.jpg": photo(2)}
    write_file(tmp_path / "tars" / "0.tar", tar_bytes(members))
    with pytest.raises(CoordinateError, match="1 of 2 rows"):
        load_photos(tmp_path / "tars", "test")
    columns: dict[str, Any] = {"image": [b"x", b"y"], "lat": [1.0, 2.0], "lon": [1.0, 2.0], "id": ["a", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.raises(SourceError, match=r"1 photos of a test set have the id of another; the first is a"):
        load_photos(tmp_path / "d.parquet", "test")


def test_photos_without_a_position_do_not_vanish_from_a_test_set_unsaid(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (shared_data / "odd_images" / "Issue 308.jpg", *(shared_data / "photos" / "geotagged").iterdir()):
        (tmp_path / file.name).symlink_to(file)
    assert len(load_photos(tmp_path, "test")) == 26
    assert "7 photos of" in caplog.text
    assert "its GPS position is (0, 0)" in caplog.text


def test_photos_in_archives_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    for part in range(3):
        members = {f"{part}/{n}.jpg": photo(10 * part + n) for n in range(5)}
        write_file(tmp_path / f"{part}.tar", tar_bytes(members))
    rows = [(f"{part}/{n}.jpg", part + 1, n, f"author{n}") for n in range(5) for part in range(3)]
    write_csv(tmp_path / "t.csv", "IMG_ID,LAT,LON,AUTHOR", rows)
    dataset = load_photos(tmp_path, "test")
    assert list(dataset["id"]) == [name for name, *_ in rows]
    assert dataset[4] == {
        "image": {"bytes": photo(11), "path": None},
        "latitude": 2.0,
        "longitude": 1.0,
        "id": "1/1.jpg",
        "author": "author1",
    }
    assert [sample["id"] for sample in dataset.select([3, 0])] == ["0/1.jpg", "0/0.jpg"]
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list)  # type: ignore[arg-type]
    read = {sample["id"]: sample["image"]["bytes"] for batch in loader for sample in batch}
    assert read == {f"{part}/{n}.jpg": photo(10 * part + n) for n in range(5) for part in range(3)}


# Streams


def write_tars(folder: Path, *, num_tars: int = 5, num_photos: int = 7) -> dict[str, bytes]:
    written = {}
    for part in range(num_tars):
        members = {f"{part}-{n}.jpg": photo(100 * part + n) for n in range(num_photos)}
        written |= members
        write_file(folder / f"{part}.tar", tar_bytes(members))
    return written


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0)])
def test_streamed_photos_are_shared_by_ranks_and_workers(tmp_path: Path, world_size: int, num_workers: int) -> None:
    written = write_tars(tmp_path)
    read: list[tuple[str, bytes]] = []
    for rank in range(world_size):
        stream = split_dataset_by_node(stream_photos(tmp_path, SourceOptions(unlabelled=True)), rank, world_size)
        loader = DataLoader(stream, batch_size=4, num_workers=num_workers, collate_fn=list)
        read += [(sample["id"], sample["image"]["bytes"]) for batch in loader for sample in batch]
    assert len(read) == len(written)
    assert dict(read) == written


def test_stream_has_the_same_columns_whatever_is_known(tmp_path: Path) -> None:
    write_tars(tmp_path)
    stream = stream_photos(tmp_path, SourceOptions(unlabelled=True))
    assert list(stream.features) == COLUMNS
    (first,) = stream.take(1)
    assert {name: first[name] for name in COLUMNS if name not in ("image", "id")} == dict.fromkeys(
        ["latitude", "longitude", "author", "scene", "scene16", "country"]
    )


def test_photo_that_cannot_be_read_stays_in_the_stream_with_no_bytes(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_file(tmp_path / name, photo(ord(name[0])))
    stream = stream_photos(tmp_path, SourceOptions(unlabelled=True))
    (tmp_path / "a.jpg").unlink()
    assert {row["id"]: row["image"]["bytes"] for row in stream} == {"a.jpg": b"", "b.jpg": photo(ord("b"))}


def test_stream_shuffles_and_resumes_as_every_stream_of_datasets_does(tmp_path: Path) -> None:
    written = write_tars(tmp_path)
    stream = stream_photos(tmp_path, SourceOptions(unlabelled=True)).shuffle(seed=3, buffer_size=10)
    order = [row["id"] for row in stream]
    assert sorted(order) == sorted(written)
    assert order != sorted(order)
    plain = stream_photos(tmp_path, SourceOptions(unlabelled=True))
    iterator = iter(plain)
    first = [next(iterator)["id"] for _ in range(9)]
    state = plain.state_dict()
    again = stream_photos(tmp_path, SourceOptions(unlabelled=True))
    again.load_state_dict(state)
    assert first + [row["id"] for row in again] == [row["id"] for row in plain]
