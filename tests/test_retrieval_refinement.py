"""Refining a cell model's answer: within its most probable cells, the nearest photo wins, not the farthest."""

import numpy as np
import pytest

from geomae.geography import great_circle_km, unit_vectors
from geomae.retrieval import PhotoPlaces, RetrievalIndex, build_vector_index, refine_cells
from geomae.retrieval.embedding import Embeddings, TopCells
from geomae.retrieval.refinement import CellPrototypes, find_prototypes, photos_of_cells

CENTROIDS_DEG = np.array([[0.0, 0.0], [0.0, 90.0], [60.0, 10.0], [-80.0, 0.0]])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_index(kind="flat", num_photos=400, width=8, seed=0):
    rng = np.random.default_rng(seed)
    near = CENTROIDS_DEG[rng.integers(0, 3, num_photos)] + rng.normal(0, 8, (num_photos, 2))  # none near the fourth
    vectors = unit(rng.standard_normal((num_photos, width)))
    places = PhotoPlaces([f"photo {number}" for number in range(num_photos)], near)
    return RetrievalIndex(build_vector_index(vectors, kind), places, {}), vectors


def make_photos(ids, vectors, log_mass, cells, points_deg=None):
    cells = np.asarray(cells)
    points = CENTROIDS_DEG[cells] if points_deg is None else points_deg
    return Embeddings(ids, vectors, TopCells(np.asarray(log_mass, float), cells, points))


def test_every_photo_lies_in_the_cell_whose_centroid_is_nearest():
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-90, 90, 300), rng.uniform(-180, 180, 300)], axis=1)
    expected = great_circle_km(places[:, None], CENTROIDS_DEG[None]).argmin(axis=1)
    rows_of_cell = photos_of_cells(places, unit_vectors(CENTROIDS_DEG))
    assert [rows.tolist() for rows in rows_of_cell] == [np.flatnonzero(expected == cell).tolist() for cell in range(4)]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 10.0])
def test_refining_equals_the_formula_written_out_for_every_photo_of_the_cells(kind, temperature):
    index, vectors = make_index(kind)
    rng = np.random.default_rng(1)
    queries = unit(rng.standard_normal((20, 8)))
    cells = np.argsort(rng.random((20, 3)), axis=1)[:, :2]
    log_mass = -np.sort(rng.exponential(2.0, (20, 2)), axis=1)
    photos = make_photos([f"query {number}" for number in range(20)], queries, log_mass, cells)
    prototypes = find_prototypes(index, photos, unit_vectors(CENTROIDS_DEG))
    answers = refine_cells(prototypes, temperature=temperature)

    cell_of = great_circle_km(index.places.coordinates_deg[:, None], CENTROIDS_DEG[None]).argmin(axis=1)
    for query in range(20):
        scores = queries[query].astype(np.float64) @ vectors.astype(np.float64).T / temperature
        mass = dict(zip(cells[query].tolist(), log_mass[query].tolist(), strict=True))
        scores += np.array([mass.get(cell, -np.inf) for cell in cell_of.tolist()])
        assert answers[query].tolist() == index.places.coordinates_deg[scores.argmax()].tolist()


def test_the_nearest_prototype_wins_and_not_the_farthest():
    index = RetrievalIndex(
        build_vector_index(unit(np.array([[1.0, 0.1], [1.0, 1.0], [-1.0, 0.0]])), "flat"),
        PhotoPlaces(["near", "between", "opposite"], np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])),
        {},
    )
    photos = make_photos(["q"], unit(np.array([[1.0, 0.0]])), [[0.0]], [[0]])
    prototypes = find_prototypes(index, photos, unit_vectors(CENTROIDS_DEG))
    assert refine_cells(prototypes, temperature=0.1).tolist() == [[1.0, 1.0]]
    distance = 1.0 - prototypes.similarity  # what PIGEON's code takes the argmax of: it must be the least there is
    assert distance == pytest.approx(1.0 - 1.0 / np.sqrt(1.01), abs=1e-6)


def test_temperature_weighs_similarity_against_the_cells():
    prototypes = CellPrototypes(
        log_mass=np.array([[np.log(0.8), np.log(0.2)]]),
        similarity=np.array([[0.5, 0.6]]),
        places_deg=np.array([[[1.0, 1.0], [2.0, 2.0]]]),
        points_deg=np.zeros((1, 2, 2)),
    )
    break_even = 0.1 / np.log(4)
    assert refine_cells(prototypes, temperature=break_even * 0.99).tolist() == [[2.0, 2.0]]
    assert refine_cells(prototypes, temperature=break_even * 1.01).tolist() == [[1.0, 1.0]]


def test_a_photo_of_the_index_is_not_its_own_prototype():
    index, vectors = make_index()
    cell_of = great_circle_km(index.places.coordinates_deg[:, None], CENTROIDS_DEG[None]).argmin(axis=1)
    photos = make_photos(["photo 0", "not photo 0"], vectors[[0, 0]], [[0.0], [0.0]], [[cell_of[0]]] * 2)
    prototypes = find_prototypes(index, photos, unit_vectors(CENTROIDS_DEG))
    assert prototypes.similarity[1] == pytest.approx(1.0, abs=1e-6)
    assert prototypes.similarity[0] < 0.99
    assert prototypes.places_deg[0, 0].tolist() != index.places.coordinates_deg[0].tolist()


def test_a_cell_without_photos_cannot_win_and_the_model_answers_where_no_cell_has_any():
    index, vectors = make_index()
    points = np.array([[[-75.0, 5.0], [1.0, 2.0]], [[-75.0, 5.0], [-76.0, 6.0]]])
    photos = make_photos(["p", "q"], vectors[[0, 1]], [[-0.01, -5.0], [-0.5, -1.0]], [[3, 0], [3, 3]], points)
    prototypes = find_prototypes(index, photos, unit_vectors(CENTROIDS_DEG))
    answers = refine_cells(prototypes, temperature=1.0)
    assert answers[0].tolist() in index.places.coordinates_deg.tolist()
    assert answers[1].tolist() == [-75.0, 5.0]
