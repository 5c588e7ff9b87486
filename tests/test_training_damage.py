"""Runs over damaged photos, single or in lumps: counted, carried through checkpoints, never out of place."""

import json
import logging
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import ROOT, launch_on_two_processes
from packed_photos import geolocation_trainer, mae_trainer, pack, record_ids, rows, training_arguments
from transformers import TrainerCallback

import geomae.data.groups
from geomae.data.groups import ParquetShards, PhotoGroups
from geomae.data.layout import list_shards, shard_name
from geomae.data.shards import write_shard
from geomae.data.stream import PhotoStream
from geomae.errors import ConfigError, DamagedPhotoError, TooManyDamagedPhotosError

SMOKE = str(ROOT / "configs/pretrain/smoke.yaml")


class SaveAt(TrainerCallback):
    """Decides on its own to save, as callbacks of users do."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.step


def saved_state(checkpoint: Path) -> dict[str, Any]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return dict(state["stateful_callbacks"]["StreamProgress"]["attributes"])


def test_damaged_photos_are_counted_and_stop_the_run_above_the_stated_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pack(tmp_path / "photos", num_damaged=1, train=20, validation=6)
    allowed = training_arguments(tmp_path / "a", max_bad_fraction=0.5, max_steps=5, per_device_train_batch_size=4)
    trainer = mae_trainer(folder, allowed)
    batches: list[int] = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (
        batches.append(len(inputs["ids"])) or step(model, inputs, *rest)
    )
    with caplog.at_level(logging.WARNING, "geomae"):
        trainer.train()  # one epoch and two photos
    assert batches == [4] * 5
    assert trainer.state.log_history[-2]["num_bad_photos"] == 2
    assert "left out damaged photo train-0-0" in caplog.text
    assert "2 photos could not be decoded and were left out, 20 went into batches" in caplog.text
    assert trainer.evaluate()["eval_num_bad_photos"] == 2
    strict = mae_trainer(
        folder, training_arguments(tmp_path / "b", max_bad_fraction=0.05, per_device_train_batch_size=4)
    )
    with pytest.raises(TooManyDamagedPhotosError, match=r"2 of .* max_bad_fraction"):
        strict.train()
    with pytest.raises(TooManyDamagedPhotosError, match="2 of 6"):
        strict.evaluate()


def test_damaged_photos_of_earlier_sessions_stay_in_the_count(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", num_damaged=1, train=20, validation=6)
    options = {"max_bad_fraction": 0.5, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 5}
    mae_trainer(folder, training_arguments(tmp_path, max_steps=5, **options)).train()
    resumed = mae_trainer(folder, training_arguments(tmp_path, max_steps=10, **options))
    resumed.train(resume_from_checkpoint="true")
    assert resumed.progress.num_bad_photos == 4  # two in each of two epochs
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.progress.num_bad_photos == 4


def test_last_batch_of_damaged_photos_alone_does_not_end_an_evaluation(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", num_damaged=1, train=20, validation=6)
    args = training_arguments(tmp_path, max_bad_fraction=0.5, per_device_eval_batch_size=1)
    metrics = mae_trainer(folder, args).evaluate()
    assert metrics["eval_num_bad_photos"] == 2


def test_checkpoint_that_a_stranger_decided_on_knows_its_place_and_its_damage(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", num_damaged=2, train=60, validation=6)
    options: dict[str, Any] = {"max_bad_fraction": 0.5, "per_device_train_batch_size": 4, "logging_steps": 10}
    options |= {"max_steps": 20, "save_strategy": "steps", "save_steps": 10, "save_total_limit": 9}
    unbroken = mae_trainer(folder, training_arguments(tmp_path / "a", **options))
    unbroken.add_callback(SaveAt(13))
    ids = record_ids(unbroken)
    unbroken.train()
    saved = saved_state(tmp_path / "a/checkpoint-13")
    assert saved["num_batches_done"] == 13
    assert saved["lane_positions"][0] == 13 * 4 + saved["num_bad_photos"]
    resumed = mae_trainer(folder, training_arguments(tmp_path / "b", **options))
    rest = record_ids(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-13"))
    assert rest == ids[13 * 4 :]
    assert resumed.progress.num_bad_photos == unbroken.progress.num_bad_photos > 0


def test_damage_behind_the_last_log_is_in_the_last_entry(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", num_damaged=2, train=40, validation=6)
    options = {"max_bad_fraction": 0.5, "per_device_train_batch_size": 4, "max_steps": 9, "logging_steps": 100}
    trainer = mae_trainer(folder, training_arguments(tmp_path, **options))
    trainer.train()
    assert trainer.state.log_history[-1]["num_bad_photos"] == trainer.progress.num_bad_photos == 4


def test_lump_of_damaged_photos_below_the_share_never_stops_a_run(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", num_damaged=10, train=100, validation=6)
    for seed in range(4):
        options = {"max_bad_fraction": 0.2, "per_device_train_batch_size": 8, "max_steps": 9, "seed": seed}
        trainer = mae_trainer(folder, training_arguments(tmp_path / str(seed), **options))
        trainer.train()
        assert trainer.state.global_step == 9


def test_row_group_that_is_damaged_costs_its_photos_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / shard_name("train", 0, 1)
    write_shard(path, rows("train", 0, 250), optional_columns=(), digest="test")
    shards = ParquetShards([path])
    place = geomae.data.groups.pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 16] = b"\xff" * 16
    path.write_bytes(data)
    stream = PhotoStream(PhotoGroups([shards]), seed=0, batch_size=5, prepare=_refuse_unreadable)
    samples = stream.samples_of_worker(0, 1)
    with caplog.at_level(logging.WARNING, "geomae"):
        seen = [next(samples) for _ in range(300)]
    assert len({sample["id"] for sample in seen[:150]}) == 150  # of an epoch of 250
    assert sum(sample["num_bad"] for sample in seen[:151]) == 100
    assert "train-00000-of-00001.parquet, row group 1, row 7: its row group cannot be read" in caplog.text


def _refuse_unreadable(sample: dict[str, Any]) -> list[dict[str, Any]]:
    if "read_error" in sample:
        raise DamagedPhotoError(sample["read_error"])
    return [sample]


def test_sources_and_lanes_share_the_files_that_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geomae.data.groups, "_MAX_OPEN_FILES", 16)
    sources = []
    for source in range(6):
        folder = tmp_path / str(source)
        folder.mkdir()
        for shard in range(12):
            name = shard_name("train", shard, 12)
            write_shard(folder / name, rows("train", 12 * source + shard, 4), optional_columns=(), digest="test")
        sources.append(ParquetShards(list_shards(folder, "train")))
    stream = PhotoStream(PhotoGroups(sources), seed=0, batch_size=2, window_samples=8)
    stream.place = geomae.data.stream.StreamPlace(0, (0,) * 8)  # eight lanes, and one worker that serves them
    num_before = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, num_before + 40), hard))
    try:
        samples = stream.samples_of_worker(0, 1)
        ids = [next(samples)["id"] for _ in range(6 * 12 * 4)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(set(ids)) > 200


def test_steps_of_another_size_make_as_many_epochs_as_were_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pack(tmp_path / "photos", train=40, validation=6)
    options: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 5}
    mae_trainer(folder, training_arguments(tmp_path, per_device_train_batch_size=8, **options)).train()
    smaller = mae_trainer(folder, training_arguments(tmp_path, per_device_train_batch_size=4, **options))
    with caplog.at_level(logging.WARNING, "geomae"):
        smaller.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert smaller.state.global_step == 5 + 10
    assert smaller.state.epoch == 2.0
    assert "a step has 4 photos where it had 8" in caplog.text


@pytest.mark.slow
def test_two_processes_with_damage_on_one_of_them_resume_each_at_its_place(tmp_path: Path) -> None:
    """The lanes advance unevenly: every number of the checkpoint must be that of its own process."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for split, sizes in {"train": (40, 40), "validation": (6, 7)}.items():
        for shard, size in enumerate(sizes):
            num_damaged = 9 if split == "train" and shard == 0 else 0
            write_shard(
                folder / shard_name(split, shard, 2),
                rows(split, shard, size, num_damaged),
                optional_columns=(),
                digest="test",
            )
    argv = [SMOKE, "--data_dirs", str(folder), "--disable_tqdm", "--save_steps", "4", "--max_steps", "9"]
    argv += ["--per_device_train_batch_size", "3", "--dataloader_num_workers", "2", "--eval_strategy", "no"]
    argv += ["--save_total_limit", "5", "--output_dir", str(tmp_path / "run"), "--max_bad_fraction", "0.5"]
    argv += ["--logging_steps", "3", "--shuffle_buffer", "8"]
    (tmp_path / "first").mkdir()
    unbroken = launch_on_two_processes("run_pretrain_mae", tmp_path / "first", *argv)
    saved = saved_state(tmp_path / "run/checkpoint-4")
    positions, num_bad = saved["lane_positions"], saved["num_bad_photos"]
    assert len(positions) == 4
    assert sum(positions) == 2 * 4 * 3 + num_bad
    assert len(set(positions)) > 1
    final = saved_state(tmp_path / "run/checkpoint-9")["num_bad_photos"]
    assert final > 0
    (tmp_path / "second").mkdir()
    argv += ["--resume_from_checkpoint", str(tmp_path / "run/checkpoint-4")]
    resumed = launch_on_two_processes("run_pretrain_mae", tmp_path / "second", *argv)
    assert resumed == [ids[4 * 3 :] for ids in unbroken]
    assert saved_state(tmp_path / "run/checkpoint-9")["num_bad_photos"] == final


