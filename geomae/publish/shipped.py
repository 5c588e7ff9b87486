"""A card for each shipped configuration, with what `results/` has measured of it, or "unmeasured"."""

import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from geomae.evaluation import read_metrics
from geomae.files import write_whole
from geomae.publish.card import ROOT, CardFacts, render_card
from geomae.publish.folder import public_metrics, public_record
from geomae.publish.origins import BaseModel
from geomae.reporting.records import EvaluationRecord, read_run_record

__all__ = ["card_name", "list_configurations", "render_cards", "write_cards"]

CARDS = ROOT / "model_cards"
THESIS = ROOT / "results" / "thesis" / "earth"
MEASURED_IN = {"heads_earth": "results/heads/heads.md"}  # tables over seeds, without evaluations of one model
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
    return CardFacts(
        title,
        family + task,
        config,
        run,
        _find_evaluations(config["output_dir"]),
        base_models=_find_base_models(config),
        measured_in=MEASURED_IN.get(configuration.stem),
    )


def _find_base_models(config: dict[str, Any]) -> list[BaseModel]:
    """What the configuration starts from, by the configurations that make it: nothing need have been trained here."""
    configurations = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in list_configurations()]
    makers = {each["output_dir"]: each for each in configurations}
    found: list[BaseModel] = []
    while name := config.get("init_from"):
        config = makers.get(name, {})
        found.append(BaseModel(name, config))
    return found


def _find_run(output_dir: str) -> dict[str, Any]:
    """The record in `results/` of the run of this folder; empty where there is none."""
    for file in sorted((ROOT / "results").glob("**/run.json")):
        record = read_run_record(file.parent)
        if record.get("config", {}).get("output_dir") == output_dir:
            return public_record(record)
    for runs in _thesis().get("trainings", {}).values():
        for record in runs.values():
            if _option(record, "--output_dir") == output_dir:
                return public_record(record)
    return {}


def _find_evaluations(output_dir: str) -> list[EvaluationRecord]:
    """The evaluations in `results/` of the model of this folder; predictions are not kept there."""
    measured = [(file.parent, read_metrics(file)) for file in sorted((ROOT / "results").glob("**/metrics.json"))]
    found = [each for each in measured if each[1].get("checkpoint") == output_dir and "retrieval" not in each[1]]
    for model, sets in _thesis().get("models", {}).items():
        for test_set, metrics in sets.items():
            if _option(metrics, "--checkpoint") == output_dir:
                about = {"name": test_set, "split": None, "num_photos": metrics["num_photos"], "ids_sha256": test_set}
                found.append((THESIS / model / test_set, {**metrics, "test_set": about}))
    return [EvaluationRecord(folder, public_metrics(metrics), pa.table({}), None) for folder, metrics in found]


def _thesis() -> dict[str, Any]:
    """All runs of `make thesis` in one file, each under the command that made it."""
    return read_metrics(THESIS)


def _option(record: dict[str, Any], name: str) -> str | None:
    """What follows an option in a recorded command."""
    words = shlex.split(str(record.get("command", "")))
    return words[words.index(name) + 1] if name in words[:-1] else None
