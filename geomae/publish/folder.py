"""The folder of a model as the Hub shows it, built whole or not at all."""

import json
import logging
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import yaml

from geomae.checkpoints import digest_weights, load_autoencoder, load_geolocator, read_architecture
from geomae.errors import ConfigError, SourceError
from geomae.evaluation import refuse_unwritable
from geomae.files import list_files, write_whole
from geomae.populated_places import write_places
from geomae.provenance import shown_command, shown_config, shown_path
from geomae.publish.card import ROOT, CardFacts, render_card
from geomae.publish.edits import find_edits, note_files
from geomae.publish.origins import find_base_models, is_stand_in
from geomae.reporting.comparison import ComparedRun, is_of, read_runs
from geomae.reporting.page import Picture, copy_picture
from geomae.reporting.records import EvaluationRecord, TrainingRecord, unique_names
from geomae.reporting.results_section import describe_posteriors, draw_error_cdf, draw_prediction_map, group_by_test_set
from geomae.training import GeoMAETrainingArguments

__all__ = [
    "TRAINING_CONFIG",
    "build_hub_folder",
    "public_metrics",
    "public_record",
    "refuse_unbuilt",
    "training_config",
]

logger = logging.getLogger(__name__)

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


def build_hub_folder(
    run: str | Path,
    output_dir: str | Path,
    *,
    repo_id: str | None = None,
    overwrite: bool = False,
    include_photos: bool = False,
) -> list[Path]:
    """Build the folder beside its place and move it there when it is whole.

    Args:
        run: folder of a finished `run_pretrain_mae.py` or `run_finetune_geo.py`; its evaluations are found as
            `geomae.reporting compare` finds them: inside it, and beside it.
        output_dir: it is made; an earlier folder of this function is replaced, where nobody has edited it.
        repo_id: OWNER/NAME that the card's examples load from.
        overwrite: replace an edited folder too.
        include_photos: show photos of people's own and where these were taken: reconstructions of validation photos,
            and maps of test sets that are not public. Of pictures of the Earth from above they are shown anyway.

    Returns:
        The files, by name.

    Raises:
        SourceError: the run is not finished, or a record cannot be read; the message says what is missing.
        ConfigError: the folder holds something else or was edited, or cannot be written to; or the model is damaged.
    """
    run, target = Path(run), Path(output_dir)
    _refuse_unfinished(run)
    _refuse_other_content(target, overwrite=overwrite)
    refuse_unwritable(target)
    (compared,) = read_runs([str(run)])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        _fill(folder, run, compared, repo_id, include_photos=include_photos)
        if target.exists():
            target.rename(Path(temporary) / "old")
        folder.rename(target)
    note_files(target)
    return list_files(target)


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


def _refuse_other_content(target: Path, *, overwrite: bool) -> None:
    is_ours = (target / TRAINING_CONFIG).is_file() and (target / "README.md").is_file()
    if target.exists() and not is_ours and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"output_dir {target} holds something else; name a new folder, which publish may replace")
    if is_ours and not overwrite and (edited := find_edits(target)):
        raise ConfigError(
            f"{target} was edited since it was built ({', '.join(edited[:3])}{', ...' * (len(edited) > 3)}), and "
            "building it again would lose that. Upload it as it stands with --as_it_is, or build it anew with "
            "--overwrite"
        )


def refuse_unbuilt(folder: Path) -> None:
    """Refuse to upload what is no folder of `build_hub_folder`.

    Raises:
        ConfigError: it lacks what every such folder has.
    """
    missing = [name for name in (TRAINING_CONFIG, "README.md", "config.json") if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} was not built yet: it lacks {', '.join(missing)}. Leave --as_it_is out")


def _fill(folder: Path, run: Path, compared: ComparedRun, repo_id: str | None, *, include_photos: bool) -> None:
    """All files: only what is written here gets into the folder, nothing is copied because it happened to lie there."""
    training = compared.training
    assert training is not None  # a run with trainer_state.json is a training
    architecture = _save_model(run, folder)
    record = public_record(training.run)
    digest = digest_weights(run)
    evaluations = [each for each in compared.evaluations if _is_of_these_weights(each, run, digest)]
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
    config = record.get("config", {})
    pictures = _draw(folder, title, training, shown, include_photos=include_photos or is_stand_in(config))
    bases = find_base_models(training.run.get("config") or {})
    bases = [replace(each, name=shown_path(each.name)) for each in bases]
    facts = CardFacts(title, architecture, config, record, shown, pictures, repo_id, bases)
    write_whole(folder / "README.md", str(render_card(facts)))


def _save_model(run: Path, folder: Path) -> str:
    """Write the model anew, with today's flat code, image processor and pipeline; returns its class's name."""
    architecture = read_architecture(run)
    model = (load_autoencoder if architecture.endswith("ForPreTraining") else load_geolocator)(run)
    model.save_pretrained(folder)
    if architecture.endswith("ForGeolocation"):
        write_places(folder)
    return architecture


def _is_of_these_weights(evaluation: EvaluationRecord, run: Path, digest: str | None) -> bool:
    """Whether it judged the weights that are here: a folder that was trained again keeps older evaluations."""
    metrics = evaluation.metrics
    if not is_of(metrics, run) or "retrieval" in metrics:
        return False
    judged = metrics.get("weights_sha256")
    if judged is None:
        logger.warning(
            "%s does not say which weights it judged: it is taken for those of %s", evaluation.folder, run.name
        )
    elif judged != digest:
        logger.warning("%s judged other weights than those in %s, and is left out", evaluation.folder, run)
        return False
    return True


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that strangers may see: `shown_config`, and `shown_command` for its command."""
    shown = shown_config(record)
    if isinstance(record.get("command"), str):
        shown["command"] = shown_command(_split(record["command"]))
    return shown


def _split(command: str) -> list[str]:
    """The words of a recorded command; by blanks where somebody's editing left a quote open."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


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
    script = (_split(str(record.get("command") or "")) or ["run"])[0]
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


def _draw(
    folder: Path,
    title: str,
    training: TrainingRecord,
    evaluations: Sequence[EvaluationRecord],
    *,
    include_photos: bool,
) -> list[Picture]:
    """What the model restores, where it answers, how far off it is, and whether its radii hold what they say."""
    pictures = folder / "pictures"
    pictures.mkdir()
    drawn: list[Picture] = []
    if include_photos and (restored := [path for path in training.pictures("reconstruction") if _is_png(path)]):
        caption = "Photos, what the encoder sees of them, and what the decoder restores, at the end of pretraining."
        drawn.append(copy_picture(restored[-1], pictures, "reconstruction", caption))
    names = unique_names([record.folder for record in evaluations])
    for number, group in enumerate(group_by_test_set(list(zip(names, evaluations, strict=True))), start=1):
        for rank, (_, record) in enumerate(group.items(), start=1):
            if include_photos or record.metrics["test_set"].get("known_as"):
                drawn.append(draw_prediction_map(title, record, pictures, f"prediction_map_{number}_{rank}"))
        drawn.append(draw_error_cdf(group, pictures, number))
        drawn += [block for block in describe_posteriors(group, pictures, number) if isinstance(block, Picture)]
    if not drawn:
        pictures.rmdir()
    return [Picture(Path("pictures") / picture.file, picture.caption) for picture in drawn]


def _is_png(path: Path) -> bool:
    """And no link: what a run has drawn lies in its folder."""
    with path.open("rb") as file:
        return not path.is_symlink() and file.read(8) == b"\x89PNG\r\n\x1a\n"


def _as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: a number that is none becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
