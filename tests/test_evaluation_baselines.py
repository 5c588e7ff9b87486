"""Answers that look at no photo."""

import time

import numpy as np
import pytest

from geomae.errors import ConfigError, SourceError
from geomae.evaluation import (
    TestSet,
    compute_metrics,
    describe_baselines,
    judge_baselines,
    read_test_set,
    read_training_coordinates,
)
from geomae.evaluation import baselines as baselines_module
from geomae.evaluation.baselines import Clusters, densest_point, draw_from_clusters, fit_clusters
from geomae.geography import EARTH_RADIUS_KM, draw_uniform, find_off_earth, great_circle_km, to_degrees, unit_vectors


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
    assert best >= max(each)


def most_points_within(radius_km, places):
    """Exactly: the best circle of a radius has two of the points on its edge, or it could be moved until it has."""
    vectors, angle = unit_vectors(places), radius_km / EARTH_RADIUS_KM
    first, second = (vectors[rows] for rows in np.triu_indices(len(vectors), 1))
    cosine = (first * second).sum(axis=1, keepdims=True)
    near = (cosine > np.cos(2 * angle))[:, 0]
    first, second, cosine = first[near], second[near], cosine[near]
    normal = np.cross(first, second)
    middle = np.cos(angle) / (1 + cosine) * (first + second)
    aside = np.sqrt(np.maximum(0.0, 1 - (middle**2).sum(axis=1, keepdims=True)))
    aside = aside * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    centres = np.concatenate([middle + aside, middle - aside])
    return int((centres @ vectors.T >= np.cos(angle) - 1e-12).sum(axis=1).max())


@pytest.mark.parametrize("radius_km", [1.0, 25.0, 200.0, 750.0, 2500.0])
@pytest.mark.parametrize("centre", [(40.0, 0.0), (-15.0, 179.9), (88.0, 20.0)])
def test_densest_point_has_all_but_one_of_the_photos_that_the_best_circle_has(radius_km, centre):
    rng = np.random.default_rng(int(radius_km))
    spread_deg = 1.5 * radius_km / 111
    places = np.array(centre) + rng.normal(0, spread_deg, (250, 2)) / (1.0, np.cos(np.radians(centre[0])))
    places[:, 0] = np.clip(places[:, 0], -90, 90)
    places[:, 1] = (places[:, 1] + 180) % 360 - 180
    found = (great_circle_km(densest_point(places, radius_km=radius_km), places) <= radius_km).sum()
    assert most_points_within(radius_km, places) - 1 <= found <= most_points_within(radius_km, places)


def test_densest_point_of_a_small_radius_is_not_lost_between_the_degrees():
    rng = np.random.default_rng(0)
    square = np.array([51.50805, -0.12843])
    places = np.concatenate([square + rng.normal(0, 0.002, (60, 2)), square + rng.uniform(-0.5, 0.5, (400, 2))])
    assert great_circle_km(densest_point(places, radius_km=1.0), square) < 0.6  # the cluster is as wide


def test_densest_point_within_half_the_earth_has_every_photo():
    places = draw_uniform(30, np.random.default_rng(0))
    point = densest_point(places, radius_km=20_100.0)
    assert (great_circle_km(point, places) <= 20_100).all()


@pytest.mark.parametrize("radius_km", [25.0, 200.0, 2500.0])
def test_where_one_town_is_all_there_is_its_middle_is_the_densest_point(radius_km):
    town = np.array([48.1, 11.6])
    places = town + np.random.default_rng(1).normal(0, 0.02, (500, 2))
    assert great_circle_km(densest_point(places, radius_km=radius_km), places.mean(axis=0)) < 0.01
    assert densest_point(np.array([[1.0, 2.0]]), radius_km=radius_km) == pytest.approx([1.0, 2.0])


