"""The cells of a posterior head: tensors that travel in the checkpoint, so that it needs no file beside it.

A point belongs to the cell of the finest partition whose centroid is nearest, and to that cell's ancestors in the
coarser ones: every point of the sphere is in exactly one cell of each partition, and partitions nest.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .geodesy import EARTH_RADIUS_KM, to_unit_vectors

__all__ = ["GeocellTensors", "chords", "evenly_spread", "nearest"]

EARTH_AREA_KM2 = 4 * math.pi * EARTH_RADIUS_KM**2
SMALLEST_SPREAD_KM = 0.1
"""Photos of one place would have an infinite density; `python -m geomae.geocells build` writes no spread below 1 km."""


def evenly_spread(num_points: int) -> Tensor:
    """`(num_points, 3)` unit vectors, evenly spread over the sphere on a Fibonacci spiral; float32."""
    position = torch.arange(num_points, dtype=torch.float64) + 0.5
    z = 1 - 2 * position / num_points
    angle = math.pi * (1 + math.sqrt(5)) * position
    radius = (1 - z**2).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1).float()


def chords(points: Tensor, others: Tensor) -> Tensor:
    """Straight distances `(..., B, K)` between `(..., B, 3)` and `(..., K, 3)` unit vectors.

    Of differences, not of a matrix product, whose rounding hides 2 km.
    """
    if torch.compiler.is_exporting():  # ONNX has no cdist
        return torch.linalg.vector_norm(points[..., :, None, :] - others[..., None, :, :], dim=-1)
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """`(B,)` int64: which of `(K, 3)` centroids is nearest to each of `(B, 3)` points."""
    return chords(points, centroids).argmin(dim=-1)


class GeocellTensors(nn.Module):
    """P nested partitions of the Earth; K is the number of cells in the finest. Fresh cells are evenly spread."""

    centroids: Tensor
    """`(num_geocells[0] + ... + K, 3)` unit vectors, coarse to fine."""
    ancestors: Tensor
    """`(P, K)` int64: the cell of each partition that a finest cell lies in; the last row counts from 0 to K - 1."""
    area_km2: Tensor
    """`(K,)`: area of each finest cell."""
    spread_km: Tensor
    """`(K,)`: root mean square distance of a finest cell's photos from its centroid."""

    def __init__(self, num_geocells: Sequence[int]) -> None:
        super().__init__()
        self.num_geocells = list(num_geocells)
        num_finest = self.num_geocells[-1]
        self.register_buffer("centroids", torch.zeros(sum(self.num_geocells), 3))
        self.register_buffer("ancestors", torch.zeros(len(self.num_geocells), num_finest, dtype=torch.int64))
        self.register_buffer("area_km2", torch.zeros(num_finest))
        self.register_buffer("spread_km", torch.zeros(num_finest))
        if not self.centroids.is_meta:
            self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Evenly spread cells of equal area; what a checkpoint has filled stays."""
        partitions = [evenly_spread(count) for count in self.num_geocells]
        finest = partitions[-1]
        area_km2 = EARTH_AREA_KM2 / len(finest)
        init.copy_(self.centroids, torch.cat(partitions))
        init.copy_(self.ancestors, torch.stack([nearest(finest, coarse) for coarse in partitions]))
        init.constant_(self.area_km2, area_km2)
        init.constant_(self.spread_km, math.sqrt(area_km2 / (2 * math.pi)))  # of a disc of that area

    @torch.no_grad()
    def set_geocells(
        self,
        centroids_deg: Sequence[Any],
        parents: Sequence[Any],
        area_km2: Any,
        spread_km: Any,
    ) -> None:
        """Take over cells that were built from training photos; anything that `torch.as_tensor` takes will do.

        Args:
            centroids_deg: `(K_p, 2)` latitude and longitude of each of P partitions, coarse to fine.
            parents: P - 1 of `(K_p,)`, for all but the coarsest: the cell of the next coarser partition.
            area_km2: `(K,)` of the finest cells.
            spread_km: `(K,)` of the finest cells.

        Raises:
            ValueError: the numbers of cells are not those of the configuration.
        """
        counts = [len(partition) for partition in centroids_deg]
        if counts != self.num_geocells or len(parents) != len(counts) - 1:
            raise ValueError(
                f"there are partitions of {counts} cells and {len(parents)} lists of parents; the configuration has "
                f"num_geocells={self.num_geocells}, and every partition but the first needs parents."
            )
        ancestors = [torch.arange(counts[-1])]
        for to_coarser in reversed(parents):
            ancestors.insert(0, torch.as_tensor(to_coarser, dtype=torch.int64)[ancestors[0]])
        degrees = torch.cat([torch.as_tensor(partition, dtype=torch.float64) for partition in centroids_deg])
        self.centroids.copy_(to_unit_vectors(degrees))
        self.ancestors.copy_(torch.stack(ancestors))
        self.area_km2.copy_(torch.as_tensor(area_km2))
        self.spread_km.copy_(torch.as_tensor(spread_km)).clamp_(min=SMALLEST_SPREAD_KM)

    def keep_integers(self) -> None:
        """Loading in half precision makes every tensor of a head kept in float32 one of floats: undo it, exactly."""
        self.ancestors = self.ancestors.long()

    @property
    def partitions(self) -> tuple[Tensor, ...]:
        """The centroids of each partition, `(K_p, 3)`, coarse to fine."""
        return self.centroids.split(self.num_geocells)

    @property
    def finest(self) -> Tensor:
        """`(K, 3)` centroids of the finest partition."""
        return self.centroids[-self.num_geocells[-1] :]

    def assign(self, points: Tensor) -> Tensor:
        """`(B, 3)` unit vectors -> `(P, B)` int64: the cell of each partition that a point lies in."""
        return self.ancestors[:, nearest(points, self.finest)]
