"""Circles on the sphere as polygons of a plane map: at the date line, at the poles, and half of the Earth wide."""

import numpy as np
import pytest
from matplotlib.path import Path as PlanePath

from geomae.geography import draw_uniform, great_circle_km
from geomae.predict.kml import circle_polygons

HALF_THE_EARTH = 20_015.0  # km: half of its circumference


def are_within(polygons, points):
    """By even-odd counting in the plane of longitude and latitude."""
    inside = np.zeros(len(points), dtype=int)
    for ring in polygons:
        inside += PlanePath(ring[:, ::-1]).contains_points(points[:, ::-1])
    return inside


@pytest.mark.parametrize(
    ("latitude", "longitude", "radius_km"),
    [
        (48.86, 2.35, 300.0),
        (0.0, 0.0, 5000.0),
        (-17.7, 178.1, 900.0),  # Fiji, across the date line from the west
        (-13.8, -171.8, 2500.0),  # Samoa, across it from the east
        (0.0, 180.0, 1000.0),
        (0.0, -180.0, 1000.0),
        (80.0, 30.0, 3000.0),  # with the North Pole
        (-75.0, -179.0, 4000.0),  # with the South Pole
        (90.0, 0.0, 1500.0),
        (-90.0, 12.0, 1500.0),
        (10.0, 100.0, 12_000.0),  # with both poles
        (-40.0, 175.0, 15_000.0),
        (20.0, -30.0, 19_000.0),
    ],
)
def test_the_polygons_hold_the_points_that_are_nearer_than_the_radius_and_no_others(latitude, longitude, radius_km):
    rng = np.random.default_rng(0)
    points = draw_uniform(4000, rng)
    points = np.concatenate([points, [latitude, longitude] + rng.normal(size=(1000, 2)) * radius_km / 111])
    points = points[(np.abs(points) < [89.999, 179.999]).all(axis=1)]  # what lies on the edge of the map is on no side
    distance_km = great_circle_km(points, np.array([latitude, longitude]))
    is_clear = np.abs(distance_km - radius_km) > 0.02 * min(radius_km, HALF_THE_EARTH - radius_km) + 5
    within = are_within(circle_polygons(latitude, longitude, radius_km), points)
    assert is_clear.sum() > 3000
    assert 0 < (distance_km <= radius_km).sum() < len(points)
    assert within[is_clear].tolist() == (distance_km <= radius_km)[is_clear].astype(int).tolist()


@pytest.mark.parametrize("latitude", [0.0, 89.0, -45.0])
def test_rings_are_closed_turn_counterclockwise_and_stay_on_the_map(latitude):
    for longitude in (-180.0, -90.0, 0.0, 179.0, 180.0):
        for radius_km in (0.5, 100.0, 9000.0, 11_000.0, HALF_THE_EARTH, 25_000.0):
            for ring in circle_polygons(latitude, longitude, radius_km):
                assert ring[0].tolist() == ring[-1].tolist()
                assert (np.abs(ring) <= [90.0, 180.0]).all()
                y, x = ring.T  # the shoelace formula
                assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0


def test_a_circle_of_the_whole_earth_is_the_whole_map():
    y, x = np.concatenate(circle_polygons(30.0, 40.0, HALF_THE_EARTH + 1)).T
    assert (y.min(), y.max(), x.min(), x.max()) == (-90, 90, -180, 180)
    within = are_within(circle_polygons(30.0, 40.0, HALF_THE_EARTH + 1), draw_uniform(2000, np.random.default_rng(1)))
    assert within.mean() > 0.999  # a grain is lost where the border meets itself at the antipode
