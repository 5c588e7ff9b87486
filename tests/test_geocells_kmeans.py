import itertools

import numpy as np
import pytest
from scipy.stats import directional_stats
from spheres import EDGES_DEG, draw_photos, haversine_km

from geomae.errors import ConfigError
from geomae.geocells import cluster_on_sphere, draft_by_kmeans, kmeans
from geomae.geography import to_degrees, unit_vectors

PHOTOS_DEG = draw_photos(2000)
POINTS = unit_vectors(PHOTOS_DEG)


def test_each_centroid_is_the_mean_direction_of_the_points_that_are_nearest_to_it() -> None:
    centroids = cluster_on_sphere(POINTS, 40, rng=np.random.default_rng(0))
    nearest = haversine_km(PHOTOS_DEG, to_degrees(centroids)).argmin(axis=1)
    assert set(nearest.tolist()) == set(range(40))
    for cluster, centroid in enumerate(centroids):
        mean = directional_stats(POINTS[nearest == cluster]).mean_direction
        assert np.linalg.norm(centroid - mean) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, rtol=1e-12)


def test_towns_far_apart_are_found_whole_also_at_the_pole_and_across_the_date_line() -> None:
    towns_deg = np.array([[89.9, 0.0], [0.0, 180.0], [-45.0, 60.0], [50.0, -100.0]])
    town = np.repeat(np.arange(4), 50)
    points = unit_vectors(towns_deg)[town] + np.random.default_rng(0).normal(0, 0.01, (200, 3))
    (blueprint,) = draft_by_kmeans(to_degrees(points), num_cells=[4])
    for number in range(4):
        assert len(set(blueprint.groups[town == number].tolist())) == 1
    assert blueprint.num_cells == 4


def test_no_iteration_makes_points_farther_from_their_centroids_than_the_start() -> None:
    start = POINTS[kmeans._draw_starts(POINTS, 30, np.ones(len(POINTS)), np.random.default_rng(5))]
    end = cluster_on_sphere(POINTS, 30, rng=np.random.default_rng(5))

    def mean_cosine(centroids: np.ndarray) -> float:
        return float((POINTS @ centroids.T).max(axis=1).mean())

    assert mean_cosine(end) > mean_cosine(start)
    assert len(np.unique(start, axis=0)) == 30


def test_weights_count_a_point_as_often_as_they_say() -> None:
    points = unit_vectors([[0.0, 0.0], [0.0, 10.0], [0.0, 90.0], [0.0, 95.0]])
    weights = np.array([3, 1, 1, 1])
    found = cluster_on_sphere(points, 2, rng=np.random.default_rng(0), weights=weights)
    repeated = np.repeat(points, weights, axis=0)
    expected = [directional_stats(part).mean_direction for part in (repeated[:4], repeated[4:])]
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], expected, atol=1e-12)


def test_coarser_partitions_cluster_the_cells_of_finer_ones() -> None:
    blueprints = draft_by_kmeans(PHOTOS_DEG, num_cells=[4, 15, 60])
    assert [each.num_cells for each in blueprints] == [4, 15, 60]
    assert blueprints[0].parents is None
    for coarse, fine in itertools.pairwise(blueprints):
        np.testing.assert_array_equal(coarse.groups, fine.parents[fine.groups])
        assert set(fine.parents.tolist()) == set(range(coarse.num_cells))
    for each in blueprints:
        assert set(each.groups.tolist()) == set(range(each.num_cells))


def test_as_many_cells_as_places_leave_none_empty() -> None:
    photos_deg = np.repeat(EDGES_DEG[4:], 30, axis=0)[::-1]  # 0 N 180 E is written in two ways
    num_places = len(np.unique(unit_vectors(photos_deg).round(9), axis=0))
    (blueprint,) = draft_by_kmeans(photos_deg, num_cells=[num_places])
    assert blueprint.num_cells == num_places


def test_a_cluster_that_lost_its_points_starts_again_where_a_point_is_farthest(monkeypatch: pytest.MonkeyPatch) -> None:
    points = unit_vectors([[0.0, 0.0], [0.0, 0.1], [0.0, 60.0], [0.0, 61.0], [0.0, 130.0]])
    doubled = np.array([0, 0, 1])  # of two centroids at one place, one gets no point
    monkeypatch.setattr(kmeans, "_draw_starts", lambda *_: doubled)
    centroids_deg = to_degrees(cluster_on_sphere(points, 3, rng=np.random.default_rng(0)))
    np.testing.assert_allclose(sorted(centroids_deg[:, 1]), [0.05, 60.5, 130.0], atol=1e-9)


def test_a_seed_gives_the_same_cells_again_and_another_seed_others() -> None:
    one, again, other = (draft_by_kmeans(PHOTOS_DEG, num_cells=[30], seed=seed)[0].groups for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_cells_clustered_from_a_sample_hold_all_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "MAX_POINTS_TO_CLUSTER", 100)
    (blueprint,) = draft_by_kmeans(PHOTOS_DEG, num_cells=[10])
    assert blueprint.groups.shape == (2000,)
    assert set(blueprint.groups.tolist()) == set(range(10))


def test_more_cells_than_places_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_cells 3 is more than the 2 places"):
        draft_by_kmeans(np.array([[0.0, 0.0], [1.0, 1.0]] * 10), num_cells=[3])


@pytest.mark.parametrize("num_cells", [[], [0, 5], [5, 5], [50, 5]])
def test_numbers_of_cells_that_do_not_rise_are_refused(num_cells: list[int]) -> None:
    with pytest.raises(ConfigError, match="num_cells must rise"):
        draft_by_kmeans(PHOTOS_DEG, num_cells=num_cells)
