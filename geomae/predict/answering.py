"""From batches to rows of answers: coordinates, radii, likeliest places, and the towns nearest to them. Needs torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from geomae.errors import PredictionError
from geomae.evaluation.posterior_head import posterior_head
from geomae.geography import great_circle_km
from geomae.populated_places import nearest_places
from geomae.predict.answer_schema import NEAREST, answer_schema

__all__ = ["answer_columns", "tabulate"]


def answer_columns(model: PreTrainedModel, top_k: int, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is read off one pass of B photos.

    Returns:
        `coordinates_deg` `(B, 2)` degrees; of a posterior too `radius_50_km` and `radius_90_km` `(B,)` around it, and
        the k likeliest places: `top_probabilities` `(B, k)` and `top_deg` `(B, k, 2)`, at most `top_k` of them.
    """
    output = model(pixel_values=batch["pixel_values"])
    columns = {"coordinates_deg": output.coordinates_deg}
    head = posterior_head(model)
    if head is not None:
        spread = head.spread_around(output.logits, output.coordinates_deg)
        columns |= {"radius_50_km": spread.radius_50_km, "radius_90_km": spread.radius_90_km}
        columns["top_probabilities"], columns["top_deg"] = head.top_places(output.logits, top_k)
    return columns


def tabulate(
    ids: Sequence[str],
    answered_ids: Sequence[str],
    batches: Sequence[Mapping[str, Tensor]],
    problems: Mapping[str, str],
    true_deg: Mapping[str, tuple[float, float]] | None,
) -> pa.Table:
    """Rows of `answer_schema`, one for each of n photos, null but for its `problem` where one has no answer.

    Args:
        ids: all n.
        answered_ids: m of them.
        batches: `answer_columns` of the m, in their order.
        problems: id -> why there is no answer.
        true_deg: id -> degrees, where they are known; None: they were not asked for.

    Raises:
        PredictionError: an answer is not finite.
    """
    columns: dict[str, NDArray[Any]] = {}
    if batches:
        columns = {name: torch.cat([each[name] for each in batches]).double().cpu().numpy() for name in batches[0]}
    answers = columns.get("coordinates_deg", np.empty((0, 2)))
    _refuse_broken(answers, answered_ids)
    top_deg = columns.get("top_deg", np.empty((len(answers), 0, 2)))
    nearest = _name_places(np.concatenate([answers, top_deg.reshape(-1, 2)]))
    num_answers = len(answers)
    probabilities = columns.get("top_probabilities", np.empty((num_answers, 0)))
    values: dict[str, Any] = {
        "id": pa.array(answered_ids, pa.string()),
        "latitude": answers[:, 0],
        "longitude": answers[:, 1],
        **{name: columns.get(name, pa.nulls(num_answers, pa.float64())) for name in ("radius_50_km", "radius_90_km")},
        "top_places": _list_places(top_deg, probabilities, nearest[num_answers:]),
        "nearest_place": nearest[:num_answers],
    }
    if true_deg is not None:
        values |= _compare(answers, [true_deg.get(name) for name in answered_ids])
    row_of = {name: row for row, name in enumerate(answered_ids)}
    rows = pa.array([row_of.get(name) for name in ids], pa.int64())
    schema = answer_schema(compares=true_deg is not None)
    values["problem"] = pa.nulls(num_answers, pa.string())
    table = pa.table({name: values[name] for name in schema.names}, schema=schema).take(rows)
    table = table.set_column(0, "id", pa.array(ids, pa.string()))
    return table.set_column(
        table.num_columns - 1, "problem", pa.array([problems.get(name) for name in ids], pa.string())
    )


def _refuse_broken(answers: NDArray[np.float64], ids: Sequence[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(answers).all(axis=1))
    if len(broken):
        raise PredictionError(
            f"{len(broken)} of {len(answers)} answers are not finite; the first is that for {ids[broken[0]]!r}. The "
            "model's weights are broken: look at the log of its training"
        )


def _name_places(coordinates_deg: NDArray[np.float64]) -> pa.StructArray:
    """The nearest populated place of each point `(n, 2)`; places repeat, and each is looked up once."""
    unique, number = np.unique(coordinates_deg, axis=0, return_inverse=True)
    number = number.reshape(-1)  # numpy 2.0 keeps the axis
    found = nearest_places(unique)
    values = {
        "name": pa.array([place.name for place in found], pa.string()),
        "country": pa.array([place.country for place in found], pa.string()),
        "distance_km": pa.array([place.distance_km for place in found], pa.float64()),
    }
    return pa.StructArray.from_arrays(list(values.values()), fields=list(NEAREST)).take(pa.array(number.reshape(-1)))


def _list_places(
    coordinates_deg: NDArray[np.float64], probabilities: NDArray[np.float64], nearest: pa.StructArray
) -> pa.ListArray:
    """The k places `(n, k, 2)` of each photo, with probabilities `(n, k)` and n k nearest populated places."""
    num_photos, num_places = probabilities.shape
    values = {
        "latitude": pa.array(coordinates_deg[..., 0].reshape(-1)),
        "longitude": pa.array(coordinates_deg[..., 1].reshape(-1)),
        "probability": pa.array(probabilities.reshape(-1)),
        "nearest_place": nearest,
    }
    places = pa.StructArray.from_arrays(list(values.values()), names=list(values))
    return pa.ListArray.from_arrays(pa.array(np.arange(num_photos + 1) * num_places, pa.int32()), places)


def _compare(answers: NDArray[np.float64], truths: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    """What EXIF blocks say, and how far off the answers `(n, 2)` are; null where they say nothing."""
    true_deg = np.array([truth or (np.nan, np.nan) for truth in truths], dtype=np.float64).reshape(-1, 2)
    unknown = np.isnan(true_deg[:, 0])
    error_km = great_circle_km(answers, np.nan_to_num(true_deg))
    values = {"true_latitude": true_deg[:, 0], "true_longitude": true_deg[:, 1], "error_km": error_km}
    return {name: pa.array(column, mask=unknown) for name, column in values.items()}
