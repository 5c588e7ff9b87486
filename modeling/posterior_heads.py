"""The heads that answer a posterior over the cells of the Earth: classification, and regression within the cell."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_geolocation_head import GeolocationHeadConfig
from .geocell_tensors import GeocellTensors, chords, nearest
from .geodesy import EARTH_RADIUS_KM, great_circle_km, to_degrees, to_unit_vectors
from .geolocation_head import GeolocationHead, outside_autocast
from .posterior import (
    PosteriorSpread,
    choose_places,
    chord_km,
    mass_within,
    mixture_log_density,
    spread_around,
    take,
)

__all__ = ["GeocellsHead", "HybridHead", "PosteriorHead"]


EVEN_SHARE = 0.1
"""Of a cell's mass: photos have outliers that no normal distribution expects.

Of 20,000 coordinates of MP-16 in 400 cells made from 30,000 others, with the true cell known, NLL is -5.38 nats per
steradian where all is even, -6.58 where all is normal, and -6.70 with a tenth even; in 4,000 cells it is -9.03, -8.75
and -10.37.
"""


class PosteriorHead(GeolocationHead):
    """Mass on K places, and a density over the whole sphere. In training the answer is the likeliest place."""

    has_posterior = True
    cells: GeocellTensors | None
    """None where the places are not cells."""

    def __init__(self, in_features: int, config: GeolocationHeadConfig, num_outputs: int) -> None:
        super().__init__(in_features, config, num_outputs)
        self.decoding, self.kernel_km, self.top_k = config.decoding, config.kernel_km, config.top_k
        self.temperature, self.spread_scale = config.temperature, config.spread_scale
        self.cells = GeocellTensors(config.num_geocells) if config.needs_geocells else None

    def log_mass(self, outputs: Tensor) -> Tensor:
        """`(B, K)` logarithm of the mass of each place, in the finest partition or of each component."""
        raise NotImplementedError(f"{type(self).__name__} must say how likely each place is")

    def places(self, outputs: Tensor) -> Tensor:
        """`(K, 3)` or `(B, K, 3)` unit vectors: what is answered where a place is chosen."""
        raise NotImplementedError(f"{type(self).__name__} must say where its places are")

    def anchors(self, outputs: Tensor) -> Tensor:
        """`(K, 3)` or `(B, K, 3)` unit vectors: the places as far as distances between them matter."""
        return self.places(outputs)

    def spread_km(self, outputs: Tensor) -> Tensor:
        """`(K,)` or `(B, K)` root mean square distance of a place's mass from it, km."""
        raise NotImplementedError(f"{type(self).__name__} must say how far its mass is spread")

    def point_log_density(self, outputs: Tensor, points: Tensor) -> Tensor:
        """`(B,)` logarithm of the density at `(B, 3)` unit vectors, nats per steradian."""
        raise NotImplementedError(f"{type(self).__name__} must say what its density is")

    def to_points(self, outputs: Tensor) -> Tensor:
        """`(B, 3)` unit vectors by `decoding`; in training the likeliest place, whose search costs least."""
        if self.training:
            return self.place_of(outputs, self.log_mass(outputs).argmax(dim=-1))
        return self._choose(outputs, [self.decoding])[self.decoding]

    def place_of(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """`(B, 3)` the place of one of the K for each photo, by `(B,)` indices."""
        return take(self.places(outputs), chosen)

    def _choose(self, outputs: Tensor, decodings: Sequence[str]) -> dict[str, Tensor]:
        return choose_places(
            self.log_mass(outputs).exp(),
            self.places(outputs),
            self.anchors(outputs),
            decodings,
            kernel_km=self.kernel_km,
            top_k=self.top_k,
        )

    @torch.no_grad()
    def decode(self, logits: Tensor, decodings: Sequence[str]) -> dict[str, Tensor]:
        """Several answers from one pass through the model.

        Args:
            logits: `(B, num_outputs)` of an answer.
            decodings: `argmax`, `kernel`, `expected_km`, `mean_in_top_k`; see `choose_places`.

        Returns:
            `(B, 2)` degrees for each name.
        """
        with outside_autocast(logits.device.type):
            return {name: to_degrees(points) for name, points in self._choose(logits.float(), decodings).items()}

    @torch.no_grad()
    def log_density(self, logits: Tensor, coordinates_deg: Tensor) -> Tensor:
        """Logarithm of the posterior's density at one point for each photo.

        Args:
            logits: `(B, num_outputs)` of an answer.
            coordinates_deg: `(B, 2)` degrees.

        Returns:
            `(B,)` nats per steradian; with a minus sign, the negative log-likelihood. Its exponential, integrated over
            the sphere, is 1.
        """
        with outside_autocast(logits.device.type):
            return self.point_log_density(logits.float(), to_unit_vectors(coordinates_deg.float()))

    @torch.no_grad()
    def spread_around(self, logits: Tensor, answer_deg: Tensor) -> PosteriorSpread:
        """How far from `(B, 2)` answers, degrees, the posterior of `(B, num_outputs)` logits expects the truth."""
        with outside_autocast(logits.device.type):
            return spread_around(*self._mass(logits.float()), to_unit_vectors(answer_deg.float()))

    @torch.no_grad()
    def mass_within(self, logits: Tensor, answer_deg: Tensor, radius_km: Tensor) -> Tensor:
        """`(B,)` share of the posterior within `(B,)` km of `(B, 2)` answers, degrees."""
        with outside_autocast(logits.device.type):
            answer = to_unit_vectors(answer_deg.float())
            return mass_within(*self._mass(logits.float()), answer, radius_km.float())

    def _mass(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mass, places and spreads of what the density is made of, all of it normal around its place."""
        return self.log_mass(outputs).exp(), self.places(outputs), self.spread_km(outputs)

    @torch.no_grad()
    def place_log_probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, K)` log mass of each place, and `(B, K, 2)` degrees where it is."""
        with outside_autocast(logits.device.type):
            outputs = logits.float()
            log_mass, places = self.log_mass(outputs), to_degrees(self.places(outputs))
            return log_mass, places.expand(len(log_mass), -1, -1)

    @torch.no_grad()
    def top_places(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The likeliest places of each photo, the likeliest first.

        Args:
            logits: `(B, num_outputs)` of an answer.
            k: at most all K places are taken.

        Returns:
            `(B, k)` probabilities, and `(B, k, 2)` degrees where each place is.
        """
        with outside_autocast(logits.device.type):
            outputs = logits.float()
            mass = self.log_mass(outputs).exp()
            top_mass, top = mass.topk(min(k, mass.shape[-1]), dim=-1)
            return top_mass, to_degrees(take(self.places(outputs), top))


class GeocellsHead(PosteriorHead):
    """Which cell of the Earth a photo lies in, in one or several nested partitions.

    With several, the probability of a finest cell is the product of its own and its ancestors', normalised. The loss
    is the mean over partitions of the cross-entropy. With `scene_experts` each scene has a classifier of its own;
    what a photo's known scene chooses in training, the scene's probabilities weigh in an answer.

    Source: Weyand, Kostrikov and Philbin (2016), PlaNet; Müller-Budack, Pustu-Iren and Ewerth (2018), ISNs, for
    hierarchies and scenes; Haas et al. (2023), PIGEON, for targets that fall off with the distance.
    """

    cells: GeocellTensors

    def __init__(self, in_features: int, config: GeolocationHeadConfig, num_further_outputs: int = 0) -> None:
        num_logits = sum(config.num_geocells)
        self.num_experts = config.num_scenes if config.scene_experts else 1
        super().__init__(in_features, config, num_logits * self.num_experts + num_further_outputs)
        self.num_logits = num_logits
        self.label_smoothing, self.haversine_smoothing_km = config.label_smoothing, config.haversine_smoothing_km

    def log_partitions(
        self, outputs: Tensor, *, temperature: float = 1.0, scene_labels: Tensor | None = None
    ) -> list[Tensor]:
        """`(B, K_p)` log probabilities of the cells of each partition, coarse to fine.

        Args:
            outputs: `(B, num_outputs)` of the last layer.
            temperature: divides them.
            scene_labels: `(B,)` with -1 where unknown: the experts to ask; by default all, by the scene's probability.
        """
        outputs = outputs / temperature
        if self.num_experts == 1:
            logits = outputs[:, : self.num_logits]
            return [part.log_softmax(dim=-1) for part in logits.split(self.cells.num_geocells, dim=-1)]
        log_scenes = outputs[:, -self.num_scenes :].log_softmax(dim=-1)  # (B, S)
        if scene_labels is not None:
            is_other = torch.arange(self.num_scenes, device=outputs.device) != scene_labels[:, None]
            known = torch.zeros_like(log_scenes).masked_fill(is_other, -math.inf)
            log_scenes = torch.where(scene_labels[:, None] >= 0, known, log_scenes)
        logits = outputs[:, : self.num_logits * self.num_experts].unflatten(-1, (self.num_experts, self.num_logits))
        return [
            (log_scenes[..., None] + part.log_softmax(dim=-1)).logsumexp(dim=1)  # (B, S, K_p) -> (B, K_p)
            for part in logits.split(self.cells.num_geocells, dim=-1)
        ]

    def log_mass(self, outputs: Tensor) -> Tensor:
        """The finest partition's, or the normalised product of all partitions'."""
        partitions = self.log_partitions(outputs, temperature=self.temperature)
        if len(partitions) == 1:
            return partitions[0]
        product = torch.stack([p[:, own] for p, own in zip(partitions, self.cells.ancestors, strict=True)]).sum(dim=0)
        return product.log_softmax(dim=-1)

    def places(self, outputs: Tensor) -> Tensor:
        """The centroids of the finest partition."""
        return self.cells.finest

    def spread_km(self, outputs: Tensor) -> Tensor:
        """Of the finest cells' photos, scaled."""
        return self.spread_scale * self.cells.spread_km

    def point_log_density(self, outputs: Tensor, points: Tensor) -> Tensor:
        """Of a cell's mass most is normal around its place, a tenth lies evenly over its area: see `EVEN_SHARE`."""
        log_mass = self.log_mass(outputs)
        log_concentration = math.log(2) - 2 * torch.log(self.spread_km(outputs) / EARTH_RADIUS_KM)
        around = mixture_log_density(log_mass, points, self.places(outputs), log_concentration)
        own = nearest(points, self.cells.finest)
        evenly = log_mass.gather(1, own[:, None])[:, 0] - torch.log(self.cells.area_km2[own] / EARTH_RADIUS_KM**2)
        return torch.logaddexp(math.log(1 - EVEN_SHARE) + around, math.log(EVEN_SHARE) + evenly)

    def _mass(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both parts of each cell; the even one as if the cell were a disc of its area around the centroid."""
        mass, places, spread_km = super()._mass(outputs)
        mass = torch.cat(((1 - EVEN_SHARE) * mass, EVEN_SHARE * mass), dim=-1)
        centroids = self.cells.finest.expand_as(places)
        even_km = (self.cells.area_km2 / (2 * math.pi)).sqrt()
        return mass, torch.cat((places, centroids), dim=-2), torch.cat((spread_km, even_km))

    def place_loss(self, outputs: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """Mean over partitions of the cross-entropy with the true cell, or with smoothed targets; nats."""
        return self.cell_loss(outputs, self.cells.assign(truth), truth, scene_labels)

    def cell_loss(self, outputs: Tensor, labels: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """The same, where it is known that `(B, 3)` truths lie in the cells `(P, B)`."""
        partitions = self.log_partitions(outputs, scene_labels=scene_labels)
        losses = [
            self._cross_entropy(*each, truth) for each in zip(partitions, labels, self.cells.partitions, strict=True)
        ]
        return torch.stack(losses).mean()

    def _cross_entropy(self, log_probabilities: Tensor, labels: Tensor, centroids: Tensor, truth: Tensor) -> Tensor:
        if self.haversine_smoothing_km:
            distance_km = chord_km(chords(truth, centroids))  # (B, K_p)
            beyond_km = (distance_km - distance_km.gather(1, labels[:, None])).clamp(min=0)
            # not normalised: a photo amid many small cells may count for more than one of an empty region
            targets = torch.exp(-beyond_km / self.haversine_smoothing_km)
            return -(targets * log_probabilities).sum(dim=-1).mean()
        nats = -log_probabilities.gather(1, labels[:, None]).mean()
        if self.label_smoothing:
            nats = (1 - self.label_smoothing) * nats - self.label_smoothing * log_probabilities.mean()
        return nats


class HybridHead(GeocellsHead):
    """A cell, and a point within it: the offset of the true cell is trained, that of the chosen cell is answered.

    Two outputs for each finest cell are an offset to the east and to the north of its centroid, in the cell's spread,
    along a great circle. The loss adds the mean great-circle error of that point, times `regression_weight_per_km`.

    Source: Astruc et al. (2024), OpenStreetView-5M, for the hybrid; its squared error of scaled degrees is here the
    distance on the sphere.
    """

    def __init__(self, in_features: int, config: GeolocationHeadConfig) -> None:
        super().__init__(in_features, config, num_further_outputs=2 * config.num_geocells[-1])
        self.weight_per_km = config.regression_weight_per_km

    def offsets(self, outputs: Tensor) -> Tensor:
        """`(B, K, 2)` offsets of each finest cell, east and north, in its spread."""
        num_finest = self.cells.num_geocells[-1]
        return outputs[:, self.num_logits : self.num_logits + 2 * num_finest].unflatten(-1, (num_finest, 2))

    def places(self, outputs: Tensor) -> Tensor:
        """The point within each of the finest cells, `(B, K, 3)`."""
        return move_along_sphere(self.cells.finest, self.offsets(outputs), self.cells.spread_km)

    def place_of(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """The same for one cell of each photo, without moving all the others."""
        offset = self.offsets(outputs)[torch.arange(len(chosen), device=chosen.device), chosen]  # (B, K, 2) -> (B, 2)
        return move_along_sphere(self.cells.finest[chosen], offset, self.cells.spread_km[chosen])

    def anchors(self, outputs: Tensor) -> Tensor:
        """The centroids: a cell is chosen as if its photos were there."""
        return self.cells.finest

    def place_loss(self, outputs: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """Cross-entropy, and the great-circle error within the true cell, weighted; nats."""
        labels = self.cells.assign(truth)
        error_km = great_circle_km(self.place_of(outputs, labels[-1]), truth).mean()
        return self.cell_loss(outputs, labels, truth, scene_labels) + self.weight_per_km * error_km


def move_along_sphere(start: Tensor, offset: Tensor, unit_km: Tensor) -> Tensor:
    """Where one comes to from a point, going straight; at a pole, north is where longitude 0 comes from.

    Args:
        start: `(..., 3)` unit vectors.
        offset: `(..., 2)` east and north, in units of `unit_km`.
        unit_km: `(...)` km.

    Returns:
        `(..., 3)` unit vectors; the gradient is finite everywhere.
    """
    longitude = torch.atan2(start[..., 1], start[..., 0])
    zero = torch.zeros_like(longitude)
    east = torch.stack((-longitude.sin(), longitude.cos(), zero), dim=-1)
    north = torch.linalg.cross(start, east)
    tangent = (offset[..., :1] * east + offset[..., 1:] * north) * (unit_km / EARTH_RADIUS_KM)[..., None]
    angle = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    return angle.cos() * start + torch.sinc(angle / math.pi) * tangent
