"""The sphere in numpy and float64: distances, checks and centres. Its twin in torch is `modeling/geodesy.py`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomae.errors import CoordinateError

__all__ = [
    "EARTH_RADIUS_KM",
    "check_coordinates",
    "draw_uniform",
    "find_off_earth",
    "geometric_median",
    "great_circle_km",
    "spherical_means",
    "to_degrees",
    "unit_vectors",
]

EARTH_RADIUS_KM = 6371.0088  # the mean radius of GRS80 (IUGG): (2a + b) / 3


def unit_vectors(coordinates_deg: ArrayLike) -> NDArray[np.float64]:
    """Points of the unit sphere: x towards (0, 0), y towards (0, 90 E), z towards the north pole.

    Args:
        coordinates_deg: `(..., 2)` latitude and longitude in degrees.

    Returns:
        `(..., 3)` float64.
    """
    latitude, longitude = np.moveaxis(np.radians(np.asarray(coordinates_deg, dtype=np.float64)), -1, 0)
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1
    )


def to_degrees(vectors: ArrayLike) -> NDArray[np.float64]:
    """Latitude in [-90, 90] and longitude in [-180, 180] of vectors of any non-zero length.

    Args:
        vectors: `(..., 3)`, axes as in `unit_vectors`.

    Returns:
        `(..., 2)` degrees, float64.
    """
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=-1))


def great_circle_km(predicted_deg: ArrayLike, target_deg: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distance on a sphere of radius `EARTH_RADIUS_KM`, exact to rounding from 0 to the antipode.

    Args:
        predicted_deg: `(..., 2)` latitude and longitude in degrees.
        target_deg: `(..., 2)`, broadcast against `predicted_deg`.

    Returns:
        `(...)` kilometres, float64, from 0 to 20 015.1.

    Source: Kahan (2006), "How Futile are Mindless Assessments of Roundoff", section on angles between vectors.
    """
    predicted, target = unit_vectors(predicted_deg), unit_vectors(target_deg)
    apart = np.linalg.norm(predicted - target, axis=-1)
    together = np.linalg.norm(predicted + target, axis=-1)
    return np.asarray(2.0 * EARTH_RADIUS_KM * np.arctan2(apart, together))


def spherical_means(
    vectors: NDArray[np.float64], labels: ArrayLike, num_groups: int, *, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """The mean direction of each group of points: the sum of their unit vectors, scaled back to the sphere.

    Args:
        vectors: `(n, 3)` unit vectors.
        labels: `(n,)` groups from 0 to `num_groups` - 1; a point of group -1 is in none.
        num_groups: K.
        weights: `(n,)` of the points, 1 each if left out.

    Returns:
        `(K, 3)` unit vectors; (1, 0, 0) for a group without points, or whose points cancel out.

    Source: Mardia and Jupp (2000), "Directional Statistics", section 9.2.1.
    """
    groups = np.asarray(labels) + 1  # `bincount` takes no negative numbers
    weights = np.ones(len(groups)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = np.stack([np.bincount(groups, weights * axis, num_groups + 1)[1:] for axis in vectors.T], axis=1)
    lengths = np.linalg.norm(sums, axis=1)
    sums[lengths < 1e-12] = (1.0, 0.0, 0.0)
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))


def find_off_earth(latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.bool_]:
    """True where a point is not finite, or lies outside -90..90 degrees of latitude or -180..180 of longitude."""
    latitude, longitude = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # comparing NaN is the point here
        return ~((np.abs(latitude) <= 90.0) & (np.abs(longitude) <= 180.0))


