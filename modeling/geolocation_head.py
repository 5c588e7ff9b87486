"""The heads that answer a point, and what all heads share: features of a photo -> coordinates, and a loss.

A head computes in float32, always. Those that answer a posterior are in `posterior_heads.py` and `vmf_mixture_head.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_geolocation_head import GeolocationHeadConfig
from .geodesy import great_circle_km, to_degrees, to_unit_vectors

__all__ = ["GeolocationHead", "GeolocationOutput", "SphereHead", "TanhHead", "outside_autocast"]

KM_PER_NAT = 1000.0
"""What a nat of the scene's loss counts beside a loss in km."""


def outside_autocast(device_type: str) -> AbstractContextManager[None]:
    """Full precision inside; the meta device, where models are only measured, knows no autocast to leave."""
    # Not torch.amp.is_autocast_available: torch 2.11 cannot trace it, which breaks fullgraph=True.
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@dataclass
class GeolocationOutput(ModelOutput):
    """What every geolocator answers. All fields are float32."""

    loss: Tensor | None = None
    """`()`: mean loss of the batch, in km for a point head and in nats for a posterior; needs `coordinates_deg`."""

    coordinates_deg: Tensor | None = None
    """`(B, 2)`: predicted latitude and longitude, degrees; detached, the loss has its own path."""

    error_km: Tensor | None = None
    """`(B,)`: great-circle distance from prediction to truth, km; detached; only where `coordinates_deg` was given."""

    logits: Tensor | None = None
    """`(B, num_outputs)`: the last layer, which a posterior is decoded from; None where the head answers a point."""

    scene_logits: Tensor | None = None
    """`(B, num_scenes)`: the photo's scene; None where none is learned."""


