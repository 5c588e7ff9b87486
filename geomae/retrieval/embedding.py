"""Photos -> vectors of length 1, with any model that has `embed`; and, of a cell model, its most probable cells."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation.predict import PhotoDataset, collect_rows

__all__ = ["Embeddings", "TopCells", "embed_photos", "embedder_digest", "refuse_model_without_cells"]

# Fields of an architecture that no vector follows from: of training; by their beginnings, of dropout and the decoder.
_TRAINING_FIELDS = ("initializer_range", "drop_path_rate", "mask_ratio", "norm_pix_loss", "loss_reduction")
_NO_EMBEDDING_PREFIXES = ("decoder_", "hidden_dropout_", "attention_probs_dropout_")


@dataclass(frozen=True)
class TopCells:
    """The cells that a model thinks most probable for each of n photos, the most probable first."""

    log_mass: NDArray[np.float64]  # (n, k)
    cells: NDArray[np.int64]  # (n, k) which of the finest cells
    points_deg: NDArray[np.float64]  # (n, k, 2) the model's own answer within each


@dataclass(frozen=True)
class Embeddings:
    """Photos as vectors, in the order of their data set, without the damaged ones."""

    ids: list[str]
    vectors: NDArray[np.float32]  # (n, D) of length 1
    top_cells: TopCells | None = None


def embed_photos(
    model: Any,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    num_workers: int = 0,
    bf16: bool = False,
    device: torch.device | str | None = None,
    max_damaged_share: float = 0.1,
    num_cells: int = 0,
) -> Embeddings:
    """Embed every photo of a data set once, on any number of processes.

    Args:
        model: its `embed(pixel_values)` returns `(B, D)` float32.
        dataset: map-style, with unique ids in its column `id`.
        collator: samples -> `pixel_values` `(B, 3, H, W)` and B `ids`; it leaves damaged photos out.
        batch_size: photos in a forward pass.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        max_damaged_share: share of photos that may be damaged.
        num_cells: also the most probable cells of each photo, as many of them, from the same pass; 0: none.

    Raises:
        SourceError: the data set is empty or repeats an id.
        TooManyDamagedPhotosError: more photos are damaged than `max_damaged_share` allows.
        PredictionError: an embedding is not finite, or zero; the first such photo is named.
    """
    rows = collect_rows(
        partial(_embed, model, num_cells),
        model,
        dataset,
        collator,
        batch_size=batch_size,
        num_workers=num_workers,
        bf16=bf16,
        device=device,
        max_damaged_share=max_damaged_share,
        description="Embedding",
    )
    columns = rows.columns
    if not rows.ids:
        raise PredictionError("not one of the photos can be decoded: there is nothing to embed")
    _refuse_bad_vectors(rows.ids, columns["vectors"])
    if not num_cells:
        return Embeddings(rows.ids, columns["vectors"])
    top = TopCells(columns["log_mass"].astype(np.float64), columns["cells"], columns["points_deg"].astype(np.float64))
    return Embeddings(rows.ids, columns["vectors"], top)


def _embed(model: Any, num_cells: int, batch: dict[str, Any]) -> dict[str, Tensor]:
    """`vectors` `(B, D)` and, of the most probable cells, `log_mass`, `cells` `(B, k)` and `points_deg` `(B, k, 2)`."""
    features = model.embed(batch["pixel_values"])
    # off the device: the vectors of a training set may not fit beside the model
    columns = {"vectors": normalize(features.float(), dim=-1).cpu()}
    if num_cells:
        log_mass, points_deg = model.head.place_log_probabilities(model.head.to_logits(features))
        best = log_mass.topk(min(num_cells, log_mass.shape[1]), dim=1)
        points_deg = points_deg.gather(1, best.indices[..., None].expand(-1, -1, 2))  # (B, K, 2) -> (B, k, 2)
        columns |= {"log_mass": best.values, "cells": best.indices, "points_deg": points_deg}
    return columns


def _refuse_bad_vectors(ids: list[str], vectors: NDArray[np.float32]) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1.0) < 1e-3))  # so that NaN is bad
    if len(bad):
        raise PredictionError(
            f"the embeddings of {len(bad)} of {len(ids)} photos are not finite or zero; the first is id {ids[bad[0]]}. "
            "Is the checkpoint whole?"
        )


def embedder_digest(model: Any) -> str:
    """SHA-256 of all that a model's vectors follow from: the backbone's weights and every field of its architecture.

    Heads and decoders are left out: a geolocator whose backbone stayed as it was may search its encoder's index.
    """
    digest = hashlib.sha256()
    config = model.config
    for name in sorted(inspect.get_annotations(type(config))):  # its own: the head's are those of its base class
        if name not in _TRAINING_FIELDS and not name.startswith(_NO_EMBEDDING_PREFIXES):
            digest.update(f"{name}={json.dumps(getattr(config, name), sort_keys=True)}\n".encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_model_without_cells(model: Any, checkpoint: str) -> None:
    """ConfigError where there are no cells to refine within: the model answers points, or is no geolocator."""
    head = getattr(model, "head", None)
    if getattr(head, "cells", None) is None:
        kind = getattr(model.config, "head_type", None) if head is not None else "none"
        raise ConfigError(
            f"{checkpoint} has no cells to refine within (its head is {kind}): leave refine_top_k out, or give a "
            "geolocator that was trained with geocells"
        )
