"""The photos of a test set, for whoever looks at them, and their truths, for whoever judges the answers."""

from pathlib import Path
from typing import Any

import numpy as np

from geomae.data import find_absent, load_photos
from geomae.evaluation.arguments import EvaluationArguments
from geomae.evaluation.tables import TestSet

__all__ = ["load_photos_to_judge"]


def load_photos_to_judge(arguments: EvaluationArguments) -> tuple[Any, TestSet, int]:
    """What an evaluation of a checkpoint looks at and is judged by.

    Returns:
        The photos that are there, a `datasets.Dataset`; the whole test set; and how many of it are absent: these are
        misses, but not damaged, since what Flickr has no more is nobody's fault.

    Raises:
        SourceError: as `load_photos` and `TestSet.from_columns`.
        CoordinateError: as `load_photos`.
    """
    named = str(arguments.test_set)
    photos = load_photos(
        arguments.photos or named,
        arguments.split,
        csv_file=named if arguments.photos else None,
        swap_lat_lon=arguments.swap_lat_lon,
    )
    test_set = TestSet.from_columns(Path(named).name, photos, split=None if arguments.photos else arguments.split)
    is_absent = find_absent(photos)
    return photos.select(np.flatnonzero(~is_absent)), test_set, int(is_absent.sum())
