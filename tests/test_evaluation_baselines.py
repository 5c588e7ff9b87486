"""Answers that look at no photo."""

import numpy as np
import pytest

from geomae.errors import ConfigError
from geomae.evaluation import BASELINES, TestSet, judge_baselines, read_test_set, read_training_coordinates
from geomae.evaluation.baselines import densest_point, draw_from_clusters, fit_clusters
from geomae.geography import draw_uniform, find_off_earth, great_circle_km


@pytest.fixture
def test_set():
    return TestSet("set", [str(number) for number in range(400)], draw_uniform(400, np.random.default_rng(99)))


def two_towns():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal((50.0, 10.0), 0.2, (300, 2)), rng.normal((-20.0, 179.9), 0.2, (100, 2))])


def test_densest_point_is_in_the_larger_town():
    point = densest_point(two_towns(), radius_km=200.0)
    assert great_circle_km(point, (50.0, 10.0)) < 200


def test_densest_point_sees_a_town_on_both_sides_of_the_date_line():
    towns = np.concatenate(
        [np.full((60, 2), (0.0, 179.8)), np.full((60, 2), (0.0, -179.8)), np.full((100, 2), (40.0, 0.0))]
    )
    assert great_circle_km(densest_point(towns, radius_km=200.0), (0.0, 180.0)) < 200


def test_densest_point_is_never_worse_than_any_training_photo():
    rng = np.random.default_rng(2)
    places = rng.normal((40, 0), 15, (300, 2))
    best = (great_circle_km(densest_point(places, radius_km=750.0), places) <= 750).sum()
    each = [(great_circle_km(place, places) <= 750).sum() for place in places]
    assert best >= max(each) - 3  # it is sought on a grid of 0.1 degrees


def test_clusters_have_the_means_and_spreads_of_well_separated_towns():
    rng = np.random.default_rng(0)
    towns = np.concatenate(
        [rng.normal((50.0, 10.0), (1.0, 3.0), (4000, 2)), rng.normal((-30.0, -60.0), 2.0, (4000, 2))]
    )
    means, deviations = fit_clusters(towns, 2, rng)
    order = np.argsort(means[:, 0])
    assert means[order] == pytest.approx(np.array([[-30.0, -60.0], [50.0, 10.0]]), abs=0.2)
    assert deviations[order] == pytest.approx(np.array([[2.0, 2.0], [1.0, 3.0]]), abs=0.1)


def test_clusters_are_as_many_as_there_are_distinct_places():
    means, _ = fit_clusters(np.array([[1.0, 2.0]] * 50 + [[3.0, 4.0]] * 50), 8, np.random.default_rng(0))
    assert len(means) <= 2


def test_random_guess_draws_clusters_uniformly_whatever_their_size():
    means, deviations = np.array([[50.0, 10.0], [-20.0, 179.0]]), np.full((2, 2), 0.1)
    drawn = draw_from_clusters(means, deviations, 10_000, np.random.default_rng(0))
    assert (drawn[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.02)


def test_random_guess_stays_on_earth():
    drawn = draw_from_clusters(np.array([[85.0, 175.0]]), np.array([[20.0, 40.0]]), 5000, np.random.default_rng(0))
    assert not find_off_earth(drawn[:, 0], drawn[:, 1]).any()


def test_baselines_are_all_judged_and_repeat_with_their_seed(test_set):
    first, errors = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    second, _ = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    assert first == second
    assert list(first) == list(BASELINES)
    assert errors.column_names == ["id", *BASELINES]
    assert errors["geometric_median"].to_numpy().mean() == pytest.approx(first["geometric_median"]["mean_km"])


def test_constants_have_intervals_and_random_answers_a_spread(test_set):
    results, _ = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    assert results["geometric_median"]["intervals_95"]["mean_km"][0] < results["geometric_median"]["mean_km"]
    assert results["random_guess"]["num_runs"] == 3
    assert results["random_guess"]["spread"]["mean_km"] > 0


def test_no_runs_at_all_are_refused(test_set):
    with pytest.raises(ConfigError, match=r"num_repeats must be at least 1.*got 0"):
        judge_baselines(test_set, None, num_repeats=0)


def test_without_training_coordinates_only_the_uniform_guess_is_judged(test_set):
    results, _ = judge_baselines(test_set, None, num_repeats=2)
    assert list(results) == ["uniform_on_sphere"]


def test_uniform_guess_is_a_quarter_of_the_way_round(test_set):
    results, _ = judge_baselines(test_set, None, num_repeats=20)
    assert results["uniform_on_sphere"]["mean_km"] == pytest.approx(10_007.5, rel=0.01)  # pi R / 2 by symmetry


def test_baselines_on_im2gps3k_are_those_of_independent_runs(shared_data):
    geotags = shared_data / "geotags"
    training = read_training_coordinates(geotags / "mp16_coordinates_100k.csv")
    results, _ = judge_baselines(read_test_set(geotags / "im2gps3k_places365.csv"), training, num_resamples=100)
    known = {  # mean km, and how far another draw of training photos or clusters may lie from it
        "geometric_median": (5466, 15),
        "densest_200km": (5490, 15),
        "random_training_photo": (7141, 40),
        "random_guess": (8907, 450),
        "uniform_on_sphere": (10003, 60),
    }
    for name, (mean_km, tolerance) in known.items():
        assert results[name]["mean_km"] == pytest.approx(mean_km, abs=tolerance), name
    assert results["densest_200km"]["accuracy_within_km"]["200"] == pytest.approx(0.036, abs=0.003)
    assert results["geometric_median"]["accuracy_within_km"]["2500"] == pytest.approx(0.330, abs=0.003)
