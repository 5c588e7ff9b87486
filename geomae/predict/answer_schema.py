"""One answer, wherever it is kept: the names, the order and the units of its columns."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

__all__ = ["NEAREST", "answer_schema", "rows_of"]

NEAREST = pa.struct([("name", pa.string()), ("country", pa.string()), ("distance_km", pa.float64())])
_DEGREES = [("latitude", pa.float64()), ("longitude", pa.float64())]
_TOP = pa.struct([*_DEGREES, ("probability", pa.float64()), ("nearest_place", NEAREST)])


def answer_schema(*, compares: bool) -> pa.Schema:
    """`id`; the answer in degrees; the radii around it, km, null of a head that answers a point; places; `problem`.

    Args:
        compares: with `true_latitude`, `true_longitude` and `error_km`, null where a photo has no position.
    """
    truth = [(name, pa.float64()) for name in ("true_latitude", "true_longitude", "error_km")]
    return pa.schema(
        [
            ("id", pa.string()),
            *_DEGREES,
            ("radius_50_km", pa.float64()),
            ("radius_90_km", pa.float64()),
            ("top_places", pa.list_(_TOP)),  # the likeliest first; empty of a head that answers a point
            ("nearest_place", NEAREST),
            *(truth if compares else ()),
            ("problem", pa.string()),  # why there is no answer; null where there is one
        ]
    )


def rows_of(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """Answers one by one."""
    for batch in batches:
        yield from batch.to_pylist()
