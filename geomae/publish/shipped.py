"""A card for each configuration that this repository ships, with what `results/` has measured of it, or "unmeasured"."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from geomae.evaluation import read_metrics
from geomae.files import write_whole
from geomae.publish.card import ROOT, CardFacts, render_card
from geomae.publish.folder import public_metrics, public_record
from geomae.reporting.records import EvaluationRecord, read_run_record

__all__ = ["card_name", "list_configurations", "render_cards", "write_cards"]

CARDS = ROOT / "model_cards"
NO_MODELS = ("demo", "quick", "smoke")  # these try the software


def list_configurations() -> list[Path]:
    """The YAML files of pretraining and fine-tuning that make a model."""
    found = [path for stage in ("pretrain", "finetune") for path in (ROOT / "configs" / stage).glob("*.yaml")]
    return sorted(path for path in found if path.stem not in NO_MODELS)


def card_name(configuration: Path) -> str:
    """The file of a configuration's card in `model_cards/`."""
    return f"{configuration.parent.name}_{configuration.stem}.md"


def render_cards() -> dict[str, str]:
    """Name of the file -> text of the card, for each configuration."""
    return {card_name(path): str(render_card(_facts(path))) for path in list_configurations()}


def write_cards() -> list[Path]:
    """Write them all into `model_cards/`; returns their paths, relative to the checkout."""
    for name, text in render_cards().items():
        write_whole(CARDS / name, text)
    return [(CARDS / card_name(path)).relative_to(ROOT) for path in list_configurations()]


def _facts(configuration: Path) -> CardFacts:
    config = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    family = "GeoBaseline" if config.get("model_type") == "geobaseline" else "GeoMAE"
    task = "ForPreTraining" if configuration.parent.name == "pretrain" else "ForGeolocation"
    title = f"{configuration.stem} ({configuration.parent.name})"
    run = _find_run(config["output_dir"])
    return CardFacts(title, family + task, config, run, _find_evaluations(config["output_dir"]))


def _find_run(output_dir: str) -> dict[str, Any]:
    """The record in `results/` of the run of this folder; empty where there is none."""
    for file in sorted((ROOT / "results").glob("**/run.json")):
        record = read_run_record(file.parent)
        if record.get("config", {}).get("output_dir") == output_dir:
            return public_record(record)
    return {}


def _find_evaluations(output_dir: str) -> list[EvaluationRecord]:
    """The evaluations in `results/` of the model of this folder; predictions are not kept there."""
    measured = [(file.parent, read_metrics(file)) for file in sorted((ROOT / "results").glob("**/metrics.json"))]
    return [
        EvaluationRecord(folder, public_metrics(metrics), pa.table({}), None)
        for folder, metrics in measured
        if metrics.get("checkpoint") == output_dir and "retrieval" not in metrics
    ]
