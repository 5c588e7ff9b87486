"""What a source is made of: its kind, and the table that goes with it."""

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import json_bytes, msgpack_bytes, photo, read_source, tar_bytes, write_csv, write_file, zip_bytes

from geomae.data.listing import KINDS, detect_kind, find_table, list_source
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import SourceError


def kind_of(source: Path) -> str:
    return detect_kind(list_source(str(source)), str(source))


def table_of(source: Path) -> str | None:
    return find_table(list_source(str(source)), str(source))


def test_every_kind_is_detected_beside_what_usually_lies_there(tmp_path: Path) -> None:
    contents = {
        "msgpack": {"shard_0.msg": msgpack_bytes([{"id": "a", "image": photo(1)}])},
        "webdataset": {"0.tar": tar_bytes({"a.jpg": photo(1), "a.json": b"{}"}), "0_stats.json": b"{}"},
        "tar": {"mp-16-images00": tar_bytes({"a.jpg": photo(1)}), "LICENSE": b"text"},
        "zip": {"images/train/00.zip": zip_bytes({"a.jpg": photo(1)}, zipfile.ZIP_DEFLATED)},
        "folder": {"a.JPG": photo(1), "README.md": b"text"},
    }
    for kind, files in contents.items():
        for name, data in files.items():
            write_file(tmp_path / kind / name, data)
        write_file(tmp_path / kind / "train.csv", "id,lat,lon\na,1,2\n")
        assert kind_of(tmp_path / kind) == kind
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "data.parquet")
    assert kind_of(tmp_path / "data.parquet") == "parquet"
    write_file(tmp_path / "packed" / "train-00000-of-00001.parquet", b"")
    assert kind_of(tmp_path / "packed") == "packed"
    assert {*contents, "parquet", "packed"} == set(KINDS)


def test_a_few_pictures_do_not_make_a_folder_of_archives_one_of_photos(tmp_path: Path) -> None:
    write_file(tmp_path / "00.tar", tar_bytes({f"{n}.jpg": photo(n) for n in range(20)}))
    for number in range(3):
        write_file(tmp_path / "assets" / f"{number}.png", photo(number, 100))
    assert kind_of(tmp_path) == "tar"


def test_kind_can_be_forced(tmp_path: Path) -> None:
    members = {"a.jpg": photo(1), "a.json": json_bytes(lat=1, lon=2)}
    write_file(tmp_path / "0.tar", tar_bytes(members))
    assert list(read_source(tmp_path, unlabelled=True)) == ["a"]
    assert list(read_source(tmp_path, unlabelled=True, kind="tar")) == ["a.jpg"]
    with pytest.raises(SourceError, match=r"holds no shards of `python -m geomae\.data pack`"):
        open_source(tmp_path, SourceOptions(kind="packed"))


def test_forced_kind_reads_files_that_are_called_otherwise(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", "id,lat,lon", [("a", 1, 2), ("1", 3, 4)])
    write_file(tmp_path / "msg" / "part0.bin", msgpack_bytes([{"id": "a", "image": photo(1)}]))
    write_file(tmp_path / "tars" / "mp16.tar.part", tar_bytes({"a.jpg": photo(1)}))
    write_file(tmp_path / "photos" / "1", photo(2))
    write_file(tmp_path / "photos" / "README.md", "text")
    for folder, kind, name in (("msg", "msgpack", "a"), ("tars", "tar", "a"), ("photos", "folder", "1")):
        assert list(read_source(tmp_path / folder, kind=kind, csv_file=str(table))) == [name]
        with pytest.raises(SourceError, match="Name the kind with --kind"):
            open_source(tmp_path / folder)


def test_unknown_source_lists_what_was_looked_for_and_found(tmp_path: Path) -> None:
    write_file(tmp_path / "a.npy", b"x")
    write_file(tmp_path / "b.h5", b"x")
    with pytest.raises(SourceError) as refusal:
        open_source(tmp_path)
    message = str(refusal.value)
    assert "its 2 files end in .h5, .npy" in message
    for kind, what in KINDS.items():
        assert kind in message
        assert what in message
    assert "--kind" in message


def test_table_is_the_csv_in_the_folder_in_its_metadata_or_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "mp16"
    write_file(folder / "mp-16-images00", tar_bytes({"a.jpg": photo(1)}))
    assert table_of(folder) is None
    mapping = write_file(folder / "train_mapping_h3.json", b"{}")
    assert table_of(folder) == str(mapping)
    beside = write_csv(tmp_path / "mp16.csv", "id,lat,lon", [])
    assert table_of(folder) == str(beside)
    metadata = write_csv(folder / "metadata" / "MP16_Pro_places365.csv", "id,lat,lon", [])
    assert table_of(folder) == str(metadata)
    inside = write_csv(folder / "photos.csv", "id,lat,lon", [])
    assert table_of(folder) == str(inside)


def test_table_of_a_part_of_osv5m_lies_two_folders_above(tmp_path: Path) -> None:
    write_file(tmp_path / "images" / "train" / "00.zip", zip_bytes({"a.jpg": photo(1)}))
    train = write_csv(tmp_path / "train.csv", "id,latitude,longitude", [])
    write_csv(tmp_path / "test.csv", "id,latitude,longitude", [])
    assert table_of(tmp_path / "images" / "train") == str(train)


def test_table_of_one_file_lies_beside_it_under_its_name(tmp_path: Path) -> None:
    archive = write_file(tmp_path / "photos.zip", zip_bytes({"a.jpg": photo(1)}))
    write_csv(tmp_path / "other.csv", "id,lat,lon", [])
    assert table_of(archive) is None
    table = write_csv(tmp_path / "photos.csv", "id,lat,lon", [])
    assert table_of(archive) == str(table)


def test_table_of_a_folder_that_is_named_from_within_its_parent_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "images" / "train" / "1.jpg", photo(1))
    write_csv(tmp_path / "train.csv", "id,latitude,longitude", [("1", 1, 2)])
    monkeypatch.chdir(tmp_path)
    assert list(read_source("images/train")) == ["1"]
    index = open_source("images/train")
    monkeypatch.chdir("/")
    assert Path(index.root) == tmp_path / "images" / "train"


def test_several_tables_ask_which_one(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jpg", photo(1))
    for name in ("one.csv", "two.csv"):
        write_csv(tmp_path / name, "id,lat,lon", [("a", 1, 2)])
    with pytest.raises(SourceError, match=r"several: one\.csv, two\.csv\. Name it with --csv"):
        open_source(tmp_path)
    assert list(read_source(tmp_path, csv_file=str(tmp_path / "two.csv"))) == ["a"]
    assert list(read_source(tmp_path, unlabelled=True)) == ["a.jpg"]


def test_imagefolder_with_its_metadata_is_labelled(tmp_path: Path) -> None:
    write_file(tmp_path / "train" / "a.jpg", photo(1))
    write_csv(tmp_path / "train" / "metadata.csv", "file_name,latitude,longitude", [("a.jpg", 1, 2)])
    assert list(read_source(tmp_path)) == ["a.jpg"]
