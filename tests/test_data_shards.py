import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from geomae.data.damage import MAX_BAD_LISTED, BadPhoto
from geomae.data.layout import is_packed, list_shards, shard_name
from geomae.data.manifest import ShardReport, refuse_other_sizes, write_manifest
from geomae.data.photo_index import OPTIONAL_COLUMNS
from geomae.data.shards import (
    PhotoRow,
    ShardTask,
    build_shards,
    digest_of,
    photo_schema,
    read_coordinates,
)
from geomae.errors import SourceError, TooManyDamagedPhotosError


def make_rows(numbers: list[int]) -> Iterator[PhotoRow | BadPhoto]:
    """One photo a number; every seventh is damaged."""
    for number in numbers:
        if number % 7 == 6:
            yield BadPhoto(f"{number}.jpg", "made so")
        else:
            yield PhotoRow(f"{number}.jpg", b"%d" % number, number / 10, -number / 10, author=f"author {number % 3}")


def make_rows_slowly(numbers: list[int]) -> Iterator[PhotoRow | BadPhoto]:
    """Long enough to be killed in the middle."""
    for row in make_rows(numbers):
        time.sleep(0.004)
        yield row


def plan(num_photos: int = 700, per_shard: int = 250, split: str = "train", salt: str = "") -> list[ShardTask]:
    parts = [list(range(first, min(first + per_shard, num_photos))) for first in range(0, num_photos, per_shard)]
    return [
        ShardTask(shard_name(split, index, len(parts)), split, len(part), digest_of(salt, part), part)
        for index, part in enumerate(parts)
    ]


def build(output_dir: Path, tasks: list[ShardTask], **options: Any) -> list[ShardReport]:
    return build_shards(output_dir, tasks, make_rows, optional_columns=("author",), **options)


def stored_ids(folder: Path, split: str = "train") -> list[str]:
    return [str(name) for file in list_shards(folder, split) for name in pq.read_table(file)["id"].to_pylist()]


def test_shards_hold_every_good_photo_once_and_report_the_others(tmp_path: Path) -> None:
    reports = build(tmp_path, plan())
    assert stored_ids(tmp_path) == [f"{number}.jpg" for number in range(700) if number % 7 != 6]
    assert sum(report.num_photos for report in reports) == 600
    assert [photo for report in reports for photo in report.bad] == [
        BadPhoto(f"{number}.jpg", "made so") for number in range(6, 700, 7)
    ]


