"""From a posterior over the Earth to an answer, and to how far off it may be.

A posterior is mass on K places, each with a spread: the cells of a partition with their photos' root mean square
distance, or the components of a mixture. Where places are the same for every photo they are `(K, 3)`, else `(B, K, 3)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .geocell_tensors import chords
from .geodesy import EARTH_RADIUS_KM, great_circle_km

__all__ = [
    "PosteriorSpread",
    "choose_places",
    "chord_km",
    "mass_within",
    "mixture_log_density",
    "spread_around",
    "take",
    "vmf_log_density",
]

PAIRS_AT_ONCE = 2**20
"""Distances between places that are held in memory together: 4 MB stay in a CPU's cache, which is 2.7 times as fast."""

MEDIAN_STEPS = 20

BISECTIONS = 24  # of half the Earth's circumference: down to about a metre


@dataclass
class PosteriorSpread(ModelOutput):
    """How far from an answer the truth is to be expected, by the posterior itself."""

    radius_50_km: Tensor | None = None
    """`(B,)`: half of the mass lies within this distance of the answer, km."""

    radius_90_km: Tensor | None = None
    """`(B,)`: 90 % of the mass does, km."""

    expected_km: Tensor | None = None
    """`(B,)`: mean distance of the mass from the answer, km."""


def chord_km(chord: Tensor) -> Tensor:
    """Great-circle distance of points whose straight distance, on the unit sphere, is `chord`."""
    return 2 * EARTH_RADIUS_KM * torch.asin((chord / 2).clamp(max=1))


def choose_places(
    mass: Tensor, places: Tensor, anchors: Tensor, decodings: Sequence[str], *, kernel_km: float, top_k: int
) -> dict[str, Tensor]:
    """The answer of each decoding.

    `argmax`: the likeliest place. `kernel`: the place with most mass around it, `argmax_i sum_j p_j exp(-d_ij / tau)`.
    `expected_km`: the point of the least expected distance, `argmin_x sum_j p_j d(x, j)`: Weiszfeld's descent from the
    best of the K places and the centre of mass. `mean_in_top_k`: the spherical mean of the k likeliest places.

    Args:
        mass: `(B, K)`, sums to 1.
        places: `(K, 3)` or `(B, K, 3)` unit vectors: what is answered.
        anchors: `(K, 3)` or `(B, K, 3)`: where the mass is, for distances between places.
        decodings: names.
        kernel_km: tau.
        top_k: k; at most K are taken.

    Returns:
        `(B, 3)` unit vectors for each name.
    """
    costs: dict[str, Callable[[Tensor], Tensor]] = {
        # beyond 80 tau nothing counts, and float32's subnormal numbers would make the product ten times slower
        "kernel": lambda km: -torch.exp(-(km / kernel_km).clamp(max=80)),
        "expected_km": lambda km: km,
    }
    expected = expected_costs(mass, anchors, {name: costs[name] for name in costs if name in decodings})
    answers = {}
    for name in decodings:
        if name == "argmax":
            answers[name] = take(places, mass.argmax(dim=-1))
        elif name == "kernel":
            answers[name] = take(places, expected[name].argmin(dim=-1))
        elif name == "expected_km":
            best, centre = take(places, expected[name].argmin(dim=-1)), mean_place(mass, places)
            best_km, centre_km = (
                (mass * great_circle_km(point[:, None], places)).sum(dim=-1) for point in (best, centre)
            )
            # equally good within rounding: mass on two places is as far from each as from all between them
            is_central = centre_km <= best_km * (1 + 1e-5)
            answers[name] = descend_to_median(mass, places, torch.where(is_central[:, None], centre, best))
        else:
            top_mass, top = mass.topk(min(top_k, mass.shape[-1]), dim=-1)
            answers[name] = mean_place(top_mass, take(places, top))
    return answers


