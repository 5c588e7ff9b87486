"""From embedded photos to answers: parameters chosen on validation photos, then used on the test set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation.tables import Predictions, TestSet
from geomae.retrieval.arguments import SearchArguments
from geomae.retrieval.choosing import Choice, choose_by_error, choose_by_likelihood
from geomae.retrieval.embedding import Embeddings
from geomae.retrieval.index_folder import RetrievalIndex
from geomae.retrieval.kernel_density import (
    densest_neighbours,
    kernel_log_density,
    measure_kernel_posterior,
    nearest_neighbours,
)
from geomae.retrieval.neighbours import Neighbours, find_neighbours
from geomae.retrieval.refinement import CellPrototypes, find_prototypes, refine_cells

__all__ = ["Evidence", "choose_parameters", "gather_evidence", "predict_places"]

HEADLINE = "kernel_density"


@dataclass(frozen=True)
class Evidence:
    """What an index knows of photos with known places, before any parameter has a value."""

    ids: list[str]
    truth_deg: NDArray[np.float64]  # (n, 2)
    neighbours: Neighbours
    prototypes: CellPrototypes | None  # None where nothing is to be refined


def gather_evidence(
    index: RetrievalIndex,
    photos: Embeddings,
    test_set: TestSet,
    *,
    num_neighbours: int,
    centroids: NDArray[np.float64] | None,
) -> Evidence:
    """Look up photos in an index.

    Photos for which nothing but themselves was found are left out: they count as misses.

    Args:
        index: the photos that answer.
        photos: the photos that ask.
        test_set: has their places.
        num_neighbours: the largest k that will be tried.
        centroids: `(K, 3)` unit vectors of the cells to refine within; None: refine nothing.

    Raises:
        ConfigError: the index holds fewer photos than `num_neighbours`.
    """
    neighbours = find_neighbours(index, photos.ids, photos.vectors, num_neighbours)
    rows = np.flatnonzero(neighbours.is_found)
    place = dict(zip(test_set.ids, test_set.coordinates_deg, strict=True))
    ids = [photos.ids[row] for row in rows]
    prototypes = None if centroids is None else find_prototypes(index, photos, centroids).rows(rows)
    return Evidence(ids, np.array([place[name] for name in ids]).reshape(-1, 2), neighbours.rows(rows), prototypes)


def choose_parameters(
    arguments: SearchArguments, validation: Evidence | None, num_unanswered: int
) -> dict[str, Choice]:
    """The values to use: those that were given alone, or the best on the validation photos.

    Args:
        arguments: the values to choose from.
        validation: photos to choose on; None where there is one value of each.
        num_unanswered: validation photos that count as misses.

    Returns:
        Under `kernel_density`: k, sigma_km and similarity_exponent. Under `posterior`: uniform_share. Under `refined`,
        where something is refined: temperature.
    """
    density = {name: getattr(arguments, name) for name in ("k", "sigma_km", "similarity_exponent")}
    shares, temperatures = {"uniform_share": arguments.uniform_share}, {"temperature": arguments.refine_temperature}
    refines = arguments.refine_top_k > 0
    if validation is None:
        grids = {HEADLINE: density, "posterior": shares} | ({"refined": temperatures} if refines else {})
        return {name: Choice({each: values[0] for each, values in grid.items()}, []) for name, grid in grids.items()}
    how: dict[str, Any] = {"criterion": arguments.choose_by, "num_unanswered": num_unanswered}
    neighbours, truth_deg, prototypes = validation.neighbours, validation.truth_deg, validation.prototypes

    def answer(k: int, **shape: float) -> NDArray[np.float64]:
        return densest_neighbours(neighbours.first(k), **shape)

    chosen = {HEADLINE: choose_by_error(answer, density, truth_deg, **how)}
    shape = dict(chosen[HEADLINE].values)
    nearest = neighbours.first(shape.pop("k"))
    chosen["posterior"] = choose_by_likelihood(
        lambda uniform_share: kernel_log_density(nearest, truth_deg, **shape, uniform_share=uniform_share), shares
    )
    if prototypes is not None:
        chosen["refined"] = choose_by_error(
            lambda temperature: refine_cells(prototypes, temperature=temperature), temperatures, truth_deg, **how
        )
    return chosen


def predict_places(evidence: Evidence, chosen: dict[str, Choice]) -> Predictions:
    """The answers: `kernel_density` with its posterior, and beside it `nearest` and, with prototypes, `refined`."""
    shape = dict(chosen[HEADLINE].values)
    neighbours = evidence.neighbours.first(shape.pop("k"))
    answers_deg = densest_neighbours(neighbours, **shape)
    others = {"nearest": nearest_neighbours(neighbours)}
    if evidence.prototypes is not None:
        others["refined"] = refine_cells(evidence.prototypes, **chosen["refined"].values)
    posterior = measure_kernel_posterior(
        neighbours, answers_deg, evidence.truth_deg, **shape, **chosen["posterior"].values
    )
    decoded_with = {"decoding": HEADLINE, **chosen[HEADLINE].values, **chosen["posterior"].values}
    return Predictions(evidence.ids, answers_deg, decoded_with=decoded_with, decodings=others, posterior=posterior)
