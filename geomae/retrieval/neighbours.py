"""The nearest neighbours of photos in an index, none of which may be the photo itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomae.errors import ConfigError
from geomae.evaluation.flickr import flickr_numbers
from geomae.retrieval.index_folder import RetrievalIndex
from geomae.retrieval.vector_index import search_vectors

__all__ = ["Neighbours", "find_neighbours", "find_themselves", "refuse_too_many_neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """The k photos of an index that are most similar to each of n photos, the most similar first."""

    similarity: NDArray[np.float64]  # (n, k) cosines; -inf where an approximate index has found fewer than k
    places_deg: NDArray[np.float64]  # (n, k, 2) latitude and longitude

    def first(self, num_neighbours: int) -> "Neighbours":
        """Only the most similar `num_neighbours` of each."""
        return Neighbours(self.similarity[:, :num_neighbours], self.places_deg[:, :num_neighbours])

    def rows(self, rows: NDArray[np.int64]) -> "Neighbours":
        """Those of some of the photos."""
        return Neighbours(self.similarity[rows], self.places_deg[rows])

    @property
    def is_found(self) -> NDArray[np.bool_]:
        """`(n,)` True where there is a neighbour at all."""
        return np.asarray(np.isfinite(self.similarity).any(axis=1))


def find_neighbours(
    index: RetrievalIndex, ids: Sequence[str], vectors: NDArray[np.float32], num_neighbours: int
) -> Neighbours:
    """Search an index for the neighbours of photos; a photo that is in it does not find itself.

    Args:
        index: the photos that answer.
        ids: n names of the photos that ask; equal names, and equal Flickr numbers in them, are one photo.
        vectors: `(n, D)` of length 1, embedded as those of the index were.
        num_neighbours: k.

    Raises:
        ConfigError: the index holds fewer than k photos.
    """
    refuse_too_many_neighbours(len(index.places.ids), num_neighbours)
    themselves = find_themselves(ids, index.places.ids)
    num_sought = min(num_neighbours + themselves.shape[1], len(index.places.ids))
    similarity, rows = search_vectors(index.vectors, vectors, num_sought)
    is_bad = (rows < 0) | (rows[:, :, None] == themselves[:, None, :]).any(axis=2)
    order = np.argsort(is_bad, axis=1, kind="stable")[:, :num_neighbours]
    chosen, is_bad = np.take_along_axis(rows, order, 1), np.take_along_axis(is_bad, order, 1)
    similarity = np.where(is_bad, -np.inf, np.take_along_axis(similarity, order, 1))
    return Neighbours(similarity.astype(np.float64), index.places.coordinates_deg[chosen])


def refuse_too_many_neighbours(num_photos: int, num_neighbours: int) -> None:
    """ConfigError where an index holds fewer photos than are asked for."""
    if num_neighbours > num_photos:
        raise ConfigError(
            f"k={num_neighbours} neighbours were asked for, and the index holds {num_photos} photos: give a smaller --k"
        )


def find_themselves(ids: Sequence[str], index_ids: Sequence[str]) -> NDArray[np.int64]:
    """Where photos stand in an index: `(n, m)` rows with their id or their Flickr number, however many; the rest -1."""
    numbers, index_numbers = flickr_numbers(ids), flickr_numbers(index_ids)
    wanted = set(ids)
    rows_of: dict[str | int, list[int]] = {name: [row] for row, name in enumerate(index_ids) if name in wanted}
    for row in np.flatnonzero(np.isin(index_numbers, numbers[numbers >= 0])).tolist():
        rows_of.setdefault(int(index_numbers[row]), []).append(row)
    found = [
        {*rows_of.get(name, ()), *rows_of.get(number, ())} for name, number in zip(ids, numbers.tolist(), strict=True)
    ]
    themselves = np.full((len(found), max(map(len, found), default=0)), -1, dtype=np.int64)
    for photo, rows in enumerate(found):
        themselves[photo, : len(rows)] = sorted(rows)
    return themselves
