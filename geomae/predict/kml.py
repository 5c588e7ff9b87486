"""Answers as KML 2.2, for Google Earth: a placemark for each photo, and the circle that holds 90 % of its posterior."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from geomae.geography import EARTH_RADIUS_KM
from geomae.predict.geojson import DECIMALS

__all__ = ["circle_polygons", "to_kml"]

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 (2008), production Char
_NUM_BEARINGS = 37  # of half a circle: a corner every five degrees, and 0.1 % of the radius between chord and arc

_RADII = {"radius_50_km": "50 %", "radius_90_km": "90 %"}

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<kml xmlns="http://www.opengis.net/kml/2.2">
<Document>
<name>GeoMAE: where photos were taken</name>
<Style id="answer"><PolyStyle><color>400000ff</color><outline>0</outline></PolyStyle></Style>
"""
_TAIL = "</Document>\n</kml>\n"


def to_kml(answers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Answers -> pieces of one KML document, a placemark at a time.

    An answer has `id`, `latitude` and `longitude`, and what it knows of the rest of `answer_schema`: what the pipeline
    `image-to-coordinates` answers will do, with an `id`.

    Names are text in XML, in which characters that XML forbids become U+FFFD; the description, which Google Earth reads
    as HTML, holds no id, and is escaped for HTML too.

    Source: OGC 07-147r2 (2008), KML 2.2.
    """
    yield _HEAD
    for answer in answers:
        yield ElementTree.tostring(_placemark(answer), encoding="unicode") + "\n"
    yield _TAIL


def _placemark(answer: Mapping[str, Any]) -> ElementTree.Element:
    placemark = ElementTree.Element("Placemark")
    _add(placemark, "name", answer["id"])
    _add(placemark, "description", "<br/>".join(map(html.escape, _describe(answer))))
    _add(placemark, "styleUrl", "#answer")
    data = ElementTree.SubElement(placemark, "ExtendedData")
    for name in (
        "latitude",
        "longitude",
        "radius_50_km",
        "radius_90_km",
        "true_latitude",
        "true_longitude",
        "error_km",
    ):
        if answer.get(name) is not None:
            _add(ElementTree.SubElement(data, "Data", name=name), "value", f"{round(answer[name], DECIMALS)}")
    geometry = ElementTree.SubElement(placemark, "MultiGeometry")
    point = ElementTree.SubElement(geometry, "Point")
    _add(point, "coordinates", _coordinates([(answer["latitude"], answer["longitude"])]))
    radius_km = answer.get("radius_90_km")
    for ring in circle_polygons(answer["latitude"], answer["longitude"], radius_km) if radius_km else ():
        polygon = ElementTree.SubElement(geometry, "Polygon")
        boundary = ElementTree.SubElement(ElementTree.SubElement(polygon, "outerBoundaryIs"), "LinearRing")
        _add(boundary, "coordinates", _coordinates(ring))
    return placemark


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = _FORBIDDEN.sub("\ufffd", text).replace("\r", " ")


def _coordinates(points: Iterable[Sequence[float]]) -> str:
    """KML's `longitude,latitude`, with a space between points."""
    return " ".join(f"{longitude:.{DECIMALS}f},{latitude:.{DECIMALS}f}" for latitude, longitude in points)


def _describe(answer: Mapping[str, Any]) -> Iterator[str]:
    if near := answer.get("nearest_place"):
        yield f"near {near['name']}, {near['country']} ({near['distance_km']:,.0f} km away)"
    radii = [(answer[name], share) for name, share in _RADII.items() if answer.get(name) is not None]
    if radii:
        yield ", ".join(f"within {radius_km:,.0f} km by {share}" for radius_km, share in radii)
    for place in answer.get("top_places") or ():
        near = place.get("nearest_place")
        where = f"{near['name']}, {near['country']}" if near else f"{place['latitude']:.2f}, {place['longitude']:.2f}"
        yield f"{place['probability']:.1%} {where}"
    if answer.get("error_km") is not None:
        yield f"{answer['error_km']:,.0f} km from the position that the photo itself has"


def circle_polygons(latitude: float, longitude: float, radius_km: float) -> list[NDArray[np.float64]]:
    """A circle on the sphere as polygons of a plane map: whole where it crosses the date line or holds a pole.

    A parallel of latitude meets the circle's inside in one stretch, centred on the meridian of its centre, or all
    around. So its eastern border from north to south, mirrored in the west, encloses it on a map that is centred there,
    with a corner at each pole inside; what then lies beyond 180 degrees is cut off and moved by 360.

    Args:
        latitude: of the centre, degrees.
        longitude: of the centre, degrees, -180 to 180.
        radius_km: above 0, at most half of the Earth's circumference.

    Returns:
        One to three closed rings `(n, 2)`, latitude and longitude in degrees within -90 to 90 and -180 to 180,
        counterclockwise, that share borders and nothing else.
    """
    centre, radius = np.radians(latitude), min(radius_km / EARTH_RADIUS_KM, np.pi)
    bearing = np.linspace(0.0, np.pi, _NUM_BEARINGS)
    sine = np.sin(centre) * np.cos(radius) + np.cos(centre) * np.sin(radius) * np.cos(bearing)
    along = np.cos(centre) * np.cos(radius) - np.sin(centre) * np.sin(radius) * np.cos(bearing)
    east = np.arctan2(np.sin(radius) * np.abs(np.sin(bearing)), along)  # 0 to pi: behind a pole it is pi
    border = np.degrees(np.stack([np.arcsin(np.clip(sine, -1.0, 1.0)), east], axis=-1))
    if 90.0 - latitude <= np.degrees(radius):
        border = np.concatenate([[[90.0, 180.0]], border])
    if 90.0 + latitude <= np.degrees(radius):
        border = np.concatenate([border, [[-90.0, 180.0]]])
    ring = np.concatenate([border * [1.0, -1.0], border[::-1]])
    ring[:, 1] += longitude
    pieces = []
    for turn in (-360.0, 0.0, 360.0):
        piece = ring + np.array([0.0, turn])
        if np.abs(piece[:, 1]).max() > 180.0:
            piece = _cut(_cut(piece, 180.0, 1.0), -180.0, -1.0)
        if len(piece):
            pieces.append(np.concatenate([piece, piece[:1]]))
    return pieces


def _cut(ring: NDArray[np.float64], meridian: float, sign: float) -> NDArray[np.float64]:
    """What lies west of a meridian (sign 1) or east of it (-1), of an open ring; nothing where that is a line.

    Source: Sutherland and Hodgman (1974), "Reentrant polygon clipping".
    """
    if len(ring) == 0 or (sign * (ring[:, 1] - meridian) >= 0).all():
        return np.empty((0, 2))
    kept = []
    for before, after in zip(np.roll(ring, 1, axis=0), ring, strict=True):
        inside = [sign * (point[1] - meridian) <= 0 for point in (before, after)]
        if inside[0] != inside[1]:
            share = (meridian - before[1]) / (after[1] - before[1])
            kept.append(np.array([before[0] + share * (after[0] - before[0]), meridian]))
        if inside[1]:
            kept.append(after)
    return np.array(kept).reshape(-1, 2)
