"""The heads: features of a photo -> coordinates, with the loss that trains them. A head computes in float32, always."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .geodesy import great_circle_km, to_degrees, to_unit_vectors

__all__ = ["HEADS", "GeolocationHead", "GeolocationOutput", "SphereHead", "TanhHead", "build_head"]


def outside_autocast(device_type: str) -> AbstractContextManager[None]:
    """Full precision inside; the meta device, where models are only measured, knows no autocast to leave."""
    # Not torch.amp.is_autocast_available: torch 2.11 cannot trace it, which breaks fullgraph=True.
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@dataclass
class GeolocationOutput(ModelOutput):
    """What every geolocator answers. All fields are float32."""

    loss: Tensor | None = None
    """`()`: mean great-circle error of the batch, km; only where `coordinates_deg` was given."""

    coordinates_deg: Tensor | None = None
    """`(B, 2)`: predicted latitude and longitude, degrees; detached, the loss has its own path."""

    error_km: Tensor | None = None
    """`(B,)`: great-circle distance from prediction to truth, km; detached; only where `coordinates_deg` was given."""

    logits: Tensor | None = None
    """`(B, num_outputs)`: what a classifier's `coordinates_deg` is decoded from; None where the head is a regressor."""


class GeolocationHead(nn.Module):
    """Fully connected layers with ReLU between them, then a point on the sphere; trained by its distance in km.

    In bfloat16 a longitude step is 78 km and in float16 9.8 km, so the parameters stay float32 through `.to(dtype)`
    and the arithmetic stays outside autocast.

    Args:
        in_features: width of the features.
        hidden_sizes: widths of the hidden layers; the thesis has two of them before its two outputs.
        dropout: probability of zeroing a hidden unit in training.
    """

    num_outputs: int
    is_classifier = False
    """Whether the last layer's outputs are logits, which the answer then holds and several crops are averaged in."""

    def __init__(self, in_features: int, hidden_sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [in_features, *hidden_sizes]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.num_outputs))

    def to_points(self, outputs: Tensor) -> Tensor:
        """Turn the last layer's `(B, num_outputs)` into `(B, 3)` unit vectors."""
        raise NotImplementedError(f"{type(self).__name__} must say how its outputs become points on the sphere")

    def forward(self, features: Tensor, coordinates_deg: Tensor | None = None) -> GeolocationOutput:
        """Answer, and measure the answer where the truth is given.

        Args:
            features: `(B, in_features)`.
            coordinates_deg: `(B, 2)` true latitude and longitude, degrees.
        """
        with outside_autocast(features.device.type):
            outputs = self.layers(features.float())  # (B, in_features) -> (B, num_outputs)
            points = self.to_points(outputs)  # (B, num_outputs) -> (B, 3)
            answer, logits = to_degrees(points.detach()), outputs if self.is_classifier else None
            if coordinates_deg is None:
                return GeolocationOutput(coordinates_deg=answer, logits=logits)
            error_km = great_circle_km(points, to_unit_vectors(coordinates_deg.float()))
            return GeolocationOutput(error_km.mean(), answer, error_km.detach(), logits)

    @torch.no_grad()
    def combine_crops(self, outputs: Sequence[GeolocationOutput]) -> GeolocationOutput:
        """One answer from those to several crops of the same photos.

        A classifier averages its logits and decodes their mean. A regressor averages its points as unit vectors; where
        they cancel out, as antipodes do, their mean points nowhere, and the first crop's answer stands.

        Args:
            outputs: one for each crop, the central one first; each of B photos in the same order.

        Returns:
            `coordinates_deg` `(B, 2)`, and `logits` where the head is a classifier.
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


class TanhHead(GeolocationHead):
    """The thesis's head: `latitude = 90 tanh(y0)`, `longitude = 180 tanh(y1)`.

    Its gradient fades towards the poles and the date line, and it cannot cross them: `SphereHead` can.
    Source: K. Yang, "Self-supervised learning for image-based geolocation" (DTU, 2024).
    """

    num_outputs = 2

    def to_points(self, outputs: Tensor) -> Tensor:
        """Squash the two outputs into degrees, then into unit vectors."""
        latitude, longitude = torch.tanh(outputs).unbind(-1)
        # not times a tensor of both: to make one on a GPU waits for everything that the GPU has yet to do
        return to_unit_vectors(torch.stack((90.0 * latitude, 180.0 * longitude), dim=-1))


class SphereHead(GeolocationHead):
    """Three outputs, normalised to a unit vector: no border anywhere, every point of the sphere within reach."""

    num_outputs = 3

    def to_points(self, outputs: Tensor) -> Tensor:
        """Normalise; the floor on the length keeps the gradient finite at the origin."""
        return nn.functional.normalize(outputs, dim=-1, eps=1e-4)


HEADS: dict[str, type[GeolocationHead]] = {"tanh": TanhHead, "sphere": SphereHead}
"""Every head by the name that `head_type` knows it by."""


def build_head(head_type: str, in_features: int, hidden_sizes: Sequence[int], dropout: float) -> GeolocationHead:
    """The head called `head_type`, one of `HEADS`, for features of width `in_features`."""
    return HEADS[head_type](in_features, hidden_sizes, dropout)
