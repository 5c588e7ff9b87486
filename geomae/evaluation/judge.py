"""The judge: predictions against a test set, every photo exactly once, beside answers that never saw a photo."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from geomae.errors import PredictionError
from geomae.evaluation.bootstrap import bootstrap_intervals, explain_too_few
from geomae.evaluation.groups import find_groups, summarise_authors
from geomae.evaluation.metrics import LARGEST_ERROR_KM, THRESHOLDS_KM, check_predictions, summarise_errors
from geomae.evaluation.posterior import add_posterior, match_posterior, summarise_posterior
from geomae.evaluation.tables import Predictions, TestSet, nearest_ids
from geomae.geography import great_circle_km

__all__ = [
    "judge_answers",
    "judge_errors",
    "judge_groups",
    "judge_predictions",
    "match_predictions",
    "measure_errors",
]

# What a group's entry holds of the numbers and of their intervals; the rest follows from predictions.parquet.
KEPT_OF_GROUPS = ("num_photos", "mean_km", "median_km", "geoscore", "accuracy_within_km")


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
    repeated = [name for name, num_rows in Counter(predictions.ids).items() if num_rows > 1]
    if repeated:
        others = f", and {len(repeated) - 1:,} more" if len(repeated) > 1 else ""
        raise PredictionError(f"id {repeated[0]} is predicted more than once{others}; every photo counts once")
    if not predictions.ids:
        raise PredictionError(f"there is not one prediction for the {len(test_set.ids)} photos of {test_set.name}")
    matched = np.full((len(test_set.ids), 2), np.nan)
    matched[[position[name] for name in predictions.ids]] = predictions.coordinates_deg
    return matched


def measure_errors(
    matched_deg: NDArray[np.float64], test_set: TestSet
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Great-circle errors, the largest there is where a photo has no answer, and which photos those are.

    Args:
        matched_deg: `(n, 2)` degrees of `match_predictions`.
        test_set: n photos.

    Returns:
        `(n,)` kilometres, and `(n,)` True where there is no answer.
    """
    is_missing: NDArray[np.bool_] = np.isnan(matched_deg[:, 0])
    error_km = np.full(len(matched_deg), LARGEST_ERROR_KM)
    error_km[~is_missing] = great_circle_km(matched_deg[~is_missing], test_set.coordinates_deg[~is_missing])
    return error_km, is_missing


def judge_predictions(
    predictions: Predictions,
    test_set: TestSet,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Any], pa.Table]:
    """Every number of one prediction file, and the file itself with its errors.

    A photo without an answer counts as a miss: it enters every number with the largest possible error (half the
    Earth's circumference, 20 015.1 km), so that leaving hard photos out never pays and `accuracy_within_km` stays the
    distribution function of the errors behind `mean_km` and `quantiles_km`. Beside that, `answered` holds the numbers
    of the answered photos alone, and `missing` lists the others.

    Args:
        predictions: unique ids and finite coordinates on Earth.
        test_set: what they are judged by; intervals are clustered by its authors where it has them.
        thresholds_km: radii in kilometres.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The metrics of `judge_errors` with `by` (`judge_groups`), `num_missing`, `missing` and, if any is missing,
        `answered`: the same in whatever order the predictions and the test set's rows are, but for the order of
        `missing`, which is the test set's. And a table
        `id, latitude, longitude, error_km, true_latitude, true_longitude`, and `author` where the test set has
        authors, in the test set's order, where an unanswered photo has nulls.

    Raises:
        PredictionError: as `match_predictions`.
        ConfigError: there are too few resamples, or a radius cannot be one.
    """
    matched = match_predictions(predictions, test_set)
    error_km, is_missing = measure_errors(matched, test_set)
    resampling: dict[str, Any] = {"thresholds_km": thresholds_km, "num_resamples": num_resamples, "seed": seed}
    metrics = judge_errors(error_km, test_set, **resampling)
    metrics["by"] = judge_groups(error_km, test_set, **resampling)
    metrics["num_missing"] = int(is_missing.sum())
    metrics["missing"] = [name for name, absent in zip(test_set.ids, is_missing, strict=True) if absent]
    if is_missing.any():
        metrics["answered"] = summarise_errors(error_km[~is_missing], thresholds_km=thresholds_km)
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
    if test_set.authors is not None:
        table = table.append_column("author", pa.array(test_set.authors, pa.string()))
    return metrics, table


