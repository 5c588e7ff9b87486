"""What a posterior over the Earth is worth: how much it expected the truth, and whether its radii hold what they say.

What is measured of each photo comes from `geomae.evaluation.posterior_head`, which needs torch; this does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from geomae.errors import PredictionError
from geomae.evaluation.bootstrap import bootstrap_means
from geomae.evaluation.metrics import quantile_key

__all__ = [
    "CALIBRATION_SHARES",
    "DECODINGS",
    "POSTERIOR_COLUMNS",
    "add_posterior",
    "match_posterior",
    "summarise_posterior",
]

Floats = NDArray[np.float64]
DECODINGS = ("argmax", "kernel", "expected_km", "mean_in_top_k")
"""Ways to read an answer off a posterior, by the names that the heads of `modeling` know; `docs/evaluation.md`."""

POSTERIOR_COLUMNS = ("nll", "radius_50_km", "radius_90_km", "expected_km", "mass_within_error")
"""What is measured of each photo's posterior, around its headline answer: columns of `predictions.parquet`."""

CALIBRATION_SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
RADII = {0.5: "radius_50_km", 0.9: "radius_90_km"}  # share of the mass -> column


def match_posterior(
    posterior: Mapping[str, Floats], ids: Sequence[str], test_set_ids: Sequence[str]
) -> dict[str, Floats]:
    """Columns of a posterior in the order of the test set, NaN where a photo has no answer.

    Raises:
        PredictionError: a number is not finite; the first such photo is named.
    """
    position = {name: row for row, name in enumerate(test_set_ids)}
    rows = [position[name] for name in ids]
    matched = {name: np.full(len(test_set_ids), np.nan) for name in posterior}
    for name, column in posterior.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise PredictionError(
                f"{name} is not a finite number for {len(bad)} of {len(ids)} photos; the first is id {ids[bad[0]]}: "
                f"{column[bad[0]]}. The model's posterior is broken there; look at its logits"
            )
        matched[name][rows] = column
    return matched


def summarise_posterior(
    posterior: Mapping[str, Floats],
    error_km: Floats,
    clusters: Sequence[object] | NDArray[Any],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means of what was measured, and the share of the photos whose truth lies within each radius.

    Args:
        posterior: `POSTERIOR_COLUMNS` `(n,)` each, NaN where a photo has no answer: a truth outside of every radius.
            Density, expected and true error are means over the answered photos alone.
        error_km: `(n,)` great-circle errors of the headline answer.
        clusters: n labels of photos that are drawn together.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `num_photos`, the answered ones; `nll`, nats per steradian; `mean_expected_km` beside `mean_error_km`, what the
        posterior says that its answer is wrong by and what it is; `coverage`: share of the mass -> share of the photos
        within the radius around the answer that holds it; `calibration`: the same for nine shares; `intervals_95` of
        all, None where there are too few clusters.

    Source: Gneiting, Balabdaoui and Raftery (2007), "Probabilistic forecasts, calibration and sharpness".
    """
    answered = ~np.isnan(posterior["nll"])
    of_answered = {
        "nll": posterior["nll"][answered],
        "mean_expected_km": posterior["expected_km"][answered],
        "mean_error_km": error_km[answered],
    }
    with np.errstate(invalid="ignore"):  # what is not answered is within no radius and below no share
        within = {
            "coverage": {quantile_key(share): error_km <= posterior[name] for share, name in RADII.items()},
            "calibration": {quantile_key(q): posterior["mass_within_error"] < q for q in CALIBRATION_SHARES},
        }
    labels, how = np.asarray(clusters), {"num_resamples": num_resamples, "seed": seed}
    intervals: dict[str, Any] | None = bootstrap_means(of_answered, labels[answered], **how)
    for name, columns in within.items():
        of_shares = bootstrap_means(columns, labels, **how)
        intervals = None if intervals is None or of_shares is None else intervals | {name: of_shares}
    return {
        "num_photos": int(answered.sum()),
        **{name: float(np.sort(column).mean()) for name, column in of_answered.items()},
        **{name: {key: float(each.mean()) for key, each in columns.items()} for name, columns in within.items()},
        "intervals_95": intervals,
    }


def add_posterior(table: pa.Table, posterior: Mapping[str, Floats]) -> pa.Table:
    """A table of predictions with a column for each of the posterior's, null where a photo has no answer."""
    for name, column in posterior.items():
        table = table.append_column(name, pa.array(column, mask=np.isnan(column)))
    return table
