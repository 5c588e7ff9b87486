"""Where the neighbours of a photo are dense: [L]kNN, the answer from many photos instead of one.

Every neighbour puts a kernel on the sphere at its own place, weighted by its similarity; the answer is the neighbour's
place where the sum is largest. The kernels are von Mises-Fisher densities, whose sum is a posterior over the Earth.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from geomae.geography import EARTH_RADIUS_KM, draw_uniform, great_circle_km, to_degrees, unit_vectors
from geomae.retrieval.neighbours import Neighbours

__all__ = ["densest_neighbours", "kernel_log_density", "measure_kernel_posterior", "nearest_neighbours"]

LOG_SPHERE = float(np.log(4 * np.pi))
SMALLEST_SIMILARITY = 1e-6  # of a photo that points away: its weight is as good as none, and its logarithm is finite
MAX_PAIRS = 4_000_000  # of neighbours held at once


def nearest_neighbours(neighbours: Neighbours) -> NDArray[np.float64]:
    """The most similar photo's place: `(n, 2)` degrees."""
    return neighbours.places_deg[:, 0]


def densest_neighbours(neighbours: Neighbours, *, sigma_km: float, similarity_exponent: float) -> NDArray[np.float64]:
    """The neighbour's place where the weighted kernels of all neighbours sum up to most.

    Args:
        neighbours: of n photos, k each.
        sigma_km: standard deviation of the kernel along any great circle, km.
        similarity_exponent: a neighbour of cosine s weighs `max(s, 0) ** similarity_exponent`; 0: all weigh the same.

    Returns:
        `(n, 2)` degrees; the most similar of places that are equally dense.

    Source: Vo, Jacobs and Hays (2017), "Revisiting IM2GPS in the deep learning era", section on kernel density.
    """
    log_weights, places = _log_weights(neighbours, similarity_exponent), unit_vectors(neighbours.places_deg)
    answers = np.empty((len(places), 2))
    for rows in _blocks(*log_weights.shape):
        cosines = np.einsum("nid,njd->nij", places[rows], places[rows])
        kernels = np.exp((np.minimum(cosines, 1.0) - 1.0) * concentration(sigma_km))
        density = np.einsum("nij,nj->ni", kernels, np.exp(log_weights[rows]))
        density[~np.isfinite(log_weights[rows])] = -1.0  # not found: nobody's place
        best = np.argmax(density, axis=1)
        answers[rows] = np.take_along_axis(neighbours.places_deg[rows], best[:, None, None], 1)[:, 0]
    return answers


def kernel_log_density(
    neighbours: Neighbours,
    coordinates_deg: NDArray[np.float64],
    *,
    sigma_km: float,
    similarity_exponent: float,
    uniform_share: float,
) -> NDArray[np.float64]:
    """Density of the posterior at one point for each photo, in nats per steradian; its negative is the NLL.

    Args:
        neighbours: of n photos, k each.
        coordinates_deg: `(n, 2)` latitude and longitude.
        sigma_km: as `densest_neighbours`.
        similarity_exponent: as `densest_neighbours`.
        uniform_share: of the mass, 0 to 1, that may lie anywhere on Earth; the kernels share the rest. Without it, a
            photo far from all its neighbours would cost thousands of nats.

    Returns:
        `(n,)`.
    """
    kappa = concentration(sigma_km)
    truth, places = unit_vectors(coordinates_deg), unit_vectors(neighbours.places_deg)
    # not of the cosine, which has lost the digits of a short distance: 1 - cos = |x - y|^2 / 2
    closeness = -kappa * np.square(truth[:, None] - places).sum(axis=-1) / 2  # (n, k, 3) -> (n, k)
    log_scale = np.log(kappa) - np.log(2 * np.pi) - np.log1p(-np.exp(-2 * kappa))
    from_kernels = logsumexp(_log_weights(neighbours, similarity_exponent) + closeness, axis=1) + log_scale
    return np.asarray(np.logaddexp(from_kernels + np.log1p(-uniform_share), np.log(uniform_share) - LOG_SPHERE))


