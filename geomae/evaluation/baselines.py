"""Answers that look at no photo, fitted on training coordinates: what a model must beat to have seen anything."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from geomae.errors import ConfigError, SourceError
from geomae.evaluation.judge import judge_errors
from geomae.evaluation.metrics import THRESHOLDS_KM, check_thresholds, summarise_errors, threshold_key
from geomae.evaluation.tables import TestSet
from geomae.geography import (
    EARTH_RADIUS_KM,
    draw_uniform,
    geometric_median,
    great_circle_km,
    to_degrees,
    unit_vectors,
)

__all__ = [
    "NUM_CLUSTERS",
    "Clusters",
    "densest_point",
    "describe_baselines",
    "draw_from_clusters",
    "fit_clusters",
    "judge_baselines",
]

Points = NDArray[np.float64]  # (n, 2) latitude and longitude in degrees
# The thesis does not state its number of clusters. With 8, refits of k-means end in different local optima, and the
# guess lies between 8,300 and 9,600 km on Im2GPS3k (the thesis: 8,975; another fit: 8,907): so every run refits, and
# the spread shows it. Drawn by size the guess hardly depends on the fit: 7,125 to 7,200 km.
NUM_CLUSTERS = 8
MAX_POINTS_TO_CLUSTER = 20_000
# The constants of MP-16's 4.7 million points would take twenty minutes. Fitted on two draws of 100,000, they have mean
# errors on Im2GPS3k that differ by 4 km at most.
MAX_POINTS_TO_FIT = 100_000


@dataclass(frozen=True)
class Clusters:
    """Where training photos are, as k normal distributions in degrees."""

    means_deg: Points  # (k, 2)
    deviations_deg: Points  # (k, 2)
    shares: NDArray[np.float64]  # (k,) of the clustered photos; their sum is 1


def describe_baselines(thresholds_km: Sequence[float] = THRESHOLDS_KM) -> dict[str, str]:
    """What each baseline answers, in the order in which they are judged.

    Args:
        thresholds_km: the radii of the densest points, such as `densest_200km`.
    """
    keys = [threshold_key(radius) for radius in thresholds_km]
    return {
        "geometric_median": "the training coordinates' geometric median, for every photo",
        **{f"densest_{key}km": f"the point with most training photos within {key} km, for every photo" for key in keys},
        "random_training_photo": "the place of a training photo drawn at random",
        "random_guess": "a k-means cluster drawn uniformly, then a point from its mean and variance (the thesis)",
        "random_guess_by_size": "the same with clusters drawn in proportion to their photos",
        "uniform_on_sphere": "a point drawn uniformly over the Earth",
    }


def judge_baselines(
    test_set: TestSet,
    training_deg: Points | None,
    *,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    num_clusters: int = NUM_CLUSTERS,
    num_repeats: int = 20,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], pa.Table]:
    """Every baseline's numbers on a test set, and its error for each photo.

    Args:
        test_set: n photos with true coordinates.
        training_deg: `(m, 2)` degrees; without them only `uniform_on_sphere` can be judged. The constants are fitted
            on at most `MAX_POINTS_TO_FIT` of them, always the same draw; clusters on `MAX_POINTS_TO_CLUSTER`.
        thresholds_km: radii in kilometres: of the accuracies, and one densest point for each that is above 0.
        num_clusters: of the random guesses, at least 1.
        num_repeats: independent runs of each random baseline, at least 1.
        num_resamples: of the bootstrap around the constants.
        seed: of the draws and of the bootstrap, at least 0.

    Returns:
        Name -> metrics with a `description`. A constant has `answer_deg` and `intervals_95`. A random answer has the
        means over its runs and under `spread` their standard deviations. Then a table of `id` and one column of
        errors in km for each baseline (of the first run where it is random).

    Raises:
        ConfigError: there are too few clusters, repeats or resamples, the seed is negative, or a radius cannot be one.
        SourceError: there are training coordinates, and not one of them.
    """
    for name, number, least in (("num_repeats", num_repeats, 1), ("num_clusters", num_clusters, 1), ("seed", seed, 0)):
        if number < least:
            raise ConfigError(f"{name} must be at least {least}, for the random baselines; got {number}")
    if training_deg is not None and len(training_deg) == 0:
        raise SourceError("training_deg holds not one point to fit baselines on; give None to do without them")
    check_thresholds(thresholds_km)
    descriptions, truth_deg = describe_baselines(thresholds_km), test_set.coordinates_deg
    how: dict[str, Any] = {"thresholds_km": thresholds_km, "num_resamples": num_resamples, "seed": seed}
    results: dict[str, dict[str, Any]] = {}
    columns: dict[str, Any] = {"id": pa.array(test_set.ids, pa.string())}
    for name, answer_deg in ({} if training_deg is None else _fit_constants(training_deg, thresholds_km)).items():
        columns[name] = great_circle_km(answer_deg, truth_deg)
        judged = judge_errors(columns[name], test_set, **how)
        results[name] = {"description": descriptions[name], "answer_deg": [float(v) for v in answer_deg], **judged}
    rank = np.argsort(np.argsort(test_set.ids))  # draws go by the photos' names, whatever the order of the rows
    for name, draws in _draw_answers(training_deg, len(truth_deg), num_clusters, num_repeats, seed):
        runs = [great_circle_km(drawn_deg[rank], truth_deg) for drawn_deg in draws]
        columns[name] = runs[0]
        averaged = _average_runs([summarise_errors(run, thresholds_km=thresholds_km) for run in runs])
        results[name] = {"description": descriptions[name], **averaged}
    return results, pa.table(columns)


def _fit_constants(training_deg: Points, thresholds_km: Sequence[float]) -> dict[str, Points]:
    """Name -> `(2,)` degrees."""
    if len(training_deg) > MAX_POINTS_TO_FIT:
        rows = np.random.default_rng(0).choice(len(training_deg), MAX_POINTS_TO_FIT, replace=False)
        training_deg = training_deg[rows]
    densest = {
        f"densest_{threshold_key(radius)}km": densest_point(training_deg, radius_km=radius)
        for radius in thresholds_km
        if radius > 0.0
    }
    return {"geometric_median": geometric_median(training_deg), **densest}


def _draw_answers(
    training_deg: Points | None, num_photos: int, num_clusters: int, num_repeats: int, seed: int
) -> Iterator[tuple[str, Iterable[Points]]]:
    """Name and `num_repeats` arrays `(num_photos, 2)` of each random baseline, with draws that are its own."""

    def rng_of(name: str) -> np.random.Generator:
        return np.random.default_rng((seed, zlib.crc32(name.encode())))

    if training_deg is not None:
        rng = rng_of("random_training_photo")
        chosen = (rng.integers(0, len(training_deg), num_photos) for _ in range(num_repeats))
        yield "random_training_photo", (training_deg[rows] for rows in chosen)
        rng = rng_of("clusters")
        fits = [fit_clusters(training_deg, num_clusters, rng) for _ in range(num_repeats)]
        for name, by_size in (("random_guess", False), ("random_guess_by_size", True)):
            rng = rng_of(name)
            yield name, (draw_from_clusters(clusters, num_photos, rng, by_size=by_size) for clusters in fits)
    rng = rng_of("uniform_on_sphere")
    yield "uniform_on_sphere", (draw_uniform(num_photos, rng) for _ in range(num_repeats))


def densest_point(coordinates_deg: Points, *, radius_km: float) -> Points:
    """The point `(2,)` with the most coordinates within a radius of it: the constant with the best accuracy there.

    The points themselves are tried first, those within a fifth of the radius together; then three times a grid five
    times as fine around the best. It is a search and no proof: where few points lie exactly a radius away, it may find
    one fewer than there could be, and more where the best circle is empty around its middle. Where several places have
    as many, it is the one nearest to the mean of the points inside, if not that mean. Of 100,000 points: a fifth of a
    second for 1 km, 2 s for 750 km.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees, n >= 1.
        radius_km: above 0.
    """
    points = unit_vectors(coordinates_deg)
    tree = cKDTree(points)
    chord = 2.0 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2.0)
    step = chord / 5.0
    cell = np.unique(np.round(points / step), axis=0, return_inverse=True)[1].reshape(-1)  # numpy 2.0 keeps the axis
    sums = np.stack([np.bincount(cell, weights=column) for column in points.T], axis=1)
    candidates = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    for num_kept in (64, 16, 16):
        num_near = tree.query_ball_point(candidates, chord, return_length=True)
        candidates = _grid_around(candidates[np.argsort(-num_near, kind="stable")[:num_kept]], step)
        step /= 5.0
    num_near = tree.query_ball_point(candidates, chord, return_length=True)
    best = candidates[np.argmax(num_near)]
    inside = points[tree.query_ball_point(best, chord)].sum(axis=0)
    length = np.linalg.norm(inside)
    middle = inside / length if length > 1e-9 else best  # points all round the Earth have no middle
    candidates = np.concatenate([candidates, middle[None]])
    num_near = np.append(num_near, tree.query_ball_point(middle, chord, return_length=True))
    tied = candidates[num_near == num_near.max()]
    return to_degrees(tied[np.argmax(tied @ middle)])


def _grid_around(centres: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """`(k, 3)` unit vectors -> `(121 k, 3)`: themselves and five fifths of a step to each side, in two directions."""
    away = np.where(np.abs(centres[:, 2:]) < 0.9, (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))  # never along the centre
    first = np.cross(away, centres)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    directions = np.stack([first, np.cross(centres, first)], axis=1)  # (k, 2, 3)
    offsets = np.linspace(-step, step, 11)
    pairs = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = (centres[:, None] + pairs @ directions).reshape(-1, 3)
    return grid / np.linalg.norm(grid, axis=1, keepdims=True)


def fit_clusters(coordinates_deg: Points, num_clusters: int, rng: np.random.Generator) -> Clusters:
    """k-means in degrees of latitude and longitude.

    At most `MAX_POINTS_TO_CLUSTER` points, drawn at random, are clustered. There are fewer clusters than asked for
    where there are fewer distinct points.
    """
    if len(coordinates_deg) > MAX_POINTS_TO_CLUSTER:
        coordinates_deg = coordinates_deg[rng.choice(len(coordinates_deg), MAX_POINTS_TO_CLUSTER, replace=False)]
    num_clusters = min(num_clusters, len(np.unique(coordinates_deg, axis=0)))
    _, labels = kmeans2(coordinates_deg, num_clusters, iter=100, minit="++", rng=rng)
    groups = [coordinates_deg[labels == label] for label in np.unique(labels)]
    return Clusters(
        np.stack([group.mean(axis=0) for group in groups]),
        np.stack([group.std(axis=0) for group in groups]),
        np.array([len(group) / len(coordinates_deg) for group in groups]),
    )


def draw_from_clusters(
    clusters: Clusters, num_points: int, rng: np.random.Generator, *, by_size: bool = False
) -> Points:
    """The thesis's random guess: a cluster drawn uniformly, then latitude and longitude from normal distributions.

    Drawn uniformly, the few clusters far from Europe and North America, where few photos are, weigh as much as the
    others: on Im2GPS3k that costs 1,500 km against drawing them by their size.

    Args:
        clusters: of training coordinates.
        num_points: how many points to draw.
        rng: the only source of chance.
        by_size: draw a cluster in proportion to its photos.

    Returns:
        `(num_points, 2)` degrees; latitude is clipped at the poles, longitude wrapped round.
    """
    chosen = rng.choice(len(clusters.shares), num_points, p=clusters.shares if by_size else None)
    drawn = rng.normal(clusters.means_deg[chosen], clusters.deviations_deg[chosen])
    return np.stack([np.clip(drawn[:, 0], -90.0, 90.0), _wrap_longitude(drawn[:, 1])], axis=1)


def _wrap_longitude(longitude_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    return (longitude_deg + 180.0) % 360.0 - 180.0


def _average_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over runs, with `spread` (standard deviations, n - 1) and `num_runs`; nested dictionaries alike."""

    def reduce(values: list[Any], how: Callable[[list[float]], float]) -> Any:
        if isinstance(values[0], dict):
            return {key: reduce([value[key] for value in values], how) for key in values[0]}
        return how(values)

    averaged = reduce(runs, lambda values: float(np.mean(values)))
    averaged["num_photos"] = runs[0]["num_photos"]
    spread = reduce(runs, lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
    spread.pop("num_photos")
    return {**averaged, "spread": spread, "num_runs": len(runs)}
