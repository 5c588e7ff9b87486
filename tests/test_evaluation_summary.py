"""The table that ends an evaluation."""

import numpy as np
import pytest

from geomae.evaluation import (
    Predictions,
    TestSet,
    best_constant,
    describe_test_set,
    format_summary,
    judge_baselines,
    judge_predictions,
)
from geomae.geography import draw_uniform

CONSTANTS_OF_EACH_RADIUS = [f"densest_{radius}km" for radius in (1, 25, 200, 750, 2500)]


@pytest.fixture
def judged():
    truth = draw_uniform(50, np.random.default_rng(9))
    scenes = ["urban"] * 30 + ["indoor"] * 20
    test_set = TestSet("set.csv", [f"{number}.jpg" for number in range(50)], truth, scenes=scenes)
    metrics, _ = judge_predictions(Predictions(test_set.ids[:48], truth[:48]), test_set, num_resamples=100)
    metrics["baselines"], _ = judge_baselines(test_set, truth + 0.001, num_repeats=2, num_resamples=100)
    metrics["test_set"] = describe_test_set(test_set)
    return metrics


def test_summary_sets_the_model_above_every_baseline(judged):
    lines = format_summary(judged, "my model").splitlines()
    end = lines.index("", 2)
    names = [line.split()[0] for line in lines[4:end]]
    assert names == ["my", *judged["baselines"]]
    assert len({len(line) for line in lines[2:end]}) == 1  # aligned


def test_summary_shows_scenes_and_continents_with_their_photos_below_the_baselines(judged):
    assert judged["by"]["scene"]["urban"]["num_photos"] == 30
    lines = format_summary(judged, "my model").splitlines()
    below = lines[lines.index("", 2) + 1 :]
    assert [line.split("  ")[0] for line in below[2:4]] == ["scene urban (30)", "scene indoor (20)"]
    assert sum(line.startswith("continent ") for line in below) == len(judged["by"]["continent"])


def test_summary_names_the_photos_without_an_answer(judged):
    assert "ATTENTION: 2 of 50 photos have no answer" in format_summary(judged, "x")
    assert "48.jpg, 49.jpg" in format_summary(judged, "x")


def test_summary_states_the_gain_over_the_best_constant(judged):
    name, numbers = best_constant(judged)
    assert numbers["mean_km"] == min(
        judged["baselines"][key]["mean_km"] for key in ("geometric_median", *CONSTANTS_OF_EACH_RADIUS)
    )
    share = 1 - 2 / 50 * 20015.1 / numbers["mean_km"]  # 48 perfect answers and 2 misses
    assert f"{share:.0%} below that of the best constant ({name}" in format_summary(judged, "x")


def test_the_best_constant_may_be_the_densest_point_of_any_radius(judged):
    judged["baselines"]["densest_25km"]["mean_km"] = 1.0
    assert best_constant(judged)[0] == "densest_25km"


def test_without_constants_there_is_no_best_one(judged):
    judged["baselines"] = {"uniform_on_sphere": judged["baselines"]["uniform_on_sphere"]}
    assert best_constant(judged) is None
    assert "best constant" not in format_summary(judged, "x")


@pytest.mark.parametrize(
    ("constant_km", "said"), [(0.0, "The mean error is 30 km above"), (60.0, "is 50% below"), (20.0, "is 50% above")]
)
def test_the_best_constant_may_never_be_wrong(judged, constant_km, said):
    judged["mean_km"] = 30.0
    judged["baselines"]["densest_25km"]["mean_km"] = constant_km
    assert f"{said} that of the best constant (densest_25km, {constant_km:.0f} km)" in format_summary(judged, "x")


def test_a_single_author_is_shown_without_an_interval():
    truth = draw_uniform(50, np.random.default_rng(9))
    test_set = TestSet("set.csv", [f"{number}.jpg" for number in range(50)], truth, ["ann"] * 50)
    metrics, _ = judge_predictions(Predictions(test_set.ids, truth + 0.001), test_set, num_resamples=100)
    metrics |= {"baselines": {}, "test_set": describe_test_set(test_set)}
    title, *rows = format_summary(metrics, "my model").splitlines()
    assert title == "set.csv: 50 photos; no interval can be drawn from a single author (at least 10 are needed)"
    assert "no interval" in next(row for row in rows if row.startswith("my model"))


def test_summary_is_loud_about_photos_that_the_model_was_trained_on(judged):
    assert "training photos" not in format_summary(judged, "x")
    judged["test_set"] |= {"num_in_training": 0, "in_training": [], "shared_with": {"im2gps": []}}
    assert "training photos" not in format_summary(judged, "x")
    judged["test_set"] |= {"num_in_training": 4, "in_training": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]}
    judged["test_set"]["shared_with"] = {"im2gps": ["e.jpg", "f.jpg"], "yfcc25600": []}
    *_, loud, shared = format_summary(judged, "x").splitlines()
    assert loud.startswith("ATTENTION: 4 of 50 photos are among the training photos")
    assert "such as a.jpg, b.jpg, c.jpg:" in loud
    assert shared == "2 of its photos are also in im2gps, such as e.jpg, f.jpg."


def test_an_evaluation_of_an_earlier_version_is_still_shown(judged):
    for key in ("known_as", "shared_with", "num_in_training", "in_training"):
        del judged["test_set"][key]
    assert "50 photos" in format_summary(judged, "x")
