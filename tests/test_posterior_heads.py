"""Heads with a posterior: their losses are the published formulas, and they learn what a point cannot say."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import vonmises_fisher
from spheres import haversine_km
from torch import nn

from modeling import GeolocationHead, GeolocationHeadConfig, build_head, great_circle_km, to_degrees, to_unit_vectors
from modeling.geocell_tensors import evenly_spread
from modeling.posterior_heads import move_along_sphere

EARTH_RADIUS_KM = 6371.0088
CORNERS = torch.tensor(
    [[0, 0], [90, 0], [-90, 0], [0, 180], [0, -180], [45, 179.999], [-45, -179.999], [89.999, 12.0], [0.0, 90.0]]
)
POSTERIORS = [
    {"head_type": "geocells", "num_geocells": [7]},
    {"head_type": "geocells", "num_geocells": [4, 9, 30]},
    {"head_type": "geocells", "num_geocells": [4, 9], "label_smoothing": 0.1},
    {"head_type": "geocells", "num_geocells": [4, 9], "haversine_smoothing_km": 65.0},
    {"head_type": "geocells", "num_geocells": [4, 9], "num_scenes": 3, "scene_experts": True},
    {"head_type": "hybrid", "num_geocells": [4, 9]},
    {"head_type": "vmf_mixture", "num_geocells": [9]},
    {"head_type": "vmf_mixture", "num_mixture_components": 5},
]
by_settings = pytest.mark.parametrize("settings", POSTERIORS, ids=lambda s: "-".join(map(str, s.values())))


def head_of(**settings: object) -> GeolocationHead:
    return build_head(6, GeolocationHeadConfig(**{"head_hidden_sizes": [8], **settings}))


def random_cells(head: GeolocationHead, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give a head cells anywhere, and return them."""
    rng = np.random.default_rng(seed)
    counts = head.cells.num_geocells
    centroids = [np.stack([rng.uniform(-80, 80, n), rng.uniform(-180, 180, n)], axis=-1) for n in counts]
    parents = [rng.integers(coarser, size=n) for coarser, n in pairwise(counts)]
    head.set_geocells(centroids, parents, rng.uniform(1e4, 1e6, counts[-1]), rng.uniform(20, 400, counts[-1]))
    return centroids, parents


def answer(head: GeolocationHead, num_photos: int = 11, **labels: torch.Tensor) -> tuple:
    """Loss, logits and truths, the latter two in float64, of a head that has its random weights."""
    features = torch.randn(num_photos, 6) * 3
    truth = torch.stack([torch.rand(num_photos) * 160 - 80, torch.rand(num_photos) * 360 - 180], dim=-1)
    output = head.train()(features, truth, **labels)
    return output.loss.item(), output.logits.detach().double().numpy(), truth.double().numpy()


@pytest.mark.parametrize("smoothing", [{}, {"label_smoothing": 0.1}, {"haversine_smoothing_km": 65.0}])
@pytest.mark.parametrize("counts", [[30], [4, 9, 30]])
def test_cell_loss_is_the_cross_entropy_averaged_over_partitions(counts: list[int], smoothing: dict) -> None:
    head = head_of(head_type="geocells", num_geocells=counts, **smoothing)
    centroids, parents = random_cells(head)
    loss, logits, truth = answer(head)
    label = haversine_km(truth, centroids[-1]).argmin(axis=1)
    nats = []
    for level in reversed(range(len(counts))):
        start = sum(counts[:level])
        log_p = log_softmax(logits[:, start : start + counts[level]], axis=1)
        target = np.eye(counts[level])[label]
        if "label_smoothing" in smoothing:
            target = 0.9 * target + 0.1 / counts[level]
        if "haversine_smoothing_km" in smoothing:
            distance = haversine_km(truth, centroids[level])
            beyond = distance - distance[np.arange(len(label)), label][:, None]
            target = np.exp(-np.maximum(beyond, 0) / 65.0)
        nats.append(-(target * log_p).sum(axis=1).mean())
        label = parents[level - 1][label] if level else label
    assert loss == pytest.approx(np.mean(nats), rel=1e-4)


def test_haversine_targets_are_not_normalised() -> None:
    head = head_of(head_type="geocells", num_geocells=[3], haversine_smoothing_km=100.0)
    head.set_geocells([[[0.0, 0.0], [0.0, 0.1], [60.0, 0.0]]], [], np.ones(3), np.ones(3))
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)  # each cell log 3 nats
    neighbour = math.exp(-11.12 / 100)
    assert head(torch.zeros(1, 6), torch.zeros(1, 2)).loss.item() == pytest.approx(
        (1 + neighbour) * math.log(3), rel=1e-3
    )


