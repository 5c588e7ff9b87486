import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geomae.data.layout import list_shards
from geomae.data.pack import PhotoPacker, choose_splits, pack_photos
from geomae.data.photo_index import PhotoIndex
from geomae.data.photos import decode_photo
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, SourceError, TooManyDamagedPhotosError

MakePhoto = Callable[..., Path]


@dataclass(frozen=True)
class Photo:
    """A file with its coordinates, before it stands in an index."""

    id: str
    file: str
    latitude: float | None = None
    longitude: float | None = None
    author: str | None = None


def index_of(photos: Sequence[Photo], description: str = "a test") -> PhotoIndex:
    columns: dict[str, list[Any]] = {name: [getattr(p, name) for p in photos] for name in Photo.__dataclass_fields__}
    states = [os.stat(photo.file) if Path(photo.file).is_file() else None for photo in photos]
    columns["state"] = [0 if state is None else state.st_mtime_ns + state.st_mode for state in states]
    columns["size"] = [-1 if state is None else state.st_size for state in states]
    return PhotoIndex.from_columns("", columns, description=description)


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return list(pa.concat_tables([pq.read_table(file) for file in list_shards(folder, split)]).to_pylist())


def decoded(row: dict[str, Any]) -> np.ndarray:
    return decode_photo(row["image"]["bytes"], min_short_side=0)


@pytest.fixture
def records(tmp_path: Path, make_photo: MakePhoto) -> list[Photo]:
    """Forty small photos of ten authors, in the order of the authors."""
    made = []
    for number in range(40):
        path = make_photo(f"photos/{number:02d}.jpg", seed=number, width=40, height=30)
        made.append(Photo(f"{number:02d}.jpg", str(path), float(number), -1.0, author=f"author {number // 4}"))
    return made


def pack(
    records: Sequence[Photo] | PhotoIndex, output_dir: Path, *, source: str = "a test", **options: Any
) -> dict[str, Any]:
    index = records if isinstance(records, PhotoIndex) else index_of(records, source)
    return pack_photos(index, output_dir, PhotoPacker(), **options)


