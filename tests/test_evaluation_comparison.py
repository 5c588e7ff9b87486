"""Paired comparisons: published examples, identities and simulations."""

import json

import numpy as np
import pytest

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation import compare_errors, geoscores, holm_adjusted
from geomae.evaluation.bootstrap import draw_cluster_counts

# Student (1908), "The probable error of a mean": hours of sleep gained by ten patients under each of two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
# Hollander and Wolfe (1973), page 29: depression of nine patients before and after a tranquilliser.
DEPRESSION = (
    [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30],
    [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29],
)


def width(interval):
    return interval[1] - interval[0]


def draw_pair(num_photos, seed=0):
    rng = np.random.default_rng(seed)
    error_km = rng.exponential(1500, num_photos)
    return error_km, error_km * rng.lognormal(0, 0.5, num_photos)


def test_t_test_is_that_of_student():
    tested = compare_errors(*SLEEP, num_resamples=100)["paired_t_test"]
    assert tested["t"] == pytest.approx(-4.0621, abs=1e-4)
    assert tested["p"] == pytest.approx(0.002833, abs=1e-6)
    assert tested["degrees_of_freedom"] == 9


def test_wilcoxon_is_that_of_the_textbook():
    tested = compare_errors(*DEPRESSION, num_resamples=100)["wilcoxon"]
    assert tested["statistic"] == 5  # of 45 ranks, 40 are positive
    assert tested["p"] == pytest.approx(0.0390625)
    assert (tested["zero_differences"], tested["num_zero_differences"]) == ("left out", 0)


def test_photos_on_which_both_err_alike_do_not_change_wilcoxon():
    tied = [[*errors, 7.0, 8.0] for errors in DEPRESSION]
    alone, together = (compare_errors(*pair, num_resamples=100)["wilcoxon"] for pair in (DEPRESSION, tied))
    assert (together["statistic"], together["num_zero_differences"]) == (alone["statistic"], 2)
    assert together["p"] == pytest.approx(alone["p"], rel=0.2)  # with zeros, scipy takes the normal approximation


def test_holm_is_that_of_the_published_example():
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.02, None, 0.9]) == [pytest.approx(0.04), None, 0.9]
    assert holm_adjusted([0.6, 0.7]) == [1.0, 1.0]
    assert holm_adjusted([0.3]) == [0.3]


def test_differences_are_first_minus_second():
    compared = compare_errors(
        [100.0, 300.0, 900.0], [150.0, 200.0, 1600.0], num_resamples=100, thresholds_km=[150, 0.5]
    )
    assert compared["num_photos"] == 3
    assert compared["first"]["mean_km"] == pytest.approx(1300 / 3)
    assert compared["second"]["median_km"] == 200
    difference = compared["difference"]
    assert difference["mean_km"] == pytest.approx((-50 + 100 - 700) / 3)
    assert difference["median_km"] == 100
    assert difference["geoscore"] == pytest.approx(
        np.mean(geoscores([100, 300, 900])) - np.mean(geoscores([150, 200, 1600]))
    )
    assert difference["accuracy_within_km"] == {"150": 0.0, "0.5": 0.0}


