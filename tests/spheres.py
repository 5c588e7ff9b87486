"""The sphere a second time, by other formulas than those of `geomae.geography`, and photos to cut into cells."""

import numpy as np
from numpy.typing import NDArray

RADIUS_KM = 6371.0088
SPHERE_KM2 = 4.0 * np.pi * RADIUS_KM**2
EDGES_DEG = np.array(
    [[90, 0], [90, 77], [-90, 0], [-90, -180], [0, 180], [0, -180], [10, 180], [10, -179.999], [89.999, 180], [0, 0]],
    dtype=np.float64,
)


def haversine_km(first_deg: NDArray[np.float64], second_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances `(n, m)` between `(n, 2)` and `(m, 2)` degrees, by the haversine formula."""
    first, second = np.radians(first_deg)[:, None], np.radians(second_deg)[None]
    half = np.sin((first - second) / 2.0) ** 2
    a = half[..., 0] + np.cos(first[..., 0]) * np.cos(second[..., 0]) * half[..., 1]
    return np.asarray(2.0 * RADIUS_KM * np.arcsin(np.sqrt(np.clip(a, 0.0, 1.0))))


def draw_photos(num_photos: int, seed: int = 0) -> NDArray[np.float64]:
    """Places `(num_photos, 2)` in towns of very different sizes, of which some lie at poles and date line."""
    of_towns, rng = np.random.default_rng(0), np.random.default_rng(seed)
    latitude, longitude = of_towns.uniform(-70, 70, 60), of_towns.uniform(-180, 180, 60)
    towns = of_towns.permutation(np.concatenate([EDGES_DEG, np.stack([latitude, longitude], axis=1)]))
    share = 1.0 / np.arange(1, len(towns) + 1)
    town = rng.choice(len(towns), num_photos, p=share / share.sum())
    latitude, longitude = np.radians(towns[town]).T
    vectors = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )
    x, y, z = (vectors + rng.normal(0, rng.choice([1e-4, 1e-2, 0.1], num_photos)[:, None], vectors.shape)).T
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=1))
