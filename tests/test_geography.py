"""Distances, checks and centres on the sphere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import directional_stats

from geomae.errors import CoordinateError
from geomae.geography import (
    EARTH_RADIUS_KM,
    check_coordinates,
    draw_uniform,
    find_off_earth,
    geometric_median,
    great_circle_km,
    spherical_means,
    to_degrees,
    unit_vectors,
)

HALF_WAY_ROUND = np.pi * EARTH_RADIUS_KM
QUARTER = HALF_WAY_ROUND / 2

points = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


# Great circles between airports' reference points, as published by the Great Circle Mapper on the WGS-84 ellipsoid;
# a sphere differs from it by up to 0.6 %.
@pytest.mark.parametrize(
    ("name", "start", "end", "published_km"),
    [
        ("London Heathrow to New York Kennedy", (51.4706, -0.4619), (40.6398, -73.7789), 5555),
        ("Sydney to Los Angeles", (-33.9461, 151.1772), (33.9425, -118.4081), 12061),
        ("Singapore to New York Kennedy", (1.3502, 103.9944), (40.6398, -73.7789), 15349),
        ("Copenhagen to Tokyo Haneda", (55.6179, 12.6560), (35.5533, 139.7811), 8713),
    ],
)
def test_distance_between_cities_is_the_published_one(name, start, end, published_km):
    assert great_circle_km(start, end) == pytest.approx(published_km, rel=0.006), name


def test_distance_to_the_antipode_is_half_the_circumference():
    antipodes = [((0, 0), (0, 180)), ((90, 0), (-90, 0)), ((40.4, -3.7), (-40.4, 176.3)), ((0, 90), (0, -90))]
    for start, end in antipodes:
        assert great_circle_km(start, end) == pytest.approx(HALF_WAY_ROUND, abs=1e-6)


def test_distance_near_the_antipode_loses_no_digit():
    assert great_circle_km((0.0, 0.0), (0.0, 180.0 - 1e-6)) == pytest.approx(
        HALF_WAY_ROUND - np.radians(1e-6) * EARTH_RADIUS_KM, abs=1e-9
    )


def test_distance_of_a_millimetre_loses_no_digit():
    one_millimetre_deg = np.degrees(1e-6 / EARTH_RADIUS_KM)
    assert great_circle_km((45.0, 10.0), (45.0 + one_millimetre_deg, 10.0)) == pytest.approx(1e-6, rel=1e-3)


def test_distance_across_the_date_line_takes_the_short_way():
    assert great_circle_km((0, 179.5), (0, -179.5)) == pytest.approx(np.radians(1.0) * EARTH_RADIUS_KM)


def test_longitude_does_not_matter_at_the_poles():
    assert great_circle_km((90, -170), (90, 55)) == pytest.approx(0.0, abs=1e-9)
    assert great_circle_km((90, 12), (0, -140)) == pytest.approx(QUARTER)


def test_a_degree_of_latitude_has_the_same_length_everywhere():
    starts = np.array([[-90.0, 10.0], [0.0, -180.0], [60.0, 77.0]])
    assert great_circle_km(starts, starts + np.array([1.0, 0.0])) == pytest.approx(np.full(3, 111.19508), abs=1e-4)


@given(points, points)
def test_distance_is_symmetric_and_equals_the_haversine(start, end):
    (lat1, lon1), (lat2, lon2) = np.radians(start), np.radians(end)
    haversine = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    expected = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(min(1.0, haversine)))
    assert great_circle_km(start, end) == pytest.approx(expected, abs=0.2)  # arcsin loses digits at the antipode
    assert great_circle_km(start, end) == great_circle_km(end, start)


def test_distances_broadcast_one_answer_against_many_truths():
    assert great_circle_km([0.0, 0.0], np.zeros((5, 3, 2))).shape == (5, 3)


@given(points)
def test_degrees_survive_the_way_through_unit_vectors(point):
    back = to_degrees(3.0 * unit_vectors(point))
    assert great_circle_km(back, point) == pytest.approx(0.0, abs=1e-6)
    assert not find_off_earth(*back)


def test_axes_of_unit_vectors_are_the_documented_ones():
    assert unit_vectors([[0, 0], [0, 90], [90, 0]]) == pytest.approx(np.eye(3), abs=1e-15)


def test_swapped_columns_are_named_with_their_count_and_first_row():
    with pytest.raises(
        CoordinateError, match=r"(?s)2 of 3 rows of list\.csv .* id b: latitude=139\.69, .*--swap_lat_lon"
    ):
        check_coordinates([10, 139.69, -91], [20, 35.68, 15], ["a", "b", "c"], "list.csv")


def test_coordinates_off_earth_either_way_do_not_blame_the_columns():
    with pytest.raises(CoordinateError) as caught:
        check_coordinates([95.0], [185.0], ["a"], "list.csv")
    assert "swap" not in str(caught.value)


def test_missing_coordinates_are_called_missing():
    with pytest.raises(CoordinateError, match="missing or not finite"):
        check_coordinates([np.nan, 1.0], [0.0, np.inf], ["a", "b"], "list.csv")


def test_poles_and_date_line_are_on_earth():
    check_coordinates([90, -90, 0, 0], [0, 0, 180, -180], list("abcd"), "list.csv")


def test_uniform_points_have_the_mean_distance_of_a_sphere():
    rng = np.random.default_rng(0)
    distances = great_circle_km(draw_uniform(20_000, rng), (54.0, -3.0))
    assert distances.mean() == pytest.approx(QUARTER, rel=0.01)  # by symmetry of the two hemispheres
    assert (distances <= 2500).mean() == pytest.approx((1 - np.cos(2500 / EARTH_RADIUS_KM)) / 2, rel=0.06)


def test_spherical_means_are_the_mean_directions_of_their_groups():
    vectors = unit_vectors(draw_uniform(300, np.random.default_rng(0)))
    labels = np.arange(300) % 4 - 1  # of group -1 there is no mean
    expected = [directional_stats(vectors[labels == group]).mean_direction for group in range(3)]
    np.testing.assert_allclose(spherical_means(vectors, labels, 3), expected, atol=1e-12)


def test_spherical_mean_across_the_date_line_is_not_on_the_other_side_of_the_earth():
    east_and_west = unit_vectors([(10, 179), (10, -179), (-10, 179), (-10, -179)])
    mean = to_degrees(spherical_means(east_and_west, np.zeros(4, int), 1))
    np.testing.assert_allclose(np.abs(mean), [[0, 180]], atol=1e-12)


def test_spherical_means_count_weights_as_repetitions():
    vectors, labels = unit_vectors([(0, 0), (0, 90), (60, 10)]), np.array([0, 0, 1])
    thrice = spherical_means(np.repeat(vectors, [3, 1, 2], axis=0), np.repeat(labels, [3, 1, 2]), 2)
    np.testing.assert_allclose(spherical_means(vectors, labels, 2, weights=[3, 1, 2]), thrice, atol=1e-15)


def test_spherical_means_of_nothing_and_of_antipodes_are_unit_vectors_too():
    means = spherical_means(unit_vectors([(0, 0), (0, 180)]), np.array([1, 1]), 2)
    np.testing.assert_array_equal(means, [[1, 0, 0], [1, 0, 0]])


def test_geometric_median_of_a_symmetric_cross_is_its_centre():
    cross = [[10, 20], [30, 20], [20, 10], [20, 30], [20, 20]]
    assert great_circle_km(geometric_median(cross), (20.0, 20.0)) < 40  # meridians and parallels are not alike
    equator = [[0, 170], [0, -170], [0, 178], [0, -178]]
    assert great_circle_km(geometric_median(equator), (0.0, 180.0)) < 900  # any point between the inner two is one


def test_geometric_median_stands_on_a_point_that_outweighs_the_rest():
    assert geometric_median([[48.0, 2.0]] * 5 + [[0.0, 100.0]] * 3) == pytest.approx([48.0, 2.0], abs=1e-4)


def test_geometric_median_is_better_than_its_neighbours():
    rng = np.random.default_rng(1)
    places = np.concatenate([rng.normal((50, 5), 5, (60, 2)), rng.normal((38, -95), 8, (40, 2))])
    median = geometric_median(places)
    best = great_circle_km(median, places).mean()
    for offset in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        assert great_circle_km(median + offset, places).mean() > best


def test_geometric_median_of_no_points_is_refused():
    with pytest.raises(CoordinateError, match="at least one"):
        geometric_median(np.empty((0, 2)))


def test_geometric_median_of_the_real_training_coordinates_is_near_the_published_one(shared_data):
    training = np.loadtxt(shared_data / "geotags" / "mp16_coordinates_100k.csv", delimiter=",", skiprows=1)
    published = np.array([54.68, -3.04])  # of all 4.72 million photos; these are 100,000 of them
    median = geometric_median(training)
    assert great_circle_km(median, published) < 120
    assert great_circle_km(median, training).mean() <= great_circle_km(published, training).mean()
