import numpy as np
import pytest
from spheres import RADIUS_KM, SPHERE_KM2, draw_photos, haversine_km

from geomae.geocells import voronoi_areas_km2
from geomae.geography import draw_uniform

OCTAHEDRON = [[90, 0], [-90, 0], [0, 0], [0, 90], [0, 180], [0, -90]]


def shares(centroids_deg: object) -> np.ndarray:
    return voronoi_areas_km2(centroids_deg) / SPHERE_KM2


def test_the_corners_of_an_octahedron_have_a_sixth_each() -> None:
    np.testing.assert_allclose(shares(OCTAHEDRON), 1 / 6, rtol=1e-12)


def test_areas_are_those_that_points_drawn_over_the_sphere_measure() -> None:
    centroids_deg = draw_photos(60, seed=4)
    drawn_deg = draw_uniform(200_000, np.random.default_rng(0))
    nearest = np.concatenate([haversine_km(part, centroids_deg).argmin(axis=1) for part in np.split(drawn_deg, 20)])
    measured = np.bincount(nearest, minlength=60) / len(drawn_deg)
    deviation = np.sqrt(measured * (1 - measured) / len(drawn_deg)) + 1e-5
    assert np.abs((shares(centroids_deg) - measured) / deviation).max() < 5
    assert measured.max() > 0.03


@pytest.mark.parametrize(
    "centroids_deg, expected",
    [
        ([[12, 34]], [1]),
        ([[12, 34], [-50, 100]], [1 / 2, 1 / 2]),
        ([[0, 0], [0, 90], [0, -150]], [120 / 360, 105 / 360, 135 / 360]),
        ([[0, 0], [0, 90], [0, 180], [0, -90]], [1 / 4] * 4),
        ([[50, 0], [50, 40], [50, 120], [50, -90], [50, -10]], [25 / 360, 60 / 360, 115 / 360, 115 / 360, 45 / 360]),
    ],
    ids=["one", "two", "three on the equator", "four on the equator", "five on a parallel"],
)
def test_points_on_one_circle_share_the_sphere_like_the_slices_of_an_orange(
    centroids_deg: list, expected: list[float]
) -> None:
    """The borders between points of one parallel are the meridians halfway."""
    np.testing.assert_allclose(shares(centroids_deg), expected, rtol=1e-9)


def test_three_points_anywhere_leave_no_gap() -> None:
    assert shares([[10, 20], [-60, 30], [70, -170]]).sum() == pytest.approx(1, rel=1e-12)


def test_points_at_one_place_share_its_cell() -> None:
    five = shares([*OCTAHEDRON[:5], OCTAHEDRON[5], OCTAHEDRON[5], [0, -90.00001]])  # the last is 1 m away
    np.testing.assert_allclose(five, [1 / 6] * 5 + [1 / 18] * 3, rtol=1e-5)
    np.testing.assert_allclose(shares([[10, 10]] * 4), 1 / 4)


@pytest.mark.parametrize("num_towns", [1, 2, 3])
@pytest.mark.parametrize("spread_km", [0.001, 0.05, 0.5, 10.0, 500.0])
def test_points_crowded_together_have_areas_above_nothing_that_add_up(num_towns: int, spread_km: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        towns_deg = draw_uniform(num_towns, rng) * [0.9, 1.0]
        moved = towns_deg[rng.integers(0, num_towns, 40)] + np.degrees(rng.normal(0, spread_km / RADIUS_KM, (40, 2)))
        areas = shares(np.clip(moved, [-90, -180], [90, 180]))
        assert areas.min() > 0
        assert areas.sum() == pytest.approx(1, rel=1e-9)


def test_a_ring_around_a_point_encloses_a_small_cell() -> None:
    turn = np.radians(np.arange(0, 360, 10))
    ring_deg = np.stack([0.02 * np.sin(turn), 0.02 * np.cos(turn)], axis=1)
    inner = voronoi_areas_km2(np.concatenate([[[0.0, 0.0]], ring_deg]))[0]
    radius_km = np.radians(0.01) * RADIUS_KM  # of the circle in the polygon of 36 borders halfway to the ring
    assert inner == pytest.approx(36 * np.tan(np.pi / 36) * radius_km**2, rel=1e-4)
