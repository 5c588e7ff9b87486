"""Geocells from their file into a head: counts into the configuration, places into the weights."""

import dataclasses
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from geomae.errors import ConfigError
from geomae.geocells import Geocells, read_geocells
from geomae.training.arguments import Architecture

__all__ = ["give_geocells", "read_head_geocells"]


def read_head_geocells(architecture: Architecture, path: str | None) -> tuple[Architecture, Geocells | None]:
    """Read the cells that a head is made of.

    Args:
        architecture: of the run; its `num_geocells` is set from the file.
        path: `geocells.parquet` of `python -m geomae.geocells build`; None: there are none, or, where `num_geocells`
            was given, evenly spread ones.

    Raises:
        ConfigError: `num_geocells` was given and says otherwise.
        SourceError: the file cannot be used.
    """
    if path is None:
        return architecture, None
    geocells = read_geocells(path)
    if architecture.num_geocells not in ([], geocells.num_geocells):
        raise ConfigError(
            f"num_geocells is {architecture.num_geocells}, but {path} has {geocells.num_geocells}: leave it out, the "
            "file sets it"
        )
    return dataclasses.replace(architecture, num_geocells=geocells.num_geocells), geocells


def give_geocells(model: PreTrainedModel, geocells: Geocells) -> None:
    """Write cells into the buffers of a model's head, which travel in its checkpoints.

    Raises:
        ValueError: the head has no cells.
    """
    finest = geocells.partitions[-1]
    # copies: torch warns of arrays that it could write through, and parquet's are read-only
    head: Any = model.head  # torch thinks of a tensor
    head.set_geocells(
        [np.array(partition.centroids_deg) for partition in geocells.partitions],
        [np.array(partition.parents) for partition in geocells.partitions[1:]],
        np.array(finest.area_km2),
        np.array(finest.spread_km),
    )
