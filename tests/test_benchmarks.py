"""The benchmarks run; what they measure is not a matter of tests."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geomae.data.photos import encode_jpeg

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_input_pipeline_compares_ours_with_what_decoding_alone_takes(tmp_path: Path, shared_data: Path) -> None:
    command = [sys.executable, "benchmarks/input_pipeline.py", "--shared_data", str(shared_data), "--rounds", "1"]
    command += ["--only", "ours", "ours_unshuffled", "ours_four_crops", "bound", "--memory_epochs", "2"]
    command += ["--photos", "128", "--batches", "2", "--warmup_batches", "1", "--batch_size", "16", "--no-pin"]
    command += ["--cache_dir", str(tmp_path), "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["commit"]
    page = (tmp_path / "result.md").read_text()
    for title in ("GeoMAE, not shuffled", "GeoMAE, four crops of each photo", "decode and resize alone"):
        assert f"| {title} |" in page


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("loading.report")


def test_ratios_are_ours_by_the_other_s_within_a_round(report: Any) -> None:
    measure, pipelines = (importlib.import_module(f"loading.{name}") for name in ("measure", "pipelines"))

    def runs(*seconds: float) -> list[Any]:  # of 100 photos; the worker is at work half of the time
        return [measure.Measurement(100, wall, wall / 2, 0.001) for wall in seconds]

    known = [pipelines.Pipeline("ours", "GeoMAE", list), pipelines.Pipeline("thesis", "the thesis", list)]
    entries = report.medians_and_ratios(known, {"ours": runs(1, 2, 4), "thesis": runs(10, 4, 20)})
    assert entries["thesis"]["photos_per_s"] == 10
    assert entries["thesis"]["photos_per_worker_core_s"] == 20
    assert entries["thesis"]["ours_is_times"] == {"photos_per_s": 5, "photos_per_worker_core_s": 5}
    assert entries["thesis"]["ours_is_times_by_round"] == [10, 2, 5]
    (verdict,) = report.judge_targets(entries)
    assert (verdict["at_least"], verdict["least"], verdict["most"], verdict["is_met"]) == (4, 2, 10, True)
    slower = report.medians_and_ratios(known, {"ours": runs(1, 2, 4), "thesis": runs(3, 4, 5)})
    assert not report.judge_targets(slower)[0]["is_met"]
    assert report.cores_needed(entries)[0]["worker_cores"] == {"ours": 4365 / 100, "thesis": 4365 / 20}


def test_memory_is_judged_from_the_second_epoch_on(report: Any) -> None:
    epochs = importlib.import_module("loading.measure").MemoryOfEpoch
    flat = report.judge_memory([epochs(peak, 1, 1) for peak in (50, 100, 104)])
    growing = report.judge_memory([epochs(peak, 1, 1) for peak in (100, 100, 106)])
    assert (flat["is_met"], growing["is_met"]) == (True, False)
    assert growing["growth_of_peak"] == pytest.approx(0.06)


@pytest.mark.slow
def test_evaluation_speed_compares_an_evaluation_with_its_model(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/evaluation_speed.py", "--only", "small", "--photos", "3", "--rounds", "1"]
    command += ["--batch_sizes", "4", "16", "--num_workers", "0", "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["cases"]) == ["small_4", "small_16"]
    for case, batch_size in zip(result["cases"].values(), (4, 16), strict=True):
        ((whole_s, bare_s),) = case["seconds_by_round"]
        assert (case["num_photos"], case["batch_size"]) == (24, batch_size)
        assert case["photos_per_s"] == pytest.approx(24 / whole_s)
        assert case["share_outside_model"] == pytest.approx(1 - bare_s / whole_s)
    page = (tmp_path / "result.md").read_text()
    assert "| GeoMAE, 4 layers" in page
    assert "At most 5 % are to pass outside the model: " in page


def test_compiled_evaluation_takes_turns_with_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = importlib.import_module("evaluation_speed")
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))  # inductor takes long
    turns: list[tuple[Any, int]] = []

    def take_a_turn(case: Any, model: Any, *rest: Any) -> tuple[float, float]:
        turns.append((model, rest[-2]))
        return 2.0, 1.0

    monkeypatch.setattr(speed, "measure_round", take_a_turn)
    photo = {"id": "1", "image": {"bytes": encode_jpeg(np.zeros((64, 64, 3), np.uint8), 75), "path": None}}
    arguments = argparse.Namespace(compile=True, rounds=2, num_workers=0)
    entries = speed.measure_case(speed.CASES[0], [photo] * 5, torch.device("cpu"), arguments, 4)
    eager = turns[0][0]
    assert turns == [(eager, 4), (compiled[0], 4)] * 2
    assert entries["_compiled"]["title"] == entries[""]["title"] + ", compiled"
    assert entries["_compiled"]["first_batch_s"] > 0


def test_readers_that_are_too_few_are_named_where_the_model_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    judge_target = importlib.import_module("evaluation_speed").judge_target

    def entry(share: float, decoded: float) -> dict[str, Any]:
        rates = {"bare_photos_per_s": 100.0, "decoded_photos_per_core_s": decoded}
        return {"title": "ViT", "batch_size": 8, "share_outside_model": share, **rates}

    assert judge_target({"a": entry(0.05, 1.0)}, 1).endswith("met everywhere.")
    missed = judge_target({"a": entry(0.05, 1.0), "b": entry(0.06, 45.0), "c": entry(0.3, 55.0)}, 2).splitlines()
    assert missed[0].endswith("missed by 2 of 3 rows.")
    assert "at most 90 photos/s, fewer than the model takes" in missed[1]
    assert "at most 110 photos/s, more than the model takes" in missed[2]


def test_share_outside_the_model_is_taken_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = importlib.import_module("evaluation_speed")
    summary = speed.summarise_rounds([(2.0, 1.0), (10.0, 9.0), (4.0, 3.0)], 100)
    assert summary["share_outside_model"] == 0.25
    assert summary["photos_per_s"] == 25  # 100 by the median of 2, 10 and 4 seconds
    assert summary["bare_photos_per_s"] == pytest.approx(100 / 3)


@pytest.mark.slow
def test_judging_compares_ours_with_a_loop_over_resamples_that_gives_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/judging.py", "--shared_data", str(tmp_path), "--rounds", "1"]
    command += ["--num_resamples", "100", "--naive_resamples", "100", "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["photos_are_real"]
    assert max(result["largest_relative_difference_to_naive"].values()) < 1e-9
    assert all(entry["cpu_s"] > 0 for entry in result["contestants"].values())
    script, whole = (result["contestants"][f"{key}_yfcc25600"]["cpu_s"] for key in ("script", "whole"))
    assert script > 2 * whole  # the seconds of the process count, though they are another's
    page = (tmp_path / "result.md").read_text()
    assert "drawn: the real lists are not there" in page
    assert "All rows but that of a process leave imports and baselines out." in page
    assert "| run_evaluate_geo.py as a process, with the baselines of 100,000 training points | 25,600 |" in page
    assert "Targets are judged by the CPU seconds of one core, not by the clock" in page
    assert "| the same intervals, by a loop over resamples | 25,600 |" in page


def test_geocells_are_timed_step_by_step_with_their_memory(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/geocells.py", "--shared_data", str(tmp_path), "--num_points", "2000"]
    command += ["--rounds", "1", "--max_photos", "200", "50", "--min_photos", "10", "--num_cells", "5", "20"]
    subprocess.run([*command, "--output", str(tmp_path / "result.json")], cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["points_are_real"]
    assert len(result["num_geocells"]) == 2
    assert all(step["cpu_s"] > 0 for step in result["steps"].values())
    page = (tmp_path / "result.md").read_text()
    assert "# Geocells of 2,000 photos" in page
    assert "The points are drawn." in page
    assert "s of at most 60 s of one core: met." in page


def test_a_step_s_memory_is_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("geocells")
    size = 200_000_000
    large, small = (benchmark.measure(lambda n=n: bytearray(n).count(1)) for n in (size, size // 4))
    assert large.peak_mb == pytest.approx(200, rel=0.1)
    assert small.peak_mb == pytest.approx(50, rel=0.2), "the peak of the step before does not count"
