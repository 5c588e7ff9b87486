"""Data sets of the Hub, served by a small one on this machine; `huggingface_hub` reads its address once, at import."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import commit_of, serve_hub
from source_files import json_bytes, photo, tar_bytes, write_csv, write_file

from geomae.data.hub import is_hub_id
from geomae.data.sources import open_source
from geomae.errors import SourceError

ROOT = Path(__file__).resolve().parent.parent

# Reads data sets by id as a user would, and says what came out.
READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
import datasets
from source_files import read_source
from geomae.errors import SourceError

def read(name, **options):
    try:
        rows = read_source(name, **options)
    except SourceError as error:
        return str(error)
    return {key: [row["image"].hex(), row["latitude"], row["longitude"]] for key, row in rows.items()}

def read_as_datasets_does(name):
    stream = datasets.load_dataset(name, split="train", streaming=True)
    stream = stream.cast_column("image", datasets.Image(decode=False))
    return {row["id"]: [row["image"]["bytes"].hex(), row["latitude"], row["longitude"]] for row in stream}

found = {name: read(name) for name in ("me/parquet", "me/webdataset", "me/imagefolder", "me/absent", "me/text")}
found["truth"] = read_as_datasets_does("me/parquet")
found["test"] = read("me/parquet", split="test")
found["wrong split"] = read("me/parquet", split="validation")
found["revision"] = read("me/webdataset@" + sys.argv[2])
found["wrong revision"] = read("me/webdataset@no-such-branch")
found["hf url"] = read("hf://datasets/me/webdataset")
print(json.dumps(found))
"""


def write_data_sets(root: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        for part in range(2):
            numbers = [first + 10 * part + n for n in range(3)]
            columns: dict[str, Any] = {"image": [{"bytes": photo(n), "path": f"{n}.jpg"} for n in numbers]}
            columns |= {"id": [f"{split}-{n}" for n in numbers], "latitude": [n / 2 for n in numbers]}
            columns["longitude"] = [-1.0] * 3
            path = root / "me" / "parquet" / "data" / f"{split}-{part:05d}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), path, row_group_size=2)
    for part, name in enumerate("ab"):
        members = {f"{name}.jpg": photo(part), f"{name}.json": json_bytes(latitude=part + 1, longitude=2.5)}
        write_file(root / "me" / "webdataset" / f"{part:05d}.tar", tar_bytes(members))
    folder = root / "me" / "imagefolder" / "train"
    write_file(folder / "c.jpg", photo(1))
    write_file(folder / "sub" / "d.jpg", photo(2))
    write_csv(folder / "metadata.csv", "file_name,latitude,longitude", [("c.jpg", 1, 2), ("sub/d.jpg", 3, 4)])
    write_file(root / "me" / "text" / "train.txt", "no photo\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder that is served, and the environment of a process that asks it."""
    root = tmp_path_factory.mktemp("hub")
    write_data_sets(root)
    caches = tmp_path_factory.mktemp("caches")
    with serve_hub(root) as endpoint:
        own = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        folders = {"HF_HOME": str(caches / "hf"), "HF_DATASETS_CACHE": str(caches / "data")}
        yield root, os.environ | own | folders | {"GEOMAE_CACHE": str(caches / "geomae")}


@pytest.fixture(scope="module")
def found(hub: tuple[Path, dict[str, str]]) -> dict[str, Any]:
    root, environment = hub
    command = [sys.executable, "-c", READ, str(ROOT / "tests"), commit_of(root / "me" / "webdataset")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_parquet_data_set_has_the_rows_that_datasets_streams(found: dict[str, Any]) -> None:
    assert len(found["truth"]) == 6
    assert list(found["me/parquet"].items()) == list(found["truth"].items())
    assert found["me/parquet"]["train-11"] == [photo(11).hex(), 5.5, -1.0]


def test_webdataset_and_imagefolder_of_the_hub_are_read(found: dict[str, Any]) -> None:
    assert found["me/webdataset"] == {"a": [photo(0).hex(), 1.0, 2.5], "b": [photo(1).hex(), 2.0, 2.5]}
    expected = {"c.jpg": [photo(1).hex(), 1.0, 2.0], "sub/d.jpg": [photo(2).hex(), 3.0, 4.0]}
    assert found["me/imagefolder"] == expected


def test_split_revision_and_url_choose_what_is_read(found: dict[str, Any]) -> None:
    assert list(found["test"]) == [f"test-{n}" for n in (100, 101, 102, 110, 111, 112)]
    assert found["revision"] == found["me/webdataset"]
    assert found["hf url"] == found["me/webdataset"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("wrong split", "me/parquet has no split 'validation'; it has train, test."),
        ("me/absent", "me/absent is neither a file or folder here nor a data set that the Hub gives"),
        ("me/absent", "a gated data set needs `hf auth login`"),
        ("wrong revision", "no-such-branch"),
        ("me/text", "me/text is made of text files, which cannot be streamed in any order; expected one of parquet"),
    ],
)
def test_what_the_hub_does_not_give_is_refused_by_name(found: dict[str, Any], asked: str, message: str) -> None:
    assert message in found[asked]


def test_inspect_says_what_a_data_set_of_the_hub_holds(hub: tuple[Path, dict[str, str]]) -> None:
    command = [sys.executable, "-m", "geomae.data", "inspect", "me/parquet"]
    done = subprocess.run(command, env=hub[1], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "photos of me/parquet with their own coordinates: kind parquet, 6 photos" in done.stdout


def test_without_a_network_the_error_says_so() -> None:
    with pytest.raises(SourceError, match=r"nobody/nothing is neither a file or folder here .*[Oo]ffline"):
        open_source("nobody/nothing")


def test_the_hub_is_not_asked_in_silence_where_the_first_part_is_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday" / "munich").mkdir(parents=True)
    for name in ("nobody/munch", "holiday/munch"):
        with pytest.raises(SourceError, match=f"{name} is neither a file or folder here nor a data set"):
            open_source(name)
    assert caplog.messages == ["the folder holiday has no munch: the Hub is asked for a data set holiday/munch"]


def test_ids_of_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("osv5m/osv5m-wds")
    assert is_hub_id("owner/name@refs/convert/parquet")
    for path in (
        "photos",
        "/data/photos",
        "./data/photos",
        "../data/photos",
        "a/b/c",
        "s3://bucket/a",
        "a/{00..18}.tar",
    ):
        assert not is_hub_id(path)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("data/photos")
    (tmp_path / "data" / "photos").mkdir(parents=True)
    assert not is_hub_id("data/photos")
