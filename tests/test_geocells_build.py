import itertools

import numpy as np
import pytest
from scipy.stats import directional_stats
from spheres import SPHERE_KM2, draw_photos, haversine_km

from geomae.geocells import Blueprint, build_geocells, draft_by_kmeans, draft_by_s2, judge_ceiling
from geomae.geography import to_degrees, unit_vectors

PHOTOS_DEG = draw_photos(4000)


@pytest.fixture(scope="module", params=["s2", "kmeans"])
def built_and_groups(request: pytest.FixtureRequest) -> tuple:
    if request.param == "s2":
        blueprints = draft_by_s2(PHOTOS_DEG, max_photos=[300, 120, 60], min_photos=10)
    else:
        blueprints = draft_by_kmeans(PHOTOS_DEG, num_cells=[8, 30, 90])
    return build_geocells(PHOTOS_DEG, blueprints), blueprints


def test_centroids_are_the_mean_directions_of_their_groups(built_and_groups: tuple) -> None:
    built, blueprints = built_and_groups
    vectors = unit_vectors(PHOTOS_DEG)
    for partition, blueprint in zip(built.geocells.partitions, blueprints, strict=True):
        groups = [blueprint.groups == group for group in range(blueprint.num_cells)]
        means_deg = to_degrees([directional_stats(vectors[group]).mean_direction for group in groups])
        apart_km = haversine_km(partition.centroids_deg, means_deg)
        assert apart_km.min(axis=1).max() < 1e-3
        if blueprint.s2_tokens is not None:  # dropped cells left no gap in the others' names
            rows = [blueprint.s2_tokens.index(token) for token in partition.s2_tokens]
            assert apart_km[np.arange(len(partition)), rows].max() < 1e-3


def test_every_photo_is_counted_once_in_each_partition_and_no_cell_is_empty(built_and_groups: tuple) -> None:
    geocells = built_and_groups[0].geocells
    distance_km = haversine_km(PHOTOS_DEG, geocells.partitions[-1].centroids_deg)
    counts = np.bincount(distance_km.argmin(axis=1), minlength=geocells.num_geocells[-1])
    assert np.abs(counts - geocells.partitions[-1].num_photos).sum() <= 2  # a tie may fall either way
    for partition in geocells.partitions:
        assert partition.num_photos.sum() == len(PHOTOS_DEG)
        assert partition.num_photos.min() >= 1


def test_partitions_nest_with_counts_and_areas_that_add_up(built_and_groups: tuple) -> None:
    partitions = built_and_groups[0].geocells.partitions
    assert len(partitions) == 3
    assert partitions[0].parents is None
    for coarse, fine in itertools.pairwise(partitions):
        for cell in range(len(coarse)):
            children = fine.parents == cell
            assert children.any()
            assert coarse.num_photos[cell] == fine.num_photos[children].sum()
            assert coarse.area_km2[cell] == pytest.approx(fine.area_km2[children].sum())
    for partition in partitions:
        assert partition.area_km2.sum() == pytest.approx(SPHERE_KM2, rel=1e-9)


def test_spread_is_the_root_mean_square_distance_of_the_photos_that_belong_to_a_cell(built_and_groups: tuple) -> None:
    geocells = built_and_groups[0].geocells
    cells = geocells.assign(PHOTOS_DEG)
    for level, partition in enumerate(geocells.partitions):
        for cell in range(0, len(partition), 7):
            apart_km = haversine_km(PHOTOS_DEG[cells[:, level] == cell], partition.centroids_deg[[cell]])
            expected = max(1.0, float(np.sqrt(np.mean(apart_km**2))))
            assert partition.spread_km[cell] == pytest.approx(expected, rel=1e-6)


def test_a_cell_of_one_place_has_the_least_spread() -> None:
    photos_deg = np.array([[10.0, 10.0]] * 5 + [[50.0, 50.0], [50.0, 52.0]])
    blueprint = Blueprint(np.array([0] * 5 + [1] * 2), 2, None)
    spread_km = build_geocells(photos_deg, [blueprint]).geocells.partitions[0].spread_km
    assert spread_km[0] == 1.0
    assert spread_km[1] == pytest.approx(np.radians(2.0) * 6371.0088 * np.cos(np.radians(50)) / 2, rel=1e-3)


def test_a_cell_that_is_nearest_to_no_photo_is_dropped_and_a_parent_without_children_too() -> None:
    photos_deg = np.array([[0.0, -10.0], [0.0, 10.0], [0.0, -11.0], [0.0, 11.0], [0.0, 12.0]])
    finest = Blueprint(np.array([0, 0, 1, 2, 2]), 3, np.array([0, 1, 1]), ("a", "b", "c"))
    coarsest = Blueprint(np.array([0, 0, 1, 1, 1]), 2, None, ("d", "e"))
    built = build_geocells(photos_deg, [coarsest, finest])
    coarse, fine = built.geocells.partitions
    np.testing.assert_allclose(fine.centroids_deg, [[0.0, -11.0], [0.0, 11.5]], atol=1e-9)
    assert fine.parents.tolist() == [0, 0]
    assert (coarse.s2_tokens, fine.s2_tokens) == (("e",), ("b", "c"))
    assert (coarse.num_photos.tolist(), fine.num_photos.tolist()) == ([5], [2, 3])
    assert (built.num_dropped, built.num_grouped, built.num_moved) == ([1, 1], [5, 5], [2, 2])


def test_photos_of_no_group_belong_to_a_cell_and_are_not_covered() -> None:
    photos_deg = np.array([[0.0, 0.0], [0.0, 1.0], [70.0, 100.0], [0.0, 20.0]])
    built = build_geocells(photos_deg, [Blueprint(np.array([0, 0, -1, 1]), 2, None)])
    np.testing.assert_allclose(built.geocells.partitions[0].centroids_deg, [[0.0, 0.5], [0.0, 20.0]], atol=1e-9)
    assert built.geocells.partitions[0].num_photos.tolist() == [2, 2]
    assert (built.coverage, built.num_moved) == ([0.75], [0])


def test_ceiling_counts_the_photos_whose_nearest_centroid_is_within_each_radius(built_and_groups: tuple) -> None:
    geocells = built_and_groups[0].geocells
    truth_deg = draw_photos(500, seed=9)
    nearest_km = haversine_km(truth_deg, geocells.partitions[-1].centroids_deg).min(axis=1)
    ceiling = judge_ceiling(geocells, truth_deg)
    assert ceiling["mean_km"] == pytest.approx(nearest_km.mean(), rel=1e-6)
    assert ceiling["num_within_km"] == {str(km): int((nearest_km <= km).sum()) for km in (25, 200, 750)}
    assert 0 < ceiling["num_within_km"]["25"] < ceiling["num_within_km"]["750"]
