"""A posterior over the Earth that can be worked out by hand, with the interface of the heads of `modeling`.

The Earth is cut into boxes of one area, by equal steps of longitude and of the sine of the latitude. A photo's mass is
even within each box; for distances it sits in the middle of the box.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from geomae.geography import EARTH_RADIUS_KM

NUM_BANDS, NUM_COLUMNS = 12, 24
NUM_BOXES = NUM_BANDS * NUM_COLUMNS


def box_centres() -> np.ndarray:
    """`(NUM_BOXES, 2)` degrees, bands from south to north."""
    latitudes = np.degrees(np.arcsin((np.arange(NUM_BANDS) + 0.5) * 2 / NUM_BANDS - 1))
    longitudes = (np.arange(NUM_COLUMNS) + 0.5) * 360 / NUM_COLUMNS - 180
    return np.stack([each.ravel() for each in np.meshgrid(latitudes, longitudes, indexing="ij")], axis=1)


class BoxHead(torch.nn.Module):
    """Answers boxes by rank: `argmax` the likeliest, every other decoding one further down."""

    has_posterior = True
    ranks = {"argmax": 0, "kernel": 1, "expected_km": 2, "mean_in_top_k": 3}

    def __init__(self, temperature=1.0):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.from_numpy(box_centres()).float(), requires_grad=False)
        self.decoding, self.kernel_km, self.top_k, self.temperature = "argmax", 200.0, 5, temperature

    def decode(self, logits, decodings):
        order = logits.argsort(dim=-1, descending=True, stable=True)
        return {name: self.centres[order[:, self.ranks[name]]] for name in decodings}

    def log_density(self, logits, coordinates_deg):
        latitude, longitude = coordinates_deg.unbind(-1)
        band = ((torch.sin(torch.deg2rad(latitude)) + 1) / 2 * NUM_BANDS).long().clamp(max=NUM_BANDS - 1)
        column = ((longitude + 180) / 360 * NUM_COLUMNS).long().clamp(max=NUM_COLUMNS - 1)
        log_mass = (logits / self.temperature).log_softmax(dim=-1)
        box = (band * NUM_COLUMNS + column)[:, None]
        return log_mass.gather(1, box)[:, 0] - math.log(4 * math.pi / NUM_BOXES)

    def spread_around(self, logits, answer_deg):
        mass, distance_km = self._mass(logits), self._distance_km(answer_deg)
        order = distance_km.argsort(dim=-1)
        held, sorted_km = mass.gather(1, order).cumsum(dim=-1), distance_km.gather(1, order)
        radii = [sorted_km.gather(1, (held < q).sum(dim=-1, keepdim=True))[:, 0] for q in (0.5, 0.9)]
        expected_km = (mass * distance_km).sum(dim=-1)
        return SimpleNamespace(radius_50_km=radii[0], radius_90_km=radii[1], expected_km=expected_km)

    def mass_within(self, logits, answer_deg, radius_km):
        return torch.where(self._distance_km(answer_deg) <= radius_km[:, None], self._mass(logits), 0.0).sum(dim=-1)

    def _mass(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature).softmax(dim=-1)

    def _distance_km(self, answer_deg: Tensor) -> Tensor:
        vectors = []
        for degrees in (answer_deg[:, None], self.centres[None]):
            latitude, longitude = torch.deg2rad(degrees).unbind(-1)
            flat = torch.cos(latitude)
            vectors.append(torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], dim=-1))
        return 2 * EARTH_RADIUS_KM * torch.asin(((vectors[0] - vectors[1]).norm(dim=-1) / 2).clamp(max=1))


class BoxModel(torch.nn.Module):
    """Draws a photo's logits from its red and green, so that each photo has its own; counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.head = BoxHead()
        self.num_calls = 0
        weight = 3 * torch.randn(2, NUM_BOXES, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, pixel_values):
        self.num_calls += 1
        return self._answer(torch.sin(pixel_values.float().mean(dim=(2, 3))[:, :2]) @ self.weight)

    def combine_crops(self, outputs):
        return self._answer(torch.stack([output.logits for output in outputs]).mean(dim=0))

    def _answer(self, logits):
        coordinates_deg = self.head.decode(logits, [self.head.decoding])[self.head.decoding]
        return SimpleNamespace(coordinates_deg=coordinates_deg, logits=logits)


def draw_boxes(mass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A point drawn from each posterior `(n, NUM_BOXES)`: `(n, 2)` degrees, even within its box."""
    box = (mass.cumsum(axis=1) < rng.random((len(mass), 1)) * mass.sum(axis=1, keepdims=True)).sum(axis=1)
    band, column = np.divmod(box, NUM_COLUMNS)
    latitude = np.degrees(np.arcsin((band + rng.random(len(mass))) * 2 / NUM_BANDS - 1))
    return np.stack([latitude, (column + rng.random(len(mass))) * 360 / NUM_COLUMNS - 180], axis=1)
