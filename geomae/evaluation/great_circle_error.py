"""Our metrics as a module of Hugging Face `evaluate`: `evaluate.load("./geomae/evaluation/great_circle_error.py")`.

Numbers are those of `geomae.evaluation.compute_metrics`, flattened: `accuracy_within_200km` for
`accuracy_within_km["200"]`, so that trackers draw each as its own curve. As `compute_metrics` of a `Trainer`:

    metric = evaluate.load("./geomae/evaluation/great_circle_error.py")

    def compute_metrics(prediction):  # an EvalPrediction
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)

    Trainer(
        model,
        TrainingArguments(label_names=["coordinates_deg"], ...),
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0],  # a geolocator's coordinates stand first
        compute_metrics=compute_metrics,
        ...
    )

A copy of this file in a folder of its name, `great_circle_error/great_circle_error.py`, is what
`evaluate.load("./great_circle_error")` and the Hub expect; it needs geomae installed.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from geomae.evaluation.metrics import THRESHOLDS_KM, compute_metrics

__all__ = ["GreatCircleError"]

DESCRIPTION = "Great-circle errors of predicted coordinates, in kilometres, as geolocation reports them."
INPUTS = """
Args:
    predictions: (n, 2) latitude and longitude in degrees.
    references: (n, 2) true latitude and longitude in degrees.
    thresholds_km: radii in kilometres; an error equal to a radius counts as within it. Default: 1, 25, 200, 750, 2500.
Returns:
    num_photos, mean_km, median_km, geoscore; for each radius such as 200 num_within_200km and accuracy_within_200km
    (a share from 0 to 1); for each of the shares 0.05, 0.25, 0.5, 0.75, 0.95 quantile_0.05_km.
"""


class GreatCircleError(evaluate.Metric):
    """Mean, median, GeoScore, and counts, accuracies and quantiles of great-circle errors."""

    def _info(self) -> evaluate.MetricInfo:
        point = datasets.Sequence(datasets.Value("float64"), length=2)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": point, "references": point}),
        )

    def _compute(
        self, predictions: Any, references: Any, thresholds_km: Sequence[float] = THRESHOLDS_KM
    ) -> dict[str, float]:
        metrics = compute_metrics(np.asarray(predictions), np.asarray(references), thresholds_km=thresholds_km)
        flat = {key: metrics[key] for key in ("num_photos", "mean_km", "median_km", "geoscore")}
        for name in ("num_within", "accuracy_within"):
            flat |= {f"{name}_{radius}km": value for radius, value in metrics[f"{name}_km"].items()}
        return {**flat, **{f"quantile_{share}_km": value for share, value in metrics["quantiles_km"].items()}}
