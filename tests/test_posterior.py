"""From a posterior to an answer and to its uncertainty, against formulas in float64 and samples."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ncx2

from geomae.geography import geometric_median
from modeling import GeolocationHeadConfig, build_head, great_circle_km, to_degrees, to_unit_vectors
from modeling.geocell_tensors import evenly_spread
from modeling.posterior import chi_squared_share, choose_places, mass_within, spread_around

EARTH_RADIUS_KM = 6371.0088


def decode(mass: list[float], places_deg: list[list[float]], name: str, **options: float) -> list[float]:
    places = to_unit_vectors(torch.tensor(places_deg))
    settings = {"kernel_km": 200.0, "top_k": 3} | options
    chosen = choose_places(torch.tensor([mass]), places, places, [name], **settings)
    return to_degrees(chosen[name])[0].tolist()


def pairwise_km(places_deg: np.ndarray) -> np.ndarray:
    lat, lon = np.radians(places_deg).T
    cosine = np.sin(lat[:, None]) * np.sin(lat) + np.cos(lat[:, None]) * np.cos(lat) * np.cos(lon[:, None] - lon)
    return EARTH_RADIUS_KM * np.arccos(np.clip(cosine, -1, 1))


@pytest.fixture
def random_posterior() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    places_deg = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 70))), rng.uniform(-180, 180, 70)], axis=-1)
    mass = rng.dirichlet(np.full(70, 0.3), size=9)
    return mass, places_deg


@pytest.mark.parametrize("kernel_km", [50.0, 200.0, 2000.0])
@pytest.mark.parametrize("own_places", [False, True])
def test_decodings_are_those_of_the_formulas(random_posterior, kernel_km: float, own_places: bool) -> None:
    mass, places_deg = random_posterior
    distance_km = pairwise_km(places_deg)
    places = to_unit_vectors(torch.tensor(places_deg)).float()
    if own_places:  # each photo has its own, here the same ones
        places = places.expand(len(mass), -1, -1)
    chosen = choose_places(
        torch.tensor(mass).float(), places, places, ["argmax", "kernel", "expected_km"], kernel_km=kernel_km, top_k=1
    )
    expected = {
        "argmax": mass.argmax(axis=1),
        "kernel": (mass @ np.exp(-distance_km / kernel_km)).argmax(axis=1),
    }
    for name, rows in expected.items():
        assert to_degrees(chosen[name]).numpy() == pytest.approx(places_deg[rows], abs=1e-3)
    # no place has a smaller expected distance
    answers = to_degrees(chosen["expected_km"]).double().numpy()
    expected_km = [
        pairwise_km(np.vstack([answer[None], places_deg]))[0, 1:] @ m for answer, m in zip(answers, mass, strict=True)
    ]
    assert (np.array(expected_km) <= (mass @ distance_km).min(axis=1) * (1 + 1e-4)).all()


def test_expected_km_answers_the_geometric_median() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        places_deg = np.stack([rng.uniform(-60, 60, 6), rng.uniform(-60, 60, 6)], axis=-1)
        photos = rng.multinomial(30, rng.dirichlet(np.ones(6)))
        expected = geometric_median(np.repeat(places_deg, photos, axis=0))
        places = to_unit_vectors(torch.tensor(places_deg).float())
        mass = torch.tensor(photos / 30).float()[None]
        answer = choose_places(mass, places, places, ["expected_km"], kernel_km=200.0, top_k=1)["expected_km"]
        least_km, reached_km = (
            pairwise_km(np.vstack([point, places_deg]))[0, 1:] @ photos / 30
            for point in (expected, to_degrees(answer)[0].numpy())
        )
        assert reached_km <= least_km * (1 + 1e-3)


def test_kernel_prefers_the_cluster_and_argmax_the_single_peak() -> None:
    mass = [0.30, 0.24, 0.23, 0.23]
    places = [[-30.0, 150.0], [48.0, 2.0], [48.5, 2.5], [48.2, 3.0]]
    assert decode(mass, places, "argmax") == pytest.approx([-30, 150], abs=1e-3)
    assert decode(mass, places, "kernel") == pytest.approx([48.5, 2.5], abs=0.6)


def test_between_two_equal_places_only_the_expected_distance_answers() -> None:
    places = [[0.0, -30.0], [0.0, 30.0]]
    assert abs(decode([0.5, 0.5], places, "argmax")[1]) == pytest.approx(30, abs=1e-3)
    assert abs(decode([0.5, 0.5], places, "kernel")[1]) == pytest.approx(30, abs=1e-3)
    assert decode([0.5, 0.5], places, "expected_km") == pytest.approx([0, 0], abs=1e-3)


def test_mean_in_top_k_leaves_the_rest_out() -> None:
    mass = [0.3, 0.3, 0.2, 0.2]
    places = [[10.0, 179.0], [10.0, -179.0], [-60.0, 0.0], [-60.0, 10.0]]
    latitude, longitude = decode(mass, places, "mean_in_top_k", top_k=2)
    assert (latitude, abs(longitude)) == (pytest.approx(10, abs=0.01), pytest.approx(180, abs=1e-3))
    assert decode(mass, places, "mean_in_top_k", top_k=100) != pytest.approx([10, 180], abs=5)  # all four


def test_mean_in_top_k_weighs_places_by_their_mass() -> None:
    assert decode([0.75, 0.25], [[0.0, 0.0], [0.0, 8.0]], "mean_in_top_k", top_k=2) == pytest.approx([0, 2], abs=0.01)


@pytest.mark.parametrize("lead", [10.0, 15.0, 20.0, 30.0])
def test_every_decoding_of_a_sure_posterior_answers_the_point_and_not_its_anchor(lead: float) -> None:
    anchors = evenly_spread(400)
    places = torch.nn.functional.normalize(anchors + 0.1 * torch.randn(400, 3), dim=-1)
    logits = torch.randn(1, 400)
    logits[0, 7] += lead
    names = ["argmax", "kernel", "expected_km", "mean_in_top_k"]
    chosen = choose_places(logits.softmax(dim=-1), places[None], anchors, names, kernel_km=200.0, top_k=1)
    for name, answer in chosen.items():
        far = (
            1.0 if lead > 5 or name != "expected_km" else 5000.0
        )  # of a posterior that is not sure, the median is none
        assert great_circle_km(answer[0], places[7]).item() < far, name


def test_places_that_cancel_out_leave_the_likeliest() -> None:
    assert decode([0.5, 0.5], [[0.0, 0.0], [0.0, 180.0]], "mean_in_top_k")[1] in (pytest.approx(0), pytest.approx(180))


def test_stretches_of_distances_change_nothing(random_posterior, monkeypatch) -> None:
    mass, places_deg = torch.tensor(random_posterior[0]).float(), random_posterior[1]
    places = to_unit_vectors(torch.tensor(places_deg)).float()
    names = ["kernel", "expected_km"]
    whole = choose_places(mass, places, places, names, kernel_km=200.0, top_k=1)
    monkeypatch.setattr("modeling.posterior.PAIRS_AT_ONCE", 70 * 3)
    for name, points in choose_places(mass, places, places, names, kernel_km=200.0, top_k=1).items():
        assert torch.equal(points, whole[name])


def draw(mass: np.ndarray, places: np.ndarray, spread_km: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Points of normal distributions in the tangent planes of places, `(num, 3)`."""
    rows = rng.choice(len(mass), size=num, p=mass)
    start = places[rows]
    east = np.cross([0, 0, 1], start)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north = np.cross(start, east)
    offset = rng.normal(size=(num, 2)) * (spread_km[rows] / math.sqrt(2) / EARTH_RADIUS_KM)[:, None]
    moved = start + offset[:, :1] * east + offset[:, 1:] * north
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def test_radii_hold_what_they_promise_of_points_drawn_from_the_posterior() -> None:
    rng = np.random.default_rng(0)
    places_deg = np.array([[50.0, 5.0], [51.0, 9.0], [40.0, -3.0], [-33.0, 18.0]])
    mass, spread_km = np.array([0.5, 0.2, 0.2, 0.1]), np.array([100.0, 150.0, 60.0, 300.0])
    places = to_unit_vectors(torch.tensor(places_deg))
    drawn = torch.tensor(draw(mass, places.numpy(), spread_km, 400_000, rng))
    for answer in (places[0], places[3], to_unit_vectors(torch.tensor([47.0, 3.0]).double())):
        distance_km = great_circle_km(drawn, answer).numpy()
        posterior = (torch.tensor(mass)[None], places, torch.tensor(spread_km), answer[None])
        spread = spread_around(*posterior)
        for share, radius in ((0.5, spread.radius_50_km), (0.9, spread.radius_90_km)):
            assert np.mean(distance_km <= radius.item()) == pytest.approx(share, abs=0.02)
            assert mass_within(*posterior, radius).item() == pytest.approx(share, abs=1e-3)
        assert spread.expected_km.item() == pytest.approx(distance_km.mean(), rel=0.01)


