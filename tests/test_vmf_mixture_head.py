"""The von Mises-Fisher mixture: its density is that of scipy, down to streets."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import vonmises_fisher

from modeling import GeolocationHeadConfig, build_head, to_unit_vectors, vmf_log_density


def unit(*degrees: float) -> np.ndarray:
    return to_unit_vectors(torch.tensor(degrees).double()).numpy()


@pytest.mark.parametrize("concentration", [0.2, 1.0, 30.0, 500.0])
@pytest.mark.parametrize("point", [(0.0, 0.0), (10.0, -20.0), (-89.0, 0.0), (0.0, 180.0)])
def test_log_density_is_scipys(concentration: float, point: tuple[float, float]) -> None:
    mean = unit(10.0, 30.0)
    expected = vonmises_fisher(mean, concentration).logpdf(unit(*point))
    ours = vmf_log_density(
        torch.tensor(unit(*point)), torch.tensor(mean), torch.tensor(math.log(concentration), dtype=torch.float64)
    )
    assert ours.item() == pytest.approx(expected, rel=1e-9)


def test_density_of_float32_tells_streets_apart() -> None:
    log_concentration = torch.tensor(20.0)  # a spread of 400 m
    mean = to_unit_vectors(torch.tensor([48.85, 2.35]))
    for km in (0.2, 0.5, 1.0):
        point = to_unit_vectors(torch.tensor([48.85 + math.degrees(km / 6371.0088), 2.35]))
        lost = vmf_log_density(mean, mean, log_concentration) - vmf_log_density(point, mean, log_concentration)
        assert lost.item() == pytest.approx(math.exp(20.0) * (1 - math.cos(km / 6371.0088)), rel=0.02)


@pytest.mark.parametrize("settings", [{"num_geocells": [9]}, {"num_mixture_components": 5}], ids=["anchored", "free"])
def test_loss_is_the_mixtures_negative_log_likelihood(settings: dict) -> None:
    head = build_head(6, GeolocationHeadConfig(head_type="vmf_mixture", head_hidden_sizes=[8], **settings))
    truth = torch.rand(7, 2) * 100
    output = head.train()(torch.randn(7, 6) * 3, truth)
    weights, means, log_concentration = (part.detach().double().numpy() for part in head.components(output.logits))
    weights = weights - logsumexp(weights, axis=1, keepdims=True)
    means = np.broadcast_to(means / np.linalg.norm(means, axis=-1, keepdims=True), (*weights.shape, 3))
    concentration = np.broadcast_to(np.exp(log_concentration), weights.shape)
    nats = [
        -logsumexp([w + vonmises_fisher(m, k).logpdf(unit(*place.tolist())) for w, m, k in zip(*each, strict=True)])
        for *each, place in zip(weights, means, concentration, truth, strict=True)
    ]
    assert output.loss.item() == pytest.approx(np.mean(nats), rel=1e-4)


def test_anchored_components_start_as_wide_as_their_cells() -> None:
    head = build_head(6, GeolocationHeadConfig(head_type="vmf_mixture", num_geocells=[3]))
    spread_km = np.array([20.0, 100.0, 900.0])
    head.set_geocells([[[0.0, 0.0], [50.0, 10.0], [-30.0, 150.0]]], [], np.ones(3), spread_km)
    assert head.spread_km(torch.zeros(1, 3)).detach().numpy() == pytest.approx(spread_km, rel=1e-3)


def test_concentrations_are_learned() -> None:
    head = build_head(6, GeolocationHeadConfig(head_type="vmf_mixture", num_geocells=[3], head_hidden_sizes=[8]))
    head.set_geocells([[[0.0, 0.0], [50.0, 10.0], [-30.0, 150.0]]], [], np.ones(3), [1000.0, 1000.0, 1000.0])
    truth = torch.randn(64, 2) * 0.5  # all within 100 km of the first
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head(torch.ones(64, 6), truth).loss.backward()
        optimizer.step()
    mean_square_km = (truth.norm(dim=-1) * 111.195).square().mean().sqrt().item()
    assert head.spread_km(torch.zeros(1, 3))[0].item() == pytest.approx(mean_square_km, rel=0.05)
