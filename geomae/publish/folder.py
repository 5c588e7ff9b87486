"""The folder of a model as the Hub shows it, built whole or not at all."""

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from geomae.checkpoints import load_autoencoder, load_geolocator
from geomae.errors import ConfigError, SourceError
from geomae.evaluation import refuse_unwritable
from geomae.files import write_whole
from geomae.populated_places import write_places
from geomae.provenance import shown_command, shown_config
from geomae.publish.card import ROOT, CardFacts, render_card
from geomae.reporting.comparison import ComparedRun, is_of, read_runs
from geomae.reporting.page import Picture, copy_picture
from geomae.reporting.records import EvaluationRecord, TrainingRecord, unique_names
from geomae.reporting.results_section import describe_posteriors, draw_error_cdf, draw_prediction_map, group_by_test_set
from geomae.training import GeoMAETrainingArguments

__all__ = ["TRAINING_CONFIG", "build_hub_folder", "list_files", "public_metrics", "public_record", "training_config"]

WITHHELD = "(withheld)"  # in the place of an id
TRAINING_CONFIG = "training_config.yaml"
NEEDED = {  # of a finished run -> who writes it
    "config.json": "the model's architecture",
    "run.json": "the record of the training",
    "trainer_state.json": "the log, which is written last",
}
# Of the machine or of one start, not of the experiment.
NOT_THE_EXPERIMENT = re.compile(
    "hub_.*|push_to_hub|run_.*|report_to|trackio_.*|project|overwrite_output_dir|resume_from_checkpoint|use_cpu"
    "|local_rank|dataloader_pin_memory|accelerator_config|log_level.*|disable_tqdm|do_.*|ddp_.*|.*static_space_id"
)


def build_hub_folder(run: str | Path, output_dir: str | Path, *, repo_id: str | None = None) -> list[Path]:
    """Build the folder beside its place and move it there when it is whole.

    Args:
        run: folder of a finished `run_pretrain_mae.py` or `run_finetune_geo.py`; its evaluations are found as
            `geomae.reporting compare` finds them: inside it, and beside it.
        output_dir: it is made; an earlier folder of this function is replaced.
        repo_id: OWNER/NAME that the card's examples load from.

    Returns:
        The files, by name.

    Raises:
        SourceError: the run is not finished, or a record cannot be read; the message says what is missing.
        ConfigError: the folder holds something else, or cannot be written to.
    """
    run, target = Path(run), Path(output_dir)
    _refuse_unfinished(run)
    _refuse_other_content(target)
    refuse_unwritable(target)
    (compared,) = read_runs([str(run)])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        _fill(folder, run, compared, repo_id)
        if target.exists():
            target.rename(Path(temporary) / "old")
        folder.rename(target)
    return list_files(target)


def list_files(folder: Path) -> list[Path]:
    """The files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _refuse_unfinished(run: Path) -> None:
    if not run.is_dir():
        raise SourceError(f"{run} is no folder; expected one that run_pretrain_mae.py or run_finetune_geo.py wrote")
    missing = [f"{name} ({what})" for name, what in NEEDED.items() if not (run / name).is_file()]
    if not any(run.glob("model*.safetensors")):
        missing.insert(0, "model.safetensors (the weights)")
    if missing:
        raise SourceError(
            f"{run} is no finished run, it lacks {', '.join(missing)}. Let the training end first: "
            "--resume_from_checkpoint true goes on from the last checkpoint"
        )


def _refuse_other_content(target: Path) -> None:
    is_ours = (target / TRAINING_CONFIG).is_file() and (target / "README.md").is_file()
    if target.exists() and not is_ours and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"output_dir {target} holds something else; name a new folder, which publish may replace")


def _fill(folder: Path, run: Path, compared: ComparedRun, repo_id: str | None) -> None:
    """All files: only what is written here gets into the folder, nothing is copied because it happened to lie there."""
    training = compared.training
    assert training is not None  # a run with trainer_state.json is a training
    architecture = _save_model(run, folder)
    record = public_record(training.run)
    evaluations = [
        each for each in compared.evaluations if is_of(each.metrics, run) and "retrieval" not in each.metrics
    ]
    shown = [
        EvaluationRecord(each.folder, public_metrics(each.metrics), each.predictions, each.baseline_errors)
        for each in evaluations
    ]
    write_whole(folder / "run.json", _as_json(record))
    write_whole(folder / TRAINING_CONFIG, training_config(record))
    _write_metrics(folder, shown)
    for name in ("LICENSE", "CITATION.cff"):
        if not (ROOT / name).is_file():
            raise ConfigError(f"there is no {name} beside this package: run it in a clone of the repository")
        shutil.copyfile(ROOT / name, folder / name)
    title = (
        repo_id.rpartition("/")[2] if repo_id else str(record.get("config", {}).get("run_name") or run.resolve().name)
    )
    pictures = _draw(folder, title, training, shown)
    facts = CardFacts(title, architecture, record.get("config", {}), record, shown, pictures, repo_id)
    write_whole(folder / "README.md", str(render_card(facts)))


def _save_model(run: Path, folder: Path) -> str:
    """Write the model anew, with today's flat code, image processor and pipeline; returns its class's name."""
    architecture = str((json.loads((run / "config.json").read_text(encoding="utf-8")).get("architectures") or [""])[0])
    model = (load_autoencoder if architecture.endswith("ForPreTraining") else load_geolocator)(run)
    model.save_pretrained(folder)
    if architecture.endswith("ForGeolocation"):
        write_places(folder)
    return architecture


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that strangers may see: `shown_config`, and `shown_command` for its command."""
    shown = shown_config(record)
    if isinstance(record.get("command"), str):
        shown["command"] = shown_command(shlex.split(record["command"]))
    return shown


