"""Which of two models is better on the same photos, and how sure that is: differences, intervals and paired tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from geomae.errors import PredictionError
from geomae.evaluation.bootstrap import resampled_metrics
from geomae.evaluation.metrics import THRESHOLDS_KM, summarise_errors

__all__ = ["compare_errors", "holm_adjusted", "paired_t_test"]

COMPARED = ("mean_km", "median_km", "geoscore", "accuracy_within_km")


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
        PredictionError: errors or clusters differ in number, there are none, or some are not finite.
        ConfigError: there are too few resamples, or a radius cannot be one.

    Source: Efron and Tibshirani (1993), chapters 8 and 16, for paired resampling; Davison and Hinkley (1997),
        section 3.8 for whole clusters and section 4.2.5 for counting the observed sample among the resamples.
    """
    pair = np.asarray(error_km, dtype=np.float64), np.asarray(other_km, dtype=np.float64)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
        raise PredictionError(
            f"paired errors must be of the same photos, (n,) each; got {pair[0].shape} and {pair[1].shape}"
        )
    summaries = [summarise_errors(errors, thresholds_km=thresholds_km) for errors in pair]
    first, second = ({name: summary[name] for name in COMPARED} for summary in summaries)
    intervals, bootstrap = _bootstrap(pair, clusters, thresholds_km, num_resamples=num_resamples, seed=seed)
    return {
        "num_photos": len(pair[0]),
        "first": first,
        "second": second,
        "difference": _subtract(first, second),
        "intervals_95": intervals,
        "bootstrap": bootstrap,
        "paired_t_test": paired_t_test(*pair),
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
    labels = None if clusters is None else [str(label) for label in clusters]
    drawn: dict[str, Any] = {
        "p": None,
        "clustered_by": "photo" if labels is None else "author",
        "num_clusters": len(pair[0]) if labels is None else len(set(labels)),
        "num_resamples": num_resamples,
        "seed": seed,
    }
    first, second = (  # with one seed, both meet the same clusters in every resample
        resampled_metrics(
            errors, labels, thresholds_km=thresholds_km, quantiles=(), num_resamples=num_resamples, seed=seed
        )
        for errors in pair
    )
    if first is None or second is None:
        return None, {**drawn, "reason": f"no interval can be drawn from a single {drawn['clustered_by']}"}
    resampled = _subtract(first, second)
    return _ends(resampled), {**drawn, "p": _two_sided_p(resampled["mean_km"])}


def _subtract(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """First minus second of every metric that is compared: numbers, or arrays `(resamples,)` of them."""
    return {
        name: {radius: share - second[name][radius] for radius, share in value.items()}
        if isinstance(value, dict)
        else value - second[name]
        for name, value in first.items()
        if name in COMPARED
    }


def _ends(resampled: dict[str, Any]) -> dict[str, Any]:
    """The 95 % interval of every difference."""
    return {
        name: _ends(value) if isinstance(value, dict) else [float(end) for end in np.quantile(value, [0.025, 0.975])]
        for name, value in resampled.items()
    }


def _two_sided_p(resampled_km: NDArray[np.float64]) -> float:
    """Twice the share of resamples on the far side of zero, the test set itself counted among them."""
    far = min(int((resampled_km <= 0).sum()), int((resampled_km >= 0).sum()))
    return min(1.0, 2.0 * (far + 1) / (len(resampled_km) + 1))


def paired_t_test(error_km: NDArray[np.float64], other_km: NDArray[np.float64]) -> dict[str, Any]:
    """`t`, `p` and `degrees_of_freedom` of two models' errors `(n,)`; None where all differences are equal."""
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
