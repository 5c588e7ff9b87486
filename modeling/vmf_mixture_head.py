"""A mixture of von Mises-Fisher distributions: a smooth density on the sphere, without cells' borders."""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_geolocation_head import GeolocationHeadConfig
from .geocell_tensors import evenly_spread
from .geodesy import EARTH_RADIUS_KM
from .posterior import mixture_log_density
from .posterior_heads import PosteriorHead

__all__ = ["VMFMixtureHead"]

LOG_CONCENTRATION_RANGE = (-2.0, 22.0)
"""From nearly uniform to a spread of 150 m."""
INITIAL_LOG_CONCENTRATION = 4.6
"""Of free components: a spread of 900 km."""


def within_range(raw: Tensor) -> Tensor:
    """Any number -> a log concentration, smoothly, so that no component is ever out of the gradient's reach."""
    low, high = LOG_CONCENTRATION_RANGE
    return low + (high - low) * torch.sigmoid(raw)


def to_raw(log_concentration: Tensor) -> Tensor:
    """The inverse of `within_range`, of what lies in its range."""
    low, high = LOG_CONCENTRATION_RANGE
    return torch.logit(((log_concentration - low) / (high - low)).clamp(0.01, 0.99))


class VMFMixtureHead(PosteriorHead):
    """Weighted components, anchored at cells or free, trained by their likelihood.

    Anchored (`num_mixture_components` 0): one at the centroid of each of the finest cells, with a learned
    concentration that starts from the cell's spread; a photo decides the weights. Free: a photo decides weights,
    places and concentrations.

    Source: Izbicki, Papalexakis and Tsotras (2019), "Exploiting the Earth's spherical geometry to geolocate images",
    for anchored components; Bishop (1994), "Mixture density networks", for free ones.
    """

    starts: Tensor
    raw_concentration: Tensor

    def __init__(self, in_features: int, config: GeolocationHeadConfig) -> None:
        self.num_free = config.num_mixture_components
        num_components = self.num_free or config.num_geocells[-1]
        super().__init__(in_features, config, 5 * self.num_free or num_components)
        if self.num_free:
            self.register_buffer("starts", torch.zeros(self.num_free, 3))
        else:
            self.raw_concentration = nn.Parameter(torch.zeros(num_components))
        self.reset_starts()

    @torch.no_grad()
    def reset_starts(self) -> None:
        """Free components start evenly spread, anchored ones as wide as their cells; what was loaded stays."""
        if self.num_free:
            init.copy_(self.starts, evenly_spread(self.num_free))
        else:
            init.copy_(self.raw_concentration, self._as_wide_as_the_cells())

    def _as_wide_as_the_cells(self) -> Tensor:
        assert self.cells is not None
        return to_raw(torch.log(2 * (EARTH_RADIUS_KM / self.cells.spread_km) ** 2))

    @torch.no_grad()
    def set_geocells(self, *args: object, **kwargs: object) -> None:
        """Take over cells that were built from training photos; concentrations start from their spread."""
        super().set_geocells(*args, **kwargs)
        self.raw_concentration.copy_(self._as_wide_as_the_cells())

    def components(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As they are trained, without temperature and scale.

        Returns:
            Logits `(B, K)`, means `(K, 3)` or `(B, K, 3)`, log concentrations `(K,)` or `(B, K)`.
        """
        if self.cells is not None:
            num_components = len(self.raw_concentration)
            return outputs[:, :num_components], self.cells.finest, within_range(self.raw_concentration)
        logits, means, raw = outputs[:, : 5 * self.num_free].split(
            [self.num_free, 3 * self.num_free, self.num_free], -1
        )
        means = nn.functional.normalize(self.starts + means.unflatten(-1, (self.num_free, 3)), dim=-1, eps=1e-4)
        low, high = LOG_CONCENTRATION_RANGE
        start = math.log((INITIAL_LOG_CONCENTRATION - low) / (high - INITIAL_LOG_CONCENTRATION))
        return logits, means, within_range(raw + start)

    def log_mass(self, outputs: Tensor) -> Tensor:
        """The components' weights."""
        return (self.components(outputs)[0] / self.temperature).log_softmax(dim=-1)

    def places(self, outputs: Tensor) -> Tensor:
        """The components' means."""
        return self.components(outputs)[1]

    def spread_km(self, outputs: Tensor) -> Tensor:
        """Of a component: `R sqrt(2 / k)`, scaled, and at most a quarter of the Earth's circumference."""
        spread = EARTH_RADIUS_KM * torch.exp((math.log(2) - self.components(outputs)[2]) / 2)
        return (self.spread_scale * spread).clamp(max=math.pi / 2 * EARTH_RADIUS_KM)

    def point_log_density(self, outputs: Tensor, points: Tensor) -> Tensor:
        """The mixture's density."""
        _, means, log_concentration = self.components(outputs)
        scaled = log_concentration - 2 * math.log(self.spread_scale)
        return mixture_log_density(self.log_mass(outputs), points, means, scaled)

    def place_loss(self, outputs: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """Mean negative log-likelihood, nats."""
        logits, means, log_concentration = self.components(outputs)
        return -mixture_log_density(logits.log_softmax(dim=-1), truth, means, log_concentration).mean()
