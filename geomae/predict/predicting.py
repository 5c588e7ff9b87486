"""From a list of photos to finished parts, on this process's share of the shards. Needs torch."""

import hashlib
import json
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from geomae.data import PhotoIndex
from geomae.evaluation.predict import answer_batches, process_state
from geomae.predict.answering import answer_columns, tabulate
from geomae.predict.parts import AnswerParts
from geomae.predict.photos import ExplainingCollator, ListedPhotos

__all__ = ["model_digest", "predict_missing", "round_shard_size"]


def model_digest(model: PreTrainedModel) -> str:
    """SHA-256 of all that answers follow from: the weights and the configuration, wherever the checkpoint lies."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def round_shard_size(shard_size: int, num_photos: int, num_processes: int, batch_size: int) -> int:
    """A size that gives every process something to do, in whole batches.

    Batches are then those of one list without shards, and with them the digits of every answer.
    """
    fair = -(-num_photos // num_processes)
    return -(-min(shard_size, fair) // batch_size) * batch_size


def predict_missing(
    model: PreTrainedModel,
    index: PhotoIndex,
    parts: AnswerParts,
    missing: list[range],
    *,
    top_k: int,
    compare_exif: bool,
    batch_size: int,
    num_workers: int = 0,
    bf16: bool = False,
) -> None:
    """Answer the photos of unfinished shards; whole shards are dealt to the processes in turn.

    Args:
        model: answers coordinates.
        index: of all photos.
        parts: each finished shard goes there.
        missing: the rows of all shards that are not finished, the same on every process.
        top_k: likeliest places of each photo.
        compare_exif: read the positions that photos themselves have.
        batch_size: photos in a forward pass; divides the size of a shard.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
    """
    state = process_state()
    own = missing[state.process_index :: state.num_processes]
    batches = [rows[start : start + batch_size] for rows in own for start in range(0, len(rows), batch_size)]
    last_of = {rows.stop: rows for rows in own}
    answered = answer_batches(
        partial(answer_columns, model, top_k),
        model,
        ListedPhotos(index),
        ExplainingCollator(model.config.image_size, reads_gps=compare_exif),
        batches,
        batch_size=batch_size,
        num_workers=num_workers,
        bf16=bf16,
        description="Predicting" if state.num_processes == 1 else f"Predicting, 1 of {state.num_processes} processes",
    )
    shard = _Shard(compare_exif)
    for rows, (batch, answers) in zip(batches, answered, strict=True):
        shard.add(batch, answers)
        if rows.stop in last_of:
            whole = last_of[rows.stop]
            ids = index.table["id"].slice(whole.start, len(whole)).to_pylist()
            parts.write(whole.start, shard.to_table(ids))
            shard = _Shard(compare_exif)


class _Shard:
    """What becomes of the photos of one shard; answers stay on the device until it is whole."""

    def __init__(self, compare_exif: bool) -> None:
        self.ids: list[str] = []
        self.batches: list[dict[str, torch.Tensor]] = []
        self.problems: dict[str, str] = {}
        self.true_deg: dict[str, tuple[float, float]] | None = {} if compare_exif else None

    def add(self, batch: dict[str, Any], answers: dict[str, torch.Tensor] | None) -> None:
        self.problems |= batch["problems"]
        if answers is not None:
            self.ids += batch["ids"]
            self.batches.append(answers)
        if self.true_deg is not None:
            self.true_deg |= batch["true_deg"]

    def to_table(self, ids: list[str]) -> Any:
        return tabulate(ids, self.ids, self.batches, self.problems, self.true_deg)