def test_where_the_middle_holds_fewer_the_densest_point_is_still_among_those_with_most():
    """A ring of 40 points and a heap near its edge: around the mean of all a circle would lose part of the ring."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = 1.6 * np.stack([np.sin(angles), np.cos(angles)], axis=1)  # 178 km
    places = np.concatenate([ring, [[0.0, 0.0]], np.tile([[0.0, 1.5]], (100, 1))])
    point = densest_point(places, radius_km=200.0)
    assert (great_circle_km(point, places) <= 200).sum() == 141
    assert (great_circle_km(unit_mean_deg(places), places) <= 200).sum() < 141


def unit_mean_deg(places):
    return to_degrees(unit_vectors(places).mean(axis=0))


def test_densest_point_of_points_all_round_the_earth_is_on_earth():
    places = np.array([[0.0, 0.0], [0.0, 180.0], [90.0, 0.0], [-90.0, 0.0]])
    point = densest_point(places, radius_km=20_100.0)
    assert not find_off_earth(*point).any()


def test_constants_of_many_training_photos_are_those_of_a_part_of_them(test_set, monkeypatch):
    rng = np.random.default_rng(0)
    places = rng.permutation(np.concatenate([rng.normal((50.0, 10.0), 0.2, (4000, 2)), rng.normal(0, 30, (4000, 2))]))
    whole, _ = judge_baselines(test_set, places, num_repeats=1, num_resamples=100)
    monkeypatch.setattr(baselines_module, "MAX_POINTS_TO_FIT", 8000)
    up_to_the_limit, _ = judge_baselines(test_set, places, num_repeats=1, num_resamples=100)
    assert up_to_the_limit == whole
    monkeypatch.setattr(baselines_module, "MAX_POINTS_TO_FIT", 1000)
    fitted_on = []
    monkeypatch.setattr(baselines_module, "geometric_median", lambda points: fitted_on.append(points) or np.zeros(2))
    part, _ = judge_baselines(test_set, places, num_repeats=1, num_resamples=100, seed=0)
    again, _ = judge_baselines(test_set, places, num_repeats=1, num_resamples=100, seed=5)
    assert len(np.unique(fitted_on[0], axis=0)) == 1000  # of 8,000 different ones, each at most once
    assert (np.isin(fitted_on[0][:, 0], places[:, 0])).all()
    for name in ("densest_25km", "densest_200km", "densest_750km"):
        assert part[name]["answer_deg"] == again[name]["answer_deg"], "the draw is another for another seed"
    assert great_circle_km(part["densest_25km"]["answer_deg"], whole["densest_25km"]["answer_deg"]) < 25
    assert part["random_guess"] == whole["random_guess"]


@pytest.mark.slow
def test_baselines_of_as_many_points_as_mp16_has_take_seconds(shared_data):
    training = read_training_coordinates(shared_data / "geotags" / "mp16_coordinates_100k.csv")
    rng = np.random.default_rng(0)
    many = training[rng.integers(0, len(training), 4_700_000)] + rng.normal(0, 0.05, (4_700_000, 2))
    many = np.stack([many[:, 0].clip(-90, 90), (many[:, 1] + 180) % 360 - 180], axis=1)
    test_set = read_test_set(shared_data / "geotags" / "im2gps_places365.csv")
    start = time.process_time()
    judge_baselines(test_set, many)
    assert time.process_time() - start < 60  # 8 s of one core; twenty minutes if all were searched


def test_clusters_have_the_means_and_spreads_of_well_separated_towns():
    rng = np.random.default_rng(0)
    towns = np.concatenate(
        [rng.normal((50.0, 10.0), (1.0, 3.0), (12_000, 2)), rng.normal((-30.0, -60.0), 2.0, (4000, 2))]
    )
    clusters = fit_clusters(towns, 2, rng)
    order = np.argsort(clusters.means_deg[:, 0])
    assert clusters.means_deg[order] == pytest.approx(np.array([[-30.0, -60.0], [50.0, 10.0]]), abs=0.2)
    assert clusters.deviations_deg[order] == pytest.approx(np.array([[2.0, 2.0], [1.0, 3.0]]), abs=0.1)
    assert clusters.shares[order] == pytest.approx([0.25, 0.75])


def test_clusters_are_as_many_as_there_are_distinct_places():
    clusters = fit_clusters(np.array([[1.0, 2.0]] * 50 + [[3.0, 4.0]] * 50), 8, np.random.default_rng(0))
    assert len(clusters.means_deg) <= 2


def test_random_guess_draws_clusters_uniformly_whatever_their_size_unless_by_size():
    clusters = Clusters(np.array([[50.0, 10.0], [-20.0, 179.0]]), np.full((2, 2), 0.1), np.array([0.9, 0.1]))
    for by_size, share in ((False, 0.5), (True, 0.9)):
        drawn = draw_from_clusters(clusters, 10_000, np.random.default_rng(0), by_size=by_size)
        assert (drawn[:, 0] > 0).mean() == pytest.approx(share, abs=0.02)


def test_random_guess_stays_on_earth():
    at_the_edge = Clusters(np.array([[85.0, 175.0]]), np.array([[20.0, 40.0]]), np.ones(1))
    drawn = draw_from_clusters(at_the_edge, 5000, np.random.default_rng(0))
    assert not find_off_earth(drawn[:, 0], drawn[:, 1]).any()


def test_baselines_are_all_judged_and_repeat_with_their_seed(test_set):
    first, errors = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    second, _ = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    assert first == second
    assert list(first) == list(describe_baselines())
    assert errors.column_names == ["id", *describe_baselines()]
    for name, description in describe_baselines().items():
        assert first[name]["description"] == description
    assert errors["geometric_median"].to_numpy().mean() == pytest.approx(first["geometric_median"]["mean_km"])


def test_constants_have_intervals_and_random_answers_a_spread(test_set):
    results, _ = judge_baselines(test_set, two_towns(), num_repeats=3, num_resamples=100)
    assert results["geometric_median"]["intervals_95"]["mean_km"][0] < results["geometric_median"]["mean_km"]
    assert results["random_guess"]["num_runs"] == 3
    assert results["random_guess"]["spread"]["mean_km"] > 0


def test_no_training_coordinates_at_all_are_refused(test_set):
    with pytest.raises(SourceError, match="training_deg holds not one point"):
        judge_baselines(test_set, np.empty((0, 2)))


def test_a_negative_seed_is_refused(test_set):
    with pytest.raises(ConfigError, match=r"seed must be at least 0.*got -1"):
        judge_baselines(test_set, None, seed=-1)


@pytest.mark.parametrize("name", ["num_repeats", "num_clusters"])
def test_no_runs_and_no_clusters_are_refused(test_set, name):
    with pytest.raises(ConfigError, match=rf"{name} must be at least 1.*got 0"):
        judge_baselines(test_set, None, **{name: 0})


def test_each_radius_has_its_densest_point_with_the_most_hits_of_all_constants_there():
    towns = two_towns()
    as_test = TestSet("train", [str(number) for number in range(len(towns))], towns)
    results, _ = judge_baselines(as_test, towns, thresholds_km=(10, 40, 0), num_repeats=1, num_resamples=100)
    constants = {name: result for name, result in results.items() if "answer_deg" in result}
    assert list(constants) == ["geometric_median", "densest_10km", "densest_40km"]
    for key in ("10", "40"):
        most = max(result["num_within_km"][key] for result in constants.values())
        assert constants[f"densest_{key}km"]["num_within_km"][key] == most > 0


def test_baselines_do_not_depend_on_the_order_of_the_test_set(test_set):
    order = np.random.default_rng(3).permutation(400)
    shuffled = TestSet("set", [test_set.ids[row] for row in order], test_set.coordinates_deg[order])
    in_order, errors = judge_baselines(test_set, two_towns(), num_repeats=2, num_resamples=100)
    again, shuffled_errors = judge_baselines(shuffled, two_towns(), num_repeats=2, num_resamples=100)
    assert in_order == again
    assert errors.sort_by("id").equals(shuffled_errors.sort_by("id"))


def test_a_random_baseline_draws_the_same_whichever_radii_are_asked_for(test_set):
    few, _ = judge_baselines(test_set, two_towns(), thresholds_km=(200,), num_repeats=2, num_resamples=100)
    many, _ = judge_baselines(test_set, two_towns(), num_repeats=2, num_resamples=100)
    for name in ("random_training_photo", "random_guess", "random_guess_by_size", "uniform_on_sphere"):
        assert few[name]["mean_km"] == many[name]["mean_km"]


def test_without_training_coordinates_only_the_uniform_guess_is_judged(test_set):
    results, _ = judge_baselines(test_set, None, num_repeats=2)
    assert list(results) == ["uniform_on_sphere"]


def test_uniform_guess_is_a_quarter_of_the_way_round(test_set):
    results, _ = judge_baselines(test_set, None, num_repeats=20)
    assert results["uniform_on_sphere"]["mean_km"] == pytest.approx(10_007.5, rel=0.01)  # pi R / 2 by symmetry


def test_the_constant_at_56_n_4_w_has_the_mean_of_independent_runs(shared_data):
    for name, known_km in (("im2gps3k", 5459), ("im2gps", 5394)):
        truth_deg = read_test_set(shared_data / "geotags" / f"{name}_places365.csv").coordinates_deg
        metrics = compute_metrics(np.broadcast_to([56.0, -4.0], truth_deg.shape), truth_deg)
        assert metrics["mean_km"] == pytest.approx(known_km, abs=0.5), name


@pytest.mark.slow
def test_baselines_on_im2gps3k_are_those_of_independent_runs(shared_data):
    geotags = shared_data / "geotags"
    training = read_training_coordinates(geotags / "mp16_coordinates_100k.csv")
    results, _ = judge_baselines(read_test_set(geotags / "im2gps3k_places365.csv"), training, num_resamples=100)
    # Constants of another draw of training photos lie 15 km away at most.
    for name, known_km in (("geometric_median", 5466), ("densest_200km", 5490)):
        assert results[name]["mean_km"] == pytest.approx(known_km, abs=15), name
    one_run = {  # mean km of one run each, so that it must lie within the spread of ours
        "random_training_photo": 7077,
        "random_guess_by_size": 7194,
        "uniform_on_sphere": 10003,
    }
    for name, known_km in one_run.items():
        spread_km = results[name]["spread"]["mean_km"]
        assert results[name]["mean_km"] == pytest.approx(known_km, abs=2 * spread_km), name
        assert spread_km < 75, name  # so wide that it says nothing, it would not
    guess, spread_km = results["random_guess"]["mean_km"], results["random_guess"]["spread"]["mean_km"]
    assert 200 < spread_km < 400
    assert guess == pytest.approx(8735, abs=3 * spread_km / np.sqrt(20))  # the mean of 160 runs of other seeds
    assert results["densest_200km"]["accuracy_within_km"]["200"] == pytest.approx(0.036, abs=0.003)
    assert results["geometric_median"]["accuracy_within_km"]["2500"] == pytest.approx(0.330, abs=0.003)


def test_the_known_random_guesses_are_two_of_many_refits_of_the_clusters(shared_data):
    geotags = shared_data / "geotags"
    training = read_training_coordinates(geotags / "mp16_coordinates_100k.csv")
    truth_deg = read_test_set(geotags / "im2gps3k_places365.csv").coordinates_deg
    rng = np.random.default_rng(1)
    runs_km = []
    for _ in range(30):
        guesses = draw_from_clusters(fit_clusters(training, 8, rng), len(truth_deg), rng)
        runs_km.append(great_circle_km(guesses, truth_deg).mean())
    for known_km in (8907, 8975):  # of another implementation, and of the thesis
        assert np.quantile(runs_km, 0.05) < known_km < np.quantile(runs_km, 0.95)