def test_hierarchy_multiplies_the_probabilities_of_ancestors() -> None:
    head = head_of(head_type="geocells", num_geocells=[4, 9, 30]).eval()
    _, parents = random_cells(head)
    logits = np.random.default_rng(1).normal(size=(5, 43)) * 2
    p0, p1, p2 = (np.exp(log_softmax(part, axis=1)) for part in np.split(logits, [4, 13], axis=1))
    middle = parents[1]
    product = p2 * p1[:, middle] * p0[:, parents[0][middle]]
    log_mass, _ = head.place_log_probabilities(torch.tensor(logits))
    assert log_mass.exp().numpy() == pytest.approx(product / product.sum(axis=1, keepdims=True), rel=1e-4)


@pytest.mark.parametrize("head_type", ["geocells", "hybrid"])
def test_density_is_normal_around_the_places_and_a_tenth_even_over_the_cells(head_type: str) -> None:
    head = head_of(head_type=head_type, num_geocells=[30], spread_scale=0.5).eval()
    centroids, _ = random_cells(head)
    _, logits, truth = answer(head)
    probability = np.exp(log_softmax(logits[:, :30], axis=1))
    label = haversine_km(truth, centroids[0]).argmin(axis=1)
    even = probability[np.arange(len(label)), label] / (
        head.cells.area_km2.double().numpy()[label] / EARTH_RADIUS_KM**2
    )
    variance = (0.5 * head.cells.spread_km.double().numpy() / EARTH_RADIUS_KM) ** 2 / 2  # along each of two axes
    _, places_deg = head.place_log_probabilities(torch.tensor(logits))
    normal = [
        p @ [vonmises_fisher(unit(mean), 1 / v).pdf(unit(point)) for mean, v in zip(means, variance, strict=True)]
        for p, means, point in zip(probability, places_deg.double().numpy(), truth, strict=True)
    ]
    expected = np.log(0.9 * np.array(normal) + 0.1 * even)
    assert head.log_density(torch.tensor(logits), torch.tensor(truth)).numpy() == pytest.approx(expected, rel=1e-3)


def unit(degrees: np.ndarray) -> np.ndarray:
    return to_unit_vectors(torch.tensor(degrees).double()).numpy()


@pytest.mark.parametrize("head_type", ["geocells", "hybrid", "vmf_mixture"])
def test_radii_and_density_are_of_one_distribution(head_type: str) -> None:
    """The share of the mass within a radius is the integral of the density there."""
    head = head_of(head_type=head_type, num_geocells=[60], spread_scale=0.7, temperature=0.5).eval()
    grid = evenly_spread(300_000)
    logits = head(torch.randn(1, 6) * 3).logits.detach()
    answer_deg = head.decode(logits, ["kernel"])["kernel"]
    density = head.log_density(logits.expand(len(grid), -1), to_degrees(grid)).double().exp()
    distance_km = great_circle_km(grid, to_unit_vectors(answer_deg))
    for radius_km in (800.0, 2500.0, 6000.0):
        integral = density[distance_km <= radius_km].sum().item() * 4 * math.pi / len(grid)
        held = head.mass_within(logits, answer_deg, torch.tensor([radius_km])).item()
        # in a plane instead of on the sphere, cells as discs, the distribution function by Sankaran's formula
        assert held == pytest.approx(integral, abs=0.04)


def test_temperature_divides_the_logits_of_answers_and_not_of_the_loss() -> None:
    cool, hot = (
        head_of(head_type="geocells", num_geocells=[9]),
        head_of(head_type="geocells", num_geocells=[9], temperature=3.0),
    )
    hot.load_state_dict(cool.state_dict())
    logits = torch.randn(4, 9) * 5
    assert torch.allclose(hot.log_mass(logits), (logits / 3).log_softmax(dim=-1))
    features, truth = torch.randn(4, 6), torch.rand(4, 2)
    assert torch.equal(hot(features, truth).loss, cool(features, truth).loss)


