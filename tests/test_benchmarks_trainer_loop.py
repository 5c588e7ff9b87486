"""`benchmarks/trainer_loop.py`: what Trainer loses is measured, taken apart and judged."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from geomae.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def report() -> Any:
    return importlib.import_module("loops.report")


def rounds(*seconds: tuple[float, float]) -> list[Any]:
    """Trainer's and the bare loop's; of the processor's seconds Trainer takes twice as many."""
    interleave = importlib.import_module("loops.interleave")
    return [interleave.Round(trainer, bare, 2.0, 1.0) for trainer, bare in seconds]


@pytest.mark.slow
def test_small_models_are_measured_from_photos_and_from_ready_batches(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/trainer_loop.py", "--only", "small", "small_geolocation", "--rounds", "1"]
    command += ["--batch_size", "4", "--size", "80", "60", "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {key: list(case["contestants"]) for key, case in result["cases"].items()} == {
        "small": ["ready", "average", "unclipped", "pipeline"],
        "small_geolocation": ["ready", "pipeline"],
    }
    for case in result["cases"].values():
        for name, contestant in case["contestants"].items():
            assert len(contestant["seconds_by_round"]) == 1
            steps = contestant["steps_per_round"]
            trainer_s, bare_s = (sum(seconds) for seconds in zip(*contestant["seconds_by_round"], strict=True))
            parts = contestant["parts"]
            assert sum(part["trainer_ms"] for part in parts.values()) == pytest.approx(1000 * trainer_s / steps)
            assert sum(part["bare_ms"] for part in parts.values()) <= 1000 * bare_s / steps
            assert all(parts[part]["trainer_ms"] > 0 for part in ("forward", "backward", "optimizer", "next batch"))
            assert ("moving average" in parts) == (name == "average")
            assert (parts["gradient norm, clipping"]["bare_ms"] == 0) == (name == "unclipped")
    assert result["targets"] == []  # they are those of the real models
    page = (tmp_path / "result.md").read_text()
    assert "| 4 layers of width 128, pretraining | 4 | photos from packed shards |" in page
    assert "Left out: no `--run_mae PATH` was given." in page


def test_losses_are_taken_within_each_round(report: Any) -> None:
    summary = report.summarise_rounds(rounds((2.0, 1.0), (10.0, 8.0), (4.5, 3.0)), 5, 16)
    assert summary["lost_percent_by_round"] == [100, 25, 50]
    assert summary["lost_percent"] == 50
    assert summary["processor_time_lost_percent"] == 100
    assert (summary["trainer_ms"], summary["bare_ms"]) == (900, 600)  # the median round's seconds, five steps each
    assert summary["photos_per_s"] == pytest.approx(5 * 16 / 4.5)


def test_part_inside_another_counts_once_and_what_has_no_name_is_the_rest(report: Any) -> None:
    clock = importlib.import_module("loops.interleave").Parts()
    with clock.timing("callbacks"), clock.timing("moving average"):
        torch.ones(100, 100) @ torch.ones(100, 100)
    assert set(clock.seconds) == {"callbacks", "moving average"}
    assert clock.seconds["callbacks"] < clock.seconds["moving average"]
    watched = {"forward": 3.0, "callbacks": 0.5, "bare loop": 9.0}
    parts = report.describe_parts(rounds((2.0, 1.0), (2.0, 1.0)), watched, {"forward": 2.0}, 4)
    assert parts == {
        "forward": {"trainer_ms": 750, "bare_ms": 500},
        "callbacks": {"trainer_ms": 125, "bare_ms": 0},
        "rest": {"trainer_ms": 125, "bare_ms": 0},  # of 4 seconds 3.5 have a name
    }
    assert report.host_work_ms(parts) == 250


def test_targets_can_be_missed_and_readers_without_a_core_are_not_judged(report: Any) -> None:
    def cases(ready: float, pipeline: float) -> dict[str, Any]:
        lost = {"ready": {"lost_percent": ready}, "pipeline": {"lost_percent": pipeline}}
        return {"vit_base": {"contestants": lost}, "small": {"contestants": lost}}

    def verdicts(*lost: float, num_cores: int = 2) -> list[Any]:
        judged = report.judge_targets(cases(*lost), num_cores, 1)
        assert [(verdict["case"], verdict["at_most_percent"]) for verdict in judged] == [
            ("vit_base", 3),
            ("vit_base", 5),
        ]
        return [verdict["is_met"] for verdict in judged]

    assert verdicts(3.0, 5.0) == [True, True]
    assert verdicts(3.1, 5.1) == [False, False]
    assert verdicts(-1.0, 5.1, num_cores=1) == [True, None]


STAND_IN = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("output_dir", "train_dir", "config_overrides", "max_steps", "per_device_train_batch_size"):
    parser.add_argument("--" + name, required=True)
arguments, _ = parser.parse_known_args()
folder = pathlib.Path(arguments.output_dir)
folder.mkdir(parents=True)
speed = {"0": 5.0, "1": 10.0, "2": 4.0}[folder.name[-1]]
(folder / "train_results.json").write_text(json.dumps({"train_samples_per_second": speed, "epoch": 1}))
"""


def options(**changes: Any) -> Namespace:
    settings = {"batch_size": 4, "num_workers": 0, "rounds": 3, "run_mae_steps": 2, "device": "cpu", "compile": False}
    return Namespace(**{**settings, **changes})


def compare(script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Against a script of ours that always trains 20 photos a second."""
    run_mae = importlib.import_module("loops.run_mae")
    state = json.dumps({"log_history": [{"loss": 1.0}, {"train_samples_per_second": 20.0}]})
    ours = "import pathlib, sys; folder = pathlib.Path(sys.argv[-1]); folder.mkdir(); "
    ours += f"(folder / 'trainer_state.json').write_text({state!r})"
    monkeypatch.setattr(run_mae, "_our_command", lambda *_: [sys.executable, "-c", ours])
    result: dict[str, Any] = run_mae.compare_with_run_mae(script, folder, folder, folder, options(**changes))
    return result


def test_speed_against_run_mae_is_what_both_say_of_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "run_mae.py"
    script.write_text(STAND_IN)
    result = compare(script, tmp_path, monkeypatch)
    assert result["photos_per_s_by_round"] == {"run_mae": [5, 10, 4], "ours": [20, 20, 20]}
    assert result["ours_is_times_by_round"] == [4, 2, 5]
    assert (result["photos_per_s"]["run_mae"], result["ours_is_times"]) == (5, 4)


@pytest.mark.slow
def test_our_own_script_accepts_what_it_is_given_and_says_how_fast_it_was(tmp_path: Path) -> None:
    run_mae = importlib.import_module("loops.run_mae")
    command = run_mae._our_command(tmp_path, options())
    done = subprocess.run([*command, "--output_dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode  # every option is known: only the photos are missing
    assert f"{tmp_path}" in done.stderr
    assert "unknown" not in done.stderr


def test_run_mae_that_fails_or_is_not_there_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--run_mae .*run_mae.py: there is no such file; name run_mae.py of a"):
        compare(tmp_path / "run_mae.py", tmp_path, monkeypatch)
    script = tmp_path / "run_mae.py"
    script.write_text("raise SystemExit('needs datasets>=2.14')")
    with pytest.raises(ConfigError, match=r"(?s)run_mae.py .*--max_steps 2 .*failed:\nneeds datasets>=2.14"):
        compare(script, tmp_path, monkeypatch)
