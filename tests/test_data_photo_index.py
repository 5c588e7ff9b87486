"""The index of a source: saved, found again, shared between processes."""

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from source_files import images, photo, places, read_source, tar_bytes, write_csv, write_file

from geomae.data import sources
from geomae.data.damage import BadTally
from geomae.data.photo_index import PhotoIndex, name_apart
from geomae.data.reading import PhotoReader
from geomae.data.sources import SourceOptions, open_source


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever an index is made and not found."""
    made: list[str] = []
    build = sources._build

    def counted(listing: Any, kind: str, *rest: Any) -> PhotoIndex:
        made.append(kind)
        return build(listing, kind, *rest)

    monkeypatch.setattr(sources, "_build", counted)
    return made


def write_source(folder: Path) -> Path:
    for number in range(3):
        write_file(folder / f"{number}.jpg", photo(number))
    write_csv(folder / "t.csv", "id,lat,lon", [(n, n + 1, n) for n in range(4)])
    return folder


def test_second_open_finds_the_index_of_the_first(tmp_path: Path, cache: Path, builds: list[str]) -> None:
    source = write_source(tmp_path / "photos")
    first, second = open_source(source), open_source(source)
    assert builds == ["folder"]
    assert len(list(cache.rglob("*.arrow"))) == 1
    assert second.table.equals(first.table)
    assert (second.kind, second.description, second.bad) == (first.kind, first.description, first.bad)
    assert dict(second.bad.counts) == {"the table names it, but there is no such photo": 1}
    assert not [file for file in cache.rglob("*") if file.name.endswith(".tmp")]


def test_changed_photos_tables_and_options_make_another(tmp_path: Path, cache: Path, builds: list[str]) -> None:
    source = write_source(tmp_path / "photos")
    open_source(source)
    write_file(source / "1.jpg", photo(7, 500))
    assert images(read_source(source))["1"] == photo(7, 500)
    assert len(builds) == 2
    write_csv(source / "t.csv", "id,lat,lon", [(1, 50, 60)])
    assert places(read_source(source)) == {"1": (50.0, 60.0)}
    write_file(source / "4.jpg", photo(4))
    assert list(read_source(source, unlabelled=True)) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert len(builds) == 4
    open_source(source, SourceOptions(unlabelled=True))
    open_source(source, SourceOptions(unlabelled=True, min_photo_bytes=10))
    assert len(builds) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, builds: list[str], damage: str) -> None:
    source = write_source(tmp_path / "photos")
    expected = open_source(source).table.to_pylist()
    (file,) = cache.rglob("*.arrow")
    whole = file.read_bytes()
    file.unlink()  # the file in use is mapped: another takes its place
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"ARROW1 is not this" * 9}[damage])
    assert open_source(source).table.to_pylist() == expected
    assert len(builds) == 2
    assert open_source(source).table.to_pylist() == expected
    assert len(builds) == 2


def test_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_file(tmp_path / "a file", b"")
    monkeypatch.setenv("GEOMAE_CACHE", str(tmp_path / "a file"))
    assert len(open_source(write_source(tmp_path / "photos"))) == 3
    assert "cannot be cached" in caplog.text


def test_without_a_cache_nothing_is_written(tmp_path: Path, cache: Path) -> None:
    assert len(open_source(write_source(tmp_path / "photos"), cache=False)) == 3
    assert not cache.exists()


def large_index(num_photos: int = 20_000) -> PhotoIndex:
    return PhotoIndex.from_columns("/photos", {"id": [f"folder/{n:09d}.jpg" for n in range(num_photos)]})


@pytest.mark.parametrize("mapped", [True, False])
def test_pickle_of_a_few_rows_is_small(tmp_path: Path, mapped: bool) -> None:
    index = large_index()
    if mapped:
        index.save(tmp_path / "index.arrow")
        index = PhotoIndex.load(tmp_path / "index.arrow")
    for part in (index.take([5, 7]), PhotoIndex(index.root, index.table.slice(100, 2))):
        pickled = pickle.dumps(part)
        assert len(pickled) < 5000
        assert pickle.loads(pickled).table.equals(part.table)


def read_first(index: PhotoIndex) -> bytes:
    return PhotoReader(index.root).read(index.table.slice(0, 1).to_pylist()[0])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_mapped_index_is_read_by_other_processes(tmp_path: Path, cache: Path, start: str) -> None:
    source = write_file(tmp_path / "00.tar", tar_bytes({"a.jpg": photo(1)}))
    index = open_source(source, SourceOptions(unlabelled=True))
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(read_first, (index,)) == photo(1)


def test_saved_index_is_the_same_with_its_texts_numbers_and_gaps(tmp_path: Path) -> None:
    bad = BadTally()
    bad.add("x.jpg", "300 bytes", kind="small")
    columns = {"id": ["ä/1.jpg", "b"], "latitude": [1.5, None], "longitude": [2.5, None], "author": ["", "me"]}
    index = PhotoIndex.from_columns("s3://bucket", columns, kind="folder", description="photos of ä", bad=bad)
    index.save(tmp_path / "deep" / "index.arrow")
    loaded = PhotoIndex.load(tmp_path / "deep" / "index.arrow")
    assert loaded.table.equals(index.table)
    assert (loaded.root, loaded.kind, loaded.description, loaded.bad) == ("s3://bucket", "folder", "photos of ä", bad)
    assert loaded.column("author") == [None, "me"]
    assert loaded.known_columns() == ["author"]
    assert not loaded.is_labelled()
    assert loaded.take([0]).is_labelled()


def test_digest_changes_with_every_column_and_not_with_the_root() -> None:
    columns: dict[str, Any] = {"id": ["a", "b"], "latitude": [1.0, 2.0], "longitude": [1.0, 2.0]}
    digests = {PhotoIndex.from_columns("/r", columns).digest(), PhotoIndex.from_columns("/s", columns).digest()}
    changes: dict[str, Any] = {"id": ["a", "c"], "latitude": [1.0, 3.0], "state": [0, 1], "size": [1, 2]}
    changes |= {"author": [None, "me"], "offset": [0, 9], "file": ["a", "x"]}
    digests |= {PhotoIndex.from_columns("/r", columns | {name: new}).digest() for name, new in changes.items()}
    assert len(digests) == 1 + len(changes)
    assert PhotoIndex.from_columns("/r", columns).digest() in digests


def test_names_are_told_apart_only_where_two_photos_have_one() -> None:
    files, sizes = ["x/00.tar", "x/01.tar", "x/01.tar", "x/02.tar"], [1, 2, 3, 1]
    assert name_apart(["a", "a", "b", "a"], files, sizes) == ["x/00/a", "x/01/a", "b", "x/02/a"]
    assert name_apart(["a", "b", "b", "c"], files, [1, 2, 2, 3]) == ["a", "b", "b", "c"]


def test_cache_lies_in_the_home_folder_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEOMAE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    open_source(write_source(tmp_path / "photos"))
    assert len(list((tmp_path / ".cache" / "geomae" / "indexes").iterdir())) == 1
    assert os.listdir(tmp_path / ".cache") == ["geomae"]


def test_digest_knows_where_one_text_ends() -> None:
    first, second = (PhotoIndex.from_columns("", {"id": ids}) for ids in (["ab", "c"], ["a", "bc"]))
    assert first.digest(["id"]) != second.digest(["id"])
