"""From errors to numbers: the same dictionary of metrics for every model, every baseline and every test set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomae.errors import ConfigError, PredictionError
from geomae.geography import EARTH_RADIUS_KM, check_coordinates, find_off_earth, great_circle_km

__all__ = [
    "LARGEST_ERROR_KM",
    "QUANTILES",
    "THRESHOLDS_KM",
    "check_thresholds",
    "compute_metrics",
    "geoscores",
    "quantile_key",
    "summarise_errors",
    "threshold_key",
]

THRESHOLDS_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)
"""Street, city, region, country, continent (Vo et al., 2017)."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LARGEST_ERROR_KM = float(np.pi * EARTH_RADIUS_KM)  # from a point to its antipode
GEOSCORE_MAXIMUM = 5000.0
GEOSCORE_SCALE_KM = 1492.7  # the constant of the game GeoGuessr, used by PIGEON (2023) and OSV-5M (2024)


def threshold_key(threshold_km: float) -> str:
    """The name of a radius in `metrics.json`: "200" for 200.0, "0.5" for 0.5; no two radii have the same."""
    return _shortest(threshold_km)


def quantile_key(share: float) -> str:
    """The name of a quantile in `metrics.json`: "0.5" for the median."""
    return _shortest(share)


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number, without `.0`."""
    return repr(float(number)).removesuffix(".0")


def check_thresholds(thresholds_km: Sequence[float]) -> None:
    """Refuses what cannot be radii within which photos are counted.

    Raises:
        ConfigError: there is none, or one is negative (also -0), not finite, or there twice (names the first).
    """
    keys = [threshold_key(radius) for radius in thresholds_km]
    bad = next((key for key in keys if key.startswith("-") or not np.isfinite(float(key))), None)
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if not keys or bad is not None or twice is not None:
        what = f"{bad} is not one" if bad is not None else f"{twice} stands twice" if keys else "none was given"
        raise ConfigError(
            f"thresholds_km must be different radii in km, finite and at least 0, such as 1 25 200 750 2500; {what}"
        )


def geoscores(error_km: ArrayLike) -> NDArray[np.float64]:
    """`5000 exp(-error / 1492.7 km)` for each photo, unrounded.

    Source: Haas, Skreta, Alberti and Finn (2023), "PIGEON: Predicting Image Geolocations", section on the score.
    """
    return np.asarray(GEOSCORE_MAXIMUM * np.exp(-np.asarray(error_km, dtype=np.float64) / GEOSCORE_SCALE_KM))


def summarise_errors(error_km: ArrayLike, *, thresholds_km: Sequence[float] = THRESHOLDS_KM) -> dict[str, Any]:
    """Counts, shares and averages of a test set's errors.

    Args:
        error_km: `(n,)` great-circle errors, n >= 1, all finite.
        thresholds_km: radii; an error equal to a radius counts as within it.

    Returns:
        `num_photos`, `mean_km`, `median_km`, `geoscore` (mean of `geoscores`), `num_within_km` and
        `accuracy_within_km` (radius -> count, share from 0 to 1), `quantiles_km` (share -> km). They are the same to
        the last digit in whatever order the errors are. The median of an even number of photos lies halfway between
        the middle two, and every other quantile is interpolated linearly too.

    Raises:
        PredictionError: there are no errors, or some are not finite.
        ConfigError: a radius cannot be one.
    """
    check_thresholds(thresholds_km)
    error_km = np.sort(np.asarray(error_km, dtype=np.float64))  # a sum depends on its order, in its last digits
    if error_km.size == 0 or not np.isfinite(error_km).all():
        raise PredictionError(
            f"metrics need at least one photo and finite errors; {error_km.size} errors were given, "
            f"{int((~np.isfinite(error_km)).sum())} of them not finite"
        )
    num_within = {threshold_key(radius): int((error_km <= radius).sum()) for radius in thresholds_km}
    return {
        "num_photos": int(error_km.size),
        "mean_km": float(error_km.mean()),
        "median_km": float(np.median(error_km)),
        "geoscore": float(geoscores(error_km).mean()),
        "num_within_km": num_within,
        "accuracy_within_km": {key: count / error_km.size for key, count in num_within.items()},
        "quantiles_km": {quantile_key(share): float(np.quantile(error_km, share)) for share in QUANTILES},
    }


def compute_metrics(
    predicted_deg: ArrayLike,
    target_deg: ArrayLike,
    *,
    ids: Sequence[object] | None = None,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
) -> dict[str, Any]:
    """The metrics of `summarise_errors` from predictions and truths in the same order.

    Args:
        predicted_deg: `(n, 2)` latitude and longitude in degrees.
        target_deg: `(n, 2)`, row by row the truth of `predicted_deg`.
        ids: n names for the messages; the row number where left out.
        thresholds_km: radii in kilometres.

    Raises:
        PredictionError: shapes differ, or a prediction is not finite or not on Earth (the first is named).
        CoordinateError: the same of a truth.
        ConfigError: a radius cannot be one.
    """
    predicted_deg = np.asarray(predicted_deg, dtype=np.float64)
    target_deg = np.asarray(target_deg, dtype=np.float64)
    if predicted_deg.shape != target_deg.shape or predicted_deg.ndim != 2 or predicted_deg.shape[1] != 2:
        raise PredictionError(
            f"predictions and truths must both be (n, 2) degrees; got {predicted_deg.shape} and {target_deg.shape}"
        )
    ids = range(len(predicted_deg)) if ids is None else ids
    check_predictions(predicted_deg, ids)
    check_coordinates(target_deg[:, 0], target_deg[:, 1], ids, "the truths")
    return summarise_errors(great_circle_km(predicted_deg, target_deg), thresholds_km=thresholds_km)


def check_predictions(predicted_deg: NDArray[np.float64], ids: Sequence[object], source: str = "predictions") -> None:
    """Refuses predictions that are not finite or not on Earth: a model that answers NaN has failed, not missed.

    Args:
        predicted_deg: `(n, 2)` latitude and longitude in degrees.
        ids: n names, for the message.
        source: the file that they came from, for the message.

    Raises:
        PredictionError: names how many rows are bad and the first of them.
    """
    off_earth = find_off_earth(predicted_deg[:, 0], predicted_deg[:, 1])
    if off_earth.any():
        first = int(np.argmax(off_earth))
        latitude, longitude = predicted_deg[first]
        kind = "not on Earth" if np.isfinite([latitude, longitude]).all() else "not finite"
        swapped = not find_off_earth(predicted_deg[:, 1], predicted_deg[:, 0]).any()
        raise PredictionError(
            f"{int(off_earth.sum())} of {len(predicted_deg)} rows of {source} cannot be judged; the first is id "
            f"{ids[first]}, which is {kind}: latitude={latitude:g}, longitude={longitude:g}.\n"
            "  Latitude runs from -90 to 90 degrees, longitude from -180 to 180. "
            + ("Are the two columns swapped?" if swapped else "Leave a photo out to let it count as a miss.")
        )
