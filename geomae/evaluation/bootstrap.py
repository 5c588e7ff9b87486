"""How far a test set's numbers would move if other photographers had been drawn: the clustered bootstrap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from geomae.errors import ConfigError
from geomae.evaluation.metrics import QUANTILES, THRESHOLDS_KM, check_thresholds, geoscores, quantile_key, threshold_key

__all__ = ["MIN_RESAMPLES", "RESAMPLED", "bootstrap_intervals", "draw_cluster_counts", "resampled_metrics"]

Floats = NDArray[np.float64]
# The metrics that have an interval.
RESAMPLED = ("mean_km", "median_km", "geoscore", "accuracy_within_km", "quantiles_km")
MIN_RESAMPLES = 100  # with fewer, the ends of a 95 % interval are the extremes of the draws

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
        clusters: n labels, such as authors, whose photos are drawn together; every photo for itself where None.
        thresholds_km: radii in kilometres.
        quantiles: shares of photos, from 0 to 1; the median has its interval anyway.
        num_resamples: number of resampled test sets, at least `MIN_RESAMPLES`.
        confidence: share of resamples that the interval covers.
        seed: of the resampling; equal seeds give equal intervals, in whatever order the photos are.

    Returns:
        `mean_km`, `median_km`, `geoscore`: `[low, high]`; `accuracy_within_km`: radius -> `[low, high]`;
        `quantiles_km`: share -> `[low, high]`. None with fewer than two clusters: every resample would be the test
        set itself, and no width is not certainty.

    Raises:
        ConfigError: there are too few resamples, or a radius cannot be one.

    Source: Efron (1979) for the percentile interval; Davison and Hinkley (1997), section 3.8, for whole clusters.
    """
    resampled = resampled_metrics(
        error_km,
        clusters,
        thresholds_km=thresholds_km,
        quantiles=quantiles,
        num_resamples=num_resamples,
        seed=seed,
    )
    if resampled is None:
        return None
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]

    def interval(values: Floats) -> list[float]:
        return [float(end) for end in np.quantile(values, tails)]

    return {
        name: {key: interval(each) for key, each in values.items()} if isinstance(values, dict) else interval(values)
        for name, values in resampled.items()
    }


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
        middle two. None with fewer than two clusters.
    """
    if num_resamples < MIN_RESAMPLES:
        raise ConfigError(f"num_resamples must be at least {MIN_RESAMPLES} for an interval; got {num_resamples}")
    check_thresholds(thresholds_km)
    sorted_km, membership, num_clusters = _sort_by_error(np.asarray(error_km, dtype=np.float64), clusters)
    if num_clusters < 2:
        return None
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


def _sort_by_error(
    error_km: Floats, clusters: Sequence[object] | NDArray[Any] | None
) -> tuple[Floats, NDArray[np.intp], int]:
    """Errors in ascending order, the cluster of each as a number in the order of their names, and how many there are.

    Both orders are the photos' own: in whatever order a file lists them, the sums and the draws are the same.
    """
    labels = np.arange(error_km.size) if clusters is None else np.asarray(clusters)
    names, membership = np.unique(labels, return_inverse=True)
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