class GeolocationHead(nn.Module):
    """Fully connected layers with ReLU between them, then a point on the sphere.

    In bfloat16 a longitude step is 78 km and in float16 9.8 km, so the parameters stay float32 through `.to(dtype)`
    and the arithmetic stays outside autocast.

    Args:
        in_features: width of the features.
        config: `head_hidden_sizes`, `head_dropout_prob` and what the head of its `head_type` reads.
        num_outputs: of the place; the last layer has `config.num_scenes` outputs behind them.
    """

    has_posterior = False
    """Whether the last layer's outputs say how likely every place is; the answer then holds them as `logits`."""

    def __init__(self, in_features: int, config: GeolocationHeadConfig, num_outputs: int) -> None:
        super().__init__()
        self.num_scenes, self.scene_loss_weight = config.num_scenes, config.scene_loss_weight
        widths = [in_features, *config.head_hidden_sizes]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(config.head_dropout_prob)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs + config.num_scenes))

    def to_points(self, outputs: Tensor) -> Tensor:
        """Turn the last layer's `(B, num_outputs + num_scenes)` into `(B, 3)` unit vectors."""
        raise NotImplementedError(f"{type(self).__name__} must say how its outputs become points on the sphere")

    def place_loss(self, outputs: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """Mean loss `()` of the last layer's outputs where `(B, 3)` unit vectors are true."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is")

    def forward(
        self, features: Tensor, coordinates_deg: Tensor | None = None, scene_labels: Tensor | None = None
    ) -> GeolocationOutput:
        """Answer, and measure the answer where the truth is given.

        Args:
            features: `(B, in_features)`.
            coordinates_deg: `(B, 2)` true latitude and longitude, degrees.
            scene_labels: `(B,)` int64 from 0 to `num_scenes - 1`, and -1 where the scene is not known.
        """
        outputs = self.to_logits(features)
        with outside_autocast(features.device.type):
            points = self.to_points(outputs.detach())
            answer = GeolocationOutput(coordinates_deg=to_degrees(points), scene_logits=self.scene_logits(outputs))
            if self.has_posterior:
                answer.logits = outputs
            if coordinates_deg is not None:
                truth = to_unit_vectors(coordinates_deg.float())
                answer.loss = self.place_loss(outputs, truth, scene_labels)
                if self.num_scenes and scene_labels is not None:
                    answer.loss = answer.loss + self.scene_loss(outputs, scene_labels)
                answer.error_km = great_circle_km(points, truth)
            return answer

    def to_logits(self, features: Tensor) -> Tensor:
        """`(B, in_features)` -> `(B, num_outputs + num_scenes)`: the last layer, without decoding an answer from it."""
        with outside_autocast(features.device.type):
            return self.layers(features.float())

    def set_geocells(self, *args: object, **kwargs: object) -> None:
        """Take over cells that were built from training photos: see `GeocellTensors.set_geocells`.

        Raises:
            ValueError: the head has no cells, or others than the configuration counts.
        """
        cells = getattr(self, "cells", None)
        if cells is None:
            raise ValueError(
                f"a {type(self).__name__} has no cells: leave geocells out, or choose head_type geocells, hybrid or "
                "vmf_mixture with num_mixture_components 0."
            )
        cells.set_geocells(*args, **kwargs)

    def scene_logits(self, outputs: Tensor) -> Tensor | None:
        """The last `num_scenes` of the last layer's outputs; None where there are none."""
        return outputs[:, -self.num_scenes :] if self.num_scenes else None

    def scene_loss(self, outputs: Tensor, scene_labels: Tensor) -> Tensor:
        """Weighted cross-entropy `()` of the photos whose scene is known, 0 where none is."""
        nats = nn.functional.cross_entropy(
            outputs[:, -self.num_scenes :], scene_labels, ignore_index=-1, reduction="sum"
        )
        scale = self.scene_loss_weight * (1.0 if self.has_posterior else KM_PER_NAT)
        return scale * nats / (scene_labels >= 0).sum().clamp(min=1)

    @torch.no_grad()
    def combine_crops(self, outputs: Sequence[GeolocationOutput]) -> GeolocationOutput:
        """One answer from those to several crops of the same photos.

        A posterior is decoded from the mean of the logits. Points are averaged as unit vectors; where they cancel out,
        as antipodes do, their mean points nowhere, and the first crop's answer stands.

        Args:
            outputs: one for each crop, the central one first; each of B photos in the same order.

        Returns:
            `coordinates_deg` `(B, 2)`, and `logits` where the head has a posterior.
        """
        with outside_autocast(outputs[0].coordinates_deg.device.type):
            logits = [output.logits for output in outputs if output.logits is not None]
            if logits:
                mean_logits = torch.stack(logits).mean(dim=0)  # (crops, B, K) -> (B, K)
                return GeolocationOutput(coordinates_deg=to_degrees(self.to_points(mean_logits)), logits=mean_logits)
            points = torch.stack([to_unit_vectors(output.coordinates_deg) for output in outputs])  # (crops, B, 3)
            mean = points.mean(dim=0)  # its length is 1 where all agree; float32 leaves 1e-7 of what cancels out
            is_lost = torch.linalg.vector_norm(mean, dim=-1, keepdim=True) < 1e-6
            return GeolocationOutput(coordinates_deg=to_degrees(torch.where(is_lost, points[0], mean)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeolocationHead":
        """Follow `.to()`, `.cuda()` and `.bfloat16()` to the device, but not out of float32."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype != tensor.dtype else moved

        return super()._apply(keep_float32, recurse)


class PointHead(GeolocationHead):
    """A head that answers one point, trained by its great-circle distance from the truth, km."""

    def place_loss(self, outputs: Tensor, truth: Tensor, scene_labels: Tensor | None) -> Tensor:
        """Mean great-circle error, km."""
        return great_circle_km(self.to_points(outputs), truth).mean()


class TanhHead(PointHead):
    """The thesis's head: `latitude = 90 tanh(y0)`, `longitude = 180 tanh(y1)`.

    Its gradient fades towards the poles and the date line, and it cannot cross them: `SphereHead` can.
    Source: K. Yang, "Self-supervised learning for image-based geolocation" (DTU, 2024).
    """

    def __init__(self, in_features: int, config: GeolocationHeadConfig) -> None:
        super().__init__(in_features, config, num_outputs=2)

    def to_points(self, outputs: Tensor) -> Tensor:
        """Squash the two outputs into degrees, then into unit vectors."""
        latitude, longitude = torch.tanh(outputs[:, :2]).unbind(-1)
        # not times a tensor of both: to make one on a GPU waits for everything that the GPU has yet to do
        return to_unit_vectors(torch.stack((90.0 * latitude, 180.0 * longitude), dim=-1))


class SphereHead(PointHead):
    """Three outputs, normalised to a unit vector: no border anywhere, every point of the sphere within reach."""

    def __init__(self, in_features: int, config: GeolocationHeadConfig) -> None:
        super().__init__(in_features, config, num_outputs=3)

    def to_points(self, outputs: Tensor) -> Tensor:
        """Normalise; the floor on the length keeps the gradient finite at the origin."""
        return nn.functional.normalize(outputs[:, :3], dim=-1, eps=1e-4)
