"""Parameters chosen on validation photos: the best by its criterion, every trial kept."""

import hashlib

import numpy as np
import pytest

from geomae.errors import ConfigError
from geomae.evaluation import TestSet
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, KnownTestSet
from geomae.geography import great_circle_km
from geomae.retrieval.choosing import choose_by_error, choose_by_likelihood, refuse_test_photos

TRUTH = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
ANSWERS = {
    "one far": np.array([[0.0, 0.1], [0.0, 0.1], [0.0, 170.0]]),  # median 11 km
    "all near": np.array([[0.0, 3.0], [0.0, 3.0], [0.0, 3.0]]),  # GeoScore 4,000
}


def answer(which, shift=0.0):
    return ANSWERS[which] + np.array([shift, 0.0])


def photos(*ids):
    return TestSet("photos.csv", list(ids), np.zeros((len(ids), 2)))


def test_geoscore_and_median_may_choose_differently():
    by_median = choose_by_error(answer, {"which": list(ANSWERS)}, TRUTH, criterion="median_km")
    by_score = choose_by_error(answer, {"which": list(ANSWERS)}, TRUTH, criterion="geoscore")
    assert (by_median.values, by_score.values) == ({"which": "one far"}, {"which": "all near"})
    one_degree = float(great_circle_km([0.0, 0.0], [0.0, 1.0]))
    assert [trial["median_km"] for trial in by_median.tried] == pytest.approx([0.1 * one_degree, 3 * one_degree])
    score = 5000 * np.exp(-3 * one_degree / 1492.7)
    assert by_score.tried[1]["geoscore"] == pytest.approx(score)


def test_every_combination_is_tried_and_the_first_of_equals_wins():
    grid = {"which": ["all near"], "shift": [5.0, 1.0, -1.0]}
    choice = choose_by_error(answer, grid, TRUTH, criterion="geoscore")
    assert [trial["shift"] for trial in choice.tried] == [5.0, 1.0, -1.0]
    assert choice.values == {"which": "all near", "shift": 1.0}


def test_unanswered_photos_count_as_misses_whatever_is_chosen():
    choice = choose_by_error(answer, {"which": ["all near"]}, TRUTH, criterion="geoscore", num_unanswered=1)
    without = choose_by_error(answer, {"which": ["all near"]}, TRUTH, criterion="geoscore")
    miss = 5000 * np.exp(-np.pi * 6371.0088 / 1492.7)
    assert choice.tried[0]["geoscore"] == pytest.approx((3 * without.tried[0]["geoscore"] + miss) / 4)


def test_the_likeliest_share_is_the_share_of_the_photos():
    """Of a coin that fell nine times out of ten, 0.9 is likeliest."""
    heads = np.array([True] * 9 + [False])
    choice = choose_by_likelihood(
        lambda share: np.where(heads, np.log(share), np.log1p(-share)), {"share": [0.5, 0.8, 0.9, 0.95]}
    )
    assert choice.values == {"share": 0.9}
    assert choice.tried[2]["nll"] == pytest.approx(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))


def test_a_photo_of_the_test_set_is_known_under_another_name():
    """The hashed path of YFCC100M, and Flickr's own file name: both end in or begin with Flickr's number."""
    validation = photos("x", "45/77/3228511372.jpg", "1000269685_e60e9cdfb4_1125_78841376@N00.jpg")
    test_set = photos("Ankara_00003_1000269685_e60e9cdfb4_1125_78841376@N00.jpg", "a/45_77_3228511372.jpg", "y")
    with pytest.raises(ConfigError, match="2 of the 3 photos of validation are in the test set too"):
        refuse_test_photos(validation, test_set)
    refuse_test_photos(photos("x", "45/77/3228511373.jpg"), test_set)


@pytest.mark.parametrize("name", list(KNOWN_TEST_SETS))
def test_a_known_test_set_is_no_validation_whatever_its_file_is_called_but_yfcc25600(monkeypatch, name):
    digest = hashlib.sha256(b"a\nb").hexdigest()
    monkeypatch.setitem(KNOWN_TEST_SETS, name, KnownTestSet(2, digest, ""))
    if name == "yfcc25600":
        refuse_test_photos(photos("b", "a"), photos("c"))
        return
    with pytest.raises(ConfigError, match=rf"photos\.csv, whose photos are those of {name}, is a test set"):
        refuse_test_photos(photos("b", "a"), photos("c"))
