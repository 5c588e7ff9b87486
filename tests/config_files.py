"""The YAML files of training, and what they parse to on a machine without a GPU."""

from pathlib import Path
from typing import Any

from launching import ROOT

import run_finetune_geo
from geomae.training import (
    DataArguments,
    FinetuneArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    PretrainArguments,
    parse_config,
)

PRETRAIN = sorted((ROOT / "configs/pretrain").glob("*.yaml"))
FINETUNE = sorted((ROOT / "configs/finetune").glob("*.yaml"))
# The machine that runs the tests has no GPU; what a file asks of one is checked as text.
ON_A_CPU = ["--fp16", "false", "--torch_compile", "false", "--optim", "adamw_torch"]


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def load(path: Path, *words: str) -> tuple[Any, ...]:
    if path in PRETRAIN:
        classes = (DataArguments, PretrainArguments, GeoMAEArguments, GeoMAETrainingArguments)
    else:
        classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    return parse_config(classes, [str(path), *ON_A_CPU, *words])