def test_hybrid_adds_the_weighted_error_within_the_true_cell() -> None:
    settings = {"num_geocells": [9], "regression_weight_per_km": 0.01}
    head = head_of(head_type="hybrid", **settings)
    centroids, _ = random_cells(head)
    loss, logits, truth = answer(head)
    label = haversine_km(truth, centroids[0]).argmin(axis=1)
    rows = np.arange(len(label))
    offset = logits[:, 9:].reshape(-1, 9, 2)[rows, label] * head.cells.spread_km.double().numpy()[label, None]
    lat, lon = np.radians(centroids[0][label]).T
    bearing, angle = np.arctan2(*offset.T), np.hypot(*offset.T) / EARTH_RADIUS_KM
    # the direct problem on the sphere, by the textbook formula
    new_lat = np.arcsin(np.sin(lat) * np.cos(angle) + np.cos(lat) * np.sin(angle) * np.cos(bearing))
    new_lon = lon + np.arctan2(
        np.sin(bearing) * np.sin(angle) * np.cos(lat), np.cos(angle) - np.sin(lat) * np.sin(new_lat)
    )
    error_km = haversine_km(np.degrees(np.stack([new_lat, new_lon], axis=-1)), truth)[rows, rows]
    nats = -log_softmax(logits[:, :9], axis=1)[rows, label]
    assert loss == pytest.approx(nats.mean() + 0.01 * error_km.mean(), rel=1e-4)


def test_hybrid_answers_within_the_cell_that_it_chooses() -> None:
    head = head_of(head_type="hybrid", num_geocells=[3], decoding="argmax").eval()
    head.set_geocells([[[0.0, 0.0], [50.0, 10.0], [-30.0, 150.0]]], [], np.ones(3), [111.195, 111.195, 111.195])
    logits = torch.tensor([[0.0, 5.0, 1.0, 7, 7, 0.0, 2.0, 7, 7]])  # two degrees to the north of the second
    assert head.decode(logits, ["argmax"])["argmax"][0].tolist() == pytest.approx([52, 10], abs=1e-3)
    # north at 89 degrees leads over the pole
    over = move_along_sphere(
        to_unit_vectors(torch.tensor([89.0, 30.0])), torch.tensor([0.0, 2.0]), torch.tensor(111.195)
    )
    assert great_circle_km(over, to_unit_vectors(torch.tensor([89.0, -150.0]))).item() < 0.1


def test_hybrid_chooses_the_cell_as_if_its_photos_were_at_the_centroid() -> None:
    """Two cells of a cluster beat a likelier one far away, wherever the points within the cells are."""
    head = head_of(head_type="hybrid", num_geocells=[3], decoding="kernel").eval()
    head.set_geocells([[[48.0, 2.0], [48.5, 2.5], [-30.0, 150.0]]], [], np.ones(3), np.full(3, 111.195))
    probabilities = torch.log(torch.tensor([0.31, 0.29, 0.40]))
    offsets = torch.tensor([0.0, 9.0, 0.0, -9.0, 0.0, 0.0])  # 18 degrees of latitude between the two points
    answer_deg = head.decode(torch.cat((probabilities, offsets))[None], ["kernel"])["kernel"][0]
    assert answer_deg.tolist() == pytest.approx([57, 2], abs=0.01)


def test_temperature_divides_a_mixtures_logits() -> None:
    head = head_of(head_type="vmf_mixture", num_geocells=[9], temperature=3.0)
    logits = torch.randn(4, 9) * 5
    assert torch.allclose(head.log_mass(logits), (logits / 3).log_softmax(dim=-1))


def test_coarse_haversine_targets_are_full_in_the_cell_that_the_photo_is_in() -> None:
    """Also where the centroid of another coarse cell is nearer."""
    head = head_of(head_type="geocells", num_geocells=[2, 3], haversine_smoothing_km=100.0)
    coarse, fine = [[0.0, 0.0], [0.0, 30.0]], [[0.0, -20.0], [0.0, 12.0], [0.0, 40.0]]
    head.set_geocells([coarse, fine], [[0, 1, 1]], np.ones(3), np.ones(3))
    log_probabilities = torch.log(torch.tensor([0.9, 0.1, 0.2, 0.5, 0.3]))
    # the photo's fine cell is (0, 12), of the coarse cell (0, 30), but (0, 0) is nearer: both coarse targets are 1
    loss = head.place_loss(log_probabilities[None], to_unit_vectors(torch.tensor([[0.0, 12.0]])), None)
    assert loss.item() == pytest.approx((-math.log(0.9) - math.log(0.1) - math.log(0.5)) / 2, rel=1e-3)


