"""What retrieval can be told, chosen on photos that are not the test set: every combination tried, the best kept."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geomae.errors import ConfigError
from geomae.evaluation.flickr import shared_photos
from geomae.evaluation.known_test_sets import ALSO_VALIDATION, recognise
from geomae.evaluation.metrics import LARGEST_ERROR_KM, summarise_errors
from geomae.evaluation.tables import TestSet
from geomae.geography import great_circle_km

__all__ = ["Choice", "choose_by_error", "choose_by_likelihood", "choosing_on_test_photos", "refuse_test_photos"]

Criterion = Literal["geoscore", "median_km"]


@dataclass(frozen=True)
class Choice:
    """The best of the values that were tried."""

    values: dict[str, Any]
    tried: list[dict[str, Any]]  # every combination with what it was worth, in the order of the trials


def choose_by_error(
    answer: Callable[..., NDArray[np.float64]],
    grid: Mapping[str, Sequence[Any]],
    truth_deg: NDArray[np.float64],
    *,
    criterion: Criterion,
    num_unanswered: int = 0,
) -> Choice:
    """Try every combination of a grid's values.

    Args:
        answer: called with one value of each name of the grid, gives `(n, 2)` degrees.
        grid: name -> values to try.
        truth_deg: `(n, 2)` degrees.
        criterion: `geoscore`, the mean, the larger the better; `median_km`, the smaller the better.
        num_unanswered: further photos, which count with the largest error whatever the values.

    Returns:
        The best; the first of equally good ones.
    """
    tried = []
    for values in itertools.product(*grid.values()):
        named = dict(zip(grid, values, strict=True))
        error_km = np.append(great_circle_km(answer(**named), truth_deg), np.full(num_unanswered, LARGEST_ERROR_KM))
        tried.append({**named, criterion: summarise_errors(error_km)[criterion]})
    sign = -1.0 if criterion == "geoscore" else 1.0
    best = min(tried, key=lambda each: sign * each[criterion])
    return Choice({name: best[name] for name in grid}, tried)


def choose_by_likelihood(log_density: Callable[..., NDArray[np.float64]], grid: Mapping[str, Sequence[Any]]) -> Choice:
    """The values under which the truths are most probable; `log_density` gives `(n,)` nats, higher is better."""
    tried = []
    for values in itertools.product(*grid.values()):
        named = dict(zip(grid, values, strict=True))
        tried.append({**named, "nll": float(-log_density(**named).mean())})
    best = min(tried, key=lambda each: each["nll"])
    return Choice({name: best[name] for name in grid}, tried)


def refuse_test_photos(validation: TestSet, test_set: TestSet) -> None:
    """ConfigError where values would be chosen on photos that are judged, by their ids or their Flickr numbers.

    So are the photos of a known test set but YFCC25600, which the thesis chose by and `calibrate` takes too.
    """
    known_as = recognise(num_photos=len(validation.ids), ids_sha256=validation.ids_sha256)
    if known_as not in (None, ALSO_VALIDATION):
        raise choosing_on_test_photos(f"{validation.name}, whose photos are those of {known_as},")
    names = set(test_set.ids)
    shared = {name for name in validation.ids if name in names} | set(shared_photos(validation.ids, test_set.ids))
    if shared:
        raise ConfigError(
            f"{len(shared)} of the {len(validation.ids)} photos of validation are in the test set too, such as "
            f"{min(shared)}: values chosen on them would make the numbers look better than they are. Choose on others"
        )


def choosing_on_test_photos(what: str) -> ConfigError:
    """To raise where `what` is given as validation."""
    return ConfigError(
        f"{what} is a test set: values chosen on it would make the numbers on it look better than they are. Give other "
        "photos as --validation, such as a packed folder with --validation_split validation"
    )
