"""Predictions against a test set: every photo exactly once."""

import dataclasses

import numpy as np
import pytest

from geomae.errors import PredictionError
from geomae.evaluation import (
    Predictions,
    TestSet,
    judge_answers,
    judge_errors,
    judge_groups,
    judge_predictions,
    match_predictions,
)
from geomae.geography import EARTH_RADIUS_KM, draw_uniform

HALF_WAY_ROUND = np.pi * EARTH_RADIUS_KM
TRUTH = draw_uniform(40, np.random.default_rng(0))


@pytest.fixture
def test_set():
    ids = [f"{number:02d}.jpg" for number in range(40)]
    return TestSet("set.csv", ids, TRUTH, [f"author {number % 12}" for number in range(40)])


def answers(test_set, rows):
    drawn = draw_uniform(len(test_set.ids), np.random.default_rng(1))
    return Predictions([test_set.ids[row] for row in rows], drawn[list(rows)])


def test_shuffled_predictions_give_equal_numbers(test_set):
    in_order = judge_predictions(answers(test_set, range(40)), test_set)
    shuffled = judge_predictions(answers(test_set, np.random.default_rng(5).permutation(40)), test_set)
    assert in_order[0] == shuffled[0]
    assert in_order[1].equals(shuffled[1])


def test_shuffled_predictions_and_a_shuffled_test_set_give_equal_numbers(test_set):
    predictions = answers(test_set, range(38))
    order = np.random.default_rng(6).permutation(40)
    scenes = [f"scene {number % 3}" for number in range(40)]
    in_order = dataclasses.replace(test_set, scenes=scenes)
    shuffled = TestSet(
        "set.csv",
        [test_set.ids[row] for row in order],
        test_set.coordinates_deg[order],
        [test_set.authors[row] for row in order],
        scenes=[scenes[row] for row in order],
    )
    reversed_answers = Predictions(predictions.ids[::-1], predictions.coordinates_deg[::-1])
    first, second = judge_predictions(predictions, in_order)[0], judge_predictions(reversed_answers, shuffled)[0]
    assert sorted(second.pop("missing")) == first.pop("missing") == ["38.jpg", "39.jpg"]
    assert first == second
    without_authors = [
        judge_errors(np.arange(40.0)[rows], TestSet("x", [test_set.ids[r] for r in rows], TRUTH[rows]))
        for rows in (np.arange(40), order)
    ]
    assert without_authors[0] == without_authors[1]


def test_radii_on_request_reach_every_number(test_set):
    metrics, _ = judge_predictions(answers(test_set, range(39)), test_set, thresholds_km=(0.5, 6000))
    places = [metrics, metrics["answered"], metrics["intervals_95"], *metrics["by"]["continent"].values()]
    for numbers in places:
        assert list(numbers["accuracy_within_km"]) == ["0.5", "6000"]


def test_a_group_is_judged_as_a_test_set_of_its_own(test_set):
    error_km = np.random.default_rng(2).exponential(3000, 40)
    scenes = ["urban"] * 25 + ["indoor"] * 15
    by = judge_groups(error_km, dataclasses.replace(test_set, scenes=scenes), num_resamples=200, seed=4)
    indoor = TestSet("x", test_set.ids[25:], test_set.coordinates_deg[25:], test_set.authors[25:])
    alone = judge_errors(error_km[25:], indoor, num_resamples=200, seed=4)
    assert list(by["scene"]) == ["urban", "indoor"]  # most photos first
    group = by["scene"]["indoor"]
    for key in ("num_photos", "mean_km", "median_km", "geoscore", "accuracy_within_km"):
        assert group[key] == alone[key]
        if key in group["intervals_95"]:
            assert group["intervals_95"][key] == alone["intervals_95"][key]
    assert list(group["intervals_95"]) == ["mean_km", "median_km", "geoscore", "accuracy_within_km"]
    assert group["bootstrap"] == {"num_clusters": 12}


def test_groups_of_every_kind_hold_every_photo(test_set):
    by = judge_groups(np.arange(40.0), dataclasses.replace(test_set, scenes=["urban"] * 40), num_resamples=100)
    assert list(by) == ["scene", "continent", "country", "author"]
    for kind in ("scene", "continent", "country"):
        assert sum(numbers["num_photos"] for numbers in by[kind].values()) == 40


def test_a_group_of_a_single_author_has_no_interval_and_says_why(test_set):
    scenes = ["urban"] * 39 + ["indoor"]
    by = judge_groups(np.arange(40.0), dataclasses.replace(test_set, scenes=scenes), num_resamples=100)
    assert by["scene"]["indoor"]["intervals_95"] is None
    reason = "no interval can be drawn from a single author (at least 10 are needed)"
    assert by["scene"]["indoor"]["bootstrap"] == {"num_clusters": 1, "reason": reason}


def test_each_answer_meets_the_truth_of_its_own_photo(test_set):
    perfect = Predictions(test_set.ids[::-1], test_set.coordinates_deg[::-1])
    metrics, table = judge_predictions(perfect, test_set)
    assert metrics["mean_km"] == 0.0
    assert metrics["num_within_km"]["1"] == 40
    assert table["id"].to_pylist() == test_set.ids
    assert table["true_latitude"].to_pylist() == table["latitude"].to_pylist()