def judge_answers(
    predictions: Predictions,
    test_set: TestSet,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """`judge_predictions` of the headline answers, and of every other answer that the predictions hold.

    Returns:
        The metrics. Of a posterior also `decoding`, the headline's; `decodings`: name -> metrics of each other one;
        and `posterior`: what it was decoded with, and `summarise_posterior`. All of it once more under `ten_crop`,
        where there are answers from ten crops. And the tables `predictions`, with what was measured of the posterior,
        `predictions_<decoding>`, and the same with `predictions_ten_crop` in the place of `predictions`.
    """
    how: dict[str, Any] = {"thresholds_km": thresholds_km, "num_resamples": num_resamples, "seed": seed}
    metrics, table = judge_predictions(predictions, test_set, **how)
    tables = {"predictions": table}
    if predictions.posterior:
        metrics |= {"decoding": predictions.decoded_with["decoding"], "decodings": {}}
        for name, answers_deg in predictions.decodings.items():
            other = Predictions(predictions.ids, answers_deg)
            metrics["decodings"][name], tables[f"predictions_{name}"] = judge_predictions(other, test_set, **how)
        posterior = match_posterior(predictions.posterior, predictions.ids, test_set.ids)
        error_km, _ = measure_errors(match_predictions(predictions, test_set), test_set)
        metrics["posterior"] = {
            **{name: value for name, value in predictions.decoded_with.items() if name != "decoding"},
            **summarise_posterior(posterior, error_km, test_set.clusters, num_resamples=num_resamples, seed=seed),
        }
        tables["predictions"] = add_posterior(table, posterior)
    if predictions.ten_crop is not None:
        metrics["ten_crop"], of_ten_crop = judge_answers(predictions.ten_crop, test_set, **how)
        tables |= {name.replace("predictions", "predictions_ten_crop"): each for name, each in of_ten_crop.items()}
    return metrics, tables


def judge_errors(
    error_km: NDArray[np.float64],
    test_set: TestSet,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of `summarise_errors` with `intervals_95`, and under `bootstrap` how those were drawn.

    With fewer than `bootstrap.MIN_CLUSTERS` clusters `intervals_95` is None, and `bootstrap` has the `reason`.

    Args:
        error_km: `(n,)` errors in the order of the test set.
        test_set: gives the authors by which the intervals are clustered.
        thresholds_km: radii in kilometres.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: there are too few resamples, or a radius cannot be one.
    """
    clusters = np.asarray(test_set.clusters)  # by their names: equal draws whatever the rows' order
    return _judge(
        error_km, clusters, test_set.cluster_unit, thresholds_km=thresholds_km, num_resamples=num_resamples, seed=seed
    )


def judge_groups(
    error_km: NDArray[np.float64],
    test_set: TestSet,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The numbers of each group of photos, as if it were a test set of its own.

    Args:
        error_km: `(n,)` errors in the order of the test set.
        test_set: gives places, and perhaps scenes, countries and authors.
        thresholds_km: radii in kilometres.
        num_resamples: of the bootstrap, within each group.
        seed: of the bootstrap.

    Returns:
        `scene`, `continent`, `country` (`find_groups`): group -> `KEPT_OF_GROUPS` with `intervals_95` of the same and
        `bootstrap`, groups with most photos first. `author`: `summarise_authors`, where the authors are known.
    """
    _, clusters = np.unique(test_set.clusters, return_inverse=True)  # numbers in the names' order
    by: dict[str, dict[str, Any]] = {}
    for kind, labels in find_groups(test_set).items():
        groups, membership, num_photos = np.unique(labels, return_inverse=True, return_counts=True)
        by[kind] = {}
        for number in np.argsort(-num_photos, kind="stable"):
            rows = membership == number
            judged = _judge(
                error_km[rows],
                clusters[rows],
                test_set.cluster_unit,
                thresholds_km=thresholds_km,
                quantiles=(),
                num_resamples=num_resamples,
                seed=seed,
            )
            by[kind][str(groups[number])] = _keep_of_group(judged)
    if test_set.authors is not None:
        by["author"] = summarise_authors(error_km, test_set.authors)
    return by


def _judge(error_km: NDArray[np.float64], clusters: NDArray[Any], unit: str, **resampling: Any) -> dict[str, Any]:
    """`judge_errors` of photos in clusters, each of which is an author or a photo."""
    metrics = summarise_errors(error_km, thresholds_km=resampling["thresholds_km"])
    metrics["intervals_95"] = bootstrap_intervals(error_km, clusters, **resampling)
    metrics["bootstrap"] = {
        "clustered_by": unit,
        "num_clusters": len(np.unique(clusters)),
        "num_resamples": resampling["num_resamples"],
        "seed": resampling["seed"],
    }
    if metrics["intervals_95"] is None:
        metrics["bootstrap"]["reason"] = explain_too_few(metrics["bootstrap"]["num_clusters"], unit)
    return metrics


def _keep_of_group(judged: dict[str, Any]) -> dict[str, Any]:
    """What differs from group to group and cannot be looked up in the test set's own numbers."""
    kept = {key: judged[key] for key in KEPT_OF_GROUPS}
    intervals = judged["intervals_95"]
    kept["intervals_95"] = intervals and {key: intervals[key] for key in KEPT_OF_GROUPS if key in intervals}
    kept["bootstrap"] = {
        key: judged["bootstrap"][key] for key in ("num_clusters", "reason") if key in judged["bootstrap"]
    }
    return kept