def test_interval_of_the_mean_difference_is_that_of_the_central_limit_theorem():
    pair = draw_pair(4000)
    differences = pair[0] - pair[1]
    standard_error = differences.std() / np.sqrt(4000)
    low, high = compare_errors(*pair)["intervals_95"]["mean_km"]
    assert low == pytest.approx(differences.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert high == pytest.approx(differences.mean() + 1.96 * standard_error, abs=0.2 * standard_error)


def test_p_of_independent_photos_is_that_of_the_t_test():
    rng = np.random.default_rng(2)
    error_km = rng.exponential(1500, 2000)
    compared = compare_errors(error_km, error_km + rng.normal(10, 400, 2000))
    assert 0.01 < compared["paired_t_test"]["p"] < 0.2
    assert compared["bootstrap"]["p"] == pytest.approx(compared["paired_t_test"]["p"], abs=0.01)


def test_both_models_meet_the_same_resampled_photos():
    error_km = np.random.default_rng(0).exponential(1500, 300)
    intervals = compare_errors(error_km, error_km + 50.0, num_resamples=500)["intervals_95"]
    assert intervals["mean_km"] == pytest.approx([-50.0, -50.0])
    assert intervals["median_km"] == pytest.approx([-50.0, -50.0])


def test_resampled_medians_are_plain_medians_of_the_repeated_photos():
    pair, authors = draw_pair(9), np.array(list("babaccbdd"))
    counts = draw_cluster_counts(4, 500, np.random.default_rng(3))
    times = counts[:, np.searchsorted(["a", "b", "c", "d"], authors)].astype(int)
    medians = [np.median(np.repeat(pair[0], row)) - np.median(np.repeat(pair[1], row)) for row in times]
    interval = compare_errors(*pair, authors, num_resamples=500, seed=3)["intervals_95"]["median_km"]
    assert interval == pytest.approx(np.quantile(medians, [0.025, 0.975]))


def test_clustered_interval_covers_no_difference_where_the_independent_one_and_the_t_test_do_not():
    rng = np.random.default_rng(4)
    authors = np.repeat(np.arange(40), 25)
    covered = {"clustered": 0, "independent": 0, "t_test": 0}
    for seed in range(100):
        error_km = rng.exponential(1500, 1000)
        other_km = error_km + rng.normal(0, 300, 40)[authors] + rng.normal(0, 100, 1000)  # no difference by authors
        for name, clusters in (("clustered", authors), ("independent", None)):
            compared = compare_errors(error_km, other_km, clusters, num_resamples=300, seed=seed)
            low, high = compared["intervals_95"]["mean_km"]
            covered[name] += low <= 0 <= high
        covered["t_test"] += compared["paired_t_test"]["p"] > 0.05
    assert covered["clustered"] >= 87
    assert covered["independent"] < 60
    assert covered["t_test"] < 60


def test_p_is_below_five_hundredths_exactly_where_the_interval_leaves_zero_out():
    for seed in range(40):
        error_km = np.random.default_rng(seed).exponential(1500, 60)
        shift = np.random.default_rng(100 + seed).normal(60, 300, 60)
        compared = compare_errors(error_km, error_km + shift, num_resamples=999)
        low, high = compared["intervals_95"]["mean_km"]
        if abs(compared["bootstrap"]["p"] - 0.05) > 0.005:  # at the edge, a resample more or less decides
            assert (compared["bootstrap"]["p"] < 0.05) == (low > 0 or high < 0)


def test_swapping_the_models_turns_every_sign():
    pair, authors = draw_pair(200), np.arange(200) // 3
    one, other = compare_errors(*pair, authors), compare_errors(*pair[::-1], authors)
    assert one["difference"]["mean_km"] == -other["difference"]["mean_km"]
    assert one["intervals_95"]["median_km"] == pytest.approx([-end for end in other["intervals_95"]["median_km"][::-1]])
    assert one["bootstrap"]["p"] == pytest.approx(other["bootstrap"]["p"])
    assert one["paired_t_test"]["t"] == pytest.approx(-other["paired_t_test"]["t"])
    assert one["wilcoxon"] == other["wilcoxon"]


def test_equal_seeds_give_equal_comparisons_and_the_test_sets_size_is_no_limit():
    pair, authors = draw_pair(3000), np.arange(3000) // 4  # three chunks of resamples
    assert compare_errors(*pair, authors, num_resamples=2000, seed=5) == compare_errors(
        *pair, authors, num_resamples=2000, seed=5
    )
    other = compare_errors(*pair, authors, num_resamples=2000, seed=6)
    assert compare_errors(*pair, authors, num_resamples=2000, seed=5)["intervals_95"] != other["intervals_95"]


def test_equal_errors_are_no_difference_and_undefined_tests_are_none():
    compared = compare_errors([5.0, 70.0, 900.0], [5.0, 70.0, 900.0], num_resamples=100)
    assert compared["intervals_95"]["mean_km"] == [0.0, 0.0]
    assert compared["bootstrap"]["p"] == 1.0
    assert (compared["paired_t_test"]["t"], compared["paired_t_test"]["p"]) == (None, None)
    assert (compared["wilcoxon"]["statistic"], compared["wilcoxon"]["p"]) == (None, None)
    assert compared["wilcoxon"]["num_zero_differences"] == 3


def test_a_constant_difference_has_no_t():
    compared = compare_errors([5.0, 70.0, 900.0, 0.3], [6.0, 71.0, 901.0, 1.3], num_resamples=100)
    assert compared["paired_t_test"] == {"t": None, "p": None, "degrees_of_freedom": 3}


@pytest.mark.parametrize(("errors", "clusters"), [([1.0, 900.0], ["ann"] * 2), ([5.0], None)])
def test_a_single_cluster_gives_no_interval_and_every_number_is_finite_or_none(errors, clusters):
    compared = compare_errors(errors, [error + 1.0 for error in errors], clusters, num_resamples=100)
    assert compared["intervals_95"] is None
    assert compared["bootstrap"]["p"] is None
    assert "no interval can be drawn from a single" in compared["bootstrap"]["reason"]
    json.dumps(compared, allow_nan=False)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(PredictionError, match=r"same photos.*\(2,\) and \(3,\)"):
        compare_errors([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(PredictionError, match="1 of them not finite"):
        compare_errors([1.0, float("nan")], [1.0, 2.0])
    with pytest.raises(PredictionError, match="3 clusters of 2 photos"):
        compare_errors([1.0, 2.0], [1.0, 2.0], ["a", "b", "c"])
    with pytest.raises(ConfigError, match="at least 100 for an interval; got 99"):
        compare_errors([1.0, 2.0], [1.0, 3.0], num_resamples=99)
