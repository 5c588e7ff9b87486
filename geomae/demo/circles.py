"""Circles on the Earth, as outlines on a map of latitudes and longitudes."""

import numpy as np
from numpy.typing import NDArray

from geomae.geography import EARTH_RADIUS_KM, unit_vectors

__all__ = ["circle_line", "circle_outlines"]

NUM_POINTS = 180


def circle_outlines(latitude: float, longitude: float, radius_km: float) -> list[NDArray[np.float64]]:
    """Closed outlines of all within a distance of a point, to be filled by the even-odd rule.

    Args:
        latitude: of the centre, degrees.
        longitude: of the centre, degrees.
        radius_km: from 0 to half the circumference.

    Returns:
        `(n, 2)` latitudes and longitudes each, without a jump at the date line: longitudes run on beyond -180 and 180,
        and the map repeats itself every 360 degrees. A circle around one pole becomes a band along the map's edge that
        is 360 degrees wide; one around both is the whole map with a hole.
    """
    angle = radius_km / EARTH_RADIUS_KM
    holds_north, holds_south = (np.radians(90 - sign * latitude) < angle for sign in (1, -1))
    outline = _outline(latitude, longitude, angle)
    if holds_north and holds_south:
        start = outline[:, 1].mean() - 180.0
        return [np.array([[90, start], [90, start + 360], [-90, start + 360], [-90, start]], dtype=np.float64), outline]
    if holds_north or holds_south:
        pole = 90.0 if holds_north else -90.0
        outline = outline[np.argsort(outline[:, 1], kind="stable")]
        first, last = outline[0], outline[-1]
        seam = (first[0] + last[0]) / 2
        west = (first[1] + last[1] - 360.0) / 2
        corners = [[[pole, west], [seam, west]], [[seam, west + 360.0], [pole, west + 360.0]]]
        return [np.concatenate([corners[0], outline, corners[1]])]
    return [outline]


def circle_line(latitude: float, longitude: float, radius_km: float) -> NDArray[np.float64]:
    """The rim alone, without the edges of the map: `(n, 2)`, its ends 360 degrees apart where it goes around one pole.

    Args:
        latitude: of the centre, degrees.
        longitude: of the centre, degrees.
        radius_km: from 0 to half the circumference.
    """
    angle = radius_km / EARTH_RADIUS_KM
    outline = _outline(latitude, longitude, angle)
    num_poles = sum(bool(np.radians(90 - sign * latitude) < angle) for sign in (1, -1))
    if num_poles != 1:
        return np.concatenate([outline, outline[:1]])
    turn = 360.0 * np.sign(outline[-1, 1] - outline[0, 1])
    return np.concatenate([outline, outline[:1] + np.array([0.0, turn])])


def _outline(latitude: float, longitude: float, angle: float) -> NDArray[np.float64]:
    """`(NUM_POINTS, 2)` points at an angle from the centre, their longitudes unwrapped around the centre's."""
    center = unit_vectors([latitude, longitude])
    east = np.array([-np.sin(np.radians(longitude)), np.cos(np.radians(longitude)), 0.0])
    north = np.cross(center, east)
    bearing = np.linspace(0.0, 2 * np.pi, NUM_POINTS, endpoint=False)[:, None]
    points = np.cos(angle) * center + np.sin(angle) * (np.cos(bearing) * north + np.sin(bearing) * east)
    latitudes = np.degrees(np.arcsin(np.clip(points[:, 2], -1.0, 1.0)))
    longitudes = np.degrees(np.unwrap(np.arctan2(points[:, 1], points[:, 0])))
    return np.stack([latitudes, longitudes + 360.0 * np.round((longitude - longitudes[0]) / 360.0)], axis=-1)
