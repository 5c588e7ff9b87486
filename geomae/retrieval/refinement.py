"""A cell model's answer, refined: within its most probable cells, the photo of an index that is most similar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geomae.geography import unit_vectors
from geomae.retrieval.embedding import Embeddings
from geomae.retrieval.index_folder import RetrievalIndex
from geomae.retrieval.neighbours import find_themselves

__all__ = ["CellPrototypes", "find_prototypes", "photos_of_cells", "refine_cells"]


@dataclass(frozen=True)
class CellPrototypes:
    """For n photos and the k most probable cells of each, the cell's photo that is most similar."""

    log_mass: NDArray[np.float64]  # (n, k) of the cells
    similarity: NDArray[np.float64]  # (n, k) cosines; -inf where a cell has no photo in the index
    places_deg: NDArray[np.float64]  # (n, k, 2) of those photos
    points_deg: NDArray[np.float64]  # (n, k, 2) the model's own answers within the cells

    def rows(self, rows: NDArray[np.int64]) -> "CellPrototypes":
        """Those of some of the photos."""
        return CellPrototypes(self.log_mass[rows], self.similarity[rows], self.places_deg[rows], self.points_deg[rows])


def find_prototypes(index: RetrievalIndex, photos: Embeddings, centroids: NDArray[np.float64]) -> CellPrototypes:
    """Compare photos with those of an index that lie in their most probable cells; none is compared with itself.

    Args:
        index: its photos are the prototypes of the cells that they lie in.
        photos: n photos with `top_cells`.
        centroids: `(K, 3)` unit vectors of the finest cells; a photo lies in the cell whose centroid is nearest.
    """
    top = photos.top_cells
    assert top is not None, "embed the photos with num_cells"
    rows_of_cell = photos_of_cells(index.places.coordinates_deg, centroids)
    themselves = find_themselves(photos.ids, index.places.ids)
    _allow_lookup(index.vectors)
    similarity, places_deg = np.full(top.log_mass.shape, -np.inf), top.points_deg.copy()
    for photo, cells in enumerate(top.cells):
        for rank, cell in enumerate(cells):
            rows = rows_of_cell[cell]
            rows = rows[~np.isin(rows, themselves[photo])]
            if len(rows) == 0:
                continue
            cosines = index.vectors.reconstruct_batch(rows) @ photos.vectors[photo]
            nearest = int(np.argmax(cosines))
            similarity[photo, rank] = cosines[nearest]
            places_deg[photo, rank] = index.places.coordinates_deg[rows[nearest]]
    return CellPrototypes(top.log_mass, similarity, places_deg, top.points_deg)


def refine_cells(prototypes: CellPrototypes, *, temperature: float) -> NDArray[np.float64]:
    """The place of the prototype with the largest `log mass of its cell + similarity / temperature`.

    Similarity grows as photos get closer: it is the nearest prototype that wins, where PIGEON's published code takes
    the argmax of a distance. A cell without a photo cannot win; where none of the cells has one, the model's own answer
    within its most probable cell stands.

    Args:
        prototypes: of n photos.
        temperature: cosine that is worth one nat: small, and similarity decides; large, and the model's cells do.

    Returns:
        `(n, 2)` degrees.

    Source: Haas, Skreta, Alberti and Finn (2023), "PIGEON: Predicting Image Geolocations", hierarchical refinement.
    """
    score = prototypes.log_mass + prototypes.similarity / temperature
    has_photo = np.asarray(np.isfinite(prototypes.similarity).any(axis=1))
    best = np.where(has_photo, np.argmax(score, axis=1), 0)[:, None, None]
    chosen = np.take_along_axis(prototypes.places_deg, best, axis=1)[:, 0]
    return np.where(has_photo[:, None], chosen, prototypes.points_deg[:, 0])


def photos_of_cells(
    coordinates_deg: NDArray[np.float64], centroids: NDArray[np.float64]
) -> Sequence[NDArray[np.int64]]:
    """Rows of the photos in each of K cells: every photo in the one whose centroid, of `(K, 3)`, is nearest."""
    # of chords, which grow with great circles
    _, cells = cKDTree(centroids).query(unit_vectors(coordinates_deg))
    order = np.argsort(cells, kind="stable")
    return np.split(order, np.cumsum(np.bincount(cells, minlength=len(centroids)))[:-1])


def _allow_lookup(vectors: Any) -> None:
    """An inverted file finds a vector by its number only with a map of where it has put it."""
    if hasattr(vectors, "make_direct_map"):
        vectors.make_direct_map()
