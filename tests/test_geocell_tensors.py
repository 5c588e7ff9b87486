"""Cells that travel in the checkpoint: every point in exactly one of each partition, and partitions nest."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from modeling import GeocellTensors, to_unit_vectors

EARTH_AREA_KM2 = 4 * np.pi * 6371.0088**2
ODD_PLACES = [[90, 0], [-90, 12], [0, 180], [0, -180], [10, 179.9999], [10, -179.9999], [89.9999, -60], [0, 0]]


def three_partitions(rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sizes = (3, 11, 60)
    centroids = [np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], axis=-1) for n in sizes]
    parents = [rng.permutation(np.arange(n) % coarser) for coarser, n in pairwise(sizes)]
    return centroids, parents


def test_a_point_is_in_the_cell_whose_centroid_is_nearest_and_in_that_cells_ancestors() -> None:
    rng = np.random.default_rng(0)
    centroids, parents = three_partitions(rng)
    cells = GeocellTensors([3, 11, 60])
    cells.set_geocells(centroids, parents, np.ones(60), np.ones(60))
    points = np.concatenate([ODD_PLACES, np.stack([rng.uniform(-90, 90, 200), rng.uniform(-180, 180, 200)], axis=-1)])
    labels = cells.assign(to_unit_vectors(torch.tensor(points).float()))
    (lat, lon), (clat, clon) = np.radians(points).T[:, :, None], np.radians(centroids[2]).T[:, None]
    # the haversine formula in float64, of all pairs
    half = np.sin((lat - clat) / 2) ** 2 + np.cos(lat) * np.cos(clat) * np.sin((lon - clon) / 2) ** 2
    finest = half.argmin(axis=1)
    assert labels[2].tolist() == finest.tolist()
    assert labels[1].tolist() == parents[1][finest].tolist()
    assert labels[0].tolist() == parents[0][parents[1][finest]].tolist()


def test_neighbours_a_hundred_metres_apart_are_told_apart() -> None:
    cells = GeocellTensors([3])
    cells.set_geocells([[[48.85, 2.35], [48.851, 2.35], [0.0, 0.0]]], [], np.ones(3), np.ones(3))
    near = torch.tensor([[48.8504, 2.35], [48.8506, 2.35]])
    assert cells.assign(to_unit_vectors(near))[0].tolist() == [0, 1]


def test_fresh_cells_cover_the_earth_evenly_and_nest() -> None:
    cells = GeocellTensors([10, 500])
    assert cells.area_km2.double().sum().item() == pytest.approx(EARTH_AREA_KM2, rel=1e-5)
    uniform = torch.nn.functional.normalize(torch.randn(20_000, 3), dim=-1)
    coarse, fine = cells.assign(uniform)
    counts = torch.bincount(fine, minlength=500)
    assert counts.min() > 15  # 40 are expected
    assert counts.max() < 75
    for cell in fine.unique():  # photos of a fine cell are all in the same coarse one
        assert len(coarse[fine == cell].unique()) == 1


@pytest.mark.parametrize("counts, num_parents", [([4], 0), ([3, 5], 0), ([3, 4, 5], 2)])
def test_other_cells_than_the_configuration_counts_are_refused(counts: list[int], num_parents: int) -> None:
    cells = GeocellTensors([3, 5][:1] if len(counts) == 1 else [3, 5])
    with pytest.raises(ValueError, match="num_geocells"):
        cells.set_geocells([np.zeros((n, 2)) for n in counts], [np.zeros(1)] * num_parents, np.ones(5), np.ones(5))


def test_photos_of_one_place_still_have_a_spread() -> None:
    cells = GeocellTensors([2])
    cells.set_geocells([[[0.0, 0.0], [10.0, 0.0]]], [], np.ones(2), [0.0, 5.0])
    assert cells.spread_km.tolist() == pytest.approx([0.1, 5.0])
