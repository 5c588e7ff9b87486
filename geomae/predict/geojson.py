"""Answers as GeoJSON, for QGIS and for web maps."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["DECIMALS", "rounded", "to_geojson"]

DECIMALS = 5
"""Of degrees and of kilometres in texts: a metre, and less than that; a model's answers are good for less still."""


def to_geojson(answers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Answers -> pieces of one FeatureCollection, a feature at a time: a point, and the answer as its properties.

    The photo's id is the feature's; QGIS shows it as the field `id`.

    Source: RFC 7946 (2016), "The GeoJSON format": longitude first, WGS 84, no `crs`.
    """
    yield '{"type": "FeatureCollection", "features": ['
    separator = "\n"
    for answer in answers:
        properties = rounded(answer)
        feature = {
            "type": "Feature",
            "id": properties.pop("id"),
            "geometry": {"type": "Point", "coordinates": [properties["longitude"], properties["latitude"]]},
            "properties": properties,
        }
        yield separator + json.dumps(feature, ensure_ascii=False, allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def rounded(value: Any) -> Any:
    """An answer with all of its numbers rounded to `DECIMALS`."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value
