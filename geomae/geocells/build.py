"""From groups of photos to geocells: centroids, then everything else by the nearest centroid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from geomae.geocells.blueprint import Blueprint
from geomae.geocells.partitions import CHUNK_POINTS, Geocells, Partition
from geomae.geocells.voronoi import voronoi_areas_km2
from geomae.geography import great_circle_km, spherical_means, to_degrees, unit_vectors

__all__ = ["LEAST_SPREAD_KM", "BuiltGeocells", "build_geocells"]

LEAST_SPREAD_KM = 1.0
"""Spread of a cell whose photos all stand at one place: geotags are hardly more exact than a street."""


@dataclass(frozen=True)
class BuiltGeocells:
    """Geocells, and how the photos that shaped them fell into them. Lists have an entry for each partition."""

    geocells: Geocells
    num_photos: int
    num_grouped: list[int]  # photos in a group whose mean is a centroid, such as a kept S2 cell
    num_moved: list[int]  # of those, photos that belong to another cell than the one of their group
    num_dropped: list[int]  # cells left out because they were nearest to no photo, or had no child left

    @property
    def coverage(self) -> list[float]:
        """The share of the training photos that helped to shape a cell."""
        return [number / self.num_photos for number in self.num_grouped]


@dataclass(frozen=True)
class _Level:
    """One partition while cells may still be dropped."""

    rows: NDArray[np.int64]  # (K,) of its blueprint, for the cells that are left
    centroids_deg: NDArray[np.float64]  # (K, 2)
    parents: NDArray[np.int64] | None  # (K,)


def build_geocells(coordinates_deg: NDArray[np.float64], blueprints: Sequence[Blueprint]) -> BuiltGeocells:
    """Geocells whose centroids are the spherical means of groups of photos.

    Photos then belong to the nearest centroid of the finest partition, also those of no group, and `num_photos` and
    `spread_km` are of these. A cell that is nearest to no photo is dropped, and a coarser one without children too, so
    that no class is empty.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude of training photos in degrees, n >= 1.
        blueprints: coarse to fine, nested.
    """
    vectors = unit_vectors(coordinates_deg)
    means = [to_degrees(spherical_means(vectors, each.groups, each.num_cells)) for each in blueprints]
    del vectors  # 24 bytes a photo
    levels = [
        _Level(np.arange(each.num_cells), mean, each.parents) for each, mean in zip(blueprints, means, strict=True)
    ]
    geocells = _as_geocells(levels)
    cells = geocells.assign(coordinates_deg)
    while len(used := np.unique(cells[:, -1])) < geocells.num_geocells[-1]:
        levels = _keep(levels, used)  # the photos stay nearest to where they were: no other centroid moves
        geocells = _as_geocells(levels)
        cells = geocells.assign(coordinates_deg)
    tokens = [each.s2_tokens for each in blueprints]
    return BuiltGeocells(
        geocells=_measure(
            geocells, cells, coordinates_deg, [_take(*each) for each in zip(tokens, levels, strict=True)]
        ),
        num_photos=len(coordinates_deg),
        num_grouped=[int((each.groups >= 0).sum()) for each in blueprints],
        num_moved=[
            int(((each.groups >= 0) & (level.rows[cells[:, number]] != each.groups)).sum())
            for number, (each, level) in enumerate(zip(blueprints, levels, strict=True))
        ],
        num_dropped=[each.num_cells - len(level.rows) for each, level in zip(blueprints, levels, strict=True)],
    )


def _keep(levels: Sequence[_Level], kept: NDArray[np.int64]) -> list[_Level]:
    """The levels with these rows of the finest, and with the parents that they have."""
    left: list[_Level] = []
    for level in reversed(levels):
        parents = None if level.parents is None else level.parents[kept]
        rows, centroids_deg = level.rows[kept], level.centroids_deg[kept]
        if parents is not None:
            kept, parents = np.unique(parents, return_inverse=True)
        left.insert(0, _Level(rows, centroids_deg, parents))
    return left


def _take(tokens: tuple[str, ...] | None, level: _Level) -> tuple[str, ...] | None:
    return None if tokens is None else tuple(tokens[row] for row in level.rows)


def _as_geocells(levels: Sequence[_Level]) -> Geocells:
    """Geocells that can assign points, and have no numbers yet."""
    nothing = np.empty(0)
    return Geocells(
        tuple(Partition(each.centroids_deg, np.empty(0, np.int64), nothing, nothing, each.parents) for each in levels)
    )


def _measure(
    geocells: Geocells,
    cells: NDArray[np.int64],
    coordinates_deg: NDArray[np.float64],
    tokens: Sequence[tuple[str, ...] | None],
) -> Geocells:
    """The same geocells with counts, areas and spreads, of photos whose `cells` `(n, P)` are known."""
    measured: list[Partition] = []
    areas = voronoi_areas_km2(geocells.partitions[-1].centroids_deg)
    for level in reversed(range(len(geocells.partitions))):
        partition = geocells.partitions[level]
        members = cells[:, level]
        sums, counts = _sum_squares(partition.centroids_deg, members, coordinates_deg), np.bincount(members)
        measured.insert(
            0,
            replace(
                partition,
                num_photos=counts.astype(np.int64),
                area_km2=areas,
                spread_km=np.maximum(np.sqrt(sums / counts), LEAST_SPREAD_KM),
                s2_tokens=tokens[level],
            ),
        )
        if partition.parents is not None:
            areas = np.bincount(partition.parents, areas).astype(np.float64)
    return Geocells(tuple(measured))


def _sum_squares(
    centroids_deg: NDArray[np.float64], members: NDArray[np.int64], coordinates_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each cell's sum `(K,)` of squared kilometres from its centroid to its photos."""
    sums = np.zeros(len(centroids_deg))
    for start in range(0, len(members), CHUNK_POINTS):
        chunk = slice(start, start + CHUNK_POINTS)
        apart_km = great_circle_km(centroids_deg[members[chunk]], coordinates_deg[chunk])
        sums += np.bincount(members[chunk], apart_km**2, len(sums))
    return sums
