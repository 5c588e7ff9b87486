"""The programs for long runs, many rows and many visitors run; what they count and the lines they draw are right."""

import importlib
import io
import json
import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from launching import ROOT

from geomae.errors import ConfigError


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"lasting.{name}")


def look_at_this_process(part: Any) -> Any:
    return part("watch").look_at([psutil.Process()])


def test_memory_and_files_that_are_held_are_seen_and_gone_when_they_go(part: Any, tmp_path: Path) -> None:
    before = look_at_this_process(part)
    held = np.ones(64 * 2**20, np.uint8)
    files = [(tmp_path / str(number)).open("w") for number in range(7)]
    during = look_at_this_process(part)
    assert during.own_bytes - before.own_bytes == pytest.approx(held.nbytes, rel=0.1)
    assert during.num_files - before.num_files == 7
    for file in files:
        file.close()
    del held
    after = look_at_this_process(part)
    assert after.own_bytes - before.own_bytes < 8 * 2**20
    assert after.num_files == before.num_files
    assert after.largest_bytes >= during.rss_bytes - 2**20  # the largest that it has ever been


def test_shared_memory_counts_once_whoever_maps_it(part: Any) -> None:
    before = look_at_this_process(part)
    with mmap.mmap(-1, 3 * 2**20):
        once = part("watch").look_at([psutil.Process(), psutil.Process()])
    assert once.shared_bytes - before.shared_bytes == 3 * 2**20
    assert once.num_shared - before.num_shared == 1


