"""The index of vectors: exact where it says so, and measured where it is not."""

import sys

import numpy as np
import pytest

from geomae.errors import ConfigError
from geomae.retrieval.vector_index import FLAT_UP_TO, HNSW_UP_TO, build_vector_index, choose_kind, search_vectors


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(num_clusters, num_each, width, seed=0):
    """Photos as a model sees them: motifs, and photos near each."""
    rng = np.random.default_rng(seed)
    motifs = rng.standard_normal((num_clusters, width))
    return unit(np.repeat(motifs, num_each, axis=0) + 0.4 * rng.standard_normal((num_clusters * num_each, width)))


def brute_force(vectors, queries, k):
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, rows, 1), rows


def test_flat_search_equals_brute_force():
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng.standard_normal((500, 24))), unit(rng.standard_normal((40, 24)))
    similarity, rows = search_vectors(build_vector_index(vectors, "flat"), queries, 7)
    expected_similarity, expected_rows = brute_force(vectors, queries, 7)
    assert rows.tolist() == expected_rows.tolist()
    assert similarity == pytest.approx(expected_similarity, abs=1e-6)


@pytest.mark.parametrize(("kind", "least_recall"), [("hnsw", 0.99), ("ivf", 0.9)])
def test_approximate_search_finds_most_of_the_nearest_of_clustered_photos(kind, least_recall):
    vectors, queries = clustered(50, 80, 32), clustered(50, 2, 32)
    _, found = search_vectors(build_vector_index(vectors, kind), queries, 10)
    _, exact = brute_force(vectors, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    assert recall >= least_recall


def test_lists_that_are_searched_are_a_part_of_those_that_there_are():
    index = build_vector_index(clustered(50, 80, 16), "ivf")
    assert 1 <= index.nprobe < index.nlist


def test_a_graph_considers_more_photos_than_it_is_asked_for():
    index = build_vector_index(clustered(20, 50, 16), "hnsw")
    _, rows = search_vectors(index, clustered(20, 1, 16), 400)
    assert index.hnsw.efSearch >= 800
    assert (rows >= 0).all()


@pytest.mark.parametrize(
    ("num_photos", "kind"),
    [(1, "flat"), (FLAT_UP_TO, "flat"), (FLAT_UP_TO + 1, "hnsw"), (HNSW_UP_TO, "hnsw"), (HNSW_UP_TO + 1, "ivf")],
)
def test_the_kind_follows_from_the_number_of_photos(num_photos, kind):
    assert choose_kind(num_photos) == kind


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="kind='tree' is no index; choose one of flat, hnsw, ivf"):
        build_vector_index(clustered(2, 2, 4), "tree")


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'geomae\[retrieval\]'"):
        build_vector_index(clustered(2, 2, 4), "flat")
