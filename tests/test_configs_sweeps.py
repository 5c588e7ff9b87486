"""Every sweep file starts what a W&B agent would start from it, and optimises a number that the run logs."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import load
from launching import ROOT
from offline_wandb import read_offline_runs
from packed_photos import TINY, pack
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import run_finetune_geo
from geomae.data.shards import read_coordinates
from geomae.geocells import build_geocells, draft_by_kmeans, write_geocells
from geomae.training import (
    DataArguments,
    FinetuneArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    parse_config,
)
from modeling import GeoMAEConfig

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
STOPPING = [path for path in SWEEPS if "early_terminate" in yaml.safe_load(path.read_text())]
NUM_PHOTOS_OF_MP16 = 4_720_000  # which every sweep trains on
BETTER = {"eval/mean_km": "minimize", "eval/loss": "minimize", "eval/geoscore": "maximize"}
SHRUNK: dict[str, Any] = {
    **TINY,
    **{"init_from": None, "optim": "adamw_torch", "bf16": False, "torch_compile": False},
    **{"per_device_train_batch_size": 4, "dataloader_num_workers": 0, "logging_steps": 1},
    **{"eval_steps": 1, "save_steps": 1, "disable_tqdm": True},
}
SHRUNK_BY_PROGRAM: dict[str, dict[str, Any]] = {
    "run_pretrain_mae.py": {"reconstruction_steps": 0},
    "run_finetune_geo.py": {"prediction_maps": False},
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


def is_swept(parameter: dict[str, Any]) -> bool:
    return "value" not in parameter


def shrink(sweep: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What makes a run of the sweep small, on photos and cells that are made in the folder; not what is swept."""
    program, settings = sweep["program"], settings_of(sweep)
    photos = pack(folder / "photos", train=12, validation=4)
    shrunk = {**SHRUNK, **SHRUNK_BY_PROGRAM[program], "data_dirs": [str(photos)], "validation_dir": str(photos)}
    if settings.get("geocells"):
        points = read_coordinates(photos, "train")
        cells = build_geocells(points, draft_by_kmeans(points, num_cells=[2, 4], seed=0)).geocells
        shrunk["geocells"] = str(write_geocells(folder / "geocells.parquet", cells))
    if program == "run_finetune_geo.py":
        shrunk = {key: value for key, value in shrunk.items() if not key.startswith("decoder")}
    swept = {name for name, parameter in sweep["parameters"].items() if is_swept(parameter)}
    return {key: value for key, value in shrunk.items() if key not in swept}


def settings_of(sweep: dict[str, Any]) -> dict[str, Any]:
    (file,) = (word for word in sweep["command"] if word.endswith(".yaml"))
    return {**yaml.safe_load((ROOT / file).read_text()), **chosen(sweep, last=True)}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == "finetune_geo" else pytest.mark.slow) for path in SWEEPS],
    ids=lambda path: path.stem,
)
def test_a_run_of_the_sweep_trains_and_logs_what_it_is_judged_by(path: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    for name in ("configs", sweep["program"]):
        (tmp_path / name).symlink_to(ROOT / name)
    values = {**chosen(sweep, last=False), **shrink(sweep, tmp_path)}
    environment = {**os.environ, "WANDB_RUN_ID": "run1of30", "WANDB_DIR": str(tmp_path)}
    environment = {key: value for key, value in environment.items() if key not in ("WANDB_RUN_GROUP", "WANDB_TAGS")}
    command = command_of_an_agent(sweep, values)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "outputs" / f"sweep_{path.stem}" / "run1of30" / "model.safetensors").is_file()
    (run,) = read_offline_runs(tmp_path)
    assert (run.run.run_id, run.run.run_group) == ("run1of30", f"sweep_{path.stem}")
    logged = [entry[sweep["metric"]["name"]] for entry in run.history if sweep["metric"]["name"] in entry]
    assert len(logged) >= sweep.get("early_terminate", {"min_iter": 1})["min_iter"]
    assert {name: run.config[name] for name in sweep["parameters"]} == {
        name: values[name] for name in sweep["parameters"]
    }


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_both_ends_of_every_parameter_are_taken_by_the_script(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    for last in (False, True):
        command = command_of_an_agent(sweep, chosen(sweep, last=last))
        words = command[command.index(sweep["program"]) + 1 :]
        parts = load(ROOT / words[0], *words[1:], "--output_dir", "outputs/sweep/run")
        parsed = {name: value for part in parts for name, value in vars(part).items()}
        assert {name: parsed[name] for name in sweep["parameters"]} == chosen(sweep, last=last)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_combination_is_a_model(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    ends = {
        name: parameter.get("values", [chosen(sweep, last=last)[name] for last in (False, True)])
        for name, parameter in sweep["parameters"].items()
    }
    known = {field.name for field in dataclasses.fields(GeoMAEArguments)}
    settings = {name: value for name, value in settings_of(sweep).items() if name in known}
    for combination in itertools.product(*ends.values()):
        architecture = {name: value for name, value in zip(ends, combination, strict=True) if name in known}
        cells = {"num_geocells": [50, 400]} if settings.get("head_type") else {}
        GeoMAEConfig(**{**settings, **cells, **architecture})  # refuses what does not fit


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweep_comes_to_an_end_and_prefers_the_better_number(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"]["goal"] == BETTER[sweep["metric"]["name"]]
    if sweep["method"] == "grid":
        assert all("values" in parameter for parameter in sweep["parameters"].values() if is_swept(parameter))
    else:
        assert sweep["run_cap"] > 0
    settings = settings_of(sweep)
    assert settings["warmup_epochs"] <= settings["num_train_epochs"] / 10


@pytest.mark.parametrize("path", STOPPING, ids=lambda path: path.stem)
def test_no_run_is_stopped_for_what_it_is_worth_in_its_warm_up(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    settings = settings_of(sweep)
    steps_per_epoch = NUM_PHOTOS_OF_MP16 / settings["per_device_train_batch_size"]
    assert settings["eval_strategy"] == "steps"
    first_bracket = sweep["early_terminate"]["min_iter"] * settings["eval_steps"]
    assert 2 * settings["warmup_epochs"] * steps_per_epoch < first_bracket < steps_per_epoch
    assert settings["num_train_epochs"] == 1


def test_losses_that_cannot_be_compared_lead_no_search() -> None:
    for path in SWEEPS:
        sweep = yaml.safe_load(path.read_text())
        if sweep["metric"]["name"] == "eval/loss" and {"mask_ratio", "head_type"} & set(sweep["parameters"]):
            assert sweep["method"] in ("random", "grid")
            assert "early_terminate" not in sweep


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_header_states_command_hardware_time_and_expectation(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert f"wandb sweep {path.relative_to(ROOT)}" in header
    assert all(word in header for word in ("hardware:", "time:", "expected:"))
    assert f"outputs/sweep_{path.stem}/RUN_ID" in header
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
