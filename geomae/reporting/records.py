"""What a training run and an evaluation left on disk, read back for a report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from geomae.bounded_parquet import read_table
from geomae.documents import parse_json, read_text
from geomae.errors import SourceError
from geomae.evaluation import read_metrics
from geomae.evaluation.metrics import LARGEST_ERROR_KM

__all__ = [
    "EvaluationRecord",
    "TrainingRecord",
    "read_evaluation",
    "read_run_record",
    "read_training",
    "unique_names",
]

# What every page is made of: content of metrics.json, and columns of predictions.parquet.
NEEDED_METRICS = ("num_photos", "mean_km", "accuracy_within_km", "intervals_95", "bootstrap", "test_set")
NEEDED_COLUMNS = ("id", "true_latitude", "true_longitude", "latitude", "longitude", "error_km")


@dataclass(frozen=True)
class TrainingRecord:
    """A folder that `run_pretrain_mae.py` or `run_finetune_geo.py` wrote."""

    folder: Path
    history: list[dict[str, Any]]  # entries with `step` and what was measured there
    run: dict[str, Any]  # run.json; empty where there is none

    def pictures(self, name: str) -> list[Path]:
        """Pictures called `<name>_step_<number>.png`, by step."""
        found = [
            (re.fullmatch(rf"{name}_step_(\d+)\.png", path.name), path) for path in self.folder.glob("pictures/*.png")
        ]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


@dataclass(frozen=True)
class EvaluationRecord:
    """A folder that `run_evaluate_geo.py` wrote."""

    folder: Path
    metrics: dict[str, Any]
    predictions: pa.Table
    baseline_errors: pa.Table | None  # id and one column of km for each baseline; None where the file is gone

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """`(n,)` True where a photo has an answer."""
        return np.asarray(self.predictions["error_km"].is_valid().to_numpy())

    @property
    def error_km(self) -> NDArray[np.float64]:
        """`(n,)` errors; a photo without an answer has the largest there is."""
        return np.nan_to_num(self.columns("error_km")[:, 0], nan=LARGEST_ERROR_KM)

    def columns(self, *names: str) -> NDArray[np.float64]:
        """`(n, len(names))` float64 columns of the predictions, NaN where a photo has no answer."""
        return np.stack([np.asarray(self.predictions[name].to_numpy(), dtype=np.float64) for name in names], axis=1)


def read_training(folder: str | Path) -> TrainingRecord:
    """The log and the record of a training run; of the newest checkpoint where the run did not end.

    Raises:
        SourceError: the folder holds no `trainer_state.json`, or that or `run.json` cannot be read.
    """
    folder = Path(folder)
    states = [folder / "trainer_state.json", *reversed(_checkpoint_states(folder))]
    state = next((path for path in states if path.is_file()), None)
    if state is None:
        raise SourceError(f"{folder} is not a training run: neither it nor a checkpoint in it has a trainer_state.json")
    history = _read_object(state).get("log_history")
    if not isinstance(history, list):
        raise SourceError(f"{state} has no log_history, which the trainer writes: is it cut off?")
    return TrainingRecord(folder, history, read_run_record(folder))


def read_run_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a training; empty where there is none.

    Raises:
        SourceError: it is no JSON object.
    """
    return _read_object(folder / "run.json") if (folder / "run.json").is_file() else {}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(file))
    except (OSError, ValueError) as problem:
        raise SourceError(f"cannot read {file}: {problem}. Is it cut off?") from problem
    if not isinstance(content, dict):
        raise SourceError(f"{file} holds a {type(content).__name__}; expected a JSON object")
    return content


def read_evaluation(folder: str | Path) -> EvaluationRecord:
    """The numbers and the rows of an evaluation.

    Raises:
        SourceError: the folder lacks `metrics.json` or `predictions.parquet`, or one is not what an evaluation writes.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    missing = [key for key in NEEDED_METRICS if key not in metrics]
    if missing:
        raise SourceError(f"{folder / 'metrics.json'} has no {', '.join(missing)}; run_evaluate_geo.py writes them")
    if not (folder / "predictions.parquet").is_file():
        raise SourceError(f"{folder} has no predictions.parquet; run_evaluate_geo.py writes it beside metrics.json")
    predictions = _read_table(folder / "predictions.parquet")
    missing = [name for name in NEEDED_COLUMNS if name not in predictions.column_names]
    if missing:
        raise SourceError(f"{folder / 'predictions.parquet'} has no column {', '.join(missing)}")
    baselines = folder / "baselines.parquet"
    return EvaluationRecord(folder, metrics, predictions, _read_table(baselines) if baselines.is_file() else None)


def _read_table(file: Path) -> pa.Table:
    try:
        return read_table(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise SourceError(f"cannot read {file}: {problem}. run_evaluate_geo.py writes it") from problem


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart: `a/run` and `b/run`, or just `first` and `second`."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, start=1)]


def _checkpoint_states(folder: Path) -> list[Path]:
    found = [
        (path.parent.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-[0-9]*/trainer_state.json")
    ]
    return [path for _, path in sorted((int(number), path) for number, path in found if number.isdecimal())]