def test_experts_are_weighed_by_the_scenes_and_trained_by_their_own() -> None:
    head = head_of(head_type="geocells", num_geocells=[5], num_scenes=3, scene_experts=True, scene_loss_weight=0.5)
    centroids, _ = random_cells(head)
    scenes = torch.tensor([0, 1, 2, -1, -1, 2, 0, 1, 1, -1, 0])
    loss, logits, truth = answer(head, scene_labels=scenes)
    label = haversine_km(truth, centroids[0]).argmin(axis=1)
    rows, known = np.arange(len(label)), scenes.numpy() >= 0
    log_experts = log_softmax(logits[:, :15].reshape(-1, 3, 5), axis=2)
    log_scene = log_softmax(logits[:, 15:], axis=1)
    mixture = logsumexp(log_experts + log_scene[:, :, None], axis=1)
    nats = -np.where(known, log_experts[rows, scenes.numpy(), label], mixture[rows, label]).mean()
    scene_nats = -log_scene[rows, scenes.numpy()][known].mean()
    assert loss == pytest.approx(nats + 0.5 * scene_nats, rel=1e-4)
    assert head.eval().place_log_probabilities(torch.tensor(logits))[0].numpy() == pytest.approx(
        mixture, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("name", ["sphere", "geocells"])
def test_any_head_learns_the_scene_beside_the_place(name: str) -> None:
    head = head_of(head_type=name, num_geocells=[9], num_scenes=4)
    features, truth, scenes = torch.randn(40, 6), torch.rand(40, 2), torch.arange(40) % 4
    features[torch.arange(40), scenes] += 3
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        head(features, truth, scenes).loss.backward()
        optimizer.step()
    output = head(features)
    assert output.scene_logits.shape == (40, 4)
    assert (output.scene_logits.argmax(dim=-1) == scenes).float().mean() > 0.9


def test_a_batch_without_known_scenes_trains_the_place_alone() -> None:
    head = head_of(head_type="geocells", num_geocells=[9], num_scenes=4)
    features, truth = torch.randn(5, 6), torch.rand(5, 2)
    assert torch.equal(head(features, truth, torch.full((5,), -1)).loss, head(features, truth).loss)


@by_settings
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_gradients_are_finite_everywhere_on_the_sphere(settings: dict, size: float) -> None:
    head = head_of(**settings)
    features = (size * torch.randn(len(CORNERS), 6)).requires_grad_()
    scenes = torch.arange(len(CORNERS)) % 4 - 1 if "num_scenes" in settings else None
    head(features, CORNERS, scenes).loss.backward()
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@by_settings
def test_gradients_are_finite_for_photos_at_a_centroid_and_at_its_antipode(settings: dict) -> None:
    head = head_of(**settings)
    at_centroid = torch.tensor([[12.5, 30.25], [-12.5, -149.75]])
    if head.cells is not None:
        counts = head.cells.num_geocells
        here = [np.tile([[12.5, 30.25]], (n, 1)) + np.arange(n)[:, None] for n in counts]
        head.set_geocells(here, [np.zeros(n, int) for n in counts[1:]], np.ones(counts[-1]), np.full(counts[-1], 0.1))
    features = torch.randn(2, 6, requires_grad=True)
    head(features, at_centroid).loss.backward()
    assert torch.isfinite(features.grad).all()


@by_settings
def test_training_answers_the_likeliest_place_and_evaluation_decodes(settings: dict) -> None:
    head, features = head_of(**settings, decoding="expected_km"), torch.randn(20, 6) * 2
    trained = head.train()(features)
    assert torch.allclose(trained.coordinates_deg, head.decode(trained.logits, ["argmax"])["argmax"])
    answered = head.eval()(features)
    assert torch.allclose(answered.coordinates_deg, head.decode(answered.logits, ["expected_km"])["expected_km"])
    assert not torch.allclose(answered.coordinates_deg, trained.coordinates_deg)


@pytest.mark.parametrize("settings", [POSTERIORS[0], POSTERIORS[6], POSTERIORS[7]], ids=str)
def test_a_toy_planet_with_two_equally_likely_places(settings: dict) -> None:
    """`argmax` answers one of them, and between them only the point of the least expected distance does."""
    counts = {"num_geocells": [60]} if settings.get("num_geocells") else {}
    head = head_of(**{**settings, **counts})
    two_places = torch.tensor([[0.0, -30.0], [0.0, 30.0]])
    truth, features = two_places.repeat(32, 1), torch.ones(64, 6)
    if head.cells is not None:
        centroids = torch.cat([two_places, torch.stack([torch.full((58,), -70.0), torch.arange(58.0) * 6], dim=-1)])
        head.set_geocells([centroids], [], np.full(60, 1e6), np.full(60, 100.0))
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(500):
        optimizer.zero_grad()
        around = truth + torch.randn(64, 2)  # free components would shrink onto single points without end
        head.train()(features, around).loss.backward()
        optimizer.step()
    logits = head.eval()(features[:1]).logits.detach()
    for name in ("argmax", "kernel"):
        place = head.decode(logits, [name])[name][0]
        assert great_circle_km(to_unit_vectors(place), to_unit_vectors(two_places)).min().item() < 400
    for place in two_places:
        assert head.mass_within(logits, place[None], torch.tensor([1000.0])).item() == pytest.approx(0.5, abs=0.05)
    if head.cells is not None:
        # exactly as likely, and nothing else possible: a trace of mass would draw the median to one of them
        logits[0, :2], logits[0, 2:] = logits[0, :2].mean(), -100.0
    answer_deg = head.decode(logits, ["expected_km"])["expected_km"]
    expected_km = haversine_km(answer_deg.double().numpy(), two_places.double().numpy())
    assert expected_km.mean() == pytest.approx(EARTH_RADIUS_KM * math.radians(30), rel=0.02)
    if head.cells is not None:
        assert expected_km.min() > 2000  # between them, at neither


@by_settings
def test_head_stays_float32_through_casts_and_autocast(settings: dict) -> None:
    head, features, truth = head_of(**settings), torch.randn(3, 6), torch.rand(3, 2)
    exact = head(features, truth)
    moved = nn.ModuleDict({"head": head}).to(torch.bfloat16)["head"]
    assert {tensor.dtype for tensor in (*moved.parameters(), *moved.buffers())} <= {torch.float32, torch.int64}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = moved(features, truth)
    assert torch.equal(answer.loss, exact.loss)
    assert torch.equal(answer.coordinates_deg, exact.coordinates_deg)


@by_settings
def test_a_training_step_is_one_graph(settings: dict) -> None:
    head, features, truth = head_of(**settings), torch.randn(4, 6), torch.rand(4, 2) * 50
    scenes = torch.tensor([0, 1, -1, 2]) if "num_scenes" in settings else None
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(features, truth, scenes).loss, head(features, truth, scenes).loss)
    for output in compiled.eval()(features).values():
        assert output is None or torch.isfinite(output).all()


