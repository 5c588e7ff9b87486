"""From photos to rows of numbers: every photo exactly once, on any number of processes, with the same digits."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from geomae.compilation import compiled_if_full
from geomae.data.collate import SkippingDamagedBatches
from geomae.errors import SourceError, TooManyDamagedPhotosError
from geomae.evaluation.posterior import POSTERIOR_COLUMNS
from geomae.evaluation.posterior_head import describe_decoding, measure_posterior, other_decodings, posterior_head
from geomae.evaluation.tables import Predictions

__all__ = [
    "PhotoRows",
    "answer_batches",
    "answer_photos",
    "collect_rows",
    "in_order_of",
    "is_main_process",
    "predict_coordinates",
    "process_state",
    "unique_ids",
]


Answer = TypeVar("Answer")
Row = TypeVar("Row")
Columns = dict[str, Tensor]
TEN_CROP, DECODED = "ten_crop/", "decoded/"  # begin names of columns: of the combined answer, and of other decodings


class PhotoDataset(Protocol):
    """A map-style data set of photos with an `id` column, such as `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return bool(process_state().is_main_process)


def process_state() -> PartialState:
    """This process among the others; told that there is no accelerator, as `PartialState` then forgets the others."""
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=forced or not torch.accelerator.is_available())


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

    Batches are cut from the data set in order and whole batches are dealt to the processes, so that a photo is computed
    beside the same neighbours however many processes there are, and its digits do not depend on their number.

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
        partial(_locate, model, other_decodings(model, decodings)),
        model,
        dataset,
        collator,
        batch_size=batch_size,
        num_workers=num_workers,
        bf16=bf16,
        device=device,
        max_damaged_share=max_damaged_share,
    )
    decoded_with = describe_decoding(model)
    combined = {name.removeprefix(TEN_CROP): each for name, each in rows.columns.items() if name.startswith(TEN_CROP)}
    central = {name: each for name, each in rows.columns.items() if not name.startswith(TEN_CROP)}
    ten_crop = _as_predictions(rows.ids, combined, decoded_with) if combined else None
    return _as_predictions(rows.ids, central, decoded_with, ten_crop)


@dataclass(frozen=True)
class PhotoRows:
    """What was computed of n photos, over all processes, in the order of the data set; damaged photos are left out."""

    ids: list[str]
    columns: dict[str, NDArray[Any]]  # name -> (n, ...); empty where every photo is damaged


def collect_rows(
    answer: Callable[[dict[str, Any]], Columns],
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    num_workers: int = 0,
    bf16: bool = False,
    device: torch.device | str | None = None,
    max_damaged_share: float = 0.1,
    description: str = "Predicting",
) -> PhotoRows:
    """Columns of numbers, computed from every photo of a data set once.

    Columns stay on the device until the end, so that no batch waits for a copy.

    Args:
        answer: a batch of B photos -> named tensors `(B, ...)`; see `answer_photos` for it and for the others.
        model: what `answer` runs.
        dataset: map-style, with unique ids in its column `id`.
        collator: samples -> tensors and B `ids`; it leaves damaged photos out.
        batch_size: photos of a batch.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        max_damaged_share: share of photos that may be damaged.
        description: of the progress bar.

    Returns:
        The same rows on every process.

    Raises:
        SourceError: the data set is empty or repeats an id.
        TooManyDamagedPhotosError: more photos are damaged than `max_damaged_share` allows.
    """
    all_ids = unique_ids(dataset)
    how: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bf16": bf16, "device": device}
    batches = list(answer_photos(answer, model, dataset, collator, description=description, **how))
    names = list(batches[0][1]) if batches else []
    own = {name: torch.cat([answers[name] for _, answers in batches]).cpu().numpy() for name in names}
    parts: list[PhotoRows] = gather_object([PhotoRows([name for ids, _ in batches for name in ids], own)])
    ids = [name for part in parts for name in part.ids]
    row_of = in_order_of(all_ids, list(zip(ids, range(len(ids)), strict=True)), max_damaged_share=max_damaged_share)
    filled = [part.columns for part in parts if part.ids]  # a process that saw no photo knows no columns
    columns = {name: np.concatenate([each[name] for each in filled]) for name in (filled[0] if filled else ())}
    return PhotoRows(list(row_of), {name: column[list(row_of.values())] for name, column in columns.items()})


def _locate(model: PreTrainedModel, others: Sequence[str], batch: dict[str, Any]) -> Columns:
    """Columns of the first crop, and, behind `TEN_CROP`, of all of them together where there are several."""
    outputs = [model(pixel_values=crops) for crops in batch["pixel_values"].split(len(batch["ids"]))]
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
    decoded = {DECODED + name: answer_deg for name, answer_deg in head.decode(output.logits, others).items()}
    return columns | measured | decoded


def _as_predictions(
    ids: list[str],
    columns: Mapping[str, NDArray[Any]],
    decoded_with: dict[str, Any],
    ten_crop: Predictions | None = None,
) -> Predictions:
    exact = {name: column.astype(np.float64) for name, column in columns.items()}
    return Predictions(
        ids,
        exact.get("coordinates_deg", np.empty((0, 2))),
        ten_crop,
        decoded_with=decoded_with,
        decodings={name.removeprefix(DECODED): each for name, each in exact.items() if name.startswith(DECODED)},
        posterior={name: exact[name] for name in POSTERIOR_COLUMNS if name in exact},
    )


def unique_ids(dataset: PhotoDataset) -> list[str]:
    """The ids of a data set; SourceError where there is none, or one stands there twice."""
    ids = [str(name) for name in dataset["id"]]
    if not ids or len(set(ids)) < len(ids):
        raise SourceError(f"these need to be photos with unique ids; got {len(ids)} rows, {len(set(ids))} ids")
    return ids


def answer_photos(
    answer: Callable[[dict[str, Any]], Answer],
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    **how: Any,
) -> Iterator[tuple[list[str], Answer]]:
    """Batch by batch, the ids of this process's share of the photos and what `answer` makes of them.

    Args:
        answer: called without gradients on a batch of the collator, its tensors on the device.
        model: moved to the device, in evaluation mode; what `answer` runs.
        dataset: as `predict_coordinates`.
        collator: samples -> `pixel_values` and `ids`.
        batch_size: photos in a forward pass.
        how: the other options of `answer_batches`.
    """
    state = process_state()
    batches = _batches_of_rank(len(dataset), batch_size, state.process_index, state.num_processes)
    for batch, answers in answer_batches(answer, model, dataset, collator, batches, batch_size=batch_size, **how):
        if answers is not None:
            yield list(map(str, batch["ids"])), answers


def answer_batches(
    answer: Callable[[dict[str, Any]], Answer],
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    batches: Sequence[Sequence[int]],
    *,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    device: torch.device | str | None = None,
    description: str,
) -> Iterator[tuple[dict[str, Any], Answer | None]]:
    """Each batch as the collator made it, and what `answer` makes of it; None where all of its photos are damaged.

    Args:
        answer: called without gradients on a batch of the collator, its tensors on the device.
        model: moved to the device, in evaluation mode; what `answer` runs.
        dataset: is asked for its rows alone.
        collator: samples -> `pixel_values` and `ids`.
        batches: the rows of each batch.
        batch_size: photos of a full batch.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        description: of the progress bar, which the first process shows.
    """
    state = process_state()
    device = torch.device(device) if device is not None else state.device
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the Protocol is what DataLoader needs of a Dataset
        batch_sampler=batches,  # type: ignore[arg-type]  # lists and ranges alike
        collate_fn=SkippingDamagedBatches(collator),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    ready = iter(loader)  # before the model moves: workers decode meanwhile, and fork before there is a CUDA context
    model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method without its type
    model.eval()
    num_photos = sum(map(len, batches))
    with tqdm(desc=description, unit=" photos", total=num_photos, disable=not state.is_main_process) as progress:
        for rows, batch in zip(batches, ready, strict=True):
            answers = None
            if batch["ids"]:
                moved = {
                    name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                    for name, value in batch.items()
                }
                compiled = compiled_if_full(len(batch["ids"]), batch_size)
                with compiled, torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    answers = answer(moved)
            yield batch, answers  # outside of the contexts, which a caller must not inherit
            progress.update(len(rows))


def _batches_of_rank(num_photos: int, batch_size: int, rank: int, num_ranks: int) -> list[list[int]]:
    starts = range(rank * batch_size, num_photos, num_ranks * batch_size)
    return [list(range(start, min(start + batch_size, num_photos))) for start in starts]


def in_order_of(all_ids: Sequence[str], rows: Sequence[tuple[str, Row]], *, max_damaged_share: float) -> dict[str, Row]:
    """Gathered rows by id, in the data set's order; asserts that every one is there once.

    Raises:
        TooManyDamagedPhotosError: more ids have no row than `max_damaged_share` allows.
    """
    answers = dict(rows)
    assert len(answers) == len(rows), "a photo was answered twice"
    assert answers.keys() <= set(all_ids), "a photo was answered that the data set does not have"
    num_damaged = len(all_ids) - len(answers)
    if num_damaged > max_damaged_share * len(all_ids):
        raise TooManyDamagedPhotosError(
            f"{num_damaged} of {len(all_ids)} photos are damaged, more than max_damaged_share={max_damaged_share:g} "
            "allows; the log names each with its reason. Mend them, or allow more with --max_damaged_share"
        )
    return {name: answers[name] for name in all_ids if name in answers}
