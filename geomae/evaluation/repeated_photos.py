"""What the thesis's loader did to its test sets: some photos many times, most of them never."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation.comparison import paired_t_test

__all__ = ["repeated_t_test", "rows_tested_by_the_thesis"]


def rows_tested_by_the_thesis(num_photos: int, *, batch_size: int = 64, num_workers: int = 8) -> NDArray[np.int64]:
    """The rows of a test set that its loader gave the model, in its order, repeats and all.

    Every worker of a torch `DataLoader` held the whole iterable test set, and yielded it in full; batches were taken
    from the workers in turn, and the loop ended after `ceil(num_photos / batch_size)` of them. So 8 workers show
    64 of 237 photos 4 times each, and 384 of 2,997 photos 7 or 8 times.

    Args:
        num_photos: of the test set, at least 1.
        batch_size: photos of a batch.
        num_workers: of the loader; with one of them every photo is tested once.

    Source: K. Yang, "Self-supervised learning for image-based geolocation" (DTU, 2024), its published code.
    """
    per_worker = [np.arange(first, min(first + batch_size, num_photos)) for first in range(0, num_photos, batch_size)]
    num_batches = math.ceil(num_photos / batch_size)
    return np.concatenate([per_worker[batch // num_workers] for batch in range(num_batches)])


def repeated_t_test(error_km: NDArray[np.float64], other_km: NDArray[np.float64]) -> dict[str, Any]:
    """The paired t-test of `error_km - other_km` as the thesis's loader would have fed it, and without its repeats.

    Args:
        error_km: `(n,)` errors in the order of the test set's file.
        other_km: `(n,)` errors of another model, photo by photo.

    Returns:
        `num_rows` (repeats counted), `num_photos` (distinct), and as `paired_t_test`: `with_repeats`, `without`.
    """
    rows = rows_tested_by_the_thesis(len(error_km))
    distinct = np.unique(rows)
    return {
        "num_rows": len(rows),
        "num_photos": len(distinct),
        "with_repeats": paired_t_test(error_km[rows], other_km[rows]),
        "without": paired_t_test(error_km[distinct], other_km[distinct]),
    }