def expected_costs(mass: Tensor, places: Tensor, costs: dict[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """`sum_j p_j cost(d_ij)` of answering each place i, `(B, K)` for each named cost of a distance in km.

    Distances between K places are computed in stretches: for 12,893 of them they would take 665 MB.
    """
    if not costs:
        return {}
    stretch = max(1, PAIRS_AT_ONCE // places.shape[-2])
    columns: dict[str, list[Tensor]] = {name: [] for name in costs}
    for part in places.split(stretch, dim=-2):
        distance_km = chord_km(chords(places, part))  # (K, 3), (k, 3) -> (K, k), or (B, K, k)
        for name, cost in costs.items():
            cost_km = cost(distance_km)
            is_shared = cost_km.dim() == 2
            columns[name].append(mass @ cost_km if is_shared else torch.einsum("bj,bji->bi", mass, cost_km))
    return {name: torch.cat(parts, dim=-1) for name, parts in columns.items()}


def descend_to_median(mass: Tensor, places: Tensor, start: Tensor) -> Tensor:
    """`(B, 3)`: the geometric median of mass on `(K, 3)` or `(B, K, 3)` places, near `(B, 3)` where it starts.

    Source: Fletcher, Venkatasubramanian and Joshi (2008), "Robust statistics on Riemannian manifolds via the geometric
    median": Weiszfeld's iteration in the tangent plane; steps from a place that has mass as in Vardi and Zhang (2000).
    """
    for _ in range(MEDIAN_STEPS):
        cosine = (places * start[:, None]).sum(dim=-1)  # (B, K)
        tangent = places - cosine[..., None] * start[:, None]  # (B, K, 3)
        sine = torch.linalg.vector_norm(tangent, dim=-1)
        is_apart = sine > 1e-6  # 6 m; a place that is here, or at the antipode, has no direction
        angle = torch.atan2(sine, cosine).clamp(min=1e-6)
        mass_apart = mass * is_apart
        pull = ((mass_apart / sine.clamp(min=1e-6))[..., None] * tangent).sum(dim=-2)  # (B, 3)
        strength = torch.linalg.vector_norm(pull, dim=-1)
        here = (mass * (~is_apart & (cosine > 0))).sum(dim=-1)
        share = (1 - here / strength.clamp(min=1e-12)).clamp(min=0)
        step = (share / (mass_apart / angle).sum(dim=-1).clamp(min=1e-12))[:, None] * pull
        length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
        start = nn.functional.normalize(length.cos() * start + torch.sinc(length / math.pi) * step, dim=-1)
    return start


def take(places: Tensor, indices: Tensor) -> Tensor:
    """The places `(B, 3)` or `(B, k, 3)` of indices `(B,)` or `(B, k)`, from `(K, 3)` or, each its own, `(B, K, 3)`."""
    if places.dim() == 2:
        return places[indices]
    # no len(indices), no reshape: torch.export would fix the number of photos
    several = indices[:, None] if indices.dim() == 1 else indices
    taken = places.gather(1, several[..., None].expand(-1, -1, 3))
    return taken[:, 0] if indices.dim() == 1 else taken


def mean_place(mass: Tensor, places: Tensor) -> Tensor:
    """`(B, 3)` spherical mean of places by their mass; the likeliest one where they cancel out."""
    mean = (mass[..., None] * places).sum(dim=-2)  # (B, K, 1) * (K, 3) -> (B, 3)
    length = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
    return torch.where(length > 1e-6 * mass.sum(dim=-1, keepdim=True), mean / length, take(places, mass.argmax(dim=-1)))


def mass_within(mass: Tensor, places: Tensor, spread_km: Tensor, answer: Tensor, radius_km: Tensor) -> Tensor:
    """Share of the posterior within a distance of an answer.

    A place's mass is spread as a two-dimensional normal distribution, so that its distance from an answer follows a
    Rice distribution, and the square of it a noncentral chi-squared one. That is a plane's: of mass spread over more
    than 3,000 km, up to a sixth leaks off the sphere.

    Args:
        mass: `(B, K)`.
        places: `(K, 3)` or `(B, K, 3)` unit vectors.
        spread_km: `(K,)` or `(B, K)`, root mean square distance of a place's mass from it.
        answer: `(B, 3)` unit vectors.
        radius_km: `(B,)`.

    Returns:
        `(B,)` from 0 to 1.
    """
    return _share_within(mass, great_circle_km(answer[:, None], places), spread_km, radius_km)


def _share_within(mass: Tensor, distance_km: Tensor, spread_km: Tensor, radius_km: Tensor) -> Tensor:
    variance = spread_km**2 / 2  # along each of two axes
    share = chi_squared_share(radius_km[:, None] ** 2 / variance, distance_km**2 / variance)
    return (mass * share).sum(dim=-1)


def chi_squared_share(value: Tensor, noncentrality: Tensor) -> Tensor:
    """Distribution function of the noncentral chi-squared distribution of two degrees of freedom, within 0.016.

    Source: Sankaran (1963), "Approximations to the non-central chi-square distribution", Biometrika 50.
    """
    mean, half_variance = 2 + noncentrality, 2 + 2 * noncentrality
    h = 1 - (2 / 3) * mean * (2 + 3 * noncentrality) / half_variance**2
    p = half_variance / mean**2
    m = (h - 1) * (1 - 3 * h)
    center = 1 + h * p * (h - 1 - (2 - h) * m * p / 2)
    return torch.special.ndtr(((value / mean) ** h - center) / (h * (2 * p).sqrt() * (1 + m * p / 2)))


def spread_around(mass: Tensor, places: Tensor, spread_km: Tensor, answer: Tensor) -> PosteriorSpread:
    """The distances within which the posterior expects the truth; arguments as `mass_within`.

    The expected distance is the mean of Rice distributions, in Bessel functions.
    """
    distance_km = great_circle_km(answer[:, None], places)  # (B, K)
    radius_50_km, radius_90_km = (_radius_holding(share, mass, distance_km, spread_km) for share in (0.5, 0.9))
    half = (distance_km / spread_km) ** 2 / 2
    bessel = (1 + 2 * half) * torch.special.i0e(half) + 2 * half * torch.special.i1e(half)
    expected_km = (mass * (spread_km * (math.sqrt(math.pi) / 2) * bessel)).sum(dim=-1)
    return PosteriorSpread(radius_50_km, radius_90_km, expected_km)


def _radius_holding(share: float, mass: Tensor, distance_km: Tensor, spread_km: Tensor) -> Tensor:
    """`(B,)` km within which so much of the mass lies, by bisection; half the circumference where it does not."""
    low = torch.zeros_like(mass[:, 0])
    high = torch.full_like(low, math.pi * EARTH_RADIUS_KM)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_enough = _share_within(mass, distance_km, spread_km, middle) >= share
        low, high = torch.where(is_enough, low, middle), torch.where(is_enough, middle, high)
    return high


def vmf_log_density(points: Tensor, means: Tensor, log_concentration: Tensor) -> Tensor:
    """Logarithm of the von Mises-Fisher density on the unit sphere.

    `log k - log 2 pi - log(1 - e^(-2 k)) - k |mean - point|^2 / 2`: the usual `k (mean . point - 1)` loses every
    distance below 2 km to the rounding of float32.

    Args:
        points: `(..., 3)` unit vectors.
        means: `(..., 3)` unit vectors.
        log_concentration: `(...)` log k.

    Returns:
        `(...)` nats per steradian.

    Source: Mardia and Jupp (2000), "Directional Statistics", section 9.3.
    """
    concentration = log_concentration.exp()
    log_constant = log_concentration - math.log(2 * math.pi) - torch.log(-torch.expm1(-2 * concentration))
    return log_constant - concentration * (means - points).square().sum(dim=-1) / 2


def mixture_log_density(log_mass: Tensor, points: Tensor, means: Tensor, log_concentration: Tensor) -> Tensor:
    """`(B,)` log density at `(B, 3)` points of `(B, K)` log mass on von Mises-Fisher distributions around K means."""
    return (log_mass + vmf_log_density(points[:, None], means, log_concentration)).logsumexp(dim=-1)
