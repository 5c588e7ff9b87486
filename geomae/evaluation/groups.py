"""By which groups a test set's photos are judged: scenes, continents, countries and authors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation.tables import TestSet
from geomae.populated_places import nearest_countries

__all__ = ["NUM_AUTHORS_LISTED", "find_groups", "summarise_authors"]

NUM_AUTHORS_LISTED = 10


def find_groups(test_set: TestSet) -> dict[str, list[str]]:
    """The group of each photo, by each kind of group.

    Returns:
        `scene` where the test set says, `continent` of the nearest populated place, and `country`, the test set's own
        or that of the nearest place: n names each; `unknown` is a name too.
    """
    countries, continents = nearest_countries(test_set.coordinates_deg)
    groups = {"continent": continents, "country": test_set.countries or countries}
    return {"scene": test_set.scenes, **groups} if test_set.scenes else groups


def summarise_authors(error_km: NDArray[np.float64], authors: list[str]) -> dict[str, Any]:
    """How much of a test set, and of its mean error, is whose.

    Args:
        error_km: `(n,)` errors.
        authors: n photographers; a photo of an unknown one counts as an author of its own.

    Returns:
        `num_authors`; `largest_share`, of all photos, by the author with most of them; `mean_of_author_means_km`,
        in which each author counts once; `largest`: author -> `num_photos`, `mean_km`, `median_km` of the
        `NUM_AUTHORS_LISTED` with most photos. An author is a single cluster, of which there is no interval.
    """
    names, membership, num_photos = np.unique(authors, return_inverse=True, return_counts=True)
    order = np.lexsort((error_km, membership))  # sums in the errors' own order: the same for shuffled photos
    by_author = np.split(error_km[order], np.cumsum(num_photos)[:-1])
    largest = np.argsort(-num_photos, kind="stable")[:NUM_AUTHORS_LISTED]
    return {
        "num_authors": len(names),
        "largest_share": float(num_photos.max() / len(error_km)),
        "mean_of_author_means_km": float(np.mean([errors.mean() for errors in by_author])),
        "largest": {
            str(names[row]): {
                "num_photos": int(num_photos[row]),
                "mean_km": float(by_author[row].mean()),
                "median_km": float(np.median(by_author[row])),
            }
            for row in largest
        },
    }
