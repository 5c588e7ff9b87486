"""Packing what is not what it seems: nothing is lost, overwritten, put on two sides or told to strangers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from local_server import FolderHandler, serve
from PIL import Image
from source_files import (
    jpeg_of,
    json_bytes,
    tar_bytes,
    write_csv,
    write_file,
    write_photos,
)

from geomae.data.__main__ import main
from geomae.data.filesystems import public_name
from geomae.data.photos import encode_jpeg
from geomae.data.runners import run_tasks
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, SourceError

ROOT = Path(__file__).resolve().parent.parent


def pack(source: Path | str, output_dir: Path, *options: str) -> int:
    return main(["pack", str(source), "--output_dir", str(output_dir), "--num_processes", "1", *options])


def stored(output_dir: Path, column: str = "id", split: str = "*") -> list[Any]:
    return [
        value
        for file in sorted(output_dir.glob(f"{split}-0*.parquet"))
        for value in pq.read_table(file)[column].to_pylist()
    ]


def manifest(output_dir: Path) -> dict[str, Any]:
    return dict(json.loads((output_dir / "manifest.json").read_text()))


def _die(task: int, count: Any) -> int:
    os._exit(task)


def test_finished_split_is_not_overwritten_by_a_folder_of_the_same_name(tmp_path: Path, capsys: Any) -> None:
    write_photos(tmp_path / "x" / "photos", ["a.jpg", "b.jpg"])
    write_photos(tmp_path / "y" / "photos", ["c.jpg", "d.jpg"])
    assert pack(tmp_path / "x" / "photos", tmp_path / "out", "--unlabelled") == 0
    assert pack(tmp_path / "y" / "photos", tmp_path / "out", "--unlabelled") == 2
    assert "holds a finished split 'train' of other photos" in capsys.readouterr().err
    assert sorted(stored(tmp_path / "out")) == ["a.jpg", "b.jpg"]
    assert manifest(tmp_path / "out")["num_photos"] == 2


def test_source_that_has_suffered_does_not_take_its_shards_with_it(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(20)])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    for n in range(1):
        write_file(source / f"{n}.jpg", b"gone bad")
    assert pack(source, tmp_path / "out", "--unlabelled") == 2
    assert "holds 20 photos and would be replaced by one that holds 19 of them; the first" in capsys.readouterr().err
    assert len(stored(tmp_path / "out")) == 20
    assert manifest(tmp_path / "out")["splits"]["train"]["is_finished"] is True
    other = write_photos(tmp_path / "other" / "photos", [f"x{n}.jpg" for n in range(20)])
    assert pack(other, tmp_path / "out", "--unlabelled") == 2
    next(tmp_path.glob("out/train-*")).unlink()
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert manifest(tmp_path / "out")["num_photos"] == 19


def test_photos_that_could_not_be_read_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(30)])

    class Fails(FolderHandler):
        is_down = True

        def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            if type(self).is_down and self.path.endswith("/7.jpg") and self.command == "GET":
                self.send(503, b"")
            else:
                super().send_file(data, headers)

    with serve(Fails, root=folder) as (url, handler):
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        entry = manifest(tmp_path / "out")
        assert (entry["num_photos"], entry["num_bad"]) == (29, 1)
        assert entry["bad"][0]["reason"].startswith("cannot be read: ")
        assert set(entry["bad"][0]) == {"file", "reason"}
        handler.is_down = False
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        assert (manifest(tmp_path / "out")["num_photos"], manifest(tmp_path / "out")["num_bad"]) == (30, 0)
        handler.requests.clear()
        assert pack(url, tmp_path / "out", "--unlabelled") == 0
        assert not [path for method, path, _ in handler.requests if method == "GET" and path.endswith(".jpg")]


def test_shard_that_is_not_the_one_of_the_manifest_is_written_anew(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(5)])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    (shard,) = tmp_path.glob("out/train-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + b"\0" * 8 + whole[608:])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert shard.read_bytes() == whole


def test_second_run_into_a_folder_waits_for_nothing_and_breaks_nothing(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "out").mkdir()
    hold = (
        "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); print('held'); sys.stdin.read()"
    )
    command = [sys.executable, "-u", "-c", hold, str(tmp_path / "out" / ".pack.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert pack(source, tmp_path / "out", "--unlabelled") == 2
        assert "another run is writing into" in capsys.readouterr().err
        other.kill()  # its lock dies with it
    assert pack(source, tmp_path / "out", "--unlabelled") == 0


def test_side_longer_than_any_jpeg_is_one_bad_photo(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", [f"{n}.jpg" for n in range(20)])
    Image.new("L", (70_000, 100)).save(source / "wide.png")
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    assert manifest(tmp_path / "out")["bad"] == [
        {"file": "wide.png", "reason": "70000 x 100 has a side of more than the 65,500 pixels of any JPEG"}
    ]


def test_reasons_of_the_manifest_sum_to_all_bad_photos(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for n in range(80):
        write_file(source / f"{n}.jpg", jpeg_of(n)[: -20 - n])
    write_photos(source, [f"good{n}.jpg" for n in range(20)])
    assert pack(source, tmp_path / "whole", "--unlabelled", "--max_bad_fraction", "1") == 0
    entry = manifest(tmp_path / "whole")["splits"]["train"]
    assert sum(entry["num_bad_by_reason"].values()) == entry["num_bad"] == 80
    assert len(entry["num_bad_by_reason"]) < 5


def test_output_inside_the_source_is_refused_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    assert pack(f"file://{source}", source / "packed", "--unlabelled") == 2
    assert pack(source, source / "packed", "--unlabelled") == 2
    assert "lies in the source" in capsys.readouterr().err
    assert not (source / "packed").exists()


def test_authors_that_only_the_source_knows_split_it(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(40):
        members |= {f"{n:02}.jpg": jpeg_of(n), f"{n:02}.json": json_bytes(author=f"a{n % 4}", image_id=f"{n:02}")}
    write_file(tmp_path / "w" / "00.tar", tar_bytes(members))
    table = write_csv(tmp_path / "t.csv", "id,latitude,longitude", [(f"{n:02}", n, n) for n in range(40)])
    assert pack(tmp_path / "w", tmp_path / "out", "--csv", str(table), "--validation_fraction", "0.5") == 0
    train, validation = (set(stored(tmp_path / "out", "author", split)) for split in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation


def test_split_without_authors_and_authors_on_both_sides_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, first in (("one", 0), ("two", 10)):
        write_photos(tmp_path / name, [f"{n}.jpg" for n in range(first, first + 4)], first)
        rows = [(f"{n}.jpg", n + 1, n, "eve") for n in range(first, first + 4)]
        write_csv(tmp_path / name / "t.csv", "id,latitude,longitude,author", rows)
    assert pack(tmp_path / "one", tmp_path / "out") == 0
    assert pack(tmp_path / "two", tmp_path / "out", "--split_name", "validation") == 0
    assert "1 authors of these photos, such as eve, have photos in the split 'train'" in caplog.text
    assert pack(tmp_path / "one", tmp_path / "half", "--unlabelled", "--validation_fraction", "0.5") == 0
    assert "no author is known: the split is by photo" in caplog.text


def test_records_name_no_secrets_and_no_folders(tmp_path: Path) -> None:
    folder = tmp_path / "home_of_alice"
    write_file(folder / "00.tar", tar_bytes({"a.jpg": jpeg_of(1), "b.jpg": b"junk", "c.jpg": jpeg_of(3)}))
    write_file(folder / "t.csv", "id,latitude,longitude\na,1,2\nb,3,4\nc,5,6\nd,7,8\n")
    with serve(FolderHandler, root=folder) as (url, _):
        signed = url.replace("http://", "http://eve:PASSWORD@")
        options = ["--csv", f"{url}/t.csv?token=SECRET", "--max_bad_fraction", "1"]
        assert pack(f"{signed}/00.tar?token=SECRET", tmp_path / "out", *options) == 0
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "00.tar" in text
    assert not [secret for secret in ("SECRET", "PASSWORD", str(tmp_path)) if secret in text]
    assert (
        pack(f"{folder}/{{00..00}}.tar", tmp_path / "two", "--csv", str(folder / "t.csv"), "--max_bad_fraction", "1")
        == 0
    )
    assert "home_of_alice" not in (tmp_path / "two" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlabelled", "--partial"], "--partial is about a table"),
        (["--unlabelled", "--validation_fraction", "nan"], "validation_fraction=nan"),
        (["--source_split", "train"], "--source_split is of packed folders"),
        (
            ["--unlabelled", "--min_photo_bytes", "100000"],
            "has no photo that can be used: 1 x fewer than 100,000 bytes",
        ),
    ],
)
def test_options_are_honoured_or_refused(tmp_path: Path, capsys: Any, options: list[str], message: str) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    write_csv(source / "t.csv", "id,latitude,longitude", [("a.jpg", 1, 2)])
    assert pack(source, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_packed_splits_are_not_mixed_by_naming_the_kind(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    assert pack(source, tmp_path / "out", "--unlabelled") == 0
    with pytest.raises(ConfigError, match="whose splits --kind parquet would mix"):
        open_source(tmp_path / "out", SourceOptions(kind="parquet", unlabelled=True))
    with pytest.raises(ConfigError, match="--min_photo_bytes is for photos in files"):
        open_source(tmp_path / "out", SourceOptions(min_photo_bytes=5, unlabelled=True))


def test_output_that_is_a_file_is_one_line(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    write_file(tmp_path / "out", b"")
    assert pack(source, tmp_path / "out", "--unlabelled") == 2
    assert "FileExistsError: " in capsys.readouterr().err


def test_full_disk_leaves_what_is_finished_and_no_half_of_a_shard(
    tmp_path: Path, capsys: Any, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_photos(tmp_path / "photos", [f"{number}.jpg" for number in range(12)])
    options = ("--unlabelled", "--photos_per_shard", "3")
    assert pack(tmp_path / "photos", tmp_path / "whole", *options) == 0
    sizes = sorted(path.stat().st_size for path in (tmp_path / "whole").glob("*.parquet"))
    capsys.readouterr()
    with full_disk(sizes[0] - 1):
        assert pack(tmp_path / "photos", tmp_path / "packed", *options) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'packed'} cannot be written. Free space; the same command then goes on where it was" in said
    assert not list((tmp_path / "packed").glob("*.parquet"))
    assert pack(tmp_path / "photos", tmp_path / "packed", *options) == 0
    assert stored(tmp_path / "packed") == stored(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_worker_that_is_killed_is_explained() -> None:
    from tqdm import tqdm

    with (
        tqdm(disable=True) as bar,
        pytest.raises(SourceError, match="smaller --num_processes: finished shards are kept"),
    ):
        list(run_tasks([9, 9], _die, num_processes=2, ray_address=None, bar=bar))


def test_cut_archives_count_for_what_they_have_lost(tmp_path: Path, capsys: Any) -> None:
    for tar in range(10):
        members: dict[str, bytes] = {}
        for n in range(20):
            members |= {f"{tar}-{n}.jpg": jpeg_of(n), f"{tar}-{n}.json": json_bytes(lat=n + 1, lon=2)}
        whole = tar_bytes(members)
        write_file(tmp_path / "w" / f"{tar}.tar", whole if tar < 3 else whole[: len(whole) // 2])
    assert pack(tmp_path / "w", tmp_path / "out") == 2
    assert "the archive is damaged or cut off" in capsys.readouterr().err


def test_stopped_pack_says_that_the_same_command_goes_on(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomae.data.__main__.pack_photos", stop)
    assert pack(source, tmp_path / "out", "--unlabelled") == 130
    assert "the same command goes on" in capsys.readouterr().err


def hear_ctrl_c() -> None:
    """Also where the tests run in a shell's background, whose programs do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def workers_import(pid: int, _: Path) -> bool:
    return any("numpy" in mapped.path for worker in psutil.Process(pid).children() for mapped in worker.memory_maps())


