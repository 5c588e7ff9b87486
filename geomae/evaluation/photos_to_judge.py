"""The photos of a test set, for whoever looks at them, and their truths, for whoever judges the answers."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geomae.data import find_absent, load_photos
from geomae.evaluation.tables import TestSet

__all__ = ["load_photos_to_judge", "with_labels"]


class NamesPhotos(Protocol):
    """Names and meanings are those of `EvaluationArguments`."""

    @property
    def test_set(self) -> str | None: ...

    @property
    def split(self) -> str: ...

    @property
    def photos(self) -> str | None: ...

    @property
    def swap_lat_lon(self) -> bool: ...


def load_photos_to_judge(arguments: NamesPhotos) -> tuple[Any, TestSet, int]:
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
    return with_labels(photos, Path(named).name, split=None if arguments.photos else arguments.split)


def with_labels(photos: Any, name: str, *, split: str | None) -> tuple[Any, TestSet, int]:
    """Photos as `load_photos` gives them: those that are there; the names and places of all; how many are absent.

    Raises:
        SourceError: as `TestSet.from_columns`.
    """
    labels = TestSet.from_columns(name, photos, split=split)
    is_absent = find_absent(photos)
    return photos.select(np.flatnonzero(~is_absent)), labels, int(is_absent.sum())
