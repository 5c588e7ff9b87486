"""What a perfect classifier would reach: how near the nearest centroid is to where test photos were taken."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geomae.evaluation.metrics import summarise_errors
from geomae.geocells.partitions import Geocells
from geomae.geography import great_circle_km

__all__ = ["CEILING_KM", "judge_ceiling"]

CEILING_KM = (25.0, 200.0, 750.0)
"""Radii within which the best answer of the cells is counted: city, region, country."""


def judge_ceiling(
    geocells: Geocells, truth_deg: ArrayLike, *, thresholds_km: Sequence[float] = CEILING_KM
) -> dict[str, Any]:
    """The metrics of answering every photo with the centroid of its finest cell.

    A head that answers centroids cannot do better on these photos; one with offsets within the cell can.

    Args:
        geocells: whose finest partition is judged.
        truth_deg: `(n, 2)` latitude and longitude of a test set's photos in degrees, n >= 1.
        thresholds_km: radii in kilometres.

    Returns:
        The metrics of `geomae.evaluation.summarise_errors`.

    Raises:
        CoordinateError: a point is not on Earth.
    """
    truth_deg = np.asarray(truth_deg, dtype=np.float64)
    answers_deg = geocells.partitions[-1].centroids_deg[geocells.assign(truth_deg)[:, -1]]
    return summarise_errors(great_circle_km(answers_deg, truth_deg), thresholds_km=thresholds_km)