def test_a_head_without_cells_refuses_some() -> None:
    with pytest.raises(ValueError, match="leave geocells out"):
        head_of(head_type="vmf_mixture", num_mixture_components=4).set_geocells([], [], [], [])


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"head_type": "geocells"}, "geocells: PATH"),
        ({"head_type": "hybrid", "num_geocells": [400, 50]}, "rising counts"),
        ({"head_type": "vmf_mixture"}, "needs num_geocells"),
        ({"head_type": "sphere", "scene_experts": True, "num_scenes": 3}, "needs head_type=geocells"),
        (
            {"head_type": "geocells", "num_geocells": [9], "label_smoothing": 0.1, "haversine_smoothing_km": 65},
            "keep one",
        ),
        ({"head_type": "geocells", "num_geocells": [9], "label_smoothing": 1.0}, "below 1"),
        ({"decoding": "mode"}, "choose one of argmax"),
        ({"kernel_km": 0.0}, "above 0"),
        ({"num_scenes": 1}, "0 or at least 2"),
        ({"head_type": "hybrid", "num_geocells": [9], "haversine_smoothing_km": -1.0}, "at least 0"),
        ({"regression_weight_per_km": math.nan}, "a number of at least 0"),
        ({"temperature": math.inf}, "a number above 0"),
        ({"top_k": 2.5}, "whole"),
        ({"head_hidden_sizes": [0]}, "whole and at least 1"),
        ({"head_type": "sphere", "label_smoothing": 0.1}, "choose geocells or hybrid"),
        ({"head_type": "geocells", "num_geocells": [9], "num_mixture_components": 5}, "head_type=vmf_mixture"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GeolocationHeadConfig(**wrong)


@by_settings
def test_top_places_are_the_likeliest_in_their_order(settings: dict) -> None:
    head = head_of(**settings)
    if head.cells is not None:
        random_cells(head)
    _, logits, _ = answer(head)
    logits = torch.tensor(logits).float()
    log_mass, places_deg = head.eval().place_log_probabilities(logits)
    order = np.argsort(-log_mass.numpy(), axis=1, kind="stable")[:, :3]
    mass, top_deg = head.top_places(logits, 3)
    np.testing.assert_allclose(mass, np.take_along_axis(log_mass.exp().numpy(), order, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(top_deg, np.take_along_axis(places_deg.numpy(), order[..., None], axis=1))
    whole, _ = head.top_places(logits, 10_000)
    np.testing.assert_allclose(whole.sum(dim=1), 1.0, rtol=1e-5)
