"""The pretraining script, as a user runs it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, launch_on_two_processes
from packed_photos import pack
from safetensors.torch import load_file

import run_pretrain_mae
from geomae.errors import ConfigError, GeoMAEError
from modeling import GeoMAEForGeolocation, GeoMAEForPreTraining

SMOKE = str(ROOT / "configs/pretrain/smoke.yaml")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=64, validation=13)


@pytest.fixture(scope="module")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    run_pretrain_mae.main([SMOKE, "--data_dirs", str(photos), "--output_dir", str(folder), "--disable_tqdm"])
    return folder


def test_run_leaves_checkpoint_log_record_and_pictures(pretrained: Path) -> None:
    state = json.loads((pretrained / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert {"loss", "photos_per_second", "num_bad_photos"} <= set(state["log_history"][0])
    record = json.loads((pretrained / "run.json").read_text())
    assert record["config"]["mask_ratio"] == 0.75
    assert record["result"]["global_step"] == 4
    assert len(list((pretrained / "pictures").glob("reconstruction_step_*.png"))) == 3
    assert GeoMAEForPreTraining.from_pretrained(pretrained).config.hidden_size == 32
    assert GeoMAEForGeolocation.from_pretrained(pretrained).config.num_hidden_layers == 2


def test_folder_of_a_run_is_refused_before_any_work_and_can_be_overwritten(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    argv = [SMOKE, "--output_dir", str(tmp_path), "--disable_tqdm", "--reconstruction_steps", "0", "--max_steps", "1"]
    with pytest.raises(ConfigError, match="already holds a run"):
        run_pretrain_mae.main([*argv, "--data_dirs", "nowhere"])
    run_pretrain_mae.main([*argv, "--data_dirs", str(photos), "--overwrite_output_dir", "true"])
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "mistake", [["--data_dirs", "nowhere"], ["--init_from", "nowhere"], ["--hidden_size", "33"]], ids=lambda m: m[0]
)
def test_old_run_outlives_a_mistake_in_the_new_one(photos: Path, tmp_path: Path, mistake: list[str]) -> None:
    (tmp_path / "model.safetensors").write_text("weeks of work")
    argv = [SMOKE, "--output_dir", str(tmp_path), "--overwrite_output_dir", "true"]
    argv += [] if "--data_dirs" in mistake else ["--data_dirs", str(photos)]
    with pytest.raises(GeoMAEError):
        run_pretrain_mae.main([*argv, *mistake])
    assert (tmp_path / "model.safetensors").read_text() == "weeks of work"


def test_stopped_run_continues_to_the_same_weights(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    argv = [SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path), "--disable_tqdm"]
    whole = sorted(pretrained.glob("checkpoint-*"))
    assert [path.name for path in whole] == ["checkpoint-2", "checkpoint-4"]
    run_pretrain_mae.main([*argv, "--resume_from_checkpoint", str(whole[0])])
    resumed, unbroken = (load_file(folder / "model.safetensors") for folder in (tmp_path, pretrained))
    for name, weights in unbroken.items():
        assert torch.equal(weights, resumed[name]), name


def test_run_starts_from_other_weights(
    photos: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path), "--disable_tqdm", "--max_steps", "1"]
    run_pretrain_mae.main([*argv, "--init_from", str(pretrained), "--reconstruction_steps", "0"])
    assert "Loaded" in capsys.readouterr().out


def test_mistake_of_a_user_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run_pretrain_mae.py", SMOKE, "--mask_ration", "0.5"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "run_pretrain_mae.py"), run_name="__main__")
    expected = "ConfigError: unknown key --mask_ration on the command line; did you mean --mask_ratio?"
    assert caught.value.code == expected


@pytest.mark.parametrize(
    "words, message",
    [
        (["--patch_size", "5"], "image_size=32 is not a multiple of patch_size=5"),
        (["--init_from", "no/such/folder"], "no/such/folder does not exist"),
    ],
    ids=["architecture", "weights"],
)
def test_refusal_of_the_model_is_one_of_the_configuration(
    photos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_pretrain_mae.main([SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path), *words])


@pytest.mark.slow
def test_two_processes_in_bf16_show_every_photo_once(photos: Path, tmp_path: Path) -> None:
    argv = [SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--bf16", "--disable_tqdm"]
    argv += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "1"]
    first, second = launch_on_two_processes("run_pretrain_mae", tmp_path, *argv)
    assert len(first) == len(second) == 32
    assert len({*first, *second}) == 64
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    assert state["global_step"] == 8
    assert state["epoch"] == 1.0
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert all(0 < loss < 10 for loss in losses)
    assert all((tmp_path / "run/checkpoint-8" / f"rng_state_{rank}.pth").is_file() for rank in (0, 1))


def test_two_processes_resume_each_at_its_own_photos(photos: Path, tmp_path: Path) -> None:
    argv = [SMOKE, "--data_dirs", str(photos), "--disable_tqdm", "--save_steps", "3", "--max_steps", "8"]
    argv += ["--per_device_train_batch_size", "4", "--dataloader_num_workers", "2", "--eval_strategy", "no"]
    argv += ["--save_total_limit", "5", "--output_dir", str(tmp_path / "run")]
    unbroken = launch_on_two_processes("run_pretrain_mae", tmp_path, *argv)
    state = json.loads((tmp_path / "run/checkpoint-3/trainer_state.json").read_text())
    positions = state["stateful_callbacks"]["StreamProgress"]["attributes"]["lane_positions"]
    assert positions == [8, 4, 8, 4]  # three batches of four photos, dealt to two workers, on each of two processes
    argv += ["--resume_from_checkpoint", str(tmp_path / "run/checkpoint-3")]
    (tmp_path / "second").mkdir()
    resumed = launch_on_two_processes("run_pretrain_mae", tmp_path / "second", *argv)
    assert resumed == [ids[12:] for ids in unbroken]
    assert not {*resumed[0]} & {*resumed[1]}
