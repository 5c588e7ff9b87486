"""The sphere in torch: degrees, unit vectors, and great-circle distances whose gradients are finite everywhere."""

import torch
from torch import Tensor

__all__ = ["EARTH_RADIUS_KM", "great_circle_km", "to_degrees", "to_unit_vectors"]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius R1 of the Earth, km (Moritz 2000, Geodetic Reference System 1980)."""


def to_unit_vectors(coordinates_deg: Tensor) -> Tensor:
    """Points on the unit sphere: x towards (0 N, 0 E), y towards (0 N, 90 E), z towards the north pole.

    Args:
        coordinates_deg: `(..., 2)` degrees, latitude then longitude.

    Returns:
        `(..., 3)` unit vectors.
    """
    latitude, longitude = torch.deg2rad(coordinates_deg).unbind(-1)
    equatorial = torch.cos(latitude)
    return torch.stack(
        (equatorial * torch.cos(longitude), equatorial * torch.sin(longitude), torch.sin(latitude)), dim=-1
    )  # (..., 2) -> (..., 3)


def to_degrees(vectors: Tensor) -> Tensor:
    """Latitude and longitude of directions; at the poles the longitude is arbitrary.

    Args:
        vectors: `(..., 3)` vectors of any length but zero.

    Returns:
        `(..., 2)` degrees: latitude from -90 to 90, longitude from -180 to 180.
    """
    x, y, z = vectors.unbind(-1)
    latitude = torch.atan2(z, torch.linalg.vector_norm(vectors[..., :2], dim=-1))
    return torch.rad2deg(torch.stack((latitude, torch.atan2(y, x)), dim=-1))  # (..., 3) -> (..., 2)


def great_circle_km(predicted: Tensor, target: Tensor) -> Tensor:
    """Great-circle distance between points given as unit vectors.

    The haversine formula is the same number, but its square root has no gradient where the points coincide or are
    antipodal; the norms here have one, and it is 0 exactly there.

    Args:
        predicted: `(..., 3)` unit vectors.
        target: `(..., 3)` unit vectors, broadcast against `predicted`.

    Returns:
        `(...)` kilometres, from 0 to 20 015.1; its gradient is finite everywhere, 0 where the points coincide.

    Source: Kahan (2006), "How Futile are Mindless Assessments of Roundoff in Floating-Point Computation?", section
    on angles between vectors.
    """
    chord = torch.linalg.vector_norm(predicted - target, dim=-1)
    co_chord = torch.linalg.vector_norm(predicted + target, dim=-1)
    return 2 * EARTH_RADIUS_KM * torch.atan2(chord, co_chord)