def test_row_groups_hold_a_hundred_photos(tmp_path: Path) -> None:
    build(tmp_path, plan())
    metadata = pq.read_metadata(tmp_path / "train-00000-of-00003.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [100, 100, 15]


def test_two_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    assert build(tmp_path / "one", plan()) == build(tmp_path / "two", plan(), num_processes=2)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_datasets_reads_the_schema_as_its_own(tmp_path: Path) -> None:
    own = datasets.Features(
        {
            "image": datasets.Image(),
            **{name: datasets.Value("float64") for name in ("latitude", "longitude")},
            **{name: datasets.Value("string") for name in ("id", *OPTIONAL_COLUMNS)},
        }
    )
    schema = photo_schema(OPTIONAL_COLUMNS)
    assert schema.equals(own.arrow_schema)
    assert datasets.Features.from_arrow_schema(schema) == own


def test_unlabelled_photos_have_null_coordinates(tmp_path: Path) -> None:
    def unlabelled(numbers: list[int]) -> Iterator[PhotoRow]:
        return (PhotoRow(str(number), b"x") for number in numbers)

    build_shards(tmp_path, plan(), unlabelled)
    assert pq.read_table(tmp_path / "train-00000-of-00003.parquet")["latitude"].null_count == 250
    assert np.isnan(read_coordinates(tmp_path, "train")).all()


def test_coordinates_are_read_without_the_photos(tmp_path: Path) -> None:
    build(tmp_path, plan())
    numbers = np.array([number for number in range(700) if number % 7 != 6])
    np.testing.assert_array_equal(read_coordinates(tmp_path, "train"), np.stack([numbers / 10, -numbers / 10], axis=1))


def run_slowly(output_dir: Path, num_processes: int) -> None:
    build_shards(output_dir, plan(), make_rows_slowly, optional_columns=("author",), num_processes=num_processes)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_run_resumes_without_losing_or_doubling_a_photo(tmp_path: Path, num_processes: int) -> None:
    victim = multiprocessing.get_context("fork").Process(target=run_slowly, args=(tmp_path / "out", num_processes))
    victim.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("train-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # into the next shard
    assert victim.pid is not None
    workers = psutil.Process(victim.pid).children()
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    _, orphans = psutil.wait_procs(workers, timeout=30)
    assert not orphans
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("train-*.parquet")}
    assert 0 < len(finished) < 3
    build(tmp_path / "out", plan())
    build(tmp_path / "unbroken", plan())
    for name, modified in finished.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == modified
    assert {file.name for file in (tmp_path / "out").glob("train-*")} == {task.file for task in plan()}
    for task in plan():
        assert (tmp_path / "out" / task.file).read_bytes() == (tmp_path / "unbroken" / task.file).read_bytes()


def test_half_written_files_of_a_dead_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".train-00000-of-00003.parquet.99999999.tmp").write_bytes(b"half")
    (tmp_path / ".manifest.json.99999999.tmp").write_bytes(b"half")
    build(tmp_path, plan())
    assert not list(tmp_path.glob(".*.tmp"))


def test_file_that_is_no_parquet_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"disk was full")
    build(tmp_path, plan())
    assert len(stored_ids(tmp_path)) == 600


def test_other_options_write_every_shard_again(tmp_path: Path) -> None:
    build(tmp_path, plan())
    before = (tmp_path / "train-00000-of-00003.parquet").stat().st_mtime_ns
    build(tmp_path, plan(salt="other options"))
    assert (tmp_path / "train-00000-of-00003.parquet").stat().st_mtime_ns != before


def test_shards_of_another_plan_are_never_mixed_in(tmp_path: Path) -> None:
    build(tmp_path, plan())
    with pytest.raises(SourceError, match=r"already holds train-00000-of-00003\.parquet.*another --output_dir"):
        build(tmp_path, plan(per_shard=100))
    build(tmp_path, plan(num_photos=50, split="validation"))
    assert len(stored_ids(tmp_path, "validation")) == 43


def test_too_many_damaged_photos_stop_the_run_and_name_the_first(tmp_path: Path) -> None:
    with pytest.raises(TooManyDamagedPhotosError, match=r"of 700 photos .* the first is 6\.jpg: made so"):
        build(tmp_path, plan(), max_bad_fraction=0.1)
    with pytest.raises(TooManyDamagedPhotosError):
        build(tmp_path / "early", plan(), max_bad_fraction=0.01)
    assert len(list((tmp_path / "early").glob("train-*"))) == 1  # it does not wait for the others
    build(tmp_path, plan(), max_bad_fraction=0.15)


