"""What an evaluation has seen, joined over all processes and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from geomae.data.photos import encode_jpeg
from geomae.errors import DamagedPhotoError, PredictionError

__all__ = ["EvaluationRows", "black_photo", "count_photos", "join_rows"]


@dataclass
class EvaluationRows:
    """What an evaluation has seen, over all processes, in the order of the data set; damaged photos are left out."""

    ids: list[str] = field(default_factory=list)
    num_bad: int = 0
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """One row a photo: `loss`, and what the trainer's `evaluation_columns` gives."""


def join_rows(parts: Sequence[EvaluationRows], num_photos: int) -> EvaluationRows:
    """Join the rows of all processes.

    Args:
        parts: of each process, in the order of the data set.
        num_photos: that all of them together must have seen.

    Raises:
        DamagedPhotoError: not one photo can be decoded.
        PredictionError: they have not seen each photo once, or an answer is no number.
    """
    rows = EvaluationRows(
        ids=[photo_id for part in parts for photo_id in part.ids],
        num_bad=sum(part.num_bad for part in parts),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
    if not rows.ids:
        raise DamagedPhotoError(f"not one of the {num_photos} photos to evaluate can be decoded")
    if len(rows.ids) + rows.num_bad != num_photos or any(len(c) != len(rows.ids) for c in rows.columns.values()):
        raise PredictionError(
            f"{len(rows.ids)} photos were judged and {rows.num_bad} were damaged, but there are {num_photos}"
        )
    for name, column in rows.columns.items():
        if not np.isfinite(column).all():
            first = rows.ids[int(np.flatnonzero(~np.isfinite(column).reshape(len(column), -1).all(axis=1))[0])]
            raise PredictionError(f"{name} is not a finite number for some photos; the first is {first}")
    return rows


def black_photo() -> dict[str, Any]:
    """A sample for a process that has no photo of its own to take part with; its row is dropped."""
    image = {"bytes": encode_jpeg(np.zeros((32, 32, 3), np.uint8), 75), "path": None}
    return {"id": "", "image": image, "latitude": 0.0, "longitude": 0.0}


def count_photos(dataloader: "DataLoader[Any]") -> int:
    """Photos of the whole data set of which `dataloader` reads this process's part."""
    part = dataloader.dataset
    assert isinstance(part, Subset)
    return len(part.dataset)  # type: ignore[arg-type]  # map-style: it has a length
