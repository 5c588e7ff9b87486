"""An evaluation as a run of W&B: numbers with their intervals, answers, a map and the error distribution.

`docs/wandb.md` says what is called how, and which panels to build from it.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS
from geomae.provenance import shown_config
from geomae.reporting.records import EvaluationRecord, read_evaluation, read_run_record
from geomae.reporting.results_section import draw_calibration, draw_error_cdf, draw_prediction_map
from geomae.tracking import flat_metrics, flat_posterior, refuse_bad_tags, run_group_of, run_name_of

__all__ = ["MAX_TABLE_ROWS", "choose_rows", "log_evaluation", "name_test_set", "summarise_for_wandb"]

logger = logging.getLogger(__name__)

MAX_TABLE_ROWS = 1000  # of the table of answers: W&B shows no more at once, and 25,600 rows are 2 MB a run
TABLE_COLUMNS = ("id", "true_latitude", "true_longitude", "latitude", "longitude", "error_km")


def log_evaluation(
    output_dir: str | Path,
    *,
    checkpoint: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> bool:
    """Record an evaluation as a W&B run of its own, with the job type `evaluate`.

    Its configuration is that of the checkpoint's training, where `run.json` is beside it, with the evaluation's own
    under `evaluation` and the id of the training's run as `training_run`.

    Args:
        output_dir: folder of `run_evaluate_geo.py`; its numbers are there already, whatever happens here.
        checkpoint: the folder that was judged; where left out, as `metrics.json` names it.
        name: of the run; `run_name_of(output_dir)` where left out.
        group: of the run; where left out, that of the training, WANDB_RUN_GROUP, or `run_group_of(output_dir)`.
        tags: of the run; those of WANDB_TAGS where there are none.

    Returns:
        Whether W&B has it. Where W&B cannot be reached, nobody is logged in, or the training's `run.json` is broken, a
        warning says what to do.

    Raises:
        SourceError: the folder holds no whole evaluation.
        ConfigError: W&B would not take a tag.
    """
    import wandb  # seconds: only runs that report pay for it

    refuse_bad_tags(tags)
    evaluation = read_evaluation(output_dir)
    name = name or run_name_of(str(output_dir))
    try:
        training = _read_training_record(checkpoint or evaluation.metrics.get("checkpoint"))
        group = group or training.get("config", {}).get("run_group") or os.environ.get("WANDB_RUN_GROUP")
        with wandb.init(
            project=os.environ.get("WANDB_PROJECT", "geomae"),
            name=name,
            group=group or run_group_of(str(output_dir)),
            tags=list(tags) or None,
            job_type="evaluate",
            config=_describe(evaluation.metrics, training),
            reinit="create_new",  # a training in the same process keeps its run
        ) as run:
            _log(run, evaluation, name)
    except (wandb.Error, OSError, ValueError) as problem:  # what a variable WANDB_* is wrong in is a ValueError
        logger.warning(
            "W&B did not take the evaluation: %s\n  Its numbers are in %s. `wandb login` and "
            "`python -m geomae.reporting wandb %s` send them; WANDB_MODE=offline keeps them for `wandb sync`.",
            *(problem, Path(output_dir) / "metrics.json", output_dir),
        )
        return False
    return True


def summarise_for_wandb(metrics: Mapping[str, Any]) -> dict[str, float | int]:
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


def choose_rows(error_km: NDArray[np.float64], limit: int = MAX_TABLE_ROWS) -> NDArray[np.intp]:
    """Rows by rising error: all, or a quarter of `limit` at either end and the rest evenly spread between them."""
    order = np.argsort(error_km, kind="stable")
    if len(order) <= limit:
        return order
    at_an_end = limit // 4
    between = order[at_an_end : len(order) - at_an_end]
    spread = np.linspace(0, len(between) - 1, limit - 2 * at_an_end).round().astype(np.intp)
    return np.concatenate([order[:at_an_end], between[spread], order[len(order) - at_an_end :]])


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


def _log(run: Any, evaluation: EvaluationRecord, name: str) -> None:
    import wandb

    run.summary.update(summarise_for_wandb(evaluation.metrics))
    rows = evaluation.predictions.take(choose_rows(evaluation.error_km)).select(TABLE_COLUMNS).to_pylist()
    table = wandb.Table(columns=list(TABLE_COLUMNS), data=[list(row.values()) for row in rows])
    folder = evaluation.folder / "pictures"
    cdf = draw_error_cdf({name: evaluation}, folder, 1)
    world = draw_prediction_map(name, evaluation, folder, "prediction_map")
    pictures = {"map": world, "error_cdf": cdf}
    if "posterior" in evaluation.metrics:
        pictures["calibration"] = draw_calibration({name: evaluation}, folder, "calibration")
    prefix = f"test/{name_test_set(evaluation.metrics['test_set'])}"
    images = {key: wandb.Image(str(folder / each.file), caption=each.caption) for key, each in pictures.items()}
    run.log({f"{prefix}/{key}": value for key, value in {"predictions": table, **images}.items()})
