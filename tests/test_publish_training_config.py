"""The YAML beside a published model repeats its run, and says nothing that nobody gave."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

import run_finetune_geo
from geomae.publish.folder import training_config
from geomae.training import DataArguments, FinetuneArguments, GeoMAETrainingArguments, parse_config

ROOT = Path(__file__).resolve().parent.parent


def test_training_configuration_keeps_steps_and_schedule_that_were_given():
    defaults = {"num_train_epochs": 3.0, "lr_scheduler_type": "linear"}  # transformers', which nobody gave
    given = {"max_steps": 700, "schedule": "step", "step_epochs": 3.0, "warmup_steps": 50}
    config = yaml.safe_load(training_config({"config": {**defaults, **given}}))
    assert config == given
    config = yaml.safe_load(training_config({"config": {**defaults, "num_train_epochs": 5.0, "max_steps": 700}}))
    assert config == {"num_train_epochs": 5.0}


@pytest.mark.skipif(
    not hasattr(TrainingArguments, "activation_checkpointing"), reason="newer transformers recorded the run"
)
def test_training_configuration_of_a_recorded_run_is_one_that_the_script_takes(tmp_path):
    record = json.loads((ROOT / "results" / "earth" / "finetune_mae" / "run.json").read_text())
    file = tmp_path / "training_config.yaml"
    file.write_text(training_config(record))
    classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    parsed = {key: value for part in parse_config(classes, [str(file)]) for key, value in vars(part).items()}
    given = yaml.safe_load((ROOT / "configs" / "finetune" / "earth_mae.yaml").read_text())
    given = {key: value for key, value in given.items() if not key.endswith("_strategy")}  # epochs became steps
    assert {key: parsed[key] for key in given} == {key: _number(value) for key, value in given.items()}
    assert (parsed["eval_steps"], parsed["save_steps"]) == (234, 234)


def _number(value):
    """YAML reads 2e-3 as text."""
    return float(value) if isinstance(value, str) and value.replace("e-", "").isdigit() else value
