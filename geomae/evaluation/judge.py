"""The judge: predictions against a test set, every photo exactly once, beside answers that never saw a photo."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from geomae.errors import PredictionError
from geomae.evaluation.bootstrap import bootstrap_intervals
from geomae.evaluation.metrics import LARGEST_ERROR_KM, check_predictions, summarise_errors
from geomae.evaluation.tables import Predictions, TestSet, nearest_ids
from geomae.geography import great_circle_km

__all__ = ["judge_errors", "judge_predictions", "judge_with_ten_crop", "match_predictions"]


def match_predictions(predictions: Predictions, test_set: TestSet) -> NDArray[np.float64]:
    """Predictions in the order of the test set, matched by id.

    Returns:
        `(n, 2)` degrees, with NaN in both columns for a photo without an answer.

    Raises:
        PredictionError: an id is unknown to the test set or stands twice, a prediction is not finite or not on Earth,
            or no photo has an answer.
    """
    check_predictions(predictions.coordinates_deg, predictions.ids)
    position = {name: row for row, name in enumerate(test_set.ids)}
    unknown = [name for name in predictions.ids if name not in position]
    if unknown:
        raise PredictionError(
            f"{len(unknown)} of {len(predictions.ids)} predicted ids are not in {test_set.name}; the first is id "
            f"{unknown[0]} (the test set has ids such as {nearest_ids(unknown[0], test_set.ids)}). "
            "Is it the right test set?"
        )
    if len(set(predictions.ids)) < len(predictions.ids):
        first = next(name for row, name in enumerate(predictions.ids) if name in predictions.ids[:row])
        raise PredictionError(f"id {first} is predicted more than once; every photo counts once")
    if not predictions.ids:
        raise PredictionError(f"there is not one prediction for the {len(test_set.ids)} photos of {test_set.name}")
    matched = np.full((len(test_set.ids), 2), np.nan)
    matched[[position[name] for name in predictions.ids]] = predictions.coordinates_deg
    return matched


def judge_predictions(
    predictions: Predictions, test_set: TestSet, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, Any], pa.Table]:
    """Every number of one prediction file, and the file itself with its errors.

    A photo without an answer counts as a miss: it enters every number with the largest possible error (half the
    Earth's circumference, 20 015.1 km), so that leaving hard photos out never pays and `accuracy_within_km` stays the
    distribution function of the errors behind `mean_km` and `quantiles_km`. Beside that, `answered` holds the numbers
    of the answered photos alone, and `missing` lists the others.

    Args:
        predictions: unique ids and finite coordinates on Earth.
        test_set: what they are judged by; intervals are clustered by its authors where it has them.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The metrics of `judge_errors` with `num_missing`, `missing` and, if any is missing, `answered`; and a table
        `id, latitude, longitude, error_km, true_latitude, true_longitude` in the test set's order, where an
        unanswered photo has nulls.

    Raises:
        PredictionError: as `match_predictions`.
    """
    matched = match_predictions(predictions, test_set)
    is_missing: NDArray[np.bool_] = np.isnan(matched[:, 0])
    error_km = np.full(len(matched), LARGEST_ERROR_KM)
    error_km[~is_missing] = great_circle_km(matched[~is_missing], test_set.coordinates_deg[~is_missing])
    metrics = judge_errors(error_km, test_set, num_resamples=num_resamples, seed=seed)
    metrics["num_missing"] = int(is_missing.sum())
    metrics["missing"] = [name for name, absent in zip(test_set.ids, is_missing, strict=True) if absent]
    if is_missing.any():
        metrics["answered"] = summarise_errors(error_km[~is_missing])
    table = pa.table(
        {
            "id": pa.array(test_set.ids, pa.string()),
            "latitude": pa.array(matched[:, 0], mask=is_missing),
            "longitude": pa.array(matched[:, 1], mask=is_missing),
            "error_km": pa.array(error_km, mask=is_missing),
            "true_latitude": test_set.coordinates_deg[:, 0],
            "true_longitude": test_set.coordinates_deg[:, 1],
        }
    )
    return metrics, table


def judge_with_ten_crop(
    predictions: Predictions, test_set: TestSet, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """`judge_predictions`, and where there are answers from ten crops, all of it once more for those.

    Returns:
        The metrics, those of ten crops under `ten_crop`; and the tables `predictions` and `predictions_ten_crop`.
    """
    tables = {}
    metrics, tables["predictions"] = judge_predictions(predictions, test_set, num_resamples=num_resamples, seed=seed)
    if predictions.ten_crop is not None:
        judged = judge_predictions(predictions.ten_crop, test_set, num_resamples=num_resamples, seed=seed)
        metrics["ten_crop"], tables["predictions_ten_crop"] = judged
    return metrics, tables


def judge_errors(
    error_km: NDArray[np.float64], test_set: TestSet, *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The metrics of `summarise_errors` with `intervals_95`, and under `bootstrap` how those were drawn.

    With fewer than two clusters `intervals_95` is None, and `bootstrap` has the `reason`.

    Args:
        error_km: `(n,)` errors in the order of the test set.
        test_set: gives the authors by which the intervals are clustered.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    metrics = summarise_errors(error_km)
    metrics["intervals_95"] = bootstrap_intervals(error_km, test_set.authors, num_resamples=num_resamples, seed=seed)
    unit = "author" if test_set.authors is not None else "photo"
    metrics["bootstrap"] = {
        "clustered_by": unit,
        "num_clusters": len(set(test_set.authors)) if test_set.authors is not None else len(test_set.ids),
        "num_resamples": num_resamples,
        "seed": seed,
    }
    if metrics["intervals_95"] is None:
        metrics["bootstrap"]["reason"] = f"no interval can be drawn from a single {unit}"
    return metrics