def first_shard_is_there(_: int, folder: Path) -> bool:
    return bool(list(folder.glob("train-*.parquet")))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("is_time", [workers_import, first_shard_is_there])
def test_ctrl_c_ends_all_processes_without_a_traceback(is_time: Callable[[int, Path], bool], tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for number in range(240):  # seconds of work: it must not be over when the signal comes
        write_file(source / f"{number}.jpg", encode_jpeg(np.full((1200, 1600, 3), number, np.uint8), 90))
    command = [sys.executable, "-m", "geomae.data", "pack", str(source), "--unlabelled", "--num_processes", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--photos_per_shard", "5"]
    options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options, preexec_fn=hear_ctrl_c) as run:
        deadline = time.monotonic() + 60
        while not is_time(run.pid, tmp_path / "out"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in stderr
    assert "the same command goes on" in stderr
    assert pack(source, tmp_path / "out", "--unlabelled", "--photos_per_shard", "5") == 0
    assert manifest(tmp_path / "out")["num_photos"] == 240


def test_inspect_shows_between_which_degrees_the_photos_lie(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg", "b.jpg"])
    write_csv(source / "t.csv", "filename,latitude,longitude", [("a.jpg", 7.25, 45), ("b.jpg", 7.5, 45.125)])
    assert main(["inspect", str(source)]) == 0
    assert "degrees: latitude 7.25 to 7.5, longitude 45 to 45.12; the first at 7.25, 45" in capsys.readouterr().out


def test_split_that_takes_photos_from_itself_is_refused(tmp_path: Path, capsys: Any) -> None:
    source = write_photos(tmp_path / "photos", ["a.jpg"])
    options = ("--unlabelled", "--split_name", "validation", "--validation_fraction", "0.5")
    assert pack(source, tmp_path / "out", *options) == 2
    assert "validation_fraction takes photos out of it for itself" in capsys.readouterr().err


def test_photos_of_two_folders_of_one_name_are_told_apart_by_their_coordinates(tmp_path: Path) -> None:
    for folder, latitude in (("x", 1), ("y", 2)):
        source = write_photos(tmp_path / folder / "images", ["a.jpg", "b.jpg"])
        write_csv(source / "t.csv", "id,latitude,longitude", [("a.jpg", latitude, 5), ("b.jpg", latitude, 6)])
    assert pack(tmp_path / "x" / "images", tmp_path / "out") == 0
    assert pack(tmp_path / "y" / "images", tmp_path / "out", "--split_name", "validation") == 0
    assert pack(tmp_path / "x" / "images", tmp_path / "out", "--split_name", "test") == 2


def test_pattern_names_the_same_source_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", ["a.jpg"])
    write_file(tmp_path / "tars" / "00.tar", tar_bytes({"a.jpg": jpeg_of(1)}))
    monkeypatch.chdir(tmp_path)
    for spelling in ("tars/{00..00}.tar", f"{tmp_path}/tars/{{00..00}}.tar", "../" + tmp_path.name + "/tars/*.tar"):
        name = "{00..00}.tar" if "{" in spelling else "*.tar"
        assert public_name(spelling) == name
    assert pack("tars/{00..00}.tar", tmp_path / "out", "--unlabelled") == 0
    assert pack(f"{tmp_path}/tars/{{00..00}}.tar", tmp_path / "out", "--unlabelled") == 0
