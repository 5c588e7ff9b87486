"""How far a test set's numbers would move if other photographers had been drawn: the clustered bootstrap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomae.errors import ConfigError
from geomae.evaluation.metrics import THRESHOLDS_KM, geoscores, threshold_key

__all__ = ["MIN_RESAMPLES", "RESAMPLED", "bootstrap_intervals", "draw_cluster_counts"]

RESAMPLED = ("mean_km", "median_km", "geoscore", "accuracy_within_km")  # the metrics that have an interval
MIN_RESAMPLES = 100  # with fewer, the ends of a 95 % interval are the extremes of the draws

CHUNK_ELEMENTS = 4_000_000  # photos x resamples held at once: about 100 MB, whatever the test set's size


def bootstrap_intervals(
    error_km: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Percentile bootstrap intervals, resampling whole clusters with replacement.

    Args:
        error_km: `(n,)` errors, finite.
        clusters: n labels, such as authors, whose photos are drawn together; every photo for itself where None.
        thresholds_km: radii in kilometres.
        num_resamples: number of resampled test sets, at least `MIN_RESAMPLES`.
        confidence: share of resamples that the interval covers.
        seed: of the resampling; equal seeds give equal intervals.

    Returns:
        `mean_km`, `median_km`, `geoscore`: `[low, high]`; `accuracy_within_km`: radius -> `[low, high]`. None with
        fewer than two clusters: every resample would be the test set itself, and no width is not certainty.

    Raises:
        ConfigError: there are too few resamples.

    Source: Efron (1979) for the percentile interval; Davison and Hinkley (1997), section 3.8, for whole clusters.
    """
    if num_resamples < MIN_RESAMPLES:
        raise ConfigError(f"num_resamples must be at least {MIN_RESAMPLES} for an interval; got {num_resamples}")
    error_km = np.asarray(error_km, dtype=np.float64)
    labels = np.arange(error_km.size) if clusters is None else np.asarray([str(label) for label in clusters])
    names, membership = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return None
    order = np.argsort(error_km, kind="stable")
    sorted_km, membership = error_km[order], membership[order]
    columns = np.stack(
        [np.ones_like(sorted_km), sorted_km, geoscores(sorted_km), *(sorted_km <= radius for radius in thresholds_km)],
        axis=1,
    )
    sums = np.stack([np.bincount(membership, weights=column, minlength=len(names)) for column in columns.T], axis=1)

    rng = np.random.default_rng(seed)
    resamples_per_chunk = max(1, CHUNK_ELEMENTS // error_km.size)
    averages, medians = [], []
    for start in range(0, num_resamples, resamples_per_chunk):
        counts = draw_cluster_counts(len(names), min(resamples_per_chunk, num_resamples - start), rng)
        totals = counts @ sums  # (resamples, clusters) -> (resamples, columns)
        averages.append(totals[:, 1:] / totals[:, :1])
        medians.append(_weighted_medians(sorted_km, counts[:, membership]))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(averages), [tail, 1.0 - tail], axis=0)
    pairs = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    return {
        "mean_km": pairs[0],
        "median_km": [float(value) for value in np.quantile(np.concatenate(medians), [tail, 1.0 - tail])],
        "geoscore": pairs[1],
        "accuracy_within_km": dict(zip(map(threshold_key, thresholds_km), pairs[2:], strict=True)),
    }


def draw_cluster_counts(num_clusters: int, num_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each cluster is in each resample: `(num_resamples, num_clusters)`, every row sums to `num_clusters`."""
    drawn = rng.integers(0, num_clusters, (num_resamples, num_clusters))
    drawn += np.arange(num_resamples)[:, None] * num_clusters
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_clusters)
    return counts.reshape(num_resamples, num_clusters).astype(np.float64)


def _weighted_medians(sorted_km: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median `(resamples,)` of errors repeated `weights` times, halfway between the two middle ones if even."""
    cumulative = np.cumsum(weights, axis=1)
    total = cumulative[:, -1]
    lower = [
        np.searchsorted(row, np.floor((n - 1) / 2), side="right") for row, n in zip(cumulative, total, strict=True)
    ]
    upper = [np.searchsorted(row, np.floor(n / 2), side="right") for row, n in zip(cumulative, total, strict=True)]
    return (sorted_km[lower] + sorted_km[upper]) / 2.0
