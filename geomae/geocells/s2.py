"""Where there are cells, by S2: squares on the sphere are quartered as long as they hold too many photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.errors import ConfigError, SourceError
from geomae.geocells.blueprint import Blueprint
from geomae.geocells.partitions import CHUNK_POINTS

__all__ = ["check_photos_per_cell", "draft_by_s2", "leaf_ids", "refuse_missing_s2", "subdivide"]

NUM_FACES = 6  # of the cube that S2 projects onto the sphere


@dataclass(frozen=True)
class _Kept:
    """The S2 cells of one partition along the Hilbert curve, in which they are disjoint ranges of leaf cells."""

    tokens: tuple[str, ...]
    first: NDArray[np.uint64]  # (K,) least leaf of each
    last: NDArray[np.uint64]  # (K,) greatest

    def find(self, leaves: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The row of the cell that each leaf lies in; -1 where it lies in none."""
        rows = np.searchsorted(self.first, leaves, side="right").astype(np.int64) - 1
        rows[(rows >= 0) & (leaves > self.last[rows])] = -1
        return rows


def draft_by_s2(
    coordinates_deg: NDArray[np.float64], *, max_photos: Sequence[int], min_photos: int
) -> tuple[Blueprint, ...]:
    """Nested partitions as those of PlaNet and ISN: one for each maximum, coarse to fine.

    A cell of S2 with more photos than the maximum is quartered, from the six faces on, and what then has fewer than the
    minimum is dropped. The parent of a cell is the coarser cell that contains it. It is never a dropped one, as that
    would have fewer photos than its part; and every cell has a child, since of four quarters one has a fourth of the
    photos, which is enough.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude of training photos in degrees.
        max_photos: of a cell, for each partition, falling. Only a cell that S2 does not divide, of a centimetre, may
            have more.
        min_photos: of a cell, at least 1 and at most a quarter of the least maximum.

    Returns:
        Coarse to fine; a partition has its cells in the order of the Hilbert curve.

    Raises:
        ConfigError: the numbers do not fit each other, or no cell has enough photos.
        SourceError: s2geometry is not installed.

    Source: Weyand, Kostrikov and Philbin (2016), "PlaNet - Photo Geolocation with Convolutional Neural Networks",
    section 3; several partitions: Müller-Budack, Pustu-Iren and Ewerth (2018), "Geolocation Estimation of Photos using
    a Hierarchical Model and Scene Classification", section 3.1.
    """
    check_photos_per_cell(max_photos, min_photos)
    leaves = leaf_ids(coordinates_deg)
    in_order = np.sort(leaves)
    drafts: list[Blueprint] = []
    coarser: _Kept | None = None
    for most in max_photos:
        kept = subdivide(in_order, max_photos=most, min_photos=min_photos)
        if not kept.tokens:
            raise ConfigError(
                f"no S2 cell of at most {most:,} photos has min_photos {min_photos:,}: there are {len(leaves):,} photos"
            )
        parents = None if coarser is None else coarser.find(kept.first)
        drafts.append(Blueprint(kept.find(leaves), len(kept.tokens), parents, kept.tokens))
        coarser = kept
    return tuple(drafts)


def check_photos_per_cell(max_photos: Sequence[int], min_photos: int) -> None:
    """Refuses numbers of photos by which partitions would not nest, or have cells without children.

    Raises:
        ConfigError: names the numbers.
    """
    if not max_photos or list(max_photos) != sorted(set(max_photos), reverse=True):
        given = " ".join(map(str, max_photos)) or "none"
        raise ConfigError(
            f"max_photos must fall, from the coarsest partition to the finest: 5000 2000 1000; got {given}"
        )
    if not 1 <= min_photos <= max_photos[-1] / 4:
        raise ConfigError(
            f"min_photos must be from 1 to a quarter of the least max_photos, {max_photos[-1]}, so that of the four "
            f"parts of a divided cell one is kept; got {min_photos}"
        )


def leaf_ids(coordinates_deg: NDArray[np.float64]) -> NDArray[np.uint64]:
    """The ids of the S2 leaf cells, of a centimetre, that points lie in.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees.

    Raises:
        SourceError: s2geometry is not installed.
    """
    s2 = _import_s2()
    cell, from_degrees = s2.S2CellId, s2.S2LatLng.FromDegrees
    ids = np.empty(len(coordinates_deg), dtype=np.uint64)
    for start in range(0, len(ids), CHUNK_POINTS):
        chunk = slice(start, start + CHUNK_POINTS)
        # the library takes one point at a time, of Python's own numbers: 2 us each
        ids[chunk] = [cell(from_degrees(*point)).id() for point in coordinates_deg[chunk].tolist()]
    return ids


def subdivide(leaves: NDArray[np.uint64], *, max_photos: int, min_photos: int) -> _Kept:
    """The S2 cells with `min_photos` to `max_photos` of the leaves, each the largest of its place.

    Args:
        leaves: `(n,)` leaf ids in rising order, so that a cell is a range of them.
        max_photos: of a cell; a leaf cell may have more.
        min_photos: of a cell.
    """
    s2 = _import_s2()
    kept, pending = [], [s2.S2CellId.FromFacePosLevel(face, 0, 0) for face in reversed(range(NUM_FACES))]
    while pending:
        cell = pending.pop()
        start = np.searchsorted(leaves, np.uint64(cell.range_min().id()))
        stop = np.searchsorted(leaves, np.uint64(cell.range_max().id()), side="right")
        if stop - start < min_photos:
            continue
        if stop - start > max_photos and not cell.is_leaf():
            pending += [cell.child(quarter) for quarter in reversed(range(4))]
        else:
            kept.append(cell)
    return _Kept(
        tokens=tuple(cell.ToToken() for cell in kept),
        first=np.array([cell.range_min().id() for cell in kept], dtype=np.uint64),
        last=np.array([cell.range_max().id() for cell in kept], dtype=np.uint64),
    )


def refuse_missing_s2() -> None:
    """Refuses to go on where s2geometry is not installed, before anything is read.

    Raises:
        SourceError: says how to install it.
    """
    _import_s2()


def _import_s2() -> Any:
    try:
        import s2geometry
    except ImportError as error:
        raise SourceError(
            "cells by S2 need s2geometry, which is not installed: pip install 'geomae[geocells]'. "
            "--kind kmeans does without."
        ) from error
    return s2geometry
