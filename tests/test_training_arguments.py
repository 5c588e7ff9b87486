"""The dataclasses: what they default to, what they refuse, and how epochs become steps."""

import ast
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from geomae.errors import ConfigError
from geomae.training import (
    DataArguments,
    GeoBaselineArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    parse_config,
)
from geomae.training.arguments import NOT_USED
from modeling import GeoBaselineConfig, GeoMAEConfig


def arguments(**settings: Any) -> GeoMAETrainingArguments:
    return GeoMAETrainingArguments(output_dir="outputs/test", **settings)


def fields_written_in(config_class: type) -> list[str]:
    """Those of its own source: transformers adds others of its own to every configuration."""
    tree = ast.parse(Path(__import__(config_class.__module__, fromlist=["_"]).__file__).read_text())
    (body,) = (
        node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == config_class.__name__
    )
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign)]


@pytest.mark.parametrize(
    "architecture, config_class", [(GeoMAEArguments, GeoMAEConfig), (GeoBaselineArguments, GeoBaselineConfig)]
)
def test_architecture_keys_are_the_fields_of_the_models_config_with_its_defaults(
    architecture: type, config_class: type
) -> None:
    declared = [name for owner in (config_class, config_class.__base__) for name in fields_written_in(owner)]
    assert sorted(field.name for field in fields(architecture)) == sorted(declared)
    config = config_class()
    assert vars(architecture()) == {name: getattr(config, name) for name in declared}


def test_defaults_suit_streams() -> None:
    args = arguments()
    assert args.accelerator_config.dispatch_batches is False
    assert args.remove_unused_columns is False
    assert args.logging_nan_inf_filter is False
    assert args.ddp_find_unused_parameters is False
    assert args.ignore_data_skip is True
    assert args.report_to == []


def test_output_dir_is_demanded() -> None:
    with pytest.raises(ConfigError, match="output_dir is missing"):
        GeoMAETrainingArguments()