def test_one_cell_has_the_radii_of_a_normal_distribution() -> None:
    place = to_unit_vectors(torch.tensor([[12.0, 30.0]]).double())
    spread = spread_around(torch.ones(1, 1).double(), place, torch.tensor([100.0]).double(), place)
    # Rayleigh, with a mean square of 100 km squared
    assert spread.radius_50_km.item() == pytest.approx(100 * math.sqrt(math.log(2)), rel=0.02)
    assert spread.radius_90_km.item() == pytest.approx(100 * math.sqrt(math.log(10)), rel=0.02)
    assert spread.expected_km.item() == pytest.approx(100 * math.sqrt(math.pi) / 2, rel=1e-5)


@pytest.mark.parametrize("noncentrality", [0.0, 0.3, 2.0, 10.0, 1e3, 1e6])
def test_share_within_a_radius_is_that_of_the_noncentral_chi_squared_distribution(noncentrality: float) -> None:
    shares = np.linspace(0.02, 0.98, 25)
    values = torch.tensor(ncx2.ppf(shares, 2, noncentrality))
    assert chi_squared_share(values, torch.tensor(noncentrality)).numpy() == pytest.approx(shares, abs=0.016)


@pytest.mark.parametrize(
    "settings",
    [
        {"head_type": "geocells", "num_geocells": [30]},
        {"head_type": "geocells", "num_geocells": [5, 20, 60], "temperature": 2.5},
        {"head_type": "geocells", "num_geocells": [5, 30], "num_scenes": 3, "scene_experts": True},
        {"head_type": "hybrid", "num_geocells": [30]},
        {"head_type": "vmf_mixture", "num_geocells": [30], "temperature": 0.4},
        {"head_type": "vmf_mixture", "num_mixture_components": 6},
    ],
    ids=lambda settings: "-".join(f"{value}" for value in settings.values()),
)
def test_posterior_sums_to_one_over_the_sphere(settings: dict) -> None:
    head = build_head(8, GeolocationHeadConfig(head_hidden_sizes=[16], **settings)).eval()
    num_points = 60_000
    with torch.no_grad():
        logits = head(torch.randn(1, 8)).logits
        grid = to_degrees(evenly_spread(num_points))
        density = head.log_density(logits.expand(num_points, -1).contiguous(), grid).double().exp()
    assert density.mean().item() * 4 * math.pi == pytest.approx(1, abs=0.01)