def measure_kernel_posterior(
    neighbours: Neighbours,
    answers_deg: NDArray[np.float64],
    truth_deg: NDArray[np.float64],
    *,
    sigma_km: float,
    similarity_exponent: float,
    uniform_share: float,
    num_draws: int = 2000,
) -> dict[str, NDArray[np.float64]]:
    """What `metrics.json` says of a posterior, for each photo: `POSTERIOR_COLUMNS` of `geomae.evaluation.posterior`.

    Args:
        neighbours: of n photos.
        answers_deg: `(n, 2)`, around which the mass is measured.
        truth_deg: `(n, 2)`.
        sigma_km: as `densest_neighbours`.
        similarity_exponent: as `densest_neighbours`.
        uniform_share: as `kernel_log_density`.
        num_draws: points drawn from each posterior: radii and shares have the noise of so many draws.

    Returns:
        `(n,)` each: `nll`; `radius_50_km` and `radius_90_km`, which hold that share of the mass; `expected_km`, the
        mean distance; `mass_within_error`, the share of the mass that is nearer to the answer than the truth is.
    """
    shape: dict[str, float] = {"sigma_km": sigma_km, "similarity_exponent": similarity_exponent}
    measured = {name: np.empty(len(truth_deg)) for name in ("radius_50_km", "radius_90_km", "expected_km")}
    measured["mass_within_error"] = np.empty(len(truth_deg))
    rng, error_km = np.random.default_rng(0), great_circle_km(answers_deg, truth_deg)
    weights = np.exp(_log_weights(neighbours, similarity_exponent)) * (1.0 - uniform_share)
    for row, places_deg in enumerate(neighbours.places_deg):
        chosen = rng.choice(len(places_deg) + 1, num_draws, p=[*weights[row], 1.0 - weights[row].sum()])
        is_uniform = chosen == len(places_deg)
        draws_deg = _draw_around(places_deg[np.minimum(chosen, len(places_deg) - 1)], concentration(sigma_km), rng)
        draws_deg[is_uniform] = draw_uniform(int(is_uniform.sum()), rng)
        distance_km = great_circle_km(draws_deg, answers_deg[row])
        measured["radius_50_km"][row], measured["radius_90_km"][row] = np.quantile(distance_km, [0.5, 0.9])
        measured["expected_km"][row] = distance_km.mean()
        measured["mass_within_error"][row] = (distance_km < error_km[row]).mean()
    return {"nll": -kernel_log_density(neighbours, truth_deg, **shape, uniform_share=uniform_share), **measured}


def _draw_around(centres_deg: NDArray[np.float64], kappa: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """One point from the von Mises-Fisher density around each of `(n, 2)` centres, in degrees.

    Source: Jakob (2012), "Numerically stable sampling of the von Mises-Fisher distribution on S2".
    """
    centres, uniform = unit_vectors(centres_deg), rng.random(len(centres_deg))
    below_one = -np.log(uniform + (1.0 - uniform) * np.exp(-2 * kappa)) / kappa  # 1 - cos of the distance drawn
    tangent = rng.standard_normal(centres.shape)
    tangent -= (tangent * centres).sum(axis=1, keepdims=True) * centres
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    sine = np.sqrt(below_one * (2.0 - below_one))
    return to_degrees((1.0 - below_one)[:, None] * centres + sine[:, None] * tangent)


def concentration(sigma_km: float) -> float:
    """Of a von Mises-Fisher density that falls from its centre like a Gaussian with this standard deviation."""
    return (EARTH_RADIUS_KM / sigma_km) ** 2


def _log_weights(neighbours: Neighbours, similarity_exponent: float) -> NDArray[np.float64]:
    """`(n, k)` logarithms of weights that sum to 1; -inf where there is no neighbour."""
    log_similarity = np.log(np.clip(neighbours.similarity, SMALLEST_SIMILARITY, None))
    log_weights = np.where(np.isfinite(neighbours.similarity), similarity_exponent * log_similarity, -np.inf)
    return np.asarray(log_weights - logsumexp(log_weights, axis=1, keepdims=True))


def _blocks(num_photos: int, num_neighbours: int) -> Iterator[slice]:
    """Rows whose pairs of neighbours fit into memory."""
    size = max(1, MAX_PAIRS // num_neighbours**2)
    for start in range(0, num_photos, size):
        yield slice(start, start + size)
