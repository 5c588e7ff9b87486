"""`--profile`: which steps are recorded, that they add up, and that nothing is recorded or slowed down without it."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from transformers import TrainingArguments

import run_finetune_geo
import run_pretrain_mae
from geomae.training import GeoMAETrainingArguments, StepProfiler, parse_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=32, validation=6)


def profiled(photos: Path, folder: Path, **changes: Any) -> Any:
    trainer = mae_trainer(photos, training_arguments(folder, profile=True, **changes))
    trainer.add_callback(StepProfiler(trainer))
    return trainer


def record_of(folder: Path) -> Any:
    return json.loads((folder / "profile" / "profile.json").read_text())


def events_of(folder: Path) -> list[dict[str, Any]]:
    (trace,) = (folder / "profile").glob("trace_*.json.gz")
    return list(json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"])


def test_the_key_is_ours_alone() -> None:
    assert "profile" not in {name for name in dir(TrainingArguments) if not name.startswith("_")}


@pytest.mark.parametrize("words, expected", [(["--profile"], True), (["--profile", "true"], True), ([], False)])
def test_switch_stands_alone_or_with_its_value(tmp_path: Path, words: list[str], expected: bool) -> None:
    (args,) = parse_config((GeoMAETrainingArguments,), ["--output_dir", str(tmp_path), *words])
    assert args.profile is expected


def test_three_steps_are_recorded_after_warm_up_and_add_up(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = profiled(photos, tmp_path, max_steps=11)
    trainer.train()
    record = record_of(tmp_path)
    assert record["steps"] == [7, 9]  # five to warm up, one for the profiler
    assert record["trace"] == "trace_steps_7_to_9.json.gz"
    assert len(record["step_ms_by_step"]) == 3
    sums = sum(sum(phases.values()) for phases in record["host_ms"].values())
    assert sums == pytest.approx(record["step_ms"], rel=1e-6)
    for category in ("matrix products", "attention", "normalisation", "optimizer and clipping", "waiting for data"):
        assert sum(record["host_ms"][category].values()) > 0
    assert record["host_ms"]["matrix products"]["backward"] > 0
    names = [event["name"] for event in events_of(tmp_path) if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 3
    assert sum(name == "Optimizer.step#AdamW.step" for name in names) == 3
    assert "python -m geomae.reporting profile" in capsys.readouterr().out


def test_recording_changes_nothing_about_the_training(photos: Path, tmp_path: Path) -> None:
    plain, recorded = (tmp_path / name for name in ("plain", "recorded"))
    trainers = [mae_trainer(photos, training_arguments(plain, max_steps=11)), profiled(photos, recorded, max_steps=11)]
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    losses = []
    for trainer in trainers:
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert not (plain / "profile").exists()


def test_speed_in_the_logs_leaves_recorded_steps_out(photos: Path, tmp_path: Path) -> None:
    trainer = profiled(photos, tmp_path, max_steps=11)
    trainer.train()
    logged = {entry["step"] for entry in trainer.state.log_history if "photos_per_second" in entry}
    assert logged == {1, 2, 3, 4, 5, 10, 11}


def test_recording_begins_again_behind_an_evaluation(photos: Path, tmp_path: Path) -> None:
    trainer = profiled(photos, tmp_path, max_steps=14, eval_strategy="steps", eval_steps=8)
    trainer.train()
    assert record_of(tmp_path)["steps"] == [11, 13]  # begins at the end of step 9: the first without an evaluation


def test_evaluation_behind_the_last_recorded_step_harms_nothing(photos: Path, tmp_path: Path) -> None:
    trainer = profiled(photos, tmp_path, max_steps=9, eval_strategy="steps", eval_steps=9)
    trainer.train()
    assert record_of(tmp_path)["steps"] == [7, 9]


@pytest.mark.parametrize("settings, message", [
    ({"max_steps": 8}, "8 steps are left, and it needs 9"),
    ({"max_steps": 12, "eval_strategy": "steps", "eval_steps": 3}, "has recorded nothing: evaluations"),
])  # fmt: skip
def test_run_that_leaves_no_room_says_so(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], message: str
) -> None:
    trainer = profiled(photos, tmp_path, **settings)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert message in caplog.text
    assert not (tmp_path / "profile").exists()


def test_resumed_run_records_steps_of_its_own(photos: Path, tmp_path: Path) -> None:
    saved = training_arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=4)
    mae_trainer(photos, saved).train()
    profiled(photos, tmp_path, max_steps=14).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert record_of(tmp_path)["steps"] == [11, 13]


def test_other_processes_record_nothing(photos: Path, tmp_path: Path) -> None:
    trainer = profiled(photos, tmp_path, max_steps=11)
    trainer.is_world_process_zero = lambda: False
    trainer.train()
    assert not (tmp_path / "profile").exists()


def test_fine_tuning_is_recorded_too(photos: Path, tmp_path: Path) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, max_steps=9, profile=True))
    trainer.add_callback(StepProfiler(trainer))
    trainer.train()
    assert record_of(tmp_path)["model"] == "GeoMAEForGeolocation"


@pytest.mark.parametrize("script, kind", [(run_pretrain_mae, "pretrain"), (run_finetune_geo, "finetune")])
def test_scripts_take_the_switch_and_a_new_run_removes_what_it_wrote(
    photos: Path, tmp_path: Path, script: Any, kind: str
) -> None:
    argv = [str(ROOT / f"configs/{kind}/smoke.yaml"), "--data_dirs", str(photos), "--output_dir", str(tmp_path)]
    argv += ["--max_steps", "9", "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm"]
    argv += ["--load_best_model_at_end", "false", "--overwrite_output_dir", "true", "--reconstruction_steps", "0"]
    script.main([*argv, "--profile"])
    assert record_of(tmp_path)["steps"] == [7, 9]
    script.main(argv)
    assert not (tmp_path / "profile").exists()


def test_no_recorded_step_holds_a_picture_of_reconstructions(photos: Path, tmp_path: Path) -> None:
    """Step 8 draws one, in the middle of what would have been recorded: steps 7 to 9."""
    profiled(photos, tmp_path, max_steps=16, reconstruction_steps=8).train()
    assert record_of(tmp_path)["steps"] == [11, 13]
    profiled(photos, tmp_path / "last", max_steps=20, reconstruction_steps=9).train()
    assert record_of(tmp_path / "last")["steps"] == [12, 14], "drawn at the end of the last recorded step"
