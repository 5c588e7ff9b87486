"""What geocells are: nested partitions of the Earth, and the one rule by which a point belongs to a cell."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geomae.geography import check_coordinates, unit_vectors

__all__ = ["CHUNK_POINTS", "Geocells", "Partition", "nearest_centroids"]

CHUNK_POINTS = 2**18  # whose unit vectors take 6 MB: memory stays flat, whatever the number of points


@dataclass(frozen=True)
class Partition:
    """K cells that cover the Earth."""

    centroids_deg: NDArray[np.float64]  # (K, 2) latitude and longitude: spherical means of photos
    num_photos: NDArray[np.int64]  # (K,) training photos that belong to each cell, at least 1
    area_km2: NDArray[np.float64]  # (K,) their sum is the sphere's area
    spread_km: NDArray[np.float64]  # (K,) root mean square distance of the cell's photos from its centroid
    parents: NDArray[np.int64] | None = None  # (K,) rows of the next coarser partition; None for the coarsest
    s2_tokens: tuple[str, ...] | None = None  # K names of the S2 cells that the centroids are of; None for k-means

    def __len__(self) -> int:
        return len(self.centroids_deg)


@dataclass(frozen=True)
class Geocells:
    """Nested partitions, coarse to fine.

    A point belongs to the cell of the finest partition whose centroid is nearest, and in every coarser partition to the
    parent of its cell there: every point of the sphere is in exactly one cell of each.
    """

    partitions: tuple[Partition, ...]

    @property
    def num_geocells(self) -> list[int]:
        """Cells of each partition, coarse to fine."""
        return [len(partition) for partition in self.partitions]

    def assign(self, coordinates_deg: ArrayLike) -> NDArray[np.int64]:
        """The cells of points.

        Args:
            coordinates_deg: `(n, 2)` latitude and longitude in degrees.

        Returns:
            `(n, P)` rows of the P partitions, coarse to fine.

        Raises:
            CoordinateError: a point is not finite or not on Earth.
        """
        coordinates_deg = np.asarray(coordinates_deg, dtype=np.float64).reshape(-1, 2)
        cells = np.empty((len(coordinates_deg), len(self.partitions)), dtype=np.int64)
        cells[:, -1] = nearest_centroids(coordinates_deg, self.partitions[-1].centroids_deg)
        for level in range(len(self.partitions) - 1, 0, -1):
            parents = self.partitions[level].parents
            assert parents is not None  # of all partitions but the coarsest
            cells[:, level - 1] = parents[cells[:, level]]
        return cells


def nearest_centroids(coordinates_deg: NDArray[np.float64], centroids_deg: NDArray[np.float64]) -> NDArray[np.int64]:
    """The row of the centroid with the least great-circle distance to each point.

    Chords between unit vectors are in the order of the arcs above them, so poles and date line are points like others.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees.
        centroids_deg: `(K, 2)`.

    Returns:
        `(n,)` rows from 0 to K - 1.

    Raises:
        CoordinateError: a point is not finite or not on Earth.
    """
    latitude, longitude = coordinates_deg.T
    check_coordinates(latitude, longitude, range(len(coordinates_deg)), "the points to assign")
    tree = cKDTree(unit_vectors(centroids_deg))
    nearest = np.empty(len(coordinates_deg), dtype=np.int64)
    for start in range(0, len(coordinates_deg), CHUNK_POINTS):
        chunk = slice(start, start + CHUNK_POINTS)
        nearest[chunk] = tree.query(unit_vectors(coordinates_deg[chunk]))[1]
    return nearest