def check_coordinates(
    latitude: ArrayLike,
    longitude: ArrayLike,
    ids: Sequence[object],
    source: str,
    *,
    swap_flag: str = "--swap_lat_lon",
) -> None:
    """Refuses coordinates that are missing, not finite or not on Earth.

    Args:
        latitude: `(n,)` degrees.
        longitude: `(n,)` degrees.
        ids: n names, for the message; `row 7` where rows have no ids.
        source: the file or data set that they came from, for the message.
        swap_flag: the option that would read the two columns the other way round, for the message.

    Raises:
        CoordinateError: names how many rows are bad, the first of them, and whether the two columns look swapped.
    """
    latitude, longitude = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    off_earth = find_off_earth(latitude, longitude)
    if not off_earth.any():
        return
    first = int(np.argmax(off_earth))
    name = str(ids[first])
    message = (
        f"{int(off_earth.sum())} of {len(off_earth)} rows of {source} are not on Earth; the first is "
        f"{name if name.startswith('row ') else f'id {name}'}: "
        f"latitude={latitude[first]:g}, longitude={longitude[first]:g}.\n"
        "  Latitude runs from -90 to 90 degrees, longitude from -180 to 180."
    )
    if not np.isfinite(np.stack([latitude[off_earth], longitude[off_earth]])).all():
        message += " Remove the rows whose coordinates are missing or not finite."
    elif not find_off_earth(longitude, latitude).any():
        message += (
            f" Are the columns swapped? Pass {swap_flag} to read them the other way round; leave it out if it is there."
        )
    raise CoordinateError(message)


def draw_uniform(num_points: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points drawn uniformly over the area of the sphere.

    Returns:
        `(num_points, 2)` latitude and longitude in degrees.

    Source: Archimedes: the sphere's area between two latitudes is proportional to the difference of their sines.
    """
    latitude = np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, num_points)))
    return np.stack([latitude, rng.uniform(-180.0, 180.0, num_points)], axis=-1)


def geometric_median(
    coordinates_deg: ArrayLike, *, tolerance_km: float = 1e-3, max_iterations: int = 1000
) -> NDArray[np.float64]:
    """The point with the least mean great-circle distance to the given points.

    The sum of distances is not convex on a sphere, so the best of 500 evenly spread points starts the descent.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees, n >= 1.
        tolerance_km: the descent stops when a step is shorter than this.
        max_iterations: and after this many steps at the latest.

    Returns:
        `(2,)` latitude and longitude in degrees.

    Raises:
        CoordinateError: no points were given.

    Source: Fletcher, Venkatasubramanian and Joshi (2008), "Robust statistics on Riemannian manifolds via the geometric
    median": Weiszfeld's iteration in the tangent plane; steps from a data point as in Vardi and Zhang (2000).
    """
    points = unit_vectors(coordinates_deg).reshape(-1, 3)
    if len(points) == 0:
        raise CoordinateError("the geometric median of no points is not defined: give at least one coordinate pair")
    grid = _fibonacci_sphere(500)
    sample = points[:: max(1, len(points) // 2000)]
    median = grid[np.argmin(np.arccos(np.clip(grid @ sample.T, -1.0, 1.0)).mean(axis=1))]
    for _ in range(max_iterations):
        step = _weiszfeld_step(median, points)
        length = float(np.linalg.norm(step))
        if length > 0.0:
            median = np.cos(length) * median + np.sin(length) * step / length
            median /= np.linalg.norm(median)
        if length * EARTH_RADIUS_KM < tolerance_km:
            break
    return to_degrees(median)


def _weiszfeld_step(centre: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The tangent vector `(3,)`, in radians, from `centre` to its Weiszfeld successor."""
    cosine = points @ centre
    tangent = points - cosine[:, None] * centre
    sine = np.linalg.norm(tangent, axis=1)
    angle = np.arctan2(sine, cosine)
    apart = sine > 1e-12  # a point at the centre, or at its antipode, has no direction
    pull = (tangent[apart] / sine[apart, None]).sum(axis=0)
    strength = float(np.linalg.norm(pull))
    num_here = int((~apart & (cosine > 0.0)).sum())
    if strength <= num_here or strength == 0.0:
        return np.zeros(3)
    return (1.0 - num_here / strength) * pull / (1.0 / angle[apart]).sum()


def _fibonacci_sphere(num_points: int) -> NDArray[np.float64]:
    """Evenly spread unit vectors `(num_points, 3)`."""
    position = np.arange(num_points) + 0.5
    z = 1.0 - 2.0 * position / num_points
    angle = np.pi * (1.0 + np.sqrt(5.0)) * position
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
