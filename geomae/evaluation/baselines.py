"""Answers that look at no photo, fitted on training coordinates: what a model must beat to have seen anything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from geomae.errors import ConfigError
from geomae.evaluation.judge import judge_errors
from geomae.evaluation.metrics import summarise_errors
from geomae.evaluation.tables import TestSet
from geomae.geography import (
    EARTH_RADIUS_KM,
    draw_uniform,
    geometric_median,
    great_circle_km,
    unit_vectors,
)

__all__ = ["BASELINES", "densest_point", "draw_from_clusters", "fit_clusters", "judge_baselines"]

Points = NDArray[np.float64]  # (n, 2) latitude and longitude in degrees
BASELINES = {
    "geometric_median": "the training coordinates' geometric median, for every photo",
    "densest_200km": "the point with most training photos within 200 km, for every photo",
    "random_training_photo": "the place of a training photo drawn at random",
    "random_guess": "a k-means cluster drawn uniformly, then a point from its mean and variance (the thesis)",
    "uniform_on_sphere": "a point drawn uniformly over the Earth",
}
# The thesis does not state its number of clusters. With 8, refits of k-means end in different local optima, and the
# guess lies between 8,100 and 9,000 km on Im2GPS3k (the thesis: 8,975): so every run refits, and the spread shows it.
NUM_CLUSTERS = 8
MAX_POINTS_TO_CLUSTER = 20_000


def judge_baselines(
    test_set: TestSet,
    training_deg: Points | None,
    *,
    num_repeats: int = 20,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], pa.Table]:
    """Every baseline's numbers on a test set, and its error for each photo.

    Args:
        test_set: n photos with true coordinates.
        training_deg: `(m, 2)` degrees; without them only `uniform_on_sphere` can be judged.
        num_repeats: independent runs of each random baseline, at least 1.
        num_resamples: of the bootstrap around the constants.
        seed: of the draws and of the bootstrap.

    Returns:
        Name -> metrics with a `description`. A constant has `answer_deg` and `intervals_95`. A random answer has the
        means over its runs and under `spread` their standard deviations. Then a table of `id` and one column of
        errors in km for each baseline (of the first run where it is random).

    Raises:
        ConfigError: there are too few repeats or resamples.
    """
    if num_repeats < 1:
        raise ConfigError(f"num_repeats must be at least 1, the runs of each random baseline; got {num_repeats}")
    rng = np.random.default_rng(seed)
    num_photos, truth_deg = len(test_set.ids), test_set.coordinates_deg
    results: dict[str, dict[str, Any]] = {}
    columns: dict[str, Any] = {"id": pa.array(test_set.ids, pa.string())}

    def judge_constant(name: str, answer_deg: Points) -> None:
        columns[name] = great_circle_km(answer_deg, truth_deg)
        judged = judge_errors(columns[name], test_set, num_resamples=num_resamples, seed=seed)
        results[name] = {"description": BASELINES[name], "answer_deg": [float(v) for v in answer_deg], **judged}

    def judge_random(name: str, draw: Callable[[], Points]) -> None:
        runs = [great_circle_km(draw(), truth_deg) for _ in range(num_repeats)]
        columns[name] = runs[0]
        results[name] = {"description": BASELINES[name], **_average_runs([summarise_errors(run) for run in runs])}

    if training_deg is not None:
        known_deg = training_deg  # a name that the closures below can rely on not being None
        judge_constant("geometric_median", geometric_median(known_deg))
        judge_constant("densest_200km", densest_point(known_deg, radius_km=200.0))
        judge_random("random_training_photo", lambda: known_deg[rng.integers(0, len(known_deg), num_photos)])
        judge_random(
            "random_guess", lambda: draw_from_clusters(*fit_clusters(known_deg, NUM_CLUSTERS, rng), num_photos, rng)
        )
    judge_random("uniform_on_sphere", lambda: draw_uniform(num_photos, rng))
    return results, pa.table(columns)


def densest_point(coordinates_deg: Points, *, radius_km: float) -> Points:
    """The point `(2,)` with the most coordinates within a radius of it: the constant with the best accuracy there.

    The occupied cells of a grid of 1 degree are tried first, then a grid of 0.1 degrees around the best five.
    """
    tree = cKDTree(unit_vectors(coordinates_deg))
    chord = 2.0 * np.sin(radius_km / EARTH_RADIUS_KM / 2.0)

    def num_near(candidates_deg: Points) -> NDArray[np.int64]:
        return np.asarray(tree.query_ball_point(unit_vectors(candidates_deg), chord, return_length=True))

    coarse = np.clip(np.unique(np.round(coordinates_deg), axis=0), (-90.0, -180.0), (90.0, 180.0))
    best = coarse[np.argsort(-num_near(coarse), kind="stable")[:5]]
    offsets = np.linspace(-1.0, 1.0, 21)
    around = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    fine = (best[:, None] + around).reshape(-1, 2)
    fine = fine[np.abs(fine[:, 0]) <= 90.0]
    fine[:, 1] = _wrap_longitude(fine[:, 1])
    return np.round(fine[np.argmax(num_near(fine))], 1)  # 0.1 degrees, without the digits of adding offsets


def fit_clusters(coordinates_deg: Points, num_clusters: int, rng: np.random.Generator) -> tuple[Points, Points]:
    """k-means in degrees of latitude and longitude: the clusters' means and standard deviations.

    At most `MAX_POINTS_TO_CLUSTER` points, drawn at random, are clustered.

    Returns:
        Two arrays `(num_clusters, 2)` in degrees; fewer rows where there are fewer distinct points.
    """
    if len(coordinates_deg) > MAX_POINTS_TO_CLUSTER:
        coordinates_deg = coordinates_deg[rng.choice(len(coordinates_deg), MAX_POINTS_TO_CLUSTER, replace=False)]
    num_clusters = min(num_clusters, len(np.unique(coordinates_deg, axis=0)))
    _, labels = kmeans2(coordinates_deg, num_clusters, iter=100, minit="++", rng=rng)
    groups = [coordinates_deg[labels == label] for label in np.unique(labels)]
    return np.stack([group.mean(axis=0) for group in groups]), np.stack([group.std(axis=0) for group in groups])


def draw_from_clusters(means_deg: Points, deviations_deg: Points, num_points: int, rng: np.random.Generator) -> Points:
    """The thesis's random guess: a cluster drawn uniformly, then latitude and longitude from normal distributions.

    Returns:
        `(num_points, 2)` degrees; latitude is clipped at the poles, longitude wrapped round.
    """
    cluster = rng.integers(0, len(means_deg), num_points)
    drawn = rng.normal(means_deg[cluster], deviations_deg[cluster])
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