def test_error_metric_is_better_when_smaller() -> None:
    assert arguments(metric_for_best_model="mean_km").greater_is_better is False
    assert arguments(metric_for_best_model="loss").greater_is_better is False
    assert arguments(metric_for_best_model="accuracy_within_25km").greater_is_better is True
    assert arguments(metric_for_best_model="geoscore").greater_is_better is True


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": "cosin"}, "schedule is 'cosin'; it must be one of"),
        ({"schedule": "step"}, "needs step_epochs"),
        ({"schedule": "multistep"}, "needs rising milestone_epochs"),
        ({"schedule": "multistep", "milestone_epochs": [6, 3]}, "needs rising milestone_epochs"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type is cosine, but it is not used here: write schedule"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"max_bad_fraction": -1}, "max_bad_fraction is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is True, .*gradient_accumulation_steps"),
        ({"ignore_data_skip": False}, "ignore_data_skip is False, .* jumps to its place"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs is .*min_learning_rate"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers is True"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is True, .*every training batch is full"),
        ({"remove_unused_columns": True}, "remove_unused_columns is True"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1"),
        ({"bf16_full_eval": True}, "bf16_full_eval is True, .*precision of training"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches and split_batches .* not used"),
        ({"warmup_epochs": 1, "warmup_steps": 5}, "warmup_epochs and warmup_steps are both set"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"base_learning_rate": -1e-3}, "base_learning_rate is -0.001; it must be above 0"),
        ({"min_learning_rate": -1e-3}, "min_learning_rate is -0.001"),
        ({"min_learning_rate": 1e-2, "learning_rate": 1e-3}, "min_learning_rate is 0.01, above .* 0.001"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arguments(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data_dirs": []}, "data_dirs is empty"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"crop_scale": [1.0, 0.5]}, "crop_scale is"),
        ({"crop_scale": [0.5]}, "crop_scale is"),
        ({"max_validation_photos": 0}, "max_validation_photos is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_data_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataArguments(**{"data_dirs": ["somewhere"], **settings})


def test_what_is_not_used_is_a_key_and_each_says_what_to_do() -> None:
    newer = {"activation_checkpointing_kwargs"}  # than transformers 5.17
    assert NOT_USED.keys() - newer <= {field.name for field in fields(GeoMAETrainingArguments)}
    assert all(NOT_USED.values())


@pytest.mark.parametrize("settings", [{"use_cpu": True}, {}], ids=["told_to", "without_a_gpu"])
def test_fp16_without_a_gpu_is_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not settings:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"fp16 is true, but without a CUDA device .* bf16: true"):
        arguments(fp16=True, **settings)


def test_epochs_become_steps_by_the_number_of_photos() -> None:
    args = arguments(
        num_train_epochs=20,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        warmup_epochs=0.5,
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    args.fit_to(1_000)
    assert args.total_batch_size == 64
    assert args.steps_per_epoch == 1_000 / 64
    assert args.max_steps == 312  # 20 x 15.625
    assert args.warmup_steps == 8
    assert (args.eval_strategy, args.eval_steps) == ("steps", 16)
    assert (args.save_strategy, args.save_steps) == ("steps", 16)


def test_max_steps_stands_where_it_is_given() -> None:
    args = arguments(max_steps=7, num_train_epochs=20)
    args.fit_to(1_000)
    assert args.max_steps == 7


def test_base_learning_rate_grows_with_the_batch() -> None:
    args = arguments(base_learning_rate=1.5e-4, per_device_train_batch_size=512, gradient_accumulation_steps=8)
    args.fit_to(10_000)
    assert args.learning_rate == pytest.approx(2.4e-3)  # He et al. (2021): 1.5e-4 x 4096 / 256


def test_base_learning_rate_is_per_256_photos_of_all_processes_and_accumulated_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GeoMAETrainingArguments, "world_size", 32)
    args = arguments(base_learning_rate=1.5e-4, per_device_train_batch_size=64, gradient_accumulation_steps=2)
    args.fit_to(40_960)
    assert args.learning_rate == pytest.approx(2.4e-3)  # He et al. (2021): 1.5e-4 x 4096 / 256
    assert args.steps_per_epoch == 10


def test_end_of_the_schedule_above_the_rate_that_follows_from_the_batch_is_refused() -> None:
    args = arguments(base_learning_rate=1e-3, min_learning_rate=1e-4, per_device_train_batch_size=8)
    with pytest.raises(ConfigError, match=r"min_learning_rate is 0.0001, above the highest learning rate, 3.125e-05"):
        args.fit_to(1_000)


def test_run_without_photos_is_refused() -> None:
    with pytest.raises(ConfigError, match="no photos"):
        arguments().fit_to(0)


def test_run_name_follows_from_the_folder() -> None:
    assert GeoMAETrainingArguments(output_dir="outputs/demo/pretrain").run_name == "demo-pretrain"


def test_group_is_the_one_given_or_the_environments_or_the_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_JOB_TYPE", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "to be restored")  # what the arguments set is taken back after the test
        monkeypatch.delenv(name)
    assert GeoMAETrainingArguments(output_dir="outputs/demo/pretrain").run_group == "demo"
    assert "WANDB_RUN_GROUP" not in os.environ  # of a run that does not report to W&B
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert GeoMAETrainingArguments(output_dir="outputs/demo/pretrain").run_group == "mine"
    given = arguments(run_group="halves", run_tags=["half", "seed 0"], report_to="wandb")
    assert given.run_group == "halves"
    assert os.environ["WANDB_RUN_GROUP"] == "mine", "a second run in this process would take it for its own"
    with pytest.raises(ConfigError, match="no comma"):
        arguments(run_tags=["a,b"])


def test_wandb_without_a_login_is_refused_before_anything_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    asked = []

    def login() -> None:
        asked.append(os.environ.get("WANDB_MODE"))
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb, "run", None)
    for mode in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        arguments(report_to="wandb")
    assert asked == []
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError, match=r"report_to wandb: No API key configured\. Log in with `wandb login`, keep"):
        arguments(report_to="wandb")


def test_misspelt_mode_of_wandb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setenv("WANDB_MODE", "offlin")
    wandb.teardown()  # it reads its environment once
    with pytest.raises(ConfigError, match=r"(?s)report_to wandb: .*'online', 'offline'"):
        arguments(report_to="wandb")
    monkeypatch.undo()
    wandb.teardown()


def test_arguments_as_others_see_them_name_no_path_of_this_machine(tmp_path: Path) -> None:
    shown = GeoMAETrainingArguments(output_dir=str(tmp_path / "run"), hub_token="hf_SECRET").to_dict()
    assert shown["output_dir"] == shown["run_name"] == "run"
    assert not [word for word in (str(tmp_path), "SECRET") if word in str(shown)]


@pytest.mark.parametrize(
    "written, expected",
    [
        *(("true", "true"), ("True", "true"), ("False", "false"), ("last", "last"), ("LAST", "last")),
        ("outputs/checkpoint-3", "outputs/checkpoint-3"),
    ],
)
def test_resume_is_a_path_or_true_or_last(tmp_path: Path, written: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output_dir: outputs/test\nresume_from_checkpoint: {written}\neval_strategy: no\nreport_to: none\n"
    )
    (args,) = parse_config([GeoMAETrainingArguments], [str(path)])
    assert args.resume_from_checkpoint == expected
    assert args.eval_strategy == "no"  # YAML 1.1 reads a boolean
    (args,) = parse_config([GeoMAETrainingArguments], [str(path), "--resume_from_checkpoint", written])
    assert args.resume_from_checkpoint == expected


def test_max_steps_on_the_command_line_replaces_the_epochs_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: outputs/test\nnum_train_epochs: 20\nwarmup_epochs: 1\n")
    (args,) = parse_config([GeoMAETrainingArguments], [str(path), "--max_steps", "5", "--warmup_steps", "2"])
    assert (args.max_steps, args.warmup_epochs, args.warmup_steps) == (5, None, 2)
    path.write_text("output_dir: outputs/test\nmax_steps: 20\n")
    (args,) = parse_config([GeoMAETrainingArguments], [str(path), "--num_train_epochs", "3"])
    assert (args.max_steps, args.num_train_epochs) == (-1, 3.0)


def test_help_of_the_whole_run_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config((DataArguments, GeoMAEArguments, GeoMAETrainingArguments), ["--help"])
    printed = capsys.readouterr().out
    for key in ("--data_dirs", "--mask_ratio", "--schedule", "--resume_from_checkpoint"):
        assert key in printed


def test_unknown_backend_of_compilation_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    for name in ("nosuch", "no", "tensorrt"):  # the last two are names of accelerate, and none of torch
        with pytest.raises(ConfigError, match=rf"torch_compile_backend is '{name}'; here there are .*inductor"):
            GeoMAETrainingArguments(output_dir=str(tmp_path), torch_compile_backend=name)
    with pytest.raises(ConfigError, match=r"torch_compile_mode is 'fast'; torch knows .*max-autotune"):
        GeoMAETrainingArguments(output_dir=str(tmp_path), torch_compile_mode="fast")


def test_compilation_without_a_compiler_is_refused_in_a_sentence(tmp_path: Path) -> None:
    without_a_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without_a_compiler, pytest.raises(ConfigError, match=r"no C\+\+ compiler that works"):
        GeoMAETrainingArguments(output_dir=str(tmp_path), torch_compile=True)
    with without_a_compiler:
        GeoMAETrainingArguments(output_dir=str(tmp_path), torch_compile=True, torch_compile_backend="aot_eager")
