"""Every sweep file starts what a W&B agent would start from it, and optimises a number that the run logs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import ROOT
from offline_wandb import read_offline_runs
from packed_photos import TINY, pack
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import run_finetune_geo
from geomae.training import DataArguments, FinetuneArguments, GeoMAETrainingArguments, parse_config

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
NUM_PHOTOS_OF_MP16 = 4_720_000  # which every sweep trains on
SHRUNK: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if not key.startswith("decoder")},
    **{"init_from": None, "optim": "adamw_torch", "bf16": False, "torch_compile": False},
    **{"per_device_train_batch_size": 4, "dataloader_num_workers": 0, "prediction_maps": False, "logging_steps": 1},
    **{"eval_steps": 1, "save_steps": 1, "disable_tqdm": True},
}


def chosen(sweep: dict[str, Any], *, last: bool) -> dict[str, Any]:
    """One run's parameters: the first or the last that the sweep can come to."""
    values = {}
    for name, parameter in sweep["parameters"].items():
        if "value" in parameter:
            values[name] = parameter["value"]
        elif "values" in parameter:
            values[name] = parameter["values"][-1 if last else 0]
        else:
            values[name] = parameter["max" if last else "min"]
    return values


def command_of_an_agent(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """As `wandb.wandb_agent.Agent` puts it together: a macro stands alone and becomes several words."""
    words = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    words |= {"program": [sweep["program"]], "interpreter": [sys.executable], "env": ["/usr/bin/env"]}
    command = []
    for word in create_sweep_command(list(sweep["command"])):
        command += words[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    return command


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_run_of_the_sweep_trains_and_logs_what_it_is_judged_by(path: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    photos = pack(tmp_path / "photos", train=12, validation=4)
    for name in ("configs", sweep["program"]):
        (tmp_path / name).symlink_to(ROOT / name)
    shrunk = {**SHRUNK, "data_dirs": [str(photos)], "validation_dir": str(photos)}
    command = command_of_an_agent(sweep, {**chosen(sweep, last=False), **shrunk})
    environment = {**os.environ, "WANDB_RUN_ID": "run1of30", "WANDB_DIR": str(tmp_path)}
    environment = {key: value for key, value in environment.items() if key not in ("WANDB_RUN_GROUP", "WANDB_TAGS")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "outputs" / f"sweep_{path.stem}" / "run1of30" / "model.safetensors").is_file()
    (run,) = read_offline_runs(tmp_path)
    assert (run.run.run_id, run.run.run_group) == ("run1of30", f"sweep_{path.stem}")
    logged = [entry[sweep["metric"]["name"]] for entry in run.history if sweep["metric"]["name"] in entry]
    assert len(logged) >= sweep["early_terminate"]["min_iter"]
    assert sweep["metric"]["goal"] == "minimize"
    assert all(run.config[name] == value for name, value in chosen(sweep, last=False).items())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_both_ends_of_every_parameter_are_taken_by_the_script(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    for last in (False, True):
        command = command_of_an_agent(sweep, {**chosen(sweep, last=last), "torch_compile": False})
        words = command[command.index(sweep["program"]) + 1 :]
        parsed: dict[str, Any] = {}
        for part in parse_config(classes, [str(ROOT / words[0]), *words[1:], "--output_dir", "outputs/sweep/run"]):
            parsed |= vars(part)
        assert {name: parsed[name] for name in sweep["parameters"]} == chosen(sweep, last=last)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_no_run_is_stopped_for_what_it_is_worth_in_its_warm_up(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    (file,) = (word for word in sweep["command"] if word.endswith(".yaml"))
    settings = {**yaml.safe_load((ROOT / file).read_text()), **chosen(sweep, last=True)}
    steps_per_epoch = NUM_PHOTOS_OF_MP16 / settings["per_device_train_batch_size"]
    assert settings["eval_strategy"] == "steps"
    first_bracket = sweep["early_terminate"]["min_iter"] * settings["eval_steps"]
    assert 2 * settings["warmup_epochs"] * steps_per_epoch < first_bracket < steps_per_epoch
    assert settings["num_train_epochs"] == 1


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_header_states_command_hardware_time_and_expectation(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert f"wandb sweep {path.relative_to(ROOT)}" in header
    assert all(word in header for word in ("hardware:", "time:", "expected:"))
    assert all((ROOT / file).is_file() for file in re.findall(r"configs/[\w/]+\.yaml", path.read_text()))


def test_lists_numbers_switches_and_nothing_pass_through_an_agent() -> None:
    values = {"head_hidden_sizes": [512, 256], "learning_rate": 3e-05, "bf16": True, "layer_decay": None, "flip": False}
    words = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})["args"]
    assert "--learning_rate=3e-05" in words
    classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    parsed: dict[str, Any] = {}
    for part in parse_config(classes, ["--output_dir", "outputs/x", "--data_dirs", "data", *words]):
        parsed |= vars(part)
    assert {name: parsed[name] for name in values} == values
