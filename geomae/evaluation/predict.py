"""From photos to rows of numbers: every photo exactly once, on any number of processes, with the same digits."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from geomae.data.collate import SkippingDamagedBatches
from geomae.errors import SourceError, TooManyDamagedPhotosError
from geomae.evaluation.posterior import POSTERIOR_COLUMNS
from geomae.evaluation.posterior_head import describe_decoding, measure_posterior, other_decodings, posterior_head
from geomae.evaluation.tables import Predictions

__all__ = ["PhotoRows", "collect_rows", "is_main_process", "predict_coordinates", "run_model"]

Columns = dict[str, Tensor]
TEN_CROP = "ten_crop/"  # begins the name of a column of the combined answer


class PhotoDataset(Protocol):
    """A map-style data set of photos with an `id` column, such as `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return bool(_process_state().is_main_process)


def _process_state() -> PartialState:
    """This process among the others; told that there is no accelerator, as `PartialState` then forgets the others."""
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=forced or not torch.accelerator.is_available())


@dataclass(frozen=True)
class PhotoRows:
    """What was computed of n photos, over all processes, in the order of the data set; damaged photos are left out."""

    ids: list[str]
    columns: dict[str, NDArray[Any]]  # name -> (n, ...); empty where every photo is damaged


def collect_rows(
    model: PreTrainedModel,
    compute: Callable[[dict[str, Any]], Columns],
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    max_damaged_share: float = 0.1,
) -> PhotoRows:
    """Compute columns of numbers from every photo of a data set once.

    Batches are cut from the data set in order and whole batches are dealt to the processes, so that a photo is computed
    beside the same neighbours however many processes there are, and its digits do not depend on their number. Columns
    stay on the device until the end, so that no batch waits for a copy.

    Args:
        model: is moved to the device and put into evaluation mode.
        compute: a batch of B photos, its tensors on the device -> named tensors `(B, ...)`; without gradients.
        dataset: map-style, with unique ids in its column `id`.
        collator: samples -> tensors and B `ids`; it leaves damaged photos out.
        batch_size: photos of a batch.
        num_workers: decoding processes for each device.
        device: where the model runs; this process's device where None.
        max_damaged_share: share of photos that may be damaged.

    Returns:
        The same rows on every process.

    Raises:
        SourceError: the data set is empty or repeats an id.
        TooManyDamagedPhotosError: more photos are damaged than `max_damaged_share` allows.
    """
    state = _process_state()
    device = torch.device(device) if device is not None else state.device
    all_ids = [str(name) for name in dataset["id"]]
    if not all_ids or len(set(all_ids)) < len(all_ids):
        raise SourceError(f"a test set needs photos with unique ids; got {len(all_ids)} rows, {len(set(all_ids))} ids")
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the Protocol is what DataLoader needs of a Dataset
        batch_sampler=_batches_of_rank(len(all_ids), batch_size, state.process_index, state.num_processes),
        collate_fn=SkippingDamagedBatches(collator),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    ready = iter(loader)  # before the model moves: workers decode meanwhile, and fork before there is a CUDA context
    model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method without its type
    model.eval()
    progress = tqdm(ready, desc="Predicting", unit="batch", total=len(loader), disable=not state.is_main_process)
    parts = gather_object([_compute_rows(compute, progress, device)])
    return _in_order(parts, all_ids, max_damaged_share)


def predict_coordinates(
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    decodings: Sequence[str] | None = None,
    num_workers: int = 0,
    bf16: bool = False,
    device: torch.device | str | None = None,
    max_damaged_share: float = 0.1,
) -> Predictions:
    """Predict every photo of a data set once.

    A collator that makes several crops of each photo gets two answers: that of the first crop, with the digits that it
    has alone, since every crop has a forward pass of its own; and that of all crops, as the model combines them.

    Args:
        model: its `forward(pixel_values)` returns `coordinates_deg` `(B, 2)`; its `combine_crops` makes one of several.
            Its `head` may have a posterior (`has_posterior`): then its `logits` are decoded in several ways from one
            pass, and the posterior is measured.
        dataset: map-style, with unique ids in its column `id`.
        collator: samples -> `pixel_values` `(B, 3, H, W)`, or `(10 B, 3, H, W)` crop by crop, B `ids`, and, for a head
            with a posterior, the truths `coordinates_deg` `(B, 2)`.
        batch_size: photos in a forward pass.
        decodings: which of `DECODINGS` to answer with beside the configuration's own; all where None.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        max_damaged_share: share of photos that may be damaged.

    Returns:
        Ids in the data set's order, without the damaged photos, and `(n, 2)` float64 degrees; on every process alike.
        `ten_crop` has the answers from all crops, where the collator makes several.

    Raises:
        ConfigError: decodings are asked for of a head without a posterior.
        SourceError: the data set is empty or repeats an id.
        TooManyDamagedPhotosError: more photos are damaged than `max_damaged_share` allows.
    """
    rows = collect_rows(
        model,
        partial(_answer_photos, model, other_decodings(model, decodings), bf16=bf16),
        dataset,
        collator,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        max_damaged_share=max_damaged_share,
    )
    decoded_with = describe_decoding(model)
    combined = {name.removeprefix(TEN_CROP): each for name, each in rows.columns.items() if name.startswith(TEN_CROP)}
    central = {name: each for name, each in rows.columns.items() if not name.startswith(TEN_CROP)}
    ten_crop = _as_predictions(rows.ids, combined, decoded_with) if combined else None
    return _as_predictions(rows.ids, central, decoded_with, ten_crop)


def run_model(model: PreTrainedModel, pixel_values: Tensor, *, bf16: bool) -> Any:
    """The model's output for a batch; the backbone under bfloat16 autocast where that is asked for."""
    with torch.autocast(pixel_values.device.type, dtype=torch.bfloat16, enabled=bf16):
        return model(pixel_values=pixel_values)


def _answer_photos(model: PreTrainedModel, others: Sequence[str], batch: dict[str, Any], *, bf16: bool) -> Columns:
    """Columns of the first crop, and, behind `TEN_CROP`, of all of them together where there are several."""
    outputs = [run_model(model, crops, bf16=bf16) for crops in batch["pixel_values"].split(len(batch["ids"]))]
    columns = _answer(model, others, outputs[0], batch)
    if len(outputs) > 1:
        combined = model.combine_crops(outputs)  # type: ignore[operator]  # of our models; torch thinks of a tensor
        columns |= {TEN_CROP + name: each for name, each in _answer(model, others, combined, batch).items()}
    return columns


def _answer(model: PreTrainedModel, others: Sequence[str], output: Any, batch: dict[str, Any]) -> Columns:
    """The answer `(B, 2)`, and of a posterior the other decodings `(B, 2)` and what is measured of it `(B,)`."""
    columns: Columns = {"coordinates_deg": output.coordinates_deg}
    head = posterior_head(model)
    if head is None:
        return columns
    measured = measure_posterior(head, output.logits, output.coordinates_deg, batch["coordinates_deg"])
    return columns | head.decode(output.logits, others) | measured


def _as_predictions(
    ids: list[str],
    columns: Mapping[str, NDArray[Any]],
    decoded_with: dict[str, Any],
    ten_crop: Predictions | None = None,
) -> Predictions:
    columns = {name: column.astype(np.float64) for name, column in columns.items()}
    return Predictions(
        ids,
        columns.pop("coordinates_deg", np.empty((0, 2))),
        ten_crop,
        decoded_with=decoded_with,
        posterior={name: columns.pop(name) for name in POSTERIOR_COLUMNS if name in columns},
        decodings=columns,
    )


@torch.inference_mode()
def _compute_rows(
    compute: Callable[[dict[str, Any]], Columns], loaded: Iterable[dict[str, Any]], device: torch.device
) -> PhotoRows:
    """This process's rows, in the order of its batches."""
    ids: list[str] = []
    batches: list[Columns] = []
    for batch in loaded:
        if not batch["ids"]:
            continue
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        batches.append(compute(moved))
        ids.extend(map(str, batch["ids"]))
    names = list(batches[0]) if batches else []
    return PhotoRows(ids, {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in names})


def _batches_of_rank(num_photos: int, batch_size: int, rank: int, num_ranks: int) -> list[list[int]]:
    starts = range(rank * batch_size, num_photos, num_ranks * batch_size)
    return [list(range(start, min(start + batch_size, num_photos))) for start in starts]


def _in_order(parts: Sequence[PhotoRows], all_ids: list[str], max_damaged_share: float) -> PhotoRows:
    """Gathered rows in the data set's order; asserts that every one is there once."""
    row_of = {name: row for row, name in enumerate(name for part in parts for name in part.ids)}
    assert len(row_of) == sum(len(part.ids) for part in parts), "a photo was predicted twice"
    assert row_of.keys() <= set(all_ids), "a photo was predicted that the data set does not have"
    num_damaged = len(all_ids) - len(row_of)
    if num_damaged > max_damaged_share * len(all_ids):
        raise TooManyDamagedPhotosError(
            f"{num_damaged} of {len(all_ids)} photos are damaged, more than max_damaged_share={max_damaged_share:g} "
            "allows; the log names each with its reason. Mend them, or allow more with --max_damaged_share"
        )
    ids = [name for name in all_ids if name in row_of]
    filled = [part.columns for part in parts if part.ids]  # a process that saw no photo knows no columns
    order = [row_of[name] for name in ids]
    names = list(filled[0]) if filled else []
    return PhotoRows(ids, {name: np.concatenate([columns[name] for columns in filled])[order] for name in names})
