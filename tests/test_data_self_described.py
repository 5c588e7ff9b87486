"""WebDataset tars and parquet: sources whose photos come with their own coordinates."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import (
    images,
    images_of,
    json_bytes,
    left_out,
    photo,
    places,
    read_source,
    reasons,
    tar_bytes,
    write_csv,
    write_file,
)

from geomae.data.layout import shard_name
from geomae.data.shards import PhotoRow, write_shard
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError, SourceError

NO_PLACE = "its coordinates are missing, no decimal degrees or not finite"


# WebDataset


def test_webdataset_tars_are_read_with_the_keys_of_plonk(tmp_path: Path) -> None:
    """osv5m/osv5m-wds and YFCC4k as PLONK streams them: `latitude`, `longitude` and more in the JSON."""
    extra = {"latitude": 48.8566, "longitude": 2.3522, "country": "FR", "city": None, "sub-region": "Paris"}
    members = {"00/123.jpg": photo(1), "00/123.json": json_bytes(**extra)}
    write_file(tmp_path / "0000.tar", tar_bytes(members))
    rows = read_source(tmp_path)
    assert images(rows) == {"00/123": photo(1)}
    assert places(rows) == {"00/123": (48.8566, 2.3522)}
    assert rows["00/123"]["country"] == "FR"
    assert open_source(tmp_path).kind == "webdataset"


def test_json_may_stand_before_the_photo(tmp_path: Path) -> None:
    members = [("a.json", json_bytes(lat=1, lon=2)), ("a.jpg", photo(1))]
    members += [("b.jpg", photo(2)), ("b.json", json_bytes(lat=3, lon=4))]
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert places(read_source(tmp_path)) == {"a": (1.0, 2.0), "b": (3.0, 4.0)}


def test_names_with_several_dots_are_paired_with_their_own_json(tmp_path: Path) -> None:
    members = {"7.1_8.2.jpg": photo(1), "7.1_8.2.json": json_bytes(lat=1, lon=2)}
    members |= {"7.9_8.2.jpg": photo(2), "7.9_8.2.json": json_bytes(lat=3, lon=4)}
    members |= {"v1.0/9.jpg": photo(3), "v1.0/9.json": json_bytes(lat=5, lon=6)}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    rows = read_source(tmp_path)
    assert images(rows) == {"7.1_8.2": photo(1), "7.9_8.2": photo(2), "v1.0/9": photo(3)}
    assert places(rows) == {"7.1_8.2": (1.0, 2.0), "7.9_8.2": (3.0, 4.0), "v1.0/9": (5.0, 6.0)}


def test_what_else_a_sample_holds_is_not_its_photo(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2), "a.seg.png": photo(2), "a.txt": b"caption"}
    members |= {"b.depth.png": photo(3), "b.webp": photo(4), "b.meta.json": json_bytes(lat=3, lon=4)}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert images(read_source(tmp_path)) == {"a": photo(1), "b": photo(4)}


def test_samples_without_or_with_broken_json_are_counted_once(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2), "b.jpg": photo(2), "c.jpg": photo(3)}
    members |= {"c.json": b'{"lat": 1, "lo', "d.jpg": photo(4), "d.json": b"[1, 2]", "e.json": b"{}"}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert list(read_source(tmp_path)) == ["a"]
    assert reasons(tmp_path) == {NO_PLACE: 1, "its JSON cannot be read": 2}
    assert set(left_out(tmp_path)) == {"b", "00.tar:c", "00.tar:d"}
    assert list(read_source(tmp_path, unlabelled=True)) == ["a", "b", "c", "d"]
    assert reasons(tmp_path, unlabelled=True) == {}


def test_numbers_written_as_text_are_numbers_and_other_things_are_not(tmp_path: Path) -> None:
    values: dict[str, Any] = {"a": "48.5", "b": True, "c": [1], "d": "north", "e": 10**400, "f": None}
    members = {}
    for name, value in values.items():
        members |= {f"{name}.jpg": photo(1), f"{name}.json": json_bytes(lat=value, lon="2.25")}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert places(read_source(tmp_path)) == {"a": (48.5, 2.25)}
    assert sum(reasons(tmp_path).values()) == 5


def write_img2dataset(folder: Path, *, in_json: bool, in_parquet: bool) -> Path:
    """What `img2dataset --output_format webdataset --save_additional_columns ...` leaves."""
    for shard in range(2):
        members: dict[str, bytes] = {}
        table = []
        for number in range(2):
            key = f"{shard:05d}{number:04d}"
            place = {"photo_id": f"p{shard}{number}", "latitude": 10.0 * shard + number, "longitude": -20.0}
            record = {"url": "https://live.staticflickr.com/x.jpg", "key": key, "status": "success", "width": 256}
            members |= {f"{key}.jpg": photo(10 * shard + number), f"{key}.txt": b"a caption"}
            members[f"{key}.json"] = json_bytes(**record, **(place if in_json else {}))
            table.append(record | (place if in_parquet else {}))
        table.append(dict.fromkeys(table[0]) | {"key": f"{shard:05d}0002", "status": "failed_to_download"})
        write_file(folder / f"{shard:05d}.tar", tar_bytes(members))
        pq.write_table(pa.Table.from_pylist(table), folder / f"{shard:05d}.parquet")
        write_file(folder / f"{shard:05d}_stats.json", json.dumps({"count": 3, "successes": 2}))
    return folder


@pytest.mark.parametrize(("in_json", "in_parquet"), [(True, True), (True, False), (False, True)])
def test_img2dataset_s_output_has_coordinates_in_its_json_or_its_parquet(
    tmp_path: Path, in_json: bool, in_parquet: bool
) -> None:
    rows = read_source(write_img2dataset(tmp_path, in_json=in_json, in_parquet=in_parquet))
    assert images(rows) == {f"p{shard}{n}": photo(10 * shard + n) for shard in range(2) for n in range(2)}
    assert places(rows) == {f"p{s}{n}": (10.0 * s + n, -20.0) for s in range(2) for n in range(2)}
    assert reasons(tmp_path) == {}
    assert open_source(tmp_path).kind == "webdataset"


def test_img2dataset_told_of_no_columns_is_refused_with_the_option_that_keeps_them(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, in_json=False, in_parquet=False)
    with pytest.raises(SourceError, match=r"comes with coordinates: looked for latitude or lat .* among .*url.*\n?.*"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"--save_additional_columns"):
        open_source(tmp_path)
    keys = ["000000000", "000000001", "000010000", "000010001"]
    assert list(read_source(tmp_path, unlabelled=True)) == keys
    table = write_csv(tmp_path / "elsewhere" / "t.csv", "id,lat,lon", [("000010000", 5, 6)])
    assert places(read_source(tmp_path, csv_file=str(table))) == {"000010000": (5.0, 6.0)}


def test_empty_fields_of_the_parquet_do_not_hide_what_the_json_says(tmp_path: Path) -> None:
    members = {"000000000.jpg": photo(1), "000000000.json": json_bytes(latitude=1, longitude=2, author="me")}
    write_file(tmp_path / "00000.tar", tar_bytes(members))
    row = {"key": "000000000", "latitude": None, "longitude": 5.0, "author": None}
    schema = pa.schema([("key", pa.string()), ("latitude", pa.float64()), ("longitude", pa.float64())])
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "00000.parquet")
    assert places(read_source(tmp_path)) == {"000000000": (1.0, 5.0)}


def test_parquet_beside_a_tar_speaks_of_photos_in_folders_too(tmp_path: Path) -> None:
    write_file(tmp_path / "00000.tar", tar_bytes({"a/000000000.jpg": photo(1), "a/000000000.json": json_bytes(x=1)}))
    row = {"key": "000000000", "latitude": 1.0, "longitude": 5.0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "00000.parquet")
    assert places(read_source(tmp_path)) == {"a/000000000": (1.0, 5.0)}


def test_parquet_beside_tars_is_no_source_of_photos_however_large(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, in_json=True, in_parquet=True)
    pq.write_table(pa.table({"key": ["x"], "caption": [photo(1, 10**6)]}), tmp_path / "00000.parquet")
    assert open_source(tmp_path).kind == "webdataset"


def test_links_among_the_samples_are_counted_and_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_bytes({"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2)}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
    write_file(tmp_path / "00.tar", buffer.getvalue())
    assert list(read_source(tmp_path)) == ["a"]
    assert list(left_out(tmp_path)) == ["00.tar:b.jpg"]


def test_changed_parquet_beside_a_tar_is_read_again(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, in_json=False, in_parquet=True)
    assert places(read_source(tmp_path))["p00"] == (0.0, -20.0)
    for file in tmp_path.glob("*.parquet"):
        table = pq.read_table(file)
        lat = table.column_names.index("latitude")
        pq.write_table(table.set_column(lat, "latitude", pa.array([7.5, 7.5, None])), file)
    assert places(read_source(tmp_path))["p00"] == (7.5, -20.0)


def test_broken_parquet_beside_a_tar_is_named(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, in_json=True, in_parquet=True)
    write_file(tmp_path / "00000.parquet", b"PAR1 broken")
    assert len(read_source(tmp_path)) == 4
    assert "cannot be read as parquet" in left_out(tmp_path)["00000.parquet"]


def test_keys_that_every_tar_counts_anew_are_told_apart(tmp_path: Path) -> None:
    for shard in range(2):
        members = {"sample_0.jpg": photo(shard, 300 + shard), "sample_0.json": json_bytes(lat=shard + 1, lon=2)}
        write_file(tmp_path / f"{shard:05d}.tar", tar_bytes(members))
    assert places(read_source(tmp_path)) == {"00000/sample_0": (1.0, 2.0), "00001/sample_0": (2.0, 2.0)}


def test_id_that_comes_twice_is_counted(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(id="x", lat=1, lon=2)}
    members |= {"b.jpg": photo(2), "b.json": json_bytes(id="x", lat=3, lon=4)}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    assert images(read_source(tmp_path)) == {"x": photo(1)}
    assert reasons(tmp_path) == {"the source holds its id again": 1}


def test_broken_tar_among_whole_ones_is_counted_and_named(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", b"<html>Too many requests</html>" * 100)
    write_file(tmp_path / "01.tar", tar_bytes({"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2)}))
    assert list(read_source(tmp_path)) == ["a"]
    assert "no uncompressed tar archive" in left_out(tmp_path)["00.tar"]


def test_sample_that_a_tar_ends_within_is_left_out_and_the_cut_named(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2), "b.json": json_bytes(lat=3, lon=4)}
    data = tar_bytes(members | {"b.jpg": photo(2, 3000)})
    write_file(tmp_path / "00.tar", data[: data.index(photo(2, 3000)) + 1000])
    assert list(read_source(tmp_path)) == ["a"]
    assert "ends" not in left_out(tmp_path)["00.tar"]
    assert left_out(tmp_path)["00.tar"].endswith("within b.jpg")


def test_swapped_records_are_refused_and_read_when_asked(tmp_path: Path) -> None:
    members = {"tokyo.jpg": photo(1), "tokyo.json": json_bytes(latitude=139.69, longitude=35.68)}
    write_file(tmp_path / "00.tar", tar_bytes(members))
    with pytest.raises(CoordinateError, match="--swap_lat_lon"):
        open_source(tmp_path)
    assert places(read_source(tmp_path, swap_lat_lon=True)) == {"tokyo": (35.68, 139.69)}


# Parquet


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def as_struct(*photos: bytes) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": None} for data in photos]


@pytest.mark.parametrize("image", ["image", "jpg", "img"])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_parquet_of_strangers_is_read_whatever_holds_the_photo(tmp_path: Path, image: str, kind: str) -> None:
    data = [photo(n) for n in range(5)]
    column = as_struct(*data) if kind == "struct" else pa.array(data, getattr(pa, kind)())
    columns = {"lat": [1.0, 2, 3, 4, 5], "lng": ["10", "20.5", "30", "40", "50"], "photo_id": [7, 8, 9, 10, 11]}
    write_parquet(tmp_path / "data.parquet", {image: column} | columns, row_group_size=2)
    rows = read_source(tmp_path)
    assert images(rows) == {str(7 + n): photo(n) for n in range(5)}
    assert places(rows)["8"] == (2.0, 20.5)
    assert open_source(tmp_path).kind == "parquet"


def test_parquet_of_a_webdataset_is_looked_into(tmp_path: Path) -> None:
    records = [{"latitude": 1.5, "longitude": 2.5, "country": "NO", "id": "a"}]
    write_parquet(tmp_path / "d.parquet", {"jpg": as_struct(photo(1)), "json": records, "__key__": ["k"]})
    rows = read_source(tmp_path)
    assert places(rows) == {"a": (1.5, 2.5)}
    assert rows["a"]["country"] == "NO"


def test_parquet_without_ids_names_its_photos_by_file_and_row(tmp_path: Path) -> None:
    for part in ("x", "y"):
        columns = {"image": [photo(1), photo(2)], "lat": [1.0, 2.0], "lon": [3.0, 4.0]}
        write_parquet(tmp_path / part / "0.parquet", columns)
    assert list(read_source(tmp_path)) == ["x/0-000000", "x/0-000001", "y/0-000000", "y/0-000001"]


def test_parquet_keeps_authors_and_scenes_and_reads_no_other_column(tmp_path: Path) -> None:
    columns = {"image": [photo(1)], "LAT": [1.0], "LON": [3.0], "AUTHOR": ["me"], "S3_Label": [2], "x": [b"0" * 10**6]}
    write_parquet(tmp_path / "d.parquet", columns)
    (row,) = read_source(tmp_path).values()
    assert (row["author"], row["scene"], row["id"]) == ("me", "urban", "d-000000")


def test_unreadable_parquet_among_good_ones_is_counted_and_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [photo(1)], "lat": [1.0], "lon": [3.0], "id": ["a"]})
    write_file(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    assert list(read_source(tmp_path)) == ["a"]
    assert left_out(tmp_path)["b.parquet"].startswith("cannot be read as parquet")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceError, match=r"none of the 1 parquet files can be read; the first is b\.parquet"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"], "lat": [1.0], "lon": [2.0]}, r"d\.parquet has no column image or jpg .*it has picture"),
        ({"image": ["http://x/1.jpg"], "lat": [1.0], "lon": [2.0]}, r"column image of .* holds string, not the bytes"),
        ({"image": [b"x"], "where": [1.0]}, r"no photo of .*d\.parquet comes with coordinates: .* among image, where"),
    ],
)
def test_parquet_that_cannot_serve_is_refused_with_what_it_has(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    write_parquet(tmp_path / "d.parquet", columns)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)


def test_row_without_a_photo_is_named_when_it_is_read(tmp_path: Path) -> None:
    images_column = [{"bytes": photo(1), "path": None}, {"bytes": None, "path": "gone.jpg"}, None]
    columns = {"image": images_column, "lat": [1.0, 2, 3], "lon": [1.0, 2, 3], "id": ["a", "b", None]}
    write_parquet(tmp_path / "d.parquet", columns)
    read = images_of(open_source(tmp_path))
    assert read["a"] == photo(1)
    assert all(isinstance(read[name], DamagedPhotoError) for name in ("b", "d-000002"))


def test_rows_without_coordinates_are_counted(tmp_path: Path) -> None:
    columns = {"image": [photo(n) for n in range(3)], "lat": [1.0, None, 0], "lon": [1.0, 2, 0], "id": ["a", "b", "c"]}
    write_parquet(tmp_path / "d.parquet", columns)
    assert list(read_source(tmp_path)) == ["a"]
    assert reasons(tmp_path) == {NO_PLACE: 1, "its coordinates are (0, 0), which stands for none": 1}


def write_packed(folder: Path, split: str = "train", num_shards: int = 2) -> Path:
    for shard in range(num_shards):
        rows = [PhotoRow(f"{split}/{shard}/{n}", photo(10 * shard + n), n, -n, author="me") for n in range(3)]
        path = folder / shard_name(split, shard, num_shards)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, iter(rows[1:]), optional_columns=("author",), digest="test")
    write_file(folder / "manifest.json", "{}")
    return folder


def test_our_own_packed_folder_is_a_source_too(tmp_path: Path) -> None:
    write_packed(write_packed(tmp_path), "test", 1)
    rows = read_source(tmp_path)
    assert images(rows) == {f"train/{s}/{n}": photo(10 * s + n) for s in range(2) for n in (1, 2)}
    assert {row["author"] for row in rows.values()} == {"me"}
    assert open_source(tmp_path).kind == "packed"
    assert list(read_source(tmp_path, split="test")) == ["test/0/1", "test/0/2"]
    with pytest.raises(SourceError, match=r"no split 'validation'; it holds the splits test, train"):
        open_source(tmp_path, SourceOptions(split="validation"))
    with pytest.raises(ConfigError, match="--swap_lat_lon"):
        open_source(tmp_path, SourceOptions(swap_lat_lon=True))


def test_packed_folder_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    write_packed(tmp_path, num_shards=3)
    (tmp_path / shard_name("train", 1, 3)).unlink()
    with pytest.raises(SourceError, match=r"holds 2 shards of 'train' where their names promise 3"):
        open_source(tmp_path)
