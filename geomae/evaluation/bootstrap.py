"""How far a test set's numbers would move if other photographers had been drawn: the clustered bootstrap."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.stats import binomtest

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation.metrics import QUANTILES, THRESHOLDS_KM, check_thresholds, geoscores, quantile_key, threshold_key

__all__ = [
    "MIN_CLUSTERS",
    "MIN_RESAMPLES",
    "RESAMPLED",
    "bootstrap_intervals",
    "bootstrap_means",
    "draw_cluster_counts",
    "explain_too_few",
    "resampled_metrics",
]

Floats = NDArray[np.float64]
# The metrics that have an interval.
RESAMPLED = ("mean_km", "median_km", "geoscore", "accuracy_within_km", "quantiles_km")
MIN_RESAMPLES = 100  # with fewer, the ends of a 95 % interval are the extremes of the draws
# Of few clusters a "95 %" interval of the mean covers the truth too rarely to be called so. Measured with 4,000 samples
# of normal clusters of one size: 50 % for 2 clusters, 75 % for 3, 84 % for 5, 88 % for 8, 90 % for 10, 94 % for 50.
MIN_CLUSTERS = 10

# Clusters x resamples counted at once, 2 MB, and drawn at once: what the caches hold. With chunks of 32 MB the numbers
# of YFCC25600 take 1.4 times as long, and draws of a whole chunk five times.
CHUNK_ELEMENTS = 250_000
SLAB_ELEMENTS = 65_536


def bootstrap_intervals(
    error_km: ArrayLike,
    clusters: Sequence[object] | NDArray[Any] | None = None,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    quantiles: Sequence[float] = QUANTILES,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Percentile bootstrap intervals, resampling whole clusters with replacement.

    Args:
        error_km: `(n,)` errors, finite.
        clusters: n labels, such as authors, whose photos are drawn together; every photo for itself where None. Those
            of an array are taken as they are, others by their text.
        thresholds_km: radii in kilometres.
        quantiles: shares of photos, from 0 to 1; the median has its interval anyway.
        num_resamples: number of resampled test sets, at least `MIN_RESAMPLES`.
        confidence: share of resamples that the interval covers.
        seed: of the resampling, at least 0; equal seeds give equal intervals, in whatever order the photos are.

    Returns:
        `mean_km`, `median_km`, `geoscore`: `[low, high]`; `accuracy_within_km`: radius -> `[low, high]`;
        `quantiles_km`: share -> `[low, high]`. None with fewer than `MIN_CLUSTERS` clusters, whose intervals would be
        too narrow.

        Where no photo or every photo is within a radius, every resample says so too, and no width is not certainty:
        there the interval is the exact one of the binomial distribution for as many trials as there are clusters, which
        is wide, since a cluster counts as one photo.

    Raises:
        PredictionError: there are no errors, some are not finite, or clusters are not as many as errors.
        ConfigError: there are too few resamples, the seed is negative, or a radius, a quantile or the confidence cannot
            be one.

    Source: Efron (1979) for the percentile interval; Davison and Hinkley (1997), section 3.8, for whole clusters;
    Clopper and Pearson (1934) for the exact binomial interval.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be a share between 0 and 1, such as 0.95; got {confidence}")
    error_km = np.asarray(error_km, dtype=np.float64)
    _check(error_km, clusters, thresholds_km, quantiles, num_resamples, seed)
    photos = _sort_by_error(error_km, clusters)
    num_clusters = photos[2]
    if num_clusters < MIN_CLUSTERS:
        return None
    resampled = _resample(*photos, thresholds_km, quantiles, num_resamples, seed)
    intervals: dict[str, Any] = {}
    for name, values in resampled.items():
        of = partial(_share_interval, num_clusters=num_clusters) if name == "accuracy_within_km" else _interval
        if isinstance(values, dict):
            intervals[name] = {key: of(each, confidence=confidence) for key, each in values.items()}
        else:
            intervals[name] = of(values, confidence=confidence)
    return intervals


def bootstrap_means(
    columns: Mapping[str, NDArray[Any]],
    clusters: Sequence[object] | NDArray[Any] | None = None,
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]] | None:
    """Percentile bootstrap intervals of the means of any columns, in the way of `bootstrap_intervals`.

    Args:
        columns: name -> `(n,)` finite numbers, or booleans: the mean of those is a share, whose interval is exact where
            all are equal.
        clusters: n labels, such as authors, whose photos are drawn together; every photo for itself where None.
        num_resamples: number of resampled test sets, at least `MIN_RESAMPLES`.
        confidence: share of resamples that the interval covers.
        seed: of the resampling; the draws of clusters are those of `bootstrap_intervals`.

    Returns:
        name -> `[low, high]`, equal in whatever order the photos are; None with fewer than `MIN_CLUSTERS` clusters.

    Raises:
        PredictionError: a column is empty, not finite, or not as long as the clusters.
        ConfigError: there are too few resamples, or the seed is negative.
    """
    for column in columns.values():
        _check(np.asarray(column, dtype=np.float64), clusters, THRESHOLDS_KM, QUANTILES, num_resamples, seed)
    sums, num_clusters = [], 0
    for column in (np.ones(len(next(iter(columns.values())))), *columns.values()):
        ordered, membership, num_clusters = _sort_by_error(np.asarray(column, dtype=np.float64), clusters)
        sums.append(np.bincount(membership, weights=ordered, minlength=num_clusters))
    if num_clusters < MIN_CLUSTERS:
        return None
    rng = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_ELEMENTS // num_clusters)
    sizes = [min(per_chunk, num_resamples - start) for start in range(0, num_resamples, per_chunk)]
    totals = np.concatenate([draw_cluster_counts(num_clusters, size, rng) @ np.stack(sums, axis=1) for size in sizes])
    intervals = {}
    for (name, column), total in zip(columns.items(), totals[:, 1:].T, strict=True):
        of = partial(_share_interval, num_clusters=num_clusters) if column.dtype == bool else _interval
        intervals[name] = of(total / totals[:, 0], confidence=confidence)
    return intervals


def _interval(means: Floats, *, confidence: float) -> list[float]:
    return [float(end) for end in np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])]


def _share_interval(shares: Floats, *, num_clusters: int, confidence: float) -> list[float]:
    """Exact where every resample says none, or all."""
    if shares.max() > 0.0 and shares.min() < 1.0:
        return _interval(shares, confidence=confidence)
    exact = binomtest(num_clusters * int(shares[0]), num_clusters).proportion_ci(confidence, method="exact")
    return [float(exact.low), float(exact.high)]


def resampled_metrics(
    error_km: ArrayLike,
    clusters: Sequence[object] | NDArray[Any] | None = None,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    quantiles: Sequence[float] = QUANTILES,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The metrics of every resampled test set: the numbers behind `bootstrap_intervals`, whose arguments these are.

    Returns:
        `mean_km`, `median_km`, `geoscore`: `(num_resamples,)`; `accuracy_within_km` and `quantiles_km`: radius and
        share -> `(num_resamples,)`, as `summarise_errors` would give them for the repeated photos. A quantile between
        two photos is interpolated linearly, so the median of an even number of photos lies halfway between the
        middle two. None with fewer than two clusters: every resample would be the test set itself.

    Raises:
        PredictionError: there are no errors, some are not finite, or clusters are not as many as errors.
        ConfigError: there are too few resamples, the seed is negative, or a radius or a quantile cannot be one.
    """
    error_km = np.asarray(error_km, dtype=np.float64)
    _check(error_km, clusters, thresholds_km, quantiles, num_resamples, seed)
    photos = _sort_by_error(error_km, clusters)
    return None if photos[2] < 2 else _resample(*photos, thresholds_km, quantiles, num_resamples, seed)


