"""Our metrics as a module of Hugging Face `evaluate`: `evaluate.load("geomae/evaluation/great_circle_error.py")`.

Numbers are those of `geomae.evaluation.compute_metrics`, flattened: `accuracy_within_200km` for
`accuracy_within_km["200"]`, so that trackers draw each as its own curve.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from geomae.evaluation.metrics import THRESHOLDS_KM, compute_metrics, threshold_key

__all__ = ["GreatCircleError"]

DESCRIPTION = "Great-circle errors of predicted coordinates, in kilometres, as geolocation reports them."
INPUTS = """
Args:
    predictions: (n, 2) latitude and longitude in degrees.
    references: (n, 2) true latitude and longitude in degrees.
Returns:
    num_photos, mean_km, median_km, geoscore and accuracy_within_{1,25,200,750,2500}km (shares from 0 to 1).
"""


class GreatCircleError(evaluate.Metric):
    """Mean, median, GeoScore and accuracies within the field's radii."""

    def _info(self) -> evaluate.MetricInfo:
        point = datasets.Sequence(datasets.Value("float64"), length=2)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": point, "references": point}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        metrics = compute_metrics(np.asarray(predictions), np.asarray(references))
        flat = {key: metrics[key] for key in ("num_photos", "mean_km", "median_km", "geoscore")}
        keys = [threshold_key(radius) for radius in THRESHOLDS_KM]
        return {**flat, **{f"accuracy_within_{key}km": metrics["accuracy_within_km"][key] for key in keys}}