def test_a_process_that_ends_meanwhile_counts_as_nothing(part: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    processes = part("watch").processes_of(child.pid)
    child.wait()
    assert part("watch").look_at(processes).num_processes == 0
    assert part("watch").processes_of(child.pid) == []


def test_watch_sees_the_children_and_keeps_the_highest(part: Any) -> None:
    grandchild = "held = bytes(b'x' * 50_000_000); input(); del held; input()"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"]

    def wait_until(claim: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + 60
        while not (watch.samples and claim(watch.samples[-1])):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        with part("watch").Watch(child.pid, 0.05, lambda: {"clock": time.monotonic()}) as watch:
            wait_until(lambda sample: sample["num_processes"] == 2 and sample["own_bytes"] > 50_000_000)
            for is_smaller in (True, False):
                child.stdin.write("\n")
                child.stdin.flush()
                if is_smaller:
                    wait_until(lambda sample: sample["own_bytes"] < 45_000_000)
            child.wait()
    assert watch.peak("own_bytes") - watch.samples[-1]["own_bytes"] > 45_000_000
    assert watch.samples[-1]["clock"] > watch.samples[0]["clock"]


def test_growth_is_the_slope_behind_the_warm_up(part: Any) -> None:
    steps = np.arange(0, 10_000, 10)
    noise = np.random.default_rng(1).normal(0, 50, len(steps))
    warming = np.where(steps < 2_000, steps * 10.0, 20_000.0)  # fills up, and then stays
    flat = part("growth").fit_growth(steps, warming + noise)
    assert flat["interval_95"][0] < 0 < flat["interval_95"][1]
    assert abs(flat["per_1000_steps"]) < 10
    rising = part("growth").fit_growth(steps, 1e6 + 0.7 * steps + noise)
    assert rising["per_1000_steps"] == pytest.approx(700, rel=0.02)
    assert rising["interval_95"][0] < 700 < rising["interval_95"][1]
    assert rising["from_step"] == pytest.approx(5_000, abs=10)
    constant = part("growth").fit_growth(steps, np.full(len(steps), 7))
    assert (constant["per_1000_steps"], constant["interval_95"]) == (0, [0, 0])


def test_too_short_a_run_has_no_slope(part: Any) -> None:
    with pytest.raises(ConfigError, match="9 samples behind the warm-up are too few for 10 stretches"):
        part("growth").fit_growth(range(18), range(18))


def test_a_line_is_straight_and_a_parabola_is_not(part: Any) -> None:
    def rows(cost: Any) -> dict[str, Any]:
        return {str(n): {"core_seconds": cost(n), "peak_own_bytes": 7.0} for n in (100, 1_000, 10_000)}

    summary = part("rows_report").summarise(rows(lambda n: 3 + n / 50))
    assert summary["core_seconds"]["per_row"] == pytest.approx([0.02, 0.02])
    assert summary["core_seconds"]["bend"] == pytest.approx(1)
    assert summary["core_seconds"]["is_straight"] is True
    assert summary["peak_own_bytes"] == {"per_row": [0, 0], "bend": None, "is_straight": True}
    assert part("rows_report").summarise(rows(lambda n: n**2))["core_seconds"]["is_straight"] is False
    two = {key: value for key, value in rows(float).items() if key != "10000"}
    assert part("rows_report").summarise(two)["core_seconds"]["is_straight"] is None  # nobody can say


def test_photos_by_the_million_are_named_once_and_lie_on_earth(part: Any, tmp_path: Path) -> None:
    photos = part("tiny_photos")
    ids = list(photos.photo_ids(60_000))
    assert len(set(ids)) == 60_000
    places = photos.draw_coordinates(60_000)
    assert np.abs(places).max(axis=0)[0] < 90
    assert np.abs(places).max(axis=0)[1] <= 180
    photos.write_msgpack(tmp_path / "photos", 60_000, photos.make_jpegs(3, side=8))
    shards = sorted((tmp_path / "photos").iterdir())
    stored = [each for shard in shards for each in msgpack.Unpacker(io.BytesIO(shard.read_bytes()))]
    assert len(shards) == 3
    assert [each["id"] for each in stored] == ids
    assert len({each["image"] for each in stored}) == 3


def run(tmp_path: Path, program: str, *options: str) -> Any:
    command = [sys.executable, f"benchmarks/{program}.py", *options, "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "result.png").stat().st_size > 10_000
    return json.loads((tmp_path / "result.json").read_text()), (tmp_path / "result.md").read_text()


@pytest.mark.slow
def test_soak_watches_both_scripts(tmp_path: Path) -> None:
    record, page = run(tmp_path, "soak", "--minutes", "0.8", "--every_steps", "200", "--photos", "400")
    assert set(record["runs"]) == {"pretraining", "fine-tuning"}
    for title, soaked in record["runs"].items():
        assert soaked["num_steps"] > 200
        assert soaked["growth"]["num_files"]["least"] > 3
        assert max(sample["num_processes"] for sample in soaked["samples"]) >= 2  # the script and its reader
        assert f"## {title}: {soaked['num_steps']:,} steps" in page


@pytest.mark.slow
def test_all_stages_are_measured_at_two_numbers_of_rows(tmp_path: Path) -> None:
    record, page = run(tmp_path, "rows_scaling", "--rows", "1000", "3000")
    assert list(record["stages"]) == ["pack", "epoch", "resume", "judge", "evaluate", "predict"]
    for stage, entry in record["stages"].items():
        assert list(entry["rows"]) == ["1000", "3000"]
        assert all(each["core_seconds"] > 0.1 and each["peak_own_bytes"] > 2**20 for each in entry["rows"].values())
        assert f"## {stage}" in page
    assert record["stages"]["epoch"]["rows"]["3000"]["said_num_photos"] == 3000 // 256 * 256


@pytest.mark.slow
def test_visitors_are_counted_by_what_they_were_told(tmp_path: Path) -> None:
    options = ("--visitors", "4", "--seconds", "8", "--rush", "80", "--silence_s", "1")
    record, page = run(tmp_path, "page_visitors", *options, "--photo_size", "320", "240")
    assert record["crowd"]["outcomes"]["answered"] > 4
    rush = record["rush"]["outcomes"]
    assert sum(rush.values()) == 80
    assert rush["too full"] > 0  # the queue has 64 places
    assert rush["failed"] == record["crowd"]["outcomes"]["failed"] == 0
    assert record["afterwards"]["outcomes"]["answered"] == 1
    assert "| the rush |" in page


@pytest.mark.parametrize(
    ("program", "options", "words"),
    [
        ("soak", ("--minutes", "0"), "--minutes 0.0: expected at least 0.1"),
        ("rows_scaling", ("--rows", "10"), "--rows 10 --jpeg_side 16: expected at least 1000 and 8"),
        ("rows_scaling", ("--only", "epoch"), "every other stage needs what pack writes"),
        ("page_visitors", ("--visitors", "0"), "--visitors 0: expected at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    program: str, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *options])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
