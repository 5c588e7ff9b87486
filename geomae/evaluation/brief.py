"""An evaluation at a glance: three rows, one sentence, and answers from the good ones to the bad ones."""

from pathlib import Path
from typing import Any

import numpy as np

from geomae.bounded_parquet import read_table
from geomae.evaluation.summary import align_columns, best_constant, compare_means, describe_shared_photos, format_table
from geomae.populated_places import nearest_places

__all__ = ["format_brief"]

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def format_brief(metrics: dict[str, Any], label: str, predictions_file: Path) -> str:
    """A newcomer's view of one evaluation.

    Args:
        metrics: content of its `metrics.json`, with its baselines.
        label: what the model's row is called.
        predictions_file: its `predictions.parquet`, with `latitude`, `longitude`, `true_latitude`, `true_longitude` and
            `error_km` of every photo; where there is no such file, no answers are shown.
    """
    rows = {label: metrics}
    sentences = []
    if (constant := best_constant(metrics)) is not None:
        name, numbers = constant
        rows[f"the best constant ({name})"] = numbers
        comparison = compare_means(metrics["mean_km"], numbers["mean_km"])
        sentences.append(f"The mean error is {comparison} that of the best constant, one place for every photo.")
    if "random_guess" in metrics["baselines"]:
        rows["a random guess"] = metrics["baselines"]["random_guess"]
    if num_missing := metrics.get("num_missing"):
        sentences.append(f"ATTENTION: {num_missing:,} photos have no answer and count as misses of 20,015 km.")
    sentences += describe_shared_photos(metrics["test_set"])
    parts = [f"{metrics['test_set']['name']}: {metrics['num_photos']:,} photos", format_table(rows), *sentences]
    if predictions_file.is_file():
        parts += ["Some answers; of ten photos, one is answered better than the first, nine are better than the last:"]
        parts.append("\n".join(_some_answers(predictions_file)))
    return "\n\n".join(parts)


def _some_answers(predictions_file: Path) -> list[str]:
    """The photos at a few shares of the errors, as lines."""
    columns = ["id", "latitude", "longitude", "true_latitude", "true_longitude", "error_km"]
    table = read_table(predictions_file, columns)
    table = table.filter(table["latitude"].is_valid()).sort_by("error_km")
    chosen = table.take(np.round(np.array(SHARES) * (len(table) - 1)).astype(int)).to_pydict()
    true_deg, answered_deg = (
        np.stack([chosen[f"{prefix}latitude"], chosen[f"{prefix}longitude"]], axis=1) for prefix in ("true_", "")
    )
    places = [[f"{place.name}, {place.country}" for place in nearest_places(deg)] for deg in (true_deg, answered_deg)]
    errors = [f"{error_km:,.0f}" for error_km in chosen["error_km"]]
    cells = [["photo", "taken near", "answered near", "error km"], *zip(chosen["id"], *places, errors, strict=True)]
    return align_columns(cells)