def test_manifest_counts_photos_and_shards_with_their_hashes(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, build(tmp_path, plan()), source="numbers", options={"salt": ""})
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert (manifest["num_photos"], manifest["num_bad"]) == (600, 100)
    assert manifest["bad"][0] == {"file": "6.jpg", "reason": "made so"}
    assert manifest["source"] == "numbers"
    assert {"numpy", "pillow", "pyarrow", "simplejpeg"} <= set(manifest["versions"])
    shards = manifest["splits"]["train"]["shards"]
    assert sum(shard["num_photos"] for shard in shards) == 600
    for shard in shards:
        assert hashlib.sha256((tmp_path / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


def test_manifest_keeps_the_splits_of_earlier_runs(tmp_path: Path) -> None:
    write_manifest(tmp_path, build(tmp_path, plan()), source="first", options={})
    validation = build(tmp_path, plan(num_photos=70, split="validation"))
    manifest = write_manifest(tmp_path, validation, source="second", options={})
    assert {name: entry["source"] for name, entry in manifest["splits"].items()} == {
        "train": "first",
        "validation": "second",
    }
    assert manifest["num_photos"] == 660


def test_manifest_lists_a_capped_number_of_damaged_photos_and_counts_all(tmp_path: Path) -> None:
    bad = tuple(BadPhoto(f"{number}.jpg", "made so") for number in range(MAX_BAD_LISTED + 5))
    report = ShardReport("train-00000-of-00001.parquet", "train", 0, "", bad)
    manifest = write_manifest(tmp_path, [report], source="", options={})
    assert manifest["num_bad"] == MAX_BAD_LISTED + 5
    assert len(manifest["bad"]) == MAX_BAD_LISTED


def test_split_that_is_being_rewritten_is_unfinished_and_keeps_what_it_is(tmp_path: Path) -> None:
    write_manifest(tmp_path, build(tmp_path, plan()), source="", options={})
    with pytest.raises(TooManyDamagedPhotosError):
        build(tmp_path, plan(salt="other"), max_bad_fraction=0.0)
    entry = json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]
    assert entry["is_finished"] is False
    with pytest.raises(SourceError, match="does not list the split 'train' as finished"):
        refuse_other_sizes(tmp_path, "train", [215, 214, 171])
    others = [replace(task, photos_digest="others") for task in plan()]
    with pytest.raises(SourceError, match="holds a finished split 'train' of other photos"):
        build(tmp_path, others)
    write_manifest(tmp_path, build(tmp_path, plan(salt="other")), source="", options={})
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["is_finished"] is True


def test_run_that_stops_before_it_replaced_a_shard_leaves_the_split_finished(tmp_path: Path) -> None:
    write_manifest(tmp_path, build(tmp_path, plan()), source="", options={})
    before = (tmp_path / "manifest.json").read_text()

    def stop(numbers: list[int]) -> Iterator[PhotoRow | BadPhoto]:
        assert json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["is_finished"] is False
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        build_shards(tmp_path, plan(salt="other"), stop, optional_columns=("author",))
    assert (tmp_path / "manifest.json").read_text() == before


def test_shard_of_which_less_can_be_read_this_time_is_kept(tmp_path: Path) -> None:
    def flaky(num_unread: int, numbers: list[int]) -> Iterator[PhotoRow | BadPhoto]:
        for number in numbers:
            unread = BadPhoto(f"{number}.jpg", "cannot be read: 503", may_pass=True)
            yield unread if number < num_unread else PhotoRow(f"{number}.jpg", b"1")

    counts = []
    for num_unread in (2, 5, 1, 0):
        (report,) = build_shards(tmp_path, plan(10), partial(flaky, num_unread))
        counts.append((report.num_photos, len(report.bad)))
    assert counts == [(8, 2), (8, 2), (9, 1), (10, 0)]


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(SourceError, match="not a manifest of packed photos"):
        write_manifest(tmp_path, [], source="", options={})


def test_split_with_a_shard_missing_is_refused(tmp_path: Path) -> None:
    build(tmp_path, plan())
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(SourceError, match=r"holds 2 shards of 'train' where their names promise 3.*Start it again"):
        list_shards(tmp_path, "train")


def test_splits_whose_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    build(tmp_path, plan(70, split="test"))
    build(tmp_path, plan(140, split="test_im2gps"))
    assert len(stored_ids(tmp_path, "test")) == 60
    assert len(stored_ids(tmp_path, "test_im2gps")) == 120


def test_folder_without_shards_is_not_packed(tmp_path: Path) -> None:
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "absent")
    with pytest.raises(SourceError, match="no packed shards at all"):
        list_shards(tmp_path, "train")
