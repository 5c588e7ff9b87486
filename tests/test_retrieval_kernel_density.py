"""Answers from many neighbours: against the formula written out, and against integrals over the sphere."""

import math

import numpy as np
import pytest
from scipy.stats import vonmises_fisher

from geomae.geography import EARTH_RADIUS_KM, great_circle_km, unit_vectors
from geomae.retrieval.kernel_density import (
    densest_neighbours,
    kernel_log_density,
    measure_kernel_posterior,
    nearest_neighbours,
)
from geomae.retrieval.neighbours import Neighbours


def random_neighbours(num_photos=30, k=12, seed=0):
    """Some of them in one town, some anywhere; similarities fall, and the last ones point away."""
    rng = np.random.default_rng(seed)
    places = np.stack([rng.uniform(-89, 89, (num_photos, k)), rng.uniform(-180, 180, (num_photos, k))], axis=-1)
    places[:, ::3] = places[:, :1] + rng.normal(0, 1, (num_photos, len(range(0, k, 3)), 2))
    places[..., 0] = np.clip(places[..., 0], -90, 90)
    return Neighbours(-np.sort(-rng.uniform(-0.2, 1, (num_photos, k)), axis=1), places)


def written_out(similarity, places_deg, sigma_km, exponent):
    """The densest of one photo's neighbours, with no array of more than one number."""
    best, best_density = 0, -1.0
    for candidate, place in enumerate(places_deg):
        density = 0.0
        for cosine, other in zip(similarity, places_deg, strict=True):
            latitude, longitude = math.radians(place[0]), math.radians(place[1])
            other_latitude, other_longitude = math.radians(other[0]), math.radians(other[1])
            cos_angle = math.sin(latitude) * math.sin(other_latitude)
            cos_angle += math.cos(latitude) * math.cos(other_latitude) * math.cos(longitude - other_longitude)
            weight = max(cosine, 1e-6) ** exponent
            density += weight * math.exp((6371.0088 / sigma_km) ** 2 * (cos_angle - 1))
        if density > best_density * (1 + 1e-9):
            best, best_density = candidate, density
    return places_deg[best]


@pytest.mark.parametrize(("sigma_km", "exponent"), [(50.0, 1.0), (300.0, 0.5), (1000.0, 4.0)])
def test_the_answer_is_the_place_where_the_weighted_kernels_sum_up_to_most(sigma_km, exponent):
    neighbours = random_neighbours()
    answers = densest_neighbours(neighbours, sigma_km=sigma_km, similarity_exponent=exponent)
    rows = zip(neighbours.similarity, neighbours.places_deg, strict=True)
    assert answers.tolist() == [written_out(*row, sigma_km, exponent).tolist() for row in rows]
    assert (answers != nearest_neighbours(neighbours)).any()  # else this would test nothing


def test_one_neighbour_answers_with_its_own_place():
    neighbours = random_neighbours().first(1)
    answers = densest_neighbours(neighbours, sigma_km=10.0, similarity_exponent=2.0)
    assert answers.tolist() == neighbours.places_deg[:, 0].tolist()


def test_two_of_three_outvote_the_most_similar_unless_similarity_counts_for_more():
    places = np.array([[[50.0, 10.0], [-30.0, 20.0], [-30.1, 20.0]]])
    neighbours = Neighbours(np.array([[0.9, 0.8, 0.7]]), places)
    assert densest_neighbours(neighbours, sigma_km=100.0, similarity_exponent=0.0)[0, 0] == -30.0
    assert densest_neighbours(neighbours, sigma_km=100.0, similarity_exponent=100.0)[0, 0] == 50.0


def test_neighbours_across_the_date_line_are_near():
    places = np.array([[[0.0, 0.0], [0.0, 179.9], [0.0, -179.9]]])
    neighbours = Neighbours(np.array([[0.9, 0.9, 0.9]]), places)
    assert abs(densest_neighbours(neighbours, sigma_km=100.0, similarity_exponent=1.0)[0, 1]) == 179.9


def test_a_place_that_was_not_found_neither_answers_nor_weighs():
    places = np.array([[[10.0, 10.0], [50.0, 50.0], [50.0, 50.0]]])
    neighbours = Neighbours(np.array([[0.5, -np.inf, -np.inf]]), places)
    how = {"sigma_km": 100.0, "similarity_exponent": 0.0}
    assert densest_neighbours(neighbours, **how).tolist() == [[10.0, 10.0]]
    at = np.array([[11.0, 10.0]])
    alone = kernel_log_density(neighbours.first(1), at, **how, uniform_share=0.1)
    assert kernel_log_density(neighbours, at, **how, uniform_share=0.1) == pytest.approx(alone)


