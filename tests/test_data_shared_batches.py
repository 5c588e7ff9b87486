"""The memory that batches are made in: shared with workers, used again, and never under a tensor that is still held."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from geomae.data.collate import PhotoCollator
from geomae.data.photos import encode_jpeg
from geomae.data.shared_batches import BatchMemory, small_tensor

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SIZE = 8


class Numbered(IterableDataset):  # type: ignore[type-arg]
    """Crops that hold their own number, written where the memory says."""

    def __init__(self, memory: BatchMemory, num_crops: int) -> None:
        self.memory, self.num_crops = memory, num_crops

    def __iter__(self) -> Iterator[np.ndarray]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, self.num_crops, step):
            place = self.memory.next_place()
            crop = np.empty((SIZE, SIZE, 3), np.uint8) if place is None else place
            crop[:] = number % 251
            yield crop


def load(num_workers: int, num_crops: int = 120, batch_size: int = 4, places: int = 3, **options: Any) -> Any:
    memory = BatchMemory(batch_size, SIZE, num_workers, places_per_worker=places)
    dataset = Numbered(memory, num_crops)
    return DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=memory.finish, **options)


def numbers(batch: torch.Tensor) -> list[int]:
    assert (batch == batch[:, :1, :1, :1]).all()
    return [int(number) for number in batch[:, 0, 0, 0]]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_crop_arrives_once_in_its_place(num_workers: int) -> None:
    seen = [number for batch in load(num_workers) for number in numbers(batch)]
    assert sorted(seen) == list(range(120))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_kept_are_not_written_over(num_workers: int) -> None:
    kept = list(load(num_workers))  # far more than there are places
    assert sorted(number for batch in kept for number in numbers(batch)) == list(range(120))


def test_a_view_of_a_batch_keeps_its_memory() -> None:
    views = [batch[1:3] for batch in load(1)]
    assert [number for view in views for number in numbers(view)] == [n for n in range(120) if n % 4 in (1, 2)]


def test_batches_have_the_shape_and_the_memory_order_of_photos() -> None:
    (batch,) = load(1, num_crops=4)
    assert batch.shape == (4, 3, SIZE, SIZE)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_dropped_batches_give_their_memory_back() -> None:
    addresses = set()
    for batch in load(1, num_crops=400):
        addresses.add(batch.data_ptr())
        del batch
    assert len(addresses) <= 3


def test_the_last_batch_may_be_smaller() -> None:
    sizes = [len(batch) for batch in load(1, num_crops=10)]
    assert sizes == [4, 4, 2]


def test_crops_of_another_origin_are_copied() -> None:
    memory = BatchMemory(2, SIZE)
    own = memory.next_place()
    assert own is not None
    own[:] = 1
    mixed = memory.finish([own, np.full((SIZE, SIZE, 3), 2, np.uint8)])
    assert numbers(mixed) == [1, 2]
    assert numbers(memory.finish([np.full((SIZE, SIZE, 3), 3, np.uint8)])) == [3]


def test_spawned_workers_send_copies() -> None:
    batches = list(load(1, num_crops=12, multiprocessing_context="spawn"))
    assert [number for batch in batches for number in numbers(batch)] == list(range(12))


def test_small_tensors_arrive_as_tensors() -> None:
    def collate(items: list[int]) -> Any:
        return small_tensor(np.array(items, np.float32))

    for num_workers in (0, 1):
        (batch,) = DataLoader([1, 2, 3], batch_size=3, num_workers=num_workers, collate_fn=collate)  # type: ignore[arg-type,var-annotated]
        assert torch.equal(batch, torch.tensor([1.0, 2.0, 3.0]))


def test_a_collator_with_shared_memory_makes_the_batches_of_one_without() -> None:
    rng = np.random.default_rng(0)
    samples = [
        {
            "id": str(number),
            "image": {"bytes": encode_jpeg(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8), 90), "path": None},
            "latitude": 1.0,
            "longitude": 2.0,
            "augmentation_seed": number,
        }
        for number in range(12)
    ]
    plain, shared = PhotoCollator(16, augment=True), PhotoCollator(16, augment=True)
    shared.share_memory(batch_size=4, num_workers=2, prefetch_factor=2)
    expected = list(DataLoader(samples, batch_size=4, collate_fn=plain))  # type: ignore[arg-type,var-annotated]
    made = list(DataLoader(samples, batch_size=4, collate_fn=shared, num_workers=2))  # type: ignore[arg-type,var-annotated]
    for one, other in zip(expected, made, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["coordinates_deg"], other["coordinates_deg"])
        assert one["ids"] == other["ids"]
