"""A resumed run goes on in its own record, and another run of the same name does not; evaluations are shown beside."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cartopy")
pytest.importorskip("trackio")

import wandb
from offline_wandb import OfflineRun, read_offline_runs
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from report_folders import make_evaluation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackio.sqlite_storage import SQLiteStorage

from geomae.errors import ConfigError
from geomae.reporting.tracked_evaluation import summarise_evaluation
from geomae.reporting.trackers import report_evaluation
from geomae.training import PredictionMaps, ReconstructionPanels, RunRecord, pick_panel
from geomae.training.trackers import start_trackers

logging.getLogger("tensorboard").setLevel(logging.ERROR)
NUMBERS = {"train/loss", "train/photos_per_second", "train/mfu", "train/num_bad_photos", "eval/loss"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=32, validation=6)


@dataclass
class Runs:
    """A run that was broken off and resumed, and another of the same name, all in three trackers."""

    folder: Path
    ids: list[str]  # in W&B, as run.json named them after each of the three
    in_wandb: list[OfflineRun]


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_PROJECT", "WANDB_RUN_ID"):
            patched.setenv(name, "to be restored")
            patched.delenv(name)
        patched.setenv("WANDB_DIR", str(folder))
        wandb.teardown()  # it reads its environment once
        ids = [
            train(photos, folder / "run", max_steps=2),
            train(photos, folder / "run", max_steps=4, resume="true"),
            train(photos, folder / "other", max_steps=2, resume=str(folder / "run" / "checkpoint-1")),
        ]
        yield Runs(folder, ids, read_offline_runs(folder))
        wandb.teardown()


def train(photos: Path, folder: Path, *, max_steps: int, resume: str | None = None) -> str:
    """Train as the script does, a checkpoint after every step; returns the id of W&B."""
    how = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 1}
    how |= {"report_to": ["wandb", "trackio", "tensorboard"], "run_name": "same", "run_group": "ours"}
    args = training_arguments(folder, max_steps=max_steps, project="resumed", **how)
    trainer = mae_trainer(photos, args)
    panel = pick_panel(trainer.eval_dataset, trainer.eval_collator, num_photos=3)
    trainer.add_callback(ReconstructionPanels(trainer, panel, every_steps=2))
    trainer.add_callback(RunRecord(trainer, args.to_dict()))
    trainer.train(resume_from_checkpoint=resume)
    wandb.finish()
    return str(json.loads((folder / "run.json").read_text())["wandb"]["id"])


def test_wandb_goes_on_in_the_run_that_is_resumed_and_another_run_takes_no_old_id(runs: Runs) -> None:
    first, resumed, other = runs.ids
    assert first == resumed != other
    assert [one.run.run_id for one in runs.in_wandb] == runs.ids
    steps = [[e["train/global_step"] for e in one.history if "train/loss" in e] for one in runs.in_wandb]
    assert steps == [[1, 2], [3, 4], [2]]
    assert {one.run.run_group for one in runs.in_wandb} == {"ours"}
    assert {"commit", "versions", "hardware"} <= set(runs.in_wandb[0].config["made_by"])


def test_an_id_in_the_environment_wins_over_that_of_the_record(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    module = SimpleNamespace(run=None, init=lambda **given: begun.append(given))
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(runs.folder / "run"), run_name="same"),
        callback_handler=SimpleNamespace(callbacks=[type("WandbCallback", (), {"_wandb": module})()]),
        is_world_process_zero=lambda: True,
    )
    newest = str(runs.folder / "run" / "checkpoint-4")
    start_trackers(trainer, newest)
    assert begun == [{"id": runs.ids[0], "resume": "allow", "name": "same", "project": "geomae", "entity": None}]
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    start_trackers(trainer, newest)
    assert begun[1:] == [{"name": "same", "project": "geomae"}]


def test_trackio_goes_on_in_the_run_that_is_resumed_and_another_of_the_same_name_has_its_own(runs: Runs) -> None:
    records = SQLiteStorage.get_run_records("resumed")
    assert [record["name"] for record in records] == ["same", "same"]
    logs = [SQLiteStorage.get_logs("resumed", "same", run_id=record["id"]) for record in records]
    steps = sorted([entry["train/global_step"] for entry in log if "train/loss" in entry] for log in logs)
    assert steps == [[1, 2, 3, 4], [2]]
    longest = max(logs, key=len)
    assert {name for entry in longest for name in entry} >= NUMBERS
    drawn = [entry["reconstructions"] for entry in longest if "reconstructions" in entry]
    assert [picture["_type"] for picture in drawn] == ["trackio.image"] * 3  # before, and after 2 and 4 steps
    config = SQLiteStorage.get_run_config("resumed", "same", run_id=records[0]["id"])
    assert config["_Group"] == "ours"
    assert config["max_steps"] in (2, 4)
    assert "commit" in config["made_by"]
    where = json.loads((runs.folder / "run" / "run.json").read_text())["trackio"]
    assert where == {"name": "same", "group": "ours", "project": "resumed"}


def test_tensorboard_keeps_a_resumed_run_in_one_folder(runs: Runs) -> None:
    events = read_events(runs.folder / "run" / "runs")
    assert set(events.Tags()["scalars"]) >= NUMBERS
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("reconstructions")] == [0, 2, 4]


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_trackio_and_tensorboard_get_the_map_of_validation(photos: Path, tmp_path: Path) -> None:
    how = {"eval_strategy": "steps", "eval_steps": 1, "run_name": "all", "project": "several"}
    trainer = geolocation_trainer(
        photos, training_arguments(tmp_path, max_steps=1, report_to=["trackio", "tensorboard"], **how)
    )
    trainer.add_callback(PredictionMaps(trainer))
    trainer.train()
    assert any("predictions" in entry for entry in SQLiteStorage.get_logs("several", "all"))
    assert read_events(tmp_path / "runs").Tags()["images"] == ["predictions"]


def test_an_evaluation_has_the_same_numbers_and_pictures_in_trackio_and_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "judged")
    metrics = make_evaluation(tmp_path / "set", posterior=True)
    assert report_evaluation(tmp_path / "set", ["trackio", "tensorboard"], group="ours", tags=["half"])
    numbers = summarise_evaluation(metrics)
    pictures = {f"test/set/{name}" for name in ("map", "error_cdf", "calibration")}
    (log,) = SQLiteStorage.get_logs("judged", "set")
    assert {name: log[name] for name in numbers} == pytest.approx(numbers)
    assert all(log[name]["_type"] == "trackio.image" for name in pictures)
    config = SQLiteStorage.get_run_config("judged", "set")
    assert (config["_Group"], config["run_tags"], config["job_type"]) == ("ours", ["half"], "evaluate")
    events = read_events(tmp_path / "set" / "runs")
    assert set(events.Tags()["images"]) == pictures
    in_tensorboard = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert in_tensorboard == pytest.approx(numbers, rel=1e-6)


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomae.tracking.find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(ConfigError, match=r"report_to trackio needs trackio.*geomae\[dashboards\].*--report_to none"):
        training_arguments(tmp_path, report_to="trackio")
