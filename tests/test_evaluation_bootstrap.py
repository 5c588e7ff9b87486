"""Intervals around the numbers."""

import numpy as np
import pytest
from scipy.stats import binom

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation import bootstrap as bootstrap_module
from geomae.evaluation import bootstrap_intervals, draw_cluster_counts, resampled_metrics, summarise_errors


def width(interval):
    return interval[1] - interval[0]


def test_interval_of_the_mean_is_that_of_the_central_limit_theorem():
    rng = np.random.default_rng(0)
    error_km = rng.exponential(1000, 4000)
    standard_error = error_km.std() / np.sqrt(4000)
    low, high = bootstrap_intervals(error_km)["mean_km"]
    assert low == pytest.approx(error_km.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert high == pytest.approx(error_km.mean() + 1.96 * standard_error, abs=0.2 * standard_error)


def test_interval_of_an_accuracy_is_that_of_the_binomial():
    error_km = np.array([100.0] * 300 + [5000.0] * 700)
    low, high = bootstrap_intervals(error_km)["accuracy_within_km"]["200"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = {"mean_km": 0, "median_km": 0}
    truth = {"mean_km": 1000.0, "median_km": 1000.0 * np.log(2)}  # of the exponential distribution
    for seed in range(200):
        intervals = bootstrap_intervals(rng.exponential(1000, 200), num_resamples=400, seed=seed)
        for key in covered:
            covered[key] += intervals[key][0] <= truth[key] <= intervals[key][1]
    assert 0.88 <= covered["mean_km"] / 200 <= 0.99
    assert 0.88 <= covered["median_km"] / 200 <= 0.99


@pytest.mark.slow
def test_clustered_interval_covers_the_truth_where_the_independent_one_does_not():
    rng = np.random.default_rng(4)
    covered = {"clustered": 0, "independent": 0}
    for seed in range(300):
        authors = np.repeat(np.arange(80), rng.integers(1, 15, 80))
        error_km = 3000 + rng.normal(0, 800, 80)[authors] + rng.normal(0, 200, len(authors))
        for name, clusters in (("clustered", authors), ("independent", None)):
            low, high = bootstrap_intervals(error_km, clusters, num_resamples=300, seed=seed)["mean_km"]
            covered[name] += low <= 3000 <= high
    fewest, most = binom.interval(0.998, 300, 0.95)
    assert fewest <= covered["clustered"] <= most
    assert covered["independent"] < 0.7 * 300


def test_clustered_intervals_are_wider_where_authors_repeat_themselves():
    rng = np.random.default_rng(0)
    authors = np.repeat(np.arange(50), 20)
    error_km = np.abs(3000 + rng.normal(0, 800, 50)[authors] + rng.normal(0, 200, 1000))
    clustered, independent = bootstrap_intervals(error_km, authors), bootstrap_intervals(error_km)
    for key in ("mean_km", "median_km", "geoscore"):
        assert width(clustered[key]) > 2 * width(independent[key]), key
    for share in ("0.25", "0.75"):
        assert width(clustered["quantiles_km"][share]) > 2 * width(independent["quantiles_km"][share])


def test_clusters_of_one_photo_each_are_independent_photos():
    error_km = np.random.default_rng(0).exponential(1000, 500)
    alone = bootstrap_intervals(error_km)
    named = bootstrap_intervals(error_km, [f"author {number:03d}" for number in range(500)])
    assert alone == named


def test_median_of_resamples_is_the_plain_median_of_the_repeated_photos():
    error_km, authors = np.random.default_rng(1).exponential(900, 24), np.arange(24) % 12
    counts = draw_cluster_counts(12, 500, np.random.default_rng(0)).astype(int)
    medians = [np.median(np.repeat(error_km, row[authors])) for row in counts]
    interval = bootstrap_intervals(error_km, authors, num_resamples=500)["median_km"]
    assert interval == pytest.approx(np.quantile(medians, [0.025, 0.975]))


@pytest.mark.parametrize(("num_photos", "num_authors"), [(2, 2), (5, 3), (61, 7), (400, 160)])
@pytest.mark.parametrize("rounded_to_km", [0.001, 500.0])  # 500: many photos have the same error
def test_every_resample_has_the_metrics_of_its_photos_written_out(num_photos, num_authors, rounded_to_km):
    rng = np.random.default_rng(num_photos)
    error_km = np.round(rng.exponential(3000, num_photos) / rounded_to_km) * rounded_to_km
    authors = np.concatenate([np.arange(num_authors), rng.integers(0, num_authors, num_photos - num_authors)])
    counts = draw_cluster_counts(num_authors, 100, np.random.default_rng(7)).astype(int)
    resampled = resampled_metrics(error_km, authors, num_resamples=100, seed=7)
    for row, count in enumerate(counts):
        expected = summarise_errors(np.repeat(error_km, count[authors]))
        for key in ("mean_km", "median_km", "geoscore"):
            assert resampled[key][row] == pytest.approx(expected[key], rel=1e-12)
        for key in ("accuracy_within_km", "quantiles_km"):
            of_row = {name: values[row] for name, values in resampled[key].items()}
            assert of_row == pytest.approx(expected[key], rel=1e-12)


def test_the_median_of_an_even_number_of_photos_lies_halfway_between_the_middle_two():
    resampled = resampled_metrics([10.0, 20.0], num_resamples=100)
    assert set(resampled["median_km"]) == {10.0, 15.0, 20.0}  # one of them twice, or each once


def test_asked_for_quantiles_are_given_and_the_median_always():
    error_km = np.random.default_rng(0).exponential(1000, 50)
    some = bootstrap_intervals(error_km, quantiles=(0.9,))
    assert list(some["quantiles_km"]) == ["0.9"]
    assert some["median_km"] == bootstrap_intervals(error_km)["quantiles_km"]["0.5"]


def test_the_size_of_chunks_changes_no_draw(monkeypatch):
    error_km, authors = np.random.default_rng(0).exponential(1000, 300), np.arange(300) % 70
    whole = bootstrap_intervals(error_km, authors, num_resamples=1000)
    monkeypatch.setattr(bootstrap_module, "CHUNK_ELEMENTS", 70 * 33)
    monkeypatch.setattr(bootstrap_module, "SLAB_ELEMENTS", 70 * 7)
    in_parts = bootstrap_intervals(error_km, authors, num_resamples=1000)
    for key in ("mean_km", "median_km", "geoscore"):
        assert in_parts[key] == pytest.approx(whole[key], rel=1e-12)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    error_km = np.random.default_rng(0).exponential(1000, 300)
    assert bootstrap_intervals(error_km, seed=5) == bootstrap_intervals(error_km, seed=5)
    assert bootstrap_intervals(error_km, seed=5)["mean_km"] != bootstrap_intervals(error_km, seed=6)["mean_km"]


def test_intervals_do_not_depend_on_the_order_of_photos():
    rng = np.random.default_rng(0)
    error_km, authors = rng.exponential(1000, 300), rng.integers(0, 40, 300)
    order = rng.permutation(300)
    first, second = bootstrap_intervals(error_km, authors), bootstrap_intervals(error_km[order], authors[order])
    assert first == second  # to the last digit


def test_every_resample_has_as_many_clusters_as_there_are():
    counts = draw_cluster_counts(17, 50, np.random.default_rng(0))
    assert counts.shape == (50, 17)
    assert (counts.sum(axis=1) == 17).all()


def test_standard_error_on_im2gps3k_clustered_by_author_is_the_measured_one(shared_data):
    rows = np.genfromtxt(
        shared_data / "geotags" / "im2gps3k_places365.csv", delimiter=",", skip_header=1, usecols=(1, 2, 3), dtype=str
    )
    from geomae.geography import great_circle_km

    error_km = great_circle_km([54.68, -3.04], rows[:, 1:].astype(float))
    # Measured independently: 420 km clustered by author, 69 km if photos were independent.
    assert width(bootstrap_intervals(error_km, rows[:, 0])["mean_km"]) / 3.92 == pytest.approx(420, rel=0.07)
    assert width(bootstrap_intervals(error_km)["mean_km"]) / 3.92 == pytest.approx(69, rel=0.07)


@pytest.mark.parametrize("num_clusters", [1, 2, 9])
def test_few_clusters_give_no_interval_instead_of_one_that_is_too_narrow(num_clusters):
    error_km = np.arange(40.0)
    assert bootstrap_intervals(error_km, np.arange(40) % num_clusters) is None
    assert bootstrap_intervals(error_km[:num_clusters]) is None
    assert bootstrap_intervals(error_km, np.arange(40) % 10) is not None
    assert bootstrap_intervals(error_km[:10]) is not None


@pytest.mark.parametrize("num_clusters", [10, 25, 200])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_no_hit_and_only_hits_have_the_exact_interval_of_as_many_trials_as_clusters(num_clusters, confidence):
    error_km, authors = np.full(400, 100.0), np.arange(400) % num_clusters
    intervals = bootstrap_intervals(
        error_km, authors, thresholds_km=(99, 101), confidence=confidence, num_resamples=100
    )["accuracy_within_km"]
    most = 1 - ((1 - confidence) / 2) ** (1 / num_clusters)  # k = 0 of Clopper and Pearson in closed form
    assert intervals["99"] == pytest.approx([0.0, most])
    assert intervals["101"] == pytest.approx([1 - most, 1.0])


def test_intervals_of_a_rare_hit_cover_its_share_as_often_as_they_say():
    """A share of 1 in 40, with 30 authors: without a hit among them, [0, 0] would miss it."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        error_km = np.where(rng.random(30) < 0.025, 100.0, 900.0)
        low, high = bootstrap_intervals(error_km, thresholds_km=(200,), num_resamples=100, seed=seed)[
            "accuracy_within_km"
        ]["200"]
        covered += low <= 0.025 <= high
    assert covered >= 0.93 * 200


@pytest.mark.parametrize("num_resamples", [0, -1, 99])
def test_too_few_resamples_for_an_interval_are_refused(num_resamples):
    with pytest.raises(ConfigError, match=f"num_resamples must be at least 100 for an interval; got {num_resamples}"):
        bootstrap_intervals([1.0, 2.0, 3.0], num_resamples=num_resamples)


def test_what_cannot_be_resampled_is_refused():
    for error_km, clusters, message in (
        ([], None, r"at least one photo; got the shape \(0,\)"),
        ([1.0, np.nan], None, r"1 of them not finite"),
        ([[1.0], [2.0]], None, r"got the shape \(2, 1\)"),
        ([1.0, 2.0], ["ann"], "got 1 clusters of 2 photos"),
    ):
        for resample in (bootstrap_intervals, resampled_metrics):
            with pytest.raises(PredictionError, match=message):
                resample(error_km, clusters)
    for options, message in (
        ({"quantiles": (0.5, 1.5)}, r"shares of photos from 0 to 1; got 1\.5"),
        ({"quantiles": (np.nan,)}, "got nan"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
    ):
        for resample in (bootstrap_intervals, resampled_metrics):
            with pytest.raises(ConfigError, match=message):
                resample(np.arange(20.0), **options)
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match=f"confidence must be a share between 0 and 1, .* got {confidence}"):
            bootstrap_intervals(np.arange(20.0), confidence=confidence)


def test_labels_may_be_any_objects():
    error_km = np.random.default_rng(0).exponential(900, 48)
    mixed = [None, 3, "ann", ("a", 1), 2.5, True, *"bcdefg"] * 4
    named = [str(label) for label in mixed]
    assert bootstrap_intervals(error_km, mixed) == bootstrap_intervals(error_km, named)
    assert bootstrap_intervals(error_km, np.array(named, dtype=object)) == bootstrap_intervals(error_km, named)
