"""How much of the Earth lies nearest to each of some points: the areas of the cells of a Voronoi diagram."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import SphericalVoronoi, cKDTree

from geomae.geography import EARTH_RADIUS_KM, spherical_means, unit_vectors

__all__ = ["voronoi_areas_km2"]

SAME_PLACE = 3e-6  # of the radius, 19 m: between points so near the sphere is all but flat, and they share one cell
FLAT = 1e-13  # of the radius: points this near to one plane have no hull in float64; four 19 m apart leave it by more


def voronoi_areas_km2(centroids_deg: ArrayLike) -> NDArray[np.float64]:
    """The area of the part of the Earth that is nearer to each point than to all others.

    Points within 19 m of each other share the area of the one cell around them in equal parts.

    Args:
        centroids_deg: `(K, 2)` latitude and longitude in degrees, K >= 1.

    Returns:
        `(K,)` square kilometres; they sum to the area of the sphere.

    Source: Caroli et al. (2009), "Robust and Efficient Delaunay Triangulations of Points on or Close to a Sphere", the
    algorithm of `scipy.spatial.SphericalVoronoi`.
    """
    points = unit_vectors(centroids_deg)
    groups = _group_same_places(points)
    sizes = np.bincount(groups)
    sites = spherical_means(points, groups, len(sizes))
    areas = _areas_of_sites(sites) * EARTH_RADIUS_KM**2
    return np.asarray((areas / sizes)[groups])


def _areas_of_sites(sites: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steradians `(K,)` of the cells of distinct unit vectors `(K, 3)`."""
    if len(sites) == 1:
        return np.array([4.0 * np.pi])
    triangle = np.linalg.qr(sites - sites.mean(axis=0), mode="r")  # as flat as the sites, and at most 3 x 3
    normal = np.linalg.svd(triangle)[2][-1]
    if np.ptp(sites @ normal) < FLAT:
        return _areas_of_lunes(sites, normal)
    areas = SphericalVoronoi(sites, threshold=FLAT).calculate_areas()
    return np.asarray(areas * (4.0 * np.pi / areas.sum()))  # rounding: 6e-6 of it where all sites are within 20 m


def _areas_of_lunes(sites: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steradians of points on one circle: their cells are lunes that meet where the circle's axis leaves the sphere."""
    east = np.linalg.svd(normal[None])[2][1]
    azimuths = np.arctan2(sites @ np.cross(normal, east), sites @ east)
    order = np.argsort(azimuths)
    to_next = np.diff(azimuths[order], append=azimuths[order[0]] + 2.0 * np.pi)
    areas = np.empty(len(sites))
    areas[order] = to_next + np.roll(to_next, 1)  # half of either gap is the lune's angle, and twice that its area
    return areas


def _group_same_places(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers `(K,)` that are equal for points within `SAME_PLACE` of each other, directly or by way of others."""
    pairs = cKDTree(points).query_pairs(SAME_PLACE, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(points), len(points)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
