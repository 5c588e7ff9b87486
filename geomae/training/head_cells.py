"""Geocells from their file into a head: counts into the configuration, places into the weights."""

import dataclasses

from transformers import PreTrainedModel

from geomae.errors import ConfigError
from geomae.geocells import Geocells, read_geocells
from geomae.training.arguments import Architecture

__all__ = ["give_geocells", "read_head_geocells"]


def read_head_geocells(architecture: Architecture, path: str | None) -> tuple[Architecture, Geocells | None]:
    """Read the cells that a head is made of.

    Args:
        architecture: of the run; its `num_geocells` is set from the file.
        path: `geocells.parquet` of `python -m geomae.geocells build`; None: the head has no cells, or a run without a
            file has `num_geocells` evenly spread ones.

    Raises:
        ConfigError: the head has no cells, or `num_geocells` was given and says otherwise.
        SourceError: the file cannot be used.
    """
    if path is None:
        return architecture, None
    if architecture.head_type not in ("geocells", "hybrid", "vmf_mixture") or (
        architecture.head_type == "vmf_mixture" and architecture.num_mixture_components
    ):
        raise ConfigError(
            f"geocells is {path}, but a head of head_type {architecture.head_type} with num_mixture_components "
            f"{architecture.num_mixture_components} has no cells: leave it out, or choose head_type: geocells"
        )
    geocells = read_geocells(path)
    if architecture.num_geocells not in ([], geocells.num_geocells):
        raise ConfigError(
            f"num_geocells is {architecture.num_geocells}, but {path} has {geocells.num_geocells}: leave it out, the "
            "file sets it"
        )
    return dataclasses.replace(architecture, num_geocells=geocells.num_geocells), geocells


def give_geocells(model: PreTrainedModel, geocells: Geocells) -> None:
    """Write cells into the buffers of a model's head, which travel in its checkpoints."""
    finest = geocells.partitions[-1]
    model.head.set_geocells(  # type: ignore[operator]  # of our models; torch thinks of a tensor
        [partition.centroids_deg for partition in geocells.partitions],
        [partition.parents for partition in geocells.partitions[1:]],
        finest.area_km2,
        finest.spread_km,
    )