def _resample(
    sorted_km: Floats,
    membership: NDArray[np.intp],
    num_clusters: int,
    thresholds_km: Sequence[float],
    quantiles: Sequence[float],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`resampled_metrics` of what `_sort_by_error` gives."""
    columns = [np.ones_like(sorted_km), sorted_km, geoscores(sorted_km), *(sorted_km <= km for km in thresholds_km)]
    sums = np.stack([np.bincount(membership, weights=each, minlength=num_clusters) for each in columns], axis=1)
    blocks = _SortedBlocks(sorted_km, membership, num_clusters)

    rng = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_ELEMENTS // num_clusters)
    shares = sorted({*quantiles, 0.5})
    averages, quantiles_km = [], []
    for start in range(0, num_resamples, per_chunk):
        counts = draw_cluster_counts(num_clusters, min(per_chunk, num_resamples - start), rng)
        totals = counts @ sums  # (resamples, clusters) -> (resamples, columns)
        averages.append(totals[:, 1:] / totals[:, :1])
        quantiles_km.append(blocks.quantiles(shares, counts))
    mean_km, geoscore, *accuracies = np.concatenate(averages).T
    by_share = dict(zip(map(quantile_key, shares), np.concatenate(quantiles_km, axis=1), strict=True))
    return {
        "mean_km": mean_km,
        "median_km": by_share[quantile_key(0.5)],
        "geoscore": geoscore,
        "accuracy_within_km": dict(zip(map(threshold_key, thresholds_km), accuracies, strict=True)),
        "quantiles_km": {quantile_key(share): by_share[quantile_key(share)] for share in quantiles},
    }


def draw_cluster_counts(num_clusters: int, num_resamples: int, rng: np.random.Generator) -> Floats:
    """How often each cluster is in each resample: `(num_resamples, num_clusters)`, every row sums to `num_clusters`."""
    counts = np.empty((num_resamples, num_clusters))
    slab = max(1, SLAB_ELEMENTS // num_clusters)
    for start in range(0, num_resamples, slab):
        rows = counts[start : start + slab]
        drawn = rng.integers(0, num_clusters, rows.shape)
        drawn += np.arange(len(rows))[:, None] * num_clusters
        rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
    return counts


def _check(
    error_km: Floats,
    clusters: Sequence[object] | NDArray[Any] | None,
    thresholds_km: Sequence[float],
    quantiles: Sequence[float],
    num_resamples: int,
    seed: int,
) -> None:
    """What `resampled_metrics` raises."""
    if error_km.ndim != 1 or error_km.size == 0 or not np.isfinite(error_km).all():
        raise PredictionError(
            f"resampling needs (n,) finite errors of at least one photo; got the shape {error_km.shape}, "
            f"{int((~np.isfinite(error_km)).sum())} of them not finite"
        )
    if clusters is not None and len(clusters) != error_km.size:
        raise PredictionError(f"every photo needs a cluster; got {len(clusters)} clusters of {error_km.size} photos")
    if num_resamples < MIN_RESAMPLES:
        raise ConfigError(f"num_resamples must be at least {MIN_RESAMPLES} for an interval; got {num_resamples}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; got {seed}")
    check_thresholds(thresholds_km)
    outside = [share for share in quantiles if not 0.0 <= share <= 1.0]
    if outside:
        raise ConfigError(f"quantiles are shares of photos from 0 to 1; got {outside[0]}")


def explain_too_few(num_clusters: int, unit: str) -> str:
    """Why there is no interval: for a record, and for whoever reads it.

    Args:
        num_clusters: fewer than `MIN_CLUSTERS`.
        unit: what a cluster is, `author` or `photo`.
    """
    drawn_from = f"a single {unit}" if num_clusters == 1 else f"{num_clusters} {unit}s"
    return f"no interval can be drawn from {drawn_from} (at least {MIN_CLUSTERS} are needed)"


def _as_labels(clusters: Sequence[object] | NDArray[Any] | None, num_photos: int) -> NDArray[Any]:
    """`(n,)` labels that can be sorted; any objects are told apart by their text."""
    if clusters is None:
        return np.arange(num_photos)
    if isinstance(clusters, np.ndarray) and clusters.dtype != object:
        return clusters
    return np.array([str(label) for label in clusters])


def _sort_by_error(
    error_km: Floats, clusters: Sequence[object] | NDArray[Any] | None
) -> tuple[Floats, NDArray[np.intp], int]:
    """Errors in ascending order, the cluster of each as a number in the order of their names, and how many there are.

    Both orders are the photos' own: in whatever order a file lists them, the sums and the draws are the same.
    """
    names, membership = np.unique(_as_labels(clusters, error_km.size), return_inverse=True)
    order = np.argsort(error_km, kind="stable")
    return error_km[order], membership[order], len(names)


class _SortedBlocks:
    """n sorted photos in sqrt(n) blocks: quantiles of a resample look only into the blocks that hold them.

    How many photos of each block are in every resample is one product of matrices.
    """

    def __init__(self, sorted_km: Floats, membership: NDArray[np.intp], num_clusters: int) -> None:
        num_photos = len(sorted_km)
        self.block_size = int(np.ceil(np.sqrt(num_photos)))
        block = np.arange(num_photos) // self.block_size
        shape = (int(block[-1]) + 1, num_clusters)
        self.num_in_block = csr_matrix((np.ones(num_photos), (block, membership)), shape=shape)
        padding = (0, shape[0] * self.block_size - num_photos)  # behind the last photo, where no rank is
        self.sorted_km, self.membership = np.pad(sorted_km, padding), np.pad(membership, padding)

    def quantiles(self, shares: Sequence[float], counts: Floats) -> Floats:
        """`(resamples, clusters)` counts -> `(shares, resamples)` kilometres."""
        ends = np.cumsum(self.num_in_block @ counts.T, axis=0)  # (blocks, resamples) photos up to each block's end
        last = ends[-1] - 1.0
        quantiles = []
        for share in shares:
            position = share * last
            lower = np.floor(position)
            below, above = (self._at(rank, counts, ends) for rank in (lower, np.minimum(lower + 1.0, last)))
            quantiles.append(below + (above - below) * (position - lower))
        return np.stack(quantiles)

    def _at(self, rank: Floats, counts: Floats, ends: Floats) -> Floats:
        """The error `(resamples,)` that stands at a rank, counted from 0, of each resample's sorted photos."""
        block = (ends <= rank).sum(axis=0)
        rows = np.arange(len(rank))
        before = np.where(block > 0, ends[block - 1, rows], 0.0)
        photos = (block * self.block_size)[:, None] + np.arange(self.block_size)  # (resamples, photos of a block)
        up_to = np.cumsum(counts[rows[:, None], self.membership[photos]], axis=1)
        return self.sorted_km[photos[rows, (before[:, None] + up_to <= rank[:, None]).sum(axis=1)]]
