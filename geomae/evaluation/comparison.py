"""Which of two models is better on the same photos, and how sure that is: differences, intervals and paired tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation.bootstrap import MIN_RESAMPLES, RESAMPLED, draw_cluster_counts
from geomae.evaluation.metrics import THRESHOLDS_KM, geoscores, summarise_errors, threshold_key

__all__ = ["compare_errors", "holm_adjusted"]

CHUNK_ELEMENTS = 2_000_000  # photos x resamples held at once: about 50 MB, whatever the test set's size


def compare_errors(
    error_km: ArrayLike,
    other_km: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired comparison of two models' errors on the same photos.

    Every difference is the first minus the second, so a negative `mean_km` says that the first is better. The
    bootstrap draws whole clusters, the same for both models. The t-test and Wilcoxon's test take every photo for
    independent of the others, which photos of one author are not: where authors repeat, their p-values can be far too
    small.

    Args:
        error_km: `(n,)` errors of the first model, n >= 1, finite.
        other_km: `(n,)` errors of the second, photo by photo.
        clusters: n labels, such as authors, whose photos are drawn together; every photo for itself where None.
        thresholds_km: radii in kilometres.
        num_resamples: number of resampled test sets, at least `MIN_RESAMPLES`.
        seed: of the resampling; equal seeds give equal results.

    Returns:
        `num_photos`; `first`, `second` and their `difference`, each with `mean_km`, `median_km`, `geoscore` and
        `accuracy_within_km` (radius -> share); `intervals_95` of each difference; `bootstrap` with the two-sided `p`
        of the mean difference and how it was drawn; `paired_t_test` (`t`, `p`, `degrees_of_freedom`); `wilcoxon`
        (`statistic`, `p`, `zero_differences`, `num_zero_differences`). What is undefined is None: intervals and `p`
        with fewer than two clusters, `t` where all differences are equal, `wilcoxon` where all are zero.

    Raises:
        PredictionError: the errors differ in number, there are none, or some are not finite.
        ConfigError: there are too few resamples.

    Source: Efron and Tibshirani (1993), chapters 8 and 16, for paired resampling; Davison and Hinkley (1997),
        section 3.8 for whole clusters and section 4.2.5 for counting the observed sample among the resamples.
    """
    if num_resamples < MIN_RESAMPLES:
        raise ConfigError(f"num_resamples must be at least {MIN_RESAMPLES} for an interval; got {num_resamples}")
    pair = np.asarray(error_km, dtype=np.float64), np.asarray(other_km, dtype=np.float64)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
        raise PredictionError(
            f"paired errors must be of the same photos, (n,) each; got {pair[0].shape} and {pair[1].shape}"
        )
    first, second = (_resampled_metrics(errors, thresholds_km) for errors in pair)
    intervals, bootstrap = _bootstrap(pair, clusters, thresholds_km, num_resamples=num_resamples, seed=seed)
    return {
        "num_photos": len(pair[0]),
        "first": first,
        "second": second,
        "difference": _nest((np.array(_flatten(first)) - np.array(_flatten(second))).tolist(), thresholds_km),
        "intervals_95": intervals,
        "bootstrap": bootstrap,
        "paired_t_test": _paired_t_test(*pair),
        "wilcoxon": _wilcoxon(*pair),
    }


def holm_adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for being several, in their order; what is None stays None and does not count.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    defined = [place for place, p in enumerate(p_values) if p is not None]
    rising = sorted(defined, key=lambda place: float(p_values[place] or 0.0))
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(rising):
        largest = max(largest, min(1.0, (len(rising) - rank) * float(p_values[place] or 0.0)))
        adjusted[place] = largest
    return adjusted


def _bootstrap(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]],
    clusters: Sequence[object] | None,
    thresholds_km: Sequence[float],
    *,
    num_resamples: int,
    seed: int,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The intervals of every difference, and the p-value of the mean's beside how both were drawn."""
    num_clusters, membership = _number_clusters(clusters, len(pair[0]))
    drawn: dict[str, Any] = {
        "p": None,
        "clustered_by": "photo" if clusters is None else "author",
        "num_clusters": num_clusters,
        "num_resamples": num_resamples,
        "seed": seed,
    }
    if num_clusters < 2:
        return None, {**drawn, "reason": f"no interval can be drawn from a single {drawn['clustered_by']}"}
    resampled = _resample_differences(pair, membership, thresholds_km, num_resamples=num_resamples, seed=seed)
    intervals = np.quantile(resampled, [0.025, 0.975], axis=0).T.tolist()  # (metrics, 2)
    return _nest(intervals, thresholds_km), {**drawn, "p": _two_sided_p(resampled[:, 0])}


