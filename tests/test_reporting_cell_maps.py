import numpy as np
import pytest
from cartopy.mpl.geoaxes import GeoAxes

from geomae.geocells import Blueprint, build_geocells
from geomae.reporting.cell_maps import COLUMNS, ROWS, geocell_map

NORTH_AND_SOUTH = np.array([[50.0, 0.0]] * 30 + [[-50.0, 0.0]] * 3 + [[50.0, 90.0]] * 7)


@pytest.fixture(scope="module")
def maps() -> list[GeoAxes]:
    coarse = Blueprint(np.repeat([0, 1, 0], [30, 3, 7]), 2, None)
    fine = Blueprint(np.repeat([0, 1, 2], [30, 3, 7]), 3, np.array([0, 1, 0]))
    geocells = build_geocells(NORTH_AND_SOUTH, [coarse, fine]).geocells
    figure = geocell_map(geocells, title="Cells of 40 photos")
    assert figure.get_suptitle() == "Cells of 40 photos"
    return [axes for axes in figure.axes if isinstance(axes, GeoAxes)]


def test_there_is_a_map_for_each_partition_that_says_how_many_cells_it_has(maps: list[GeoAxes]) -> None:
    assert [axes.get_title(loc="left") or axes.get_title() for axes in maps] == ["2 cells", "3 cells"]


def test_centroids_stand_in_their_places_with_their_counts_the_fullest_on_top(maps: list[GeoAxes]) -> None:
    (points,) = maps[1].collections
    assert points.get_array().tolist() == [3, 7, 30]
    np.testing.assert_allclose(points.get_offsets(), [[0.0, -50.0], [90.0, 50.0], [0.0, 50.0]], atol=1e-9)


def test_a_border_is_drawn_where_the_nearest_centroid_changes(maps: list[GeoAxes]) -> None:
    is_dark = maps[1].images[-1].get_array()[..., 3] > 0
    west = is_dark[:, COLUMNS * 3 // 8]  # where only the equator parts two cells
    assert abs(int(np.flatnonzero(west)[0]) - ROWS // 2) <= 1
    assert west.sum() == 1
    assert not is_dark[0].any(), "beside the map nothing is drawn"