def test_a_missing_photo_counts_as_a_miss_in_every_number(test_set):
    perfect = Predictions(test_set.ids[:30], test_set.coordinates_deg[:30])
    metrics, table = judge_predictions(perfect, test_set)
    assert metrics["num_photos"] == 40
    assert metrics["accuracy_within_km"]["2500"] == 0.75
    assert metrics["mean_km"] == pytest.approx(0.25 * HALF_WAY_ROUND)
    assert metrics["quantiles_km"]["0.95"] == pytest.approx(HALF_WAY_ROUND)
    assert (metrics["num_missing"], metrics["missing"]) == (10, test_set.ids[30:])
    assert metrics["answered"]["mean_km"] == 0.0
    assert metrics["answered"]["num_photos"] == 30
    assert table["error_km"].null_count == table["latitude"].null_count == 10


def test_leaving_a_hard_photo_out_never_pays(test_set):
    everything = judge_predictions(answers(test_set, range(40)), test_set)
    hardest = int(np.argmax(everything[1]["error_km"].to_numpy()))
    without = judge_predictions(answers(test_set, [row for row in range(40) if row != hardest]), test_set)
    assert without[0]["mean_km"] > everything[0]["mean_km"]
    assert without[0]["geoscore"] < everything[0]["geoscore"]


def test_complete_predictions_have_nothing_missing(test_set):
    metrics, _ = judge_predictions(answers(test_set, range(40)), test_set)
    assert (metrics["num_missing"], metrics["missing"]) == (0, [])
    assert "answered" not in metrics


def test_an_unknown_id_is_refused_with_one_that_is_known(test_set):
    strange = Predictions(["00.jpg", "01.jpeg"], np.zeros((2, 2)))
    with pytest.raises(
        PredictionError, match=r"1 of 2 predicted ids are not in set\.csv; the first is id 01\.jpeg .*01\.jpg"
    ):
        match_predictions(strange, test_set)


def test_a_photo_predicted_twice_is_refused(test_set):
    with pytest.raises(PredictionError, match=r"id 03\.jpg is predicted more than once"):
        match_predictions(Predictions(["03.jpg", "04.jpg", "03.jpg"], np.zeros((3, 2))), test_set)


def test_a_repeated_id_is_found_without_comparing_each_with_each():
    class CountedId(str):
        num_comparisons = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            CountedId.num_comparisons += 1
            return str(self) == str(other)

    ids = [CountedId(name) for name in range(1000)]
    test_set = TestSet("set.csv", ids, np.zeros((1000, 2)), None)
    CountedId.num_comparisons = 0
    with pytest.raises(PredictionError, match=r"id 998 is predicted more than once, and 1 more;"):
        match_predictions(Predictions([*ids, CountedId("998"), CountedId("999")], np.zeros((1002, 2))), test_set)
    assert CountedId.num_comparisons < 10 * len(ids)


def test_no_predictions_at_all_are_refused(test_set):
    with pytest.raises(PredictionError, match="not one prediction for the 40 photos"):
        match_predictions(Predictions([], np.empty((0, 2))), test_set)


def test_a_prediction_that_is_not_finite_is_refused(test_set):
    with pytest.raises(PredictionError, match=r"id 01\.jpg, which is not finite"):
        match_predictions(Predictions(["00.jpg", "01.jpg"], np.array([[0, 0], [np.inf, 0]])), test_set)


def test_without_intervals_the_record_says_why(test_set):
    for num_authors, drawn_from in ((1, "a single author"), (9, "9 authors")):
        few = dataclasses.replace(test_set, authors=[f"author {number % num_authors}" for number in range(40)])
        metrics = judge_errors(np.arange(40.0), few, num_resamples=100)
        assert metrics["intervals_95"] is None
        reason = f"no interval can be drawn from {drawn_from} (at least 10 are needed)"
        assert metrics["bootstrap"]["reason"] == reason
    assert "reason" not in judge_errors(np.arange(40.0), test_set, num_resamples=100)["bootstrap"]


def test_intervals_say_how_they_were_drawn(test_set):
    clustered = judge_errors(np.arange(40.0), test_set, num_resamples=100)
    independent = judge_errors(np.arange(40.0), TestSet("x", test_set.ids, test_set.coordinates_deg), num_resamples=100)
    assert clustered["bootstrap"] == {"clustered_by": "author", "num_clusters": 12, "num_resamples": 100, "seed": 0}
    assert (independent["bootstrap"]["clustered_by"], independent["bootstrap"]["num_clusters"]) == ("photo", 40)
    for key in ("mean_km", "median_km", "geoscore"):
        low, high = clustered["intervals_95"][key]
        assert low <= clustered[key] <= high
    assert clustered["intervals_95"]["accuracy_within_km"].keys() == clustered["accuracy_within_km"].keys()


def test_answers_from_ten_crops_are_judged_as_a_row_of_their_own(test_set):
    central, ten_crop = answers(test_set, range(40)), Predictions(test_set.ids[:30], test_set.coordinates_deg[:30])
    both = Predictions(central.ids, central.coordinates_deg, ten_crop)
    metrics, tables = judge_answers(both, test_set, num_resamples=100, seed=3)
    for row, predictions, name in (
        (metrics.pop("ten_crop"), ten_crop, "predictions_ten_crop"),
        (metrics, central, "predictions"),
    ):
        expected, table = judge_predictions(predictions, test_set, num_resamples=100, seed=3)
        assert row == expected
        assert tables[name].equals(table)
    assert judge_answers(central, test_set)[1].keys() == {"predictions"}