def public_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Without photographers by name, who are people, and without ids of photos, which may be names of files."""
    shown: dict[str, Any] = _without_people(public_record(metrics))
    return shown


def _without_people(value: Any) -> Any:
    """At any depth: ten crops and other decodings have groups of their own. Lists of ids keep their lengths."""
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, inner in value.items():
        if key == "by":
            inner = {kind: groups for kind, groups in inner.items() if kind != "author"}
        elif key == "shared_with":
            inner = {name: [WITHHELD] * len(ids) for name, ids in inner.items()}
        elif key in ("missing", "in_training") and isinstance(inner, list):
            inner = [WITHHELD] * len(inner)
        kept[key] = _without_people(inner)
    return kept


def training_config(record: Mapping[str, Any]) -> str:
    """YAML that repeats a run: every setting that is not its default, of what `run.json` recorded.

    Of two keys of which one follows from the other, the one that the run was given stays; a key at its default was
    not given.
    """
    config = dict(record.get("config", {}))
    defaults = {f.name: None if f.default is MISSING else f.default for f in fields(GeoMAETrainingArguments)}
    for derived, given in GeoMAETrainingArguments.exclusive_keys:
        is_given = config.get(given) is not None and config[given] != defaults.get(given)
        config.pop(derived if is_given else given, None)
    kept = {
        key: value
        for key, value in config.items()
        if value is not None
        and not NOT_THE_EXPERIMENT.fullmatch(key)
        and (key not in defaults or value != defaults[key])
    }
    script = shlex.split(str(record.get("command") or "run"))[0]
    header = f"# Repeats the run: accelerate launch {script} {TRAINING_CONFIG}\n"
    return header + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _write_metrics(folder: Path, evaluations: Sequence[EvaluationRecord]) -> None:
    """Not as `metrics.json` in folders: those would be found below the run as evaluations of their own."""
    (folder / "metrics").mkdir()
    names = unique_names([record.folder for record in evaluations])
    for name, record in zip(names, evaluations, strict=True):
        write_whole(folder / "metrics" / f"{name.replace('/', '_')}.json", _as_json(record.metrics))
    if not evaluations:
        (folder / "metrics").rmdir()


def _draw(folder: Path, title: str, training: TrainingRecord, evaluations: Sequence[EvaluationRecord]) -> list[Picture]:
    """What the model restores, where it answers, how far off it is, and whether its radii hold what they say."""
    pictures = folder / "pictures"
    pictures.mkdir()
    drawn: list[Picture] = []
    if restored := training.pictures("reconstruction"):
        caption = "Photos, what the encoder sees of them, and what the decoder restores, at the end of pretraining."
        drawn.append(copy_picture(restored[-1], pictures, "reconstruction", caption))
    names = unique_names([record.folder for record in evaluations])
    for number, group in enumerate(group_by_test_set(list(zip(names, evaluations, strict=True))), start=1):
        for rank, (_, record) in enumerate(group.items(), start=1):
            drawn.append(draw_prediction_map(title, record, pictures, f"prediction_map_{number}_{rank}"))
        drawn.append(draw_error_cdf(group, pictures, number))
        drawn += [block for block in describe_posteriors(group, pictures, number) if isinstance(block, Picture)]
    if not drawn:
        pictures.rmdir()
    return [Picture(Path("pictures") / picture.file, picture.caption) for picture in drawn]


def _as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