def test_every_photo_is_packed_once_with_its_coordinates(records: list[Photo], tmp_path: Path) -> None:
    manifest = pack(records, tmp_path / "out", photos_per_shard=15)
    rows = rows_of(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == [record.id for record in records]
    assert all(row["latitude"] == float(row["id"][:2]) for row in rows)
    assert all(row["author"] == f"author {int(row['id'][:2]) // 4}" for row in rows)
    assert [shard["num_photos"] for shard in manifest["splits"]["train"]["shards"]] == [15, 15, 10]
    assert manifest["options"]["short_side"] == 256


def test_neighbours_of_the_source_do_not_stay_neighbours(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out")
    order = [int(row["id"][:2]) for row in rows_of(tmp_path / "out")]
    assert order != sorted(order)
    pack(records[::-1], tmp_path / "reversed")
    assert order == [int(row["id"][:2]) for row in rows_of(tmp_path / "reversed")]


def test_splits_share_no_author_and_lose_no_photo(records: list[Photo], tmp_path: Path) -> None:
    manifest = pack(records, tmp_path / "out", validation_fraction=0.3, test_fraction=0.3)
    authors = {split: {row["author"] for row in rows_of(tmp_path / "out", split)} for split in manifest["splits"]}
    assert set(authors) == {"train", "validation", "test"}
    assert sum(map(len, authors.values())) == len(set.union(*authors.values())) == 10
    assert manifest["num_photos"] == 40


def test_a_share_that_no_photo_falls_into_is_refused_before_anything_is_written(
    records: list[Photo], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"validation_fraction is 1e-09, but no author of the 40 .* --split_name val"):
        pack(records, tmp_path / "out", validation_fraction=1e-9)
    assert not list((tmp_path / "out").glob("*"))


def test_finished_split_is_not_overwritten_by_other_options(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", validation_fraction=0.3)
    with pytest.raises(SourceError, match=r"split 'train' made with validation_fraction=0\.3, .*=0\.0 would overwrite"):
        pack(records, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.parquet"):
        file.unlink()
    assert set(pack(records, tmp_path / "out")["splits"]) == {"train"}


def test_finished_split_is_not_overwritten_by_another_source(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", source="photos with coordinates")
    unlabelled = [Photo(record.id, record.file) for record in records]
    with pytest.raises(SourceError, match=r"made with source='photos with .*another --output_dir.*delete train-\*"):
        pack(unlabelled, tmp_path / "out", source="photos without coordinates")
    assert all(row["latitude"] is not None for row in rows_of(tmp_path / "out"))


def test_same_photos_under_another_split_name_are_refused(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out")
    with pytest.raises(SourceError, match=r"holds 40 of these photos in its split 'train'.* into 'test' too"):
        pack(records, tmp_path / "out", split_name="test")


def test_photos_that_another_table_of_the_folder_names_too_are_refused(records: list[Photo], tmp_path: Path) -> None:
    pack(records[:30], tmp_path / "out", source="photos with coordinates of one.csv", folder="photos")
    other = {"source": "photos with coordinates of two.csv", "folder": "photos", "split_name": "test"}
    with pytest.raises(SourceError, match=r"holds 1 of these photos in its split 'train'; the first is 29\.jpg"):
        pack(records[29:], tmp_path / "out", **other)
    assert set(pack(records[30:], tmp_path / "out", **other)["splits"]) == {"train", "test"}


def test_photos_of_one_name_in_two_folders_are_two_photos(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", source="photos of one", folder="one")
    elsewhere = [replace(record, longitude=-7.5) for record in records]
    manifest = pack(elsewhere, tmp_path / "out", source="photos of two", folder="two", split_name="test")
    assert {name: entry["num_photos"] for name, entry in manifest["splits"].items()} == {"train": 40, "test": 40}


def test_the_same_photos_in_a_folder_of_another_name_are_the_same(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", source="photos of one", folder="one")
    with pytest.raises(SourceError, match="holds 40 of these photos in its split 'train'"):
        pack(records, tmp_path / "out", source="photos of two", folder="two", split_name="test")


def test_shards_of_a_killed_run_with_other_fractions_are_refused(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", validation_fraction=0.3)
    (tmp_path / "out" / "manifest.json").unlink()  # written last
    with pytest.raises(SourceError, match=r"in its split 'validation'.* into 'train' too.*delete validation-\*"):
        pack(records, tmp_path / "out")
    assert pack(records, tmp_path / "out", validation_fraction=0.3)["num_photos"] == 40


def test_fractions_are_shares_of_the_authors() -> None:
    names = [f"author {number}" for number in range(4000)]
    splits = choose_splits(names, names, validation_fraction=0.1, test_fraction=0.2)
    assert (splits == 1).mean() == pytest.approx(0.1, abs=0.02)
    assert (splits == 2).mean() == pytest.approx(0.2, abs=0.02)


def test_author_who_is_called_like_a_photo_is_drawn_for_himself() -> None:
    names = [str(number) for number in range(400)]
    options = {"validation_fraction": 0.5, "test_fraction": 0.0}
    by_author = choose_splits(["x"] * 400, names, **options)
    by_id = choose_splits(names, [None] * 400, **options)
    assert 100 < (by_author != by_id).sum() < 300


def test_split_of_a_photo_without_author_depends_on_its_id_alone() -> None:
    names = [str(number) for number in range(50)]
    forward = choose_splits(names, [None] * 50, validation_fraction=0.5, test_fraction=0.0)
    backward = choose_splits(names[::-1], [None] * 50, validation_fraction=0.5, test_fraction=0.0)
    assert (forward == backward[::-1]).all()
    assert set(forward.tolist()) == {0, 1}


def test_all_photos_of_an_author_fall_on_one_side() -> None:
    splits = choose_splits(["a", "b", "c"], ["someone"] * 3, validation_fraction=0.5, test_fraction=0.25)
    assert len(set(splits.tolist())) == 1


def test_two_processes_write_the_bytes_of_one(records: list[Photo], tmp_path: Path) -> None:
    for name, num_processes in (("one", 1), ("two", 2)):
        pack(records, tmp_path / name, photos_per_shard=15, num_processes=num_processes, validation_fraction=0.3)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("width", "height", "stored"), [(800, 600, (256, 341)), (600, 800, (341, 256)), (300, 200, (200, 300))]
)
def test_large_photos_shrink_and_small_ones_stay(
    make_photo: MakePhoto, width: int, height: int, stored: tuple[int, int]
) -> None:
    packed = PhotoPacker(short_side=256).pack_bytes(make_photo(width=width, height=height).read_bytes())
    assert decode_photo(packed, min_short_side=0).shape[:2] == stored


def test_shrunk_photo_still_shows_the_same_picture(make_photo: MakePhoto) -> None:
    data = make_photo(width=800, height=600, seed=5).read_bytes()
    packed = decode_photo(PhotoPacker(short_side=256).pack_bytes(data), min_short_side=0)
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((341, 256), Image.Resampling.BOX))
    assert np.abs(packed.astype(int) - expected.astype(int)).mean() < 3


def test_photo_that_fits_is_not_encoded_again(make_photo: MakePhoto) -> None:
    data = make_photo(width=200, height=100).read_bytes()
    packed = PhotoPacker(short_side=256).pack_bytes(data)
    assert data.endswith(packed[200:])  # the same scan; what may be missing is the metadata in front of it
    assert (decode_photo(packed, min_short_side=0) == decode_photo(data, min_short_side=0)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_is_stored_is_upright_rgb_for_every_reader(mode: str, orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new(mode, (60, 40)).save(buffer, "JPEG", exif=exif)
    with Image.open(io.BytesIO(PhotoPacker().pack_bytes(buffer.getvalue()))) as stored:
        assert stored.mode == "RGB"
        assert stored.size == ((60, 40) if orientation == 1 else (40, 60))
        assert not stored.getexif()


def test_orientation_files_are_stored_upright(shared_data: Path) -> None:
    for file in sorted((shared_data / "odd_images" / "orientation").glob("*_[2468].jpg")):
        packed = PhotoPacker(short_side=200).pack_bytes(file.read_bytes())
        with Image.open(io.BytesIO(packed)) as stored:
            assert stored.size == ((300, 200) if file.name.startswith("Landscape") else (200, 300))


def test_damaged_and_missing_photos_are_named_with_a_reason(records: list[Photo], tmp_path: Path) -> None:
    Path(records[3].file).write_bytes(b"gone bad")
    Path(records[5].file).unlink()
    manifest = pack(records, tmp_path / "out")
    reasons = {photo["file"]: photo["reason"] for photo in manifest["bad"]}
    assert set(reasons) == {"03.jpg", "05.jpg"}
    assert "no photo in a format" in reasons["03.jpg"]
    assert "No such file" in reasons["05.jpg"]
    assert (manifest["num_photos"], manifest["num_bad"]) == (38, 2)


def test_too_many_damaged_photos_stop_the_run(records: list[Photo], tmp_path: Path) -> None:
    for record in records[:10]:
        Path(record.file).write_bytes(b"gone bad")
    with pytest.raises(TooManyDamagedPhotosError, match=r"10 of 40 .*--max_bad_fraction"):
        pack(records, tmp_path / "out")
    assert pack(records, tmp_path / "out", max_bad_fraction=0.25)["num_bad"] == 10


def test_resumed_run_does_not_touch_finished_shards(records: list[Photo], tmp_path: Path) -> None:
    pack(records, tmp_path / "out", photos_per_shard=15)
    finished, missing = (
        tmp_path / "out" / "train-00000-of-00003.parquet",
        tmp_path / "out" / "train-00001-of-00003.parquet",
    )
    before, times = missing.read_bytes(), finished.stat().st_mtime_ns
    missing.unlink()
    manifest = pack(records, tmp_path / "out", photos_per_shard=15)
    assert missing.read_bytes() == before
    assert finished.stat().st_mtime_ns == times
    assert manifest["num_photos"] == 40


def test_mended_photo_is_packed_by_the_next_run(records: list[Photo], tmp_path: Path) -> None:
    good = Path(records[3].file).read_bytes()
    Path(records[3].file).write_bytes(b"gone bad")
    Path(records[5].file).unlink()
    assert pack(records, tmp_path / "out")["num_bad"] == 2
    for record in (records[3], records[5]):
        Path(record.file).write_bytes(good)
    manifest = pack(records, tmp_path / "out")
    assert (manifest["num_photos"], manifest["num_bad"]) == (40, 0)


def test_photos_mended_after_the_run_stopped_let_it_go_on(records: list[Photo], tmp_path: Path) -> None:
    good = Path(records[0].file).read_bytes()
    for record in records[:10]:
        Path(record.file).write_bytes(b"gone bad")
    with pytest.raises(TooManyDamagedPhotosError):
        pack(records, tmp_path / "out")
    for record in records[:10]:
        Path(record.file).write_bytes(good)
    assert pack(records, tmp_path / "out")["num_bad"] == 0


def test_unchanged_source_with_bad_photos_is_not_packed_again(records: list[Photo], tmp_path: Path) -> None:
    Path(records[3].file).write_bytes(b"gone bad")
    first = pack(records, tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert pack(records, tmp_path / "out") == first
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_position_of_a_second_frame_is_not_stored(make_photo: MakePhoto) -> None:
    exif, frame = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 0.0), 3: "E", 4: (151.0, 12.0, 0.0)})
    Image.new("RGB", (96, 64)).save(frame, "JPEG", exif=exif)
    data = make_photo().read_bytes()
    packed = PhotoPacker().pack_bytes(data + frame.getvalue())  # frames of an MPO file stand one behind the other
    assert packed == PhotoPacker().pack_bytes(data)
    assert b"Exif" not in packed


def test_photo_whose_metadata_cannot_be_told_from_its_pixels_is_encoded_again(make_photo: MakePhoto) -> None:
    data = make_photo(seed=7).read_bytes()
    packed = PhotoPacker(jpeg_quality=95).pack_bytes(data[:20] + b"taken at home" + data[20:])
    assert b"home" not in packed
    difference = decode_photo(packed, min_short_side=0).astype(int) - decode_photo(data, min_short_side=0)
    assert np.abs(difference).mean() < 3


def test_nothing_to_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no photos to pack"):
        pack([], tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"validation_fraction": -0.1},
        {"test_fraction": 1.1},
        {"max_bad_fraction": 2.0},
    ],
)
def test_impossible_options_are_refused_by_name(records: list[Photo], tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        pack(records, tmp_path / "out", **options)


@pytest.mark.parametrize("options", [{"short_side": 0}, {"jpeg_quality": 0}])
def test_impossible_sizes_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PhotoPacker(**options)


def test_real_photos_are_packed_from_their_csv(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "photos" / "geotagged"
    manifest = pack(open_source(folder, SourceOptions(csv_file=str(folder.with_suffix(".csv")))), tmp_path / "out")
    assert (manifest["num_photos"], manifest["num_bad"]) == (32, 0)
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert rows["Apple iPhone 4.jpg"]["latitude"] == pytest.approx(41.853)
    assert max(min(decoded(row).shape[:2]) for row in rows.values()) == 256


def test_real_photos_are_packed_from_their_exif(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "photos" / "geotagged"
    manifest = pack(open_source(folder, SourceOptions(exif=True)), tmp_path / "out", max_bad_fraction=0.2)
    assert manifest["num_photos"] == 26
    assert {photo["file"].split("_")[0] for photo in manifest["bad"]} == {"mapillary"}
    assert all("no GPS position" in photo["reason"] for photo in manifest["bad"])
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert rows["Apple iPhone 5.jpg"]["longitude"] == pytest.approx(-122.337333, abs=1e-6)


def test_real_photos_are_packed_without_coordinates(shared_data: Path, tmp_path: Path) -> None:
    manifest = pack(
        open_source(shared_data / "photos" / "unlabelled", SourceOptions(unlabelled=True)), tmp_path / "out"
    )
    assert (manifest["num_photos"], manifest["num_bad"]) == (88, 0)
    assert all(row["latitude"] is None for row in rows_of(tmp_path / "out"))


def test_odd_real_files_are_read_or_refused_by_name(shared_data: Path, tmp_path: Path) -> None:
    photos = open_source(shared_data / "odd_images", SourceOptions(unlabelled=True))
    manifest = pack(photos, tmp_path / "out", max_bad_fraction=1.0)
    assert manifest["num_photos"] + manifest["num_bad"] == len(photos) == 43
    bad = {photo["file"] for photo in manifest["bad"]}
    assert {"User Comment Encoding.jpg", "beach.jpg"} <= bad
    assert not any(name.startswith("orientation") for name in bad)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_bad"] == 20
