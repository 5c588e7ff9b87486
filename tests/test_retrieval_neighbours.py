"""Neighbours of photos: none of them the photo itself, and none invented."""

import numpy as np
import pytest

from geomae.errors import ConfigError
from geomae.retrieval import PhotoPlaces, RetrievalIndex, build_vector_index, find_neighbours
from geomae.retrieval.neighbours import find_themselves


def make_index(ids, vectors, places_deg, kind="flat"):
    vectors = np.asarray(vectors, dtype=np.float32)
    return RetrievalIndex(build_vector_index(vectors, kind), PhotoPlaces(ids, np.asarray(places_deg, float)), {})


def directions(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_photo_does_not_answer_for_itself_but_its_neighbours_do():
    index = make_index(["a", "b", "c"], directions(0, 10, 30), [[1, 1], [2, 2], [3, 3]])
    neighbours = find_neighbours(index, ["b", "other"], directions(10, 10), 2)
    assert neighbours.places_deg.tolist() == [[[1, 1], [3, 3]], [[2, 2], [1, 1]]]
    assert neighbours.similarity[0] == pytest.approx(np.cos(np.radians([10, 20])), abs=1e-6)
    assert neighbours.similarity[1] == pytest.approx(np.cos(np.radians([0, 10])), abs=1e-6)


def test_a_copy_of_a_photo_under_another_number_answers():
    index = make_index(["a", "copy of a"], directions(0, 0), [[1, 1], [2, 2]])
    assert find_neighbours(index, ["a"], directions(0), 1).places_deg.tolist() == [[[2, 2]]]


def test_a_photo_is_known_by_its_flickr_number_whatever_else_its_name_says():
    ids = ["45/77/3228511372.jpg", "1000269685_e60e9cdfb4_1125_78841376@N00.jpg", "x"]
    asked = ["45_77_3228511372.jpg", "Ankara_00003_1000269685_e60e9cdfb4_1125_78841376@N00.jpg", "x", "y", "3228511372"]
    assert find_themselves(asked, ids).tolist() == [[0], [1], [2], [-1], [-1]]


def test_every_entry_of_a_photo_is_passed_over_however_often_it_stands_in_the_index():
    ids = ["a/45/77/3228511372.jpg", "c", "45_77_3228511372.jpg", "b/45_77_3228511372.jpg", "d"]
    index = make_index(ids, directions(0, 20, 0, 0, 10), [[row, row] for row in range(5)])
    asked = ["45/77/3228511372.jpg", "45_77_3228511372.jpg", "c"]
    assert find_themselves(asked, ids).tolist() == [[0, 2, 3], [0, 2, 3], [1, -1, -1]]
    neighbours = find_neighbours(index, asked, directions(0, 0, 20), 2)
    assert neighbours.places_deg[:2, :, 0].tolist() == [[4, 1], [4, 1]]
    assert neighbours.places_deg[2, 0].tolist() == [4, 4]


def test_where_all_of_an_index_is_asked_for_the_photo_itself_leaves_a_gap():
    index = make_index(["a", "b"], directions(0, 10), [[1, 1], [2, 2]])
    neighbours = find_neighbours(index, ["a"], directions(0), 2)
    assert neighbours.places_deg[0, 0].tolist() == [2, 2]
    assert np.isneginf(neighbours.similarity[0, 1])


def test_a_photo_that_finds_only_itself_has_no_neighbour():
    index = make_index(["a"], directions(0), [[1, 1]])
    assert find_neighbours(index, ["a", "b"], directions(0, 0), 1).is_found.tolist() == [False, True]


def test_the_first_neighbours_are_the_most_similar():
    index = make_index(["a", "b", "c"], directions(30, 10, 20), [[1, 1], [2, 2], [3, 3]])
    assert find_neighbours(index, ["q"], directions(0), 3).first(2).places_deg.tolist() == [[[2, 2], [3, 3]]]


def test_more_neighbours_than_photos_are_refused():
    index = make_index(["a"], directions(0), [[1, 1]])
    with pytest.raises(ConfigError, match=r"k=2 neighbours were asked for, and the index holds 1 photos.*--k"):
        find_neighbours(index, ["q"], directions(0), 2)
