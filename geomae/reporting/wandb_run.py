"""An evaluation as a run of W&B: numbers with their intervals, answers, a map and the error distribution.

`docs/wandb.md` says what is called how, and which panels to build from it.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.reporting.records import EvaluationRecord
from geomae.reporting.tracked_evaluation import TrackedEvaluation
from geomae.shown_argv import argv_without_secrets

__all__ = ["MAX_TABLE_ROWS", "choose_rows", "send_to_wandb"]

MAX_TABLE_ROWS = 1000  # of the table of answers: W&B shows no more at once, and 25,600 rows are 2 MB a run
TABLE_COLUMNS = ("id", "true_latitude", "true_longitude", "latitude", "longitude", "error_km")


def send_to_wandb(tracked: TrackedEvaluation) -> None:
    """Record an evaluation as a W&B run of its own, with the job type `evaluate`.

    Raises:
        OSError, ValueError: W&B cannot be reached, nobody is logged in, or a variable WANDB_* is wrong.
    """
    import wandb  # seconds: only runs that report pay for it

    try:
        with argv_without_secrets():
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "geomae"),
                name=tracked.name,
                group=tracked.group,
                tags=tracked.tags or None,  # those of WANDB_TAGS
                job_type="evaluate",
                config=tracked.config,
                reinit="create_new",  # a training in the same process keeps its run
            )
        with run:
            run.summary.update(tracked.numbers)
            drawn = tracked.pictures.items()
            pictures = {key: wandb.Image(str(file), caption=picture.caption) for key, (file, picture) in drawn}
            answers = wandb.Table(columns=list(TABLE_COLUMNS), data=_answers(tracked.evaluation))
            run.log({f"{tracked.prefix}/predictions": answers, **pictures})
    except wandb.Error as problem:
        raise OSError(str(problem)) from problem


def _answers(evaluation: EvaluationRecord) -> list[list[Any]]:
    rows = evaluation.predictions.take(choose_rows(evaluation.error_km)).select(TABLE_COLUMNS).to_pylist()
    return [list(row.values()) for row in rows]


def choose_rows(error_km: NDArray[np.float64], limit: int = MAX_TABLE_ROWS) -> NDArray[np.intp]:
    """Rows by rising error: all, or a quarter of `limit` at either end and the rest evenly spread between them."""
    order = np.argsort(error_km, kind="stable")
    if len(order) <= limit:
        return order
    at_an_end = limit // 4
    between = order[at_an_end : len(order) - at_an_end]
    spread = np.linspace(0, len(between) - 1, limit - 2 * at_an_end).round().astype(np.intp)
    return np.concatenate([order[:at_an_end], between[spread], order[len(order) - at_an_end :]])