def _number_clusters(clusters: Sequence[object] | None, num_photos: int) -> tuple[int, NDArray[np.intp]]:
    """How many clusters there are, and the cluster `(n,)` of each photo."""
    if clusters is None:
        return num_photos, np.arange(num_photos)
    if len(clusters) != num_photos:
        raise PredictionError(f"every photo needs a cluster; got {len(clusters)} clusters of {num_photos} photos")
    names, membership = np.unique([str(label) for label in clusters], return_inverse=True)
    return len(names), membership


def _resampled_metrics(error_km: NDArray[np.float64], thresholds_km: Sequence[float]) -> dict[str, Any]:
    summary = summarise_errors(error_km, thresholds_km=thresholds_km)
    return {key: summary[key] for key in RESAMPLED}


def _flatten(metrics: dict[str, Any]) -> list[float]:
    """Mean, median, GeoScore, then the share within each radius."""
    return [metrics["mean_km"], metrics["median_km"], metrics["geoscore"], *metrics["accuracy_within_km"].values()]


def _nest(values: Sequence[Any], thresholds_km: Sequence[float]) -> dict[str, Any]:
    """What `_flatten` has made flat, under its names again."""
    shares = dict(zip(map(threshold_key, thresholds_km), values[3:], strict=True))
    return {"mean_km": values[0], "median_km": values[1], "geoscore": values[2], "accuracy_within_km": shares}


def _resample_differences(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]],
    membership: NDArray[np.intp],
    thresholds_km: Sequence[float],
    *,
    num_resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """The differences `(resamples, metrics)` in as many resampled test sets, in the order of `_flatten`."""
    num_clusters = int(membership.max()) + 1
    columns = [np.ones_like(pair[0]), pair[0] - pair[1], geoscores(pair[0]) - geoscores(pair[1])]
    columns += [(pair[0] <= radius).astype(float) - (pair[1] <= radius) for radius in thresholds_km]
    sums = np.stack([np.bincount(membership, weights=column) for column in columns], axis=1)  # (clusters, columns)
    orders = [np.argsort(errors, kind="stable") for errors in pair]
    rng = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_ELEMENTS // len(membership))
    chunks = []
    for start in range(0, num_resamples, per_chunk):
        counts = draw_cluster_counts(num_clusters, min(per_chunk, num_resamples - start), rng)
        totals = counts @ sums  # (resamples, clusters) -> (resamples, columns)
        averages = totals[:, 1:] / totals[:, :1]
        first, second = (
            _weighted_medians(errors[order], counts, membership[order])
            for errors, order in zip(pair, orders, strict=True)
        )
        chunks.append(np.concatenate([averages[:, :1], (first - second)[:, None], averages[:, 1:]], axis=1))
    return np.concatenate(chunks)


def _weighted_medians(
    sorted_km: NDArray[np.float64], counts: NDArray[np.float64], membership: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The median `(resamples,)` of errors that are there as often as their cluster was drawn."""
    cumulative = np.cumsum(np.take(counts.astype(np.int32), membership, axis=1), axis=1, dtype=np.int32)
    totals = cumulative[:, -1]
    middle = np.stack([(totals - 1) // 2, totals // 2], axis=1)  # one and the same where the number is odd
    places = [np.searchsorted(row, ranks, side="right") for row, ranks in zip(cumulative, middle, strict=True)]
    return np.asarray(sorted_km[np.stack(places)].mean(axis=1))


def _two_sided_p(resampled_km: NDArray[np.float64]) -> float:
    """Twice the share of resamples on the far side of zero, the test set itself counted among them."""
    far = min(int((resampled_km <= 0).sum()), int((resampled_km >= 0).sum()))
    return min(1.0, 2.0 * (far + 1) / (len(resampled_km) + 1))


def _paired_t_test(error_km: NDArray[np.float64], other_km: NDArray[np.float64]) -> dict[str, Any]:
    differences = error_km - other_km
    # Up to rounding: a constant difference has no spread to compare it with, and scipy would warn of it.
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return {"t": None, "p": None, "degrees_of_freedom": len(differences) - 1}
    tested = stats.ttest_rel(error_km, other_km)
    return {"t": float(tested.statistic), "p": float(tested.pvalue), "degrees_of_freedom": int(tested.df)}


def _wilcoxon(error_km: NDArray[np.float64], other_km: NDArray[np.float64]) -> dict[str, Any]:
    """Wilcoxon's signed ranks without the photos on which both err alike."""
    differences = error_km - other_km
    statistic = p = None
    if differences.any():
        tested = stats.wilcoxon(differences, zero_method="wilcox")
        statistic, p = float(tested.statistic), float(tested.pvalue)
    return {
        "statistic": statistic,
        "p": p,
        "zero_differences": "left out",
        "num_zero_differences": int((differences == 0).sum()),
    }
