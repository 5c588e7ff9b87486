"""From photos to coordinates: every photo exactly once, on any number of processes, with the same digits."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from geomae.data.collate import SkippingDamagedBatches
from geomae.errors import SourceError, TooManyDamagedPhotosError
from geomae.evaluation.tables import Predictions

__all__ = ["answer_photos", "in_order_of", "is_main_process", "predict_coordinates", "unique_ids"]

Answer = TypeVar("Answer")
Row = TypeVar("Row")


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


def predict_coordinates(
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
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
        dataset: map-style, with unique ids in its column `id`.
        collator: samples -> `pixel_values` `(B, 3, H, W)`, or `(10 B, 3, H, W)` crop by crop, and B `ids`; it leaves
            damaged photos out.
        batch_size: photos in a forward pass.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        max_damaged_share: share of photos that may be damaged.

    Returns:
        Ids in the data set's order, without the damaged photos, and `(n, 2)` float64 degrees; on every process alike.
        `ten_crop` has the answers from all crops, where the collator makes several.

    Raises:
        SourceError: the data set is empty or repeats an id.
        TooManyDamagedPhotosError: more photos are damaged than `max_damaged_share` allows.
    """
    all_ids = unique_ids(dataset)
    batches = list(
        answer_photos(
            partial(_locate, model),
            model,
            dataset,
            collator,
            batch_size=batch_size,
            num_workers=num_workers,
            bf16=bf16,
            device=device,
            description="Predicting",
        )
    )
    degrees = torch.cat([answers for _, answers in batches]).tolist() if batches else []
    rows = list(zip((name for ids, _ in batches for name in ids), degrees, strict=True))
    answers = in_order_of(all_ids, gather_object(rows), max_damaged_share=max_damaged_share)
    coordinates_deg = np.array(list(answers.values()), dtype=np.float64)
    coordinates_deg = coordinates_deg.reshape(len(answers), -1 if answers else 2)
    ten_crop = Predictions(list(answers), coordinates_deg[:, 2:]) if coordinates_deg.shape[1] > 2 else None
    return Predictions(list(answers), coordinates_deg[:, :2], ten_crop)


def unique_ids(dataset: PhotoDataset) -> list[str]:
    """The ids of a data set; SourceError where there is none, or one stands there twice."""
    ids = [str(name) for name in dataset["id"]]
    if not ids or len(set(ids)) < len(ids):
        raise SourceError(f"these need to be photos with unique ids; got {len(ids)} rows, {len(set(ids))} ids")
    return ids


def answer_photos(
    answer: Callable[[Sequence[Tensor]], Answer],
    model: PreTrainedModel,
    dataset: PhotoDataset,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    device: torch.device | str | None = None,
    description: str,
) -> Iterator[tuple[list[str], Answer]]:
    """Batch by batch, the ids of this process's share of the photos and what `answer` makes of them.

    Args:
        answer: called without gradients on the crops of a batch, one or ten, each `(B, 3, H, W)` on the device.
        model: moved to the device, in evaluation mode; what `answer` runs.
        dataset: as `predict_coordinates`, and so are the other arguments.
        collator: samples -> `pixel_values` and `ids`.
        batch_size: photos in a forward pass.
        num_workers: decoding processes for each device.
        bf16: run under bfloat16 autocast.
        device: where the model runs; this process's device where None.
        description: of the progress bar, which the first process shows.
    """
    state = _process_state()
    device = torch.device(device) if device is not None else state.device
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the Protocol is what DataLoader needs of a Dataset
        batch_sampler=_batches_of_rank(len(dataset), batch_size, state.process_index, state.num_processes),
        collate_fn=SkippingDamagedBatches(collator),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    ready = iter(loader)  # before the model moves: workers decode meanwhile, and fork before there is a CUDA context
    model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method without its type
    model.eval()
    for batch in tqdm(ready, desc=description, unit="batch", total=len(loader), disable=not state.is_main_process):
        if not batch["ids"]:
            continue
        pixel_values = batch["pixel_values"].to(device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            answers = answer(pixel_values.split(len(batch["ids"])))
        yield list(map(str, batch["ids"])), answers  # outside of the contexts, which a caller must not inherit


def _locate(model: PreTrainedModel, crops: Sequence[Tensor]) -> Tensor:
    """Coordinates `(B, 2)` or, of the first crop and of all, `(B, 4)`.

    These stay on the device, so that no batch waits for a copy.
    """
    outputs = [model(pixel_values=crop) for crop in crops]
    answers = outputs[:1]
    if len(outputs) > 1:
        answers.append(model.combine_crops(outputs))  # type: ignore[operator]  # of our models; torch thinks of a tensor
    return torch.cat([answer.coordinates_deg for answer in answers], dim=1).double()


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
