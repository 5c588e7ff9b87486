"""The memory of batches: crops are written where they stay, and workers and training process use it over and over.

A DataLoader copies every batch into fresh shared memory, whose pages the kernel has to find and to clear: 70 to 105 us
a photo, a sixth of all that a worker does. Here each worker has a few places for batches in memory that was shared
before it was forked, and a place is free again when the training process has dropped the tensor.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

__all__ = ["BatchMemory", "small_tensor"]

_known: "weakref.WeakValueDictionary[int, _SharedPlaces]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class BatchMemory:
    """Gives a collator the place of each crop, and makes a tensor of a batch of them.

    A full batch lies in one piece already. Anything else is copied together: batches of another size, crops that the
    collator was handed, and batches of a worker whose places are all on their way. It serves one iterator of one
    DataLoader at a time: the workers of two would take the same places.
    """

    def __init__(self, batch_size: int, image_size: int, num_workers: int = 0, *, places_per_worker: int = 0) -> None:
        """Take the memory; its pages are used when they are first written.

        Args:
            batch_size: crops of a full batch; 0: every crop has memory of its own.
            image_size: pixels of a side.
            num_workers: of the DataLoader.
            places_per_worker: batches that each worker can have on their way.
        """
        self._shape = (batch_size, image_size, image_size, 3)
        num_places = num_workers * places_per_worker if batch_size else 0
        self._shared = _SharedPlaces(self._shape, num_places, places_per_worker) if num_places else None
        self._begin()

    def _begin(self) -> None:
        self._crops: np.ndarray | None = None
        self._place: int | None = None
        self._num_filled = 0

    def next_place(self) -> np.ndarray | None:
        """Where the next crop of the batch goes, `(image_size, image_size, 3)` uint8; None: anywhere."""
        if not self._shape[0]:
            return None
        if self._crops is None or self._num_filled == len(self._crops):
            self._abandon()
            self._open()
        assert self._crops is not None
        self._num_filled += 1
        return self._crops[self._num_filled - 1]

    def _open(self) -> None:
        worker = torch.utils.data.get_worker_info()
        found = None if worker is None or self._shared is None else self._shared.take(worker.id)
        if found is None:
            self._crops = np.empty(self._shape, np.uint8)
        else:
            self._place, self._crops = found

    def _abandon(self) -> None:
        """Start a batch anew; a place that was never sent is free again."""
        if self._place is not None and self._shared is not None:
            self._shared.free(self._place)
        self._begin()

    def finish(self, crops: Sequence[np.ndarray]) -> Any:
        """The batch `(B, 3, image_size, image_size)` uint8 of B crops, in channels_last order.

        In a worker it may be what the training process receives as that tensor.
        """
        memory, place, shared = self._crops, self._place, self._shared
        if memory is None or len(crops) != self._num_filled or any(crop.base is not memory for crop in crops):
            tensor = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
            self._abandon()
            return tensor
        self._begin()
        if place is not None and shared is not None:
            return _Sent(shared.number, place, len(crops))
        return torch.from_numpy(memory[: len(crops)]).permute(0, 3, 1, 2)


class _SharedPlaces:
    """Places for batches that a worker marks as taken and the training process as free: no lock is needed."""

    def __init__(self, shape: tuple[int, ...], num_places: int, places_per_worker: int) -> None:
        self._shape, self._places_per_worker = shape, places_per_worker
        self._bytes_per_place = _round_up(int(np.prod(shape)))
        self._first_byte = _round_up(num_places)
        self._memory = mmap.mmap(-1, self._first_byte + num_places * self._bytes_per_place)
        self._is_taken = np.frombuffer(self._memory, np.uint8, num_places)
        self.number, self._owner = next(_numbers), os.getpid()
        _known[self.number] = self

    def take(self, worker: int) -> tuple[int, np.ndarray] | None:
        """A free place of a worker and its memory; None where all are taken."""
        first = worker * self._places_per_worker
        for place in range(first, min(first + self._places_per_worker, len(self._is_taken))):
            if not self._is_taken[place]:
                self._is_taken[place] = 1
                return place, self._array(place)
        return None

    def free(self, place: int) -> None:
        """Let a place be taken again."""
        self._is_taken[place] = 0

    def _free_own(self, place: int) -> None:
        if os.getpid() == self._owner:  # not in a child that inherited the tensor
            self.free(place)

    def open(self, place: int, num_crops: int) -> Tensor:
        """The tensor of a place, which is freed when nothing holds its memory any more."""
        array = self._array(place)
        weakref.finalize(array, self._free_own, place)
        return torch.from_numpy(array).permute(0, 3, 1, 2)[:num_crops]

    def _array(self, place: int) -> np.ndarray:
        return np.ndarray(self._shape, np.uint8, self._memory, self._first_byte + place * self._bytes_per_place)

    def __reduce__(self) -> Any:
        return _no_places, ()  # a worker that is spawned does not have the memory


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _no_places() -> None:
    return None


class _Sent:
    """Travels in the place of a tensor."""

    def __init__(self, number: int, place: int, num_crops: int) -> None:
        self._values = number, place, num_crops

    def __reduce__(self) -> Any:
        return _open_sent, self._values


def _open_sent(number: int, place: int, num_crops: int) -> Tensor:
    return _known[number].open(place, num_crops)


def small_tensor(array: np.ndarray) -> Any:
    """The tensor of a small array; from a worker it travels inside the batch: a file descriptor each costs 0.3 ms."""
    return torch.from_numpy(array) if torch.utils.data.get_worker_info() is None else _Inline(array)


class _Inline:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __reduce__(self) -> Any:
        return torch.from_numpy, (self._array,)
