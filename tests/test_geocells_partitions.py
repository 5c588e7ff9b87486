import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from spheres import EDGES_DEG, draw_photos, haversine_km

from geomae.errors import CoordinateError
from geomae.geocells import Geocells, Partition, nearest_centroids, partitions

ROOT = Path(__file__).resolve().parent.parent


def make_geocells(centroids_deg: list[np.ndarray], parents: list[list[int]]) -> Geocells:
    """Partitions coarse to fine, with numbers that assigning does not look at."""
    rows = [None, *(np.array(each) for each in parents)]
    ones = [np.ones(len(each)) for each in centroids_deg]
    parts = zip(centroids_deg, ones, rows, strict=True)
    return Geocells(tuple(Partition(centroids, one.astype(int), one, one, parent) for centroids, one, parent in parts))


def test_every_point_belongs_to_the_one_cell_whose_centroid_is_nearest() -> None:
    centroids_deg = draw_photos(300, seed=1)
    points_deg = np.concatenate([EDGES_DEG, draw_photos(2000, seed=2)])
    distance_km = haversine_km(points_deg, centroids_deg)
    nearest = nearest_centroids(points_deg, centroids_deg)
    assert nearest.shape == (len(points_deg),)
    chosen_km = distance_km[np.arange(len(points_deg)), nearest]
    np.testing.assert_allclose(chosen_km, distance_km.min(axis=1), rtol=1e-9, atol=1e-4)  # a tie may fall either way


def test_cells_reach_across_date_line_and_pole() -> None:
    centroids_deg = np.array([[0.0, -179.0], [0.0, 170.0], [80.0, 0.0], [60.0, 180.0]])
    points_deg = np.array([[0.0, 179.9], [0.0, 180.0], [0.0, -180.0], [0.0, 172.0], [89.0, 180.0], [90.0, 33.0]])
    assert nearest_centroids(points_deg, centroids_deg).tolist() == [0, 0, 0, 1, 2, 2]


def test_both_spellings_of_the_date_line_are_one_place() -> None:
    centroids_deg = draw_photos(100, seed=3)
    latitude = np.linspace(-90, 90, 50)
    east, west = (np.stack([latitude, np.full(50, longitude)], axis=1) for longitude in (180.0, -180.0))
    np.testing.assert_array_equal(nearest_centroids(east, centroids_deg), nearest_centroids(west, centroids_deg))


def test_a_coarser_cell_is_the_parent_of_the_finer_one_even_where_another_centroid_is_nearer() -> None:
    finest = np.array([[0.0, 0.0], [0.0, 10.0], [0.0, 40.0]])
    geocells = make_geocells([np.array([[0.0, 5.0], [0.0, 12.0]]), finest], [[0, 1, 1]])
    points_deg = np.array([[0.0, 1.0], [0.0, 6.0], [0.0, 50.0]])
    assert haversine_km(points_deg, geocells.partitions[0].centroids_deg).argmin(axis=1).tolist() == [0, 0, 1]
    assert geocells.assign(points_deg).tolist() == [[0, 0], [1, 1], [1, 2]]
    assert geocells.num_geocells == [2, 3]


def test_three_partitions_are_climbed_one_by_one() -> None:
    finest = np.array([[0.0, 0.0], [0.0, 30.0], [0.0, 60.0], [0.0, 90.0]])
    coarse, middle = finest[:2], finest[:3]
    geocells = make_geocells([coarse, middle, finest], [[1, 0, 0], [2, 0, 0, 1]])
    assert geocells.assign(finest).tolist() == [[0, 2, 0], [1, 0, 1], [1, 0, 2], [0, 1, 3]]


def test_points_are_assigned_in_chunks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    points_deg, centroids_deg = draw_photos(100), draw_photos(20, seed=1)
    whole = nearest_centroids(points_deg, centroids_deg)
    monkeypatch.setattr(partitions, "CHUNK_POINTS", 7)
    np.testing.assert_array_equal(nearest_centroids(points_deg, centroids_deg), whole)


def test_no_points_have_no_cells() -> None:
    assert make_geocells([EDGES_DEG[:1], EDGES_DEG[:3]], [[0, 0, 0]]).assign(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("bad", [[91.0, 0.0], [0.0, 181.0], [np.nan, 0.0]])
def test_a_point_that_is_not_on_earth_is_refused(bad: list[float]) -> None:
    geocells = make_geocells([EDGES_DEG], [])
    with pytest.raises(CoordinateError, match=r"1 of 2 rows of the points to assign are not on Earth"):
        geocells.assign([[0.0, 0.0], bad])


def test_importing_geocells_loads_neither_torch_nor_maps_nor_s2() -> None:
    heavy = "torch transformers datasets cartopy matplotlib s2geometry"
    code = f"import sys, geomae.geocells; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
