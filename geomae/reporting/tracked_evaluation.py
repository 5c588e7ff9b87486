"""An evaluation as trackers take it: who it is, its numbers with their intervals, and its pictures.

`docs/wandb.md` says what is called how.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS
from geomae.provenance import shown_config
from geomae.reporting.page import Picture
from geomae.reporting.records import EvaluationRecord, read_evaluation, read_run_record
from geomae.reporting.results_section import draw_calibration, draw_error_cdf, draw_prediction_map
from geomae.tracking import flat_metrics, flat_posterior, refuse_bad_tags, run_group_of, run_name_of

__all__ = ["TrackedEvaluation", "describe_evaluation", "name_test_set", "summarise_evaluation"]


@dataclass(frozen=True)
class TrackedEvaluation:
    """An evaluation under the names that every tracker gives it."""

    evaluation: EvaluationRecord
    name: str
    group: str
    tags: tuple[str, ...]
    config: dict[str, Any]

    @property
    def prefix(self) -> str:
        """What its numbers and pictures are filed under, such as `test/im2gps3k`."""
        return f"test/{name_test_set(self.evaluation.metrics['test_set'])}"

    @property
    def numbers(self) -> dict[str, float | int]:
        """By their whole names."""
        return summarise_evaluation(self.evaluation.metrics)

    def draw(self) -> dict[str, tuple[Path, Picture]]:
        """Whole name -> file and picture: map of answers, error distribution and, of a posterior, its calibration."""
        folder = self.evaluation.folder / "pictures"
        pictures = {
            "map": draw_prediction_map(self.name, self.evaluation, folder, "prediction_map"),
            "error_cdf": draw_error_cdf({self.name: self.evaluation}, folder, 1),
        }
        if "posterior" in self.evaluation.metrics:
            pictures["calibration"] = draw_calibration({self.name: self.evaluation}, folder, "calibration")
        return {f"{self.prefix}/{key}": (folder / picture.file, picture) for key, picture in pictures.items()}


def describe_evaluation(
    output_dir: str | Path,
    *,
    checkpoint: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> TrackedEvaluation:
    """Read an evaluation, and the training that it is of.

    Its configuration is that of the checkpoint's training, where `run.json` is beside it, with the evaluation's own
    under `evaluation` and the id of the training's run in W&B as `training_run`.

    Args:
        output_dir: folder of `run_evaluate_geo.py`.
        checkpoint: the folder that was judged; where left out, as `metrics.json` names it.
        name: of the run; `run_name_of(output_dir)` where left out.
        group: of the run; where left out, that of the training, WANDB_RUN_GROUP, or `run_group_of(output_dir)`.
        tags: of the run.

    Raises:
        SourceError: the folder holds no whole evaluation, or the training's `run.json` is broken.
        ConfigError: W&B would not take a tag.
    """
    refuse_bad_tags(tags)
    evaluation = read_evaluation(output_dir)
    training = _read_training_record(checkpoint or evaluation.metrics.get("checkpoint"))
    group = group or training.get("config", {}).get("run_group") or os.environ.get("WANDB_RUN_GROUP")
    return TrackedEvaluation(
        evaluation,
        name or run_name_of(str(output_dir)),
        group or run_group_of(str(output_dir)),
        tuple(tags),
        _describe(evaluation.metrics, training),
    )


def summarise_evaluation(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """The final numbers as `test/<test set>/<metric>`, with the ends of their intervals as `<metric>_low` and `_high`.

    Those of another decoding of a posterior are `test/<test set>/<decoding>/<metric>`, and those from ten crops, where
    they were asked for, `test/<test set>/ten_crop/<metric>` and `test/<test set>/ten_crop/<decoding>/<metric>`.

    Args:
        metrics: content of `metrics.json`.
    """
    prefix = f"test/{name_test_set(metrics['test_set'])}"
    rows = {prefix: metrics} | ({f"{prefix}/ten_crop": metrics["ten_crop"]} if "ten_crop" in metrics else {})
    summary: dict[str, float | int] = {}
    for place, row in rows.items():
        numbers = _numbers(row)
        if "posterior" in row:
            numbers |= _with_intervals(flat_posterior, row["posterior"])
        for decoding, other in row.get("decodings", {}).items():
            numbers |= {f"{decoding}/{key}": value for key, value in _numbers(other).items()}
        summary |= {f"{place}/{key}": value for key, value in numbers.items()}
    return summary


def _numbers(row: Mapping[str, Any]) -> dict[str, float | int]:
    return _with_intervals(flat_metrics, row) | {key: row[key] for key in ("num_photos", "num_missing")}


def _with_intervals(flatten: Callable[[Mapping[str, Any]], dict[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = dict(flatten(row))
    for key, (low, high) in flatten(row["intervals_95"]).items() if row["intervals_95"] else ():
        numbers |= {f"{key}_low": low, f"{key}_high": high}
    return numbers


def name_test_set(test_set: Mapping[str, Any]) -> str:
    """`im2gps3k` for its photos, whatever their file is called; else the file's name, or folder and split."""
    for name, known in KNOWN_TEST_SETS.items():
        if known.ids_sha256 == test_set["ids_sha256"]:
            return name
    name = str(test_set["name"]).removesuffix(".csv").removesuffix(".parquet")
    return f"{name}-{test_set['split']}" if test_set["split"] else name


def _read_training_record(checkpoint: str | None) -> dict[str, Any]:
    """`run.json` of the training that a checkpoint is of, at the top of the run or in a `checkpoint-*` of it."""
    if checkpoint is None:
        return {}
    folder = Path(checkpoint)
    return read_run_record(folder.absolute().parent if folder.name.startswith("checkpoint-") else folder)


def _describe(metrics: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run: the training's keys, which runs are compared by, and what was judged on what."""
    judged = (
        "checkpoint",
        "predictions",
        "train_coordinates",
        "options",
        "test_set",
        "bootstrap",
        "commit",
        "versions",
    )
    return {
        **shown_config(training.get("config", {})),
        "training_run": training.get("wandb", {}).get("id"),
        "evaluation": shown_config({key: metrics[key] for key in judged if key in metrics}),
    }