def test_many_photos_are_answered_in_blocks_as_each_alone(monkeypatch):
    neighbours = random_neighbours(num_photos=7)
    how = {"sigma_km": 200.0, "similarity_exponent": 1.0}
    whole = densest_neighbours(neighbours, **how)
    monkeypatch.setattr("geomae.retrieval.kernel_density.MAX_PAIRS", 300)  # two photos at a time
    assert densest_neighbours(neighbours, **how).tolist() == whole.tolist()


@pytest.mark.parametrize("sigma_km", [100.0, 500.0, 3000.0])
def test_the_density_is_that_of_scipys_von_mises_fisher_mixture(sigma_km):
    neighbours = random_neighbours(num_photos=5)
    truth = neighbours.places_deg[:, 0] + np.array([0.5, -0.5])
    measured = kernel_log_density(neighbours, truth, sigma_km=sigma_km, similarity_exponent=1.0, uniform_share=0.2)
    for row in range(5):
        weights = np.maximum(neighbours.similarity[row], 1e-6)
        kernels = [
            vonmises_fisher(mean, (EARTH_RADIUS_KM / sigma_km) ** 2).pdf(unit_vectors(truth[row]))
            for mean in unit_vectors(neighbours.places_deg[row])
        ]
        density = 0.8 * np.dot(weights / weights.sum(), kernels) + 0.2 / (4 * np.pi)
        assert measured[row] == pytest.approx(np.log(density), rel=1e-6)


def test_the_density_sums_up_to_one_over_the_sphere():
    neighbours = random_neighbours(num_photos=1)
    z, weights = np.polynomial.legendre.leggauss(200)
    longitudes = np.arange(400) * 0.9 - 180
    points = np.stack(np.broadcast_arrays(np.degrees(np.arcsin(z))[:, None], longitudes[None]), axis=-1).reshape(-1, 2)
    many = Neighbours(
        np.repeat(neighbours.similarity, len(points), 0), np.repeat(neighbours.places_deg, len(points), 0)
    )
    log_density = kernel_log_density(many, points, sigma_km=800.0, similarity_exponent=1.0, uniform_share=0.1)
    total = (np.exp(log_density).reshape(200, 400) * weights[:, None]).sum() * 2 * np.pi / 400
    assert total == pytest.approx(1.0, abs=1e-9)


def test_a_photo_far_from_all_neighbours_costs_what_the_uniform_share_leaves():
    neighbours = Neighbours(np.array([[0.9]]), np.array([[[0.0, 0.0]]]))
    far = kernel_log_density(
        neighbours, np.array([[0.0, 180.0]]), sigma_km=10.0, similarity_exponent=1.0, uniform_share=0.1
    )
    assert far == pytest.approx([np.log(0.1 / (4 * np.pi))])


def test_radii_of_one_kernel_are_those_of_its_distribution_function():
    neighbours = Neighbours(np.full((40, 1), 0.9), np.tile([[[40.0, 170.0]]], (40, 1, 1)))
    answers = neighbours.places_deg[:, 0]
    kappa, truth = (EARTH_RADIUS_KM / 400.0) ** 2, answers + np.array([2.0, 0.0])
    measured = measure_kernel_posterior(
        neighbours, answers, truth, sigma_km=400.0, similarity_exponent=1.0, uniform_share=1e-9
    )
    below = {q: np.arccos(1 + np.log(1 - q * (1 - np.exp(-2 * kappa))) / kappa) * EARTH_RADIUS_KM for q in (0.5, 0.9)}
    error_rad = float(great_circle_km(answers[0], truth[0])) / EARTH_RADIUS_KM
    share = (1 - np.exp(-kappa * (1 - np.cos(error_rad)))) / (1 - np.exp(-2 * kappa))
    assert measured["radius_50_km"].mean() == pytest.approx(below[0.5], rel=0.01)
    assert measured["radius_90_km"].mean() == pytest.approx(below[0.9], rel=0.01)
    assert measured["expected_km"].mean() == pytest.approx(400.0 * np.sqrt(np.pi / 2), rel=0.01)  # of a flat Gaussian
    assert measured["mass_within_error"].mean() == pytest.approx(share, abs=0.01)


def test_the_uniform_share_of_a_posterior_reaches_a_quarter_of_the_way_around_on_average():
    neighbours = Neighbours(np.full((40, 1), 0.9), np.tile([[[40.0, 170.0]]], (40, 1, 1)))
    answers = neighbours.places_deg[:, 0]
    measured = measure_kernel_posterior(
        neighbours, answers, answers, sigma_km=1.0, similarity_exponent=1.0, uniform_share=0.4
    )
    assert measured["expected_km"].mean() == pytest.approx(0.4 * np.pi / 2 * EARTH_RADIUS_KM, rel=0.02)
    assert (measured["radius_50_km"] < 10.0).all()
    assert (measured["radius_90_km"] > 5000.0).all()