@pytest.mark.slow
def test_process_whose_validation_photos_are_all_damaged_lets_the_others_finish(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", train=40)
    for shard, num_damaged in enumerate((6, 0)):  # the first process evaluates the first shard
        path = folder / shard_name("validation", shard, 2)
        write_shard(path, rows("validation", shard, 6, num_damaged), optional_columns=(), digest="test")
    argv = [SMOKE, "--data_dirs", str(folder), "--disable_tqdm", "--max_steps", "2", "--eval_strategy", "steps"]
    argv += ["--eval_steps", "2", "--output_dir", str(tmp_path / "run"), "--max_bad_fraction", "0.6"]
    argv += ["--per_device_train_batch_size", "4", "--reconstruction_steps", "0"]
    launch_on_two_processes("run_pretrain_mae", tmp_path, *argv)
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    (evaluation,) = [entry for entry in history if "eval_loss" in entry]
    assert evaluation["eval_num_bad_photos"] == 6
    assert np.isfinite(evaluation["eval_loss"])


def test_evaluation_of_damaged_photos_alone_is_refused(tmp_path: Path) -> None:
    folder = pack(tmp_path / "photos", train=40)
    pack(folder, num_damaged=3, validation=6)
    trainer = geolocation_trainer(folder, training_arguments(tmp_path, max_bad_fraction=1.0))
    with pytest.raises(DamagedPhotoError, match="not one of the 6 photos to evaluate"):
        trainer.evaluate()


def test_signal_that_each_process_notices_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_arguments(tmp_path, enable_jit_checkpoint=True)
    monkeypatch.setattr("geomae.training.GeoMAETrainingArguments.world_size", 2)
    with pytest.raises(ConfigError, match="enable_jit_checkpoint is true, but each process"):
        training_arguments(tmp_path, enable_jit_checkpoint=True)
