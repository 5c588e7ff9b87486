"""What is compared: GeoMAE's own pipeline, and decoding and resizing with nothing around it."""

import itertools
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from geomae.data.collate import PhotoCollator
from geomae.data.stream import PhotoStream
from loading.photo_set import PhotoSet

__all__ = ["IMAGE_SIZE", "LoaderOptions", "Pipeline", "batches_of", "ours", "own_pipelines"]

IMAGE_SIZE = 224
CROP_SCALE = (0.66, 1.0)
_SQUARE = (IMAGE_SIZE, IMAGE_SIZE)
_SEED = 0


@dataclass(frozen=True)
class LoaderOptions:
    """What all pipelines share."""

    batch_size: int
    num_workers: int
    worker_cores: tuple[int, ...]  # a worker stays on one of them; () leaves it to the scheduler

    def start_worker(self, worker: int) -> None:
        """Run in every worker first: one thread, one core."""
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        if self.worker_cores:
            os.sched_setaffinity(0, {self.worker_cores[worker % len(self.worker_cores)]})

    def load(self, dataset: Any, **options: Any) -> "DataLoader[Any]":
        """A DataLoader with these options."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            worker_init_fn=self.start_worker,
            **options,
        )


@dataclass(frozen=True)
class Pipeline:
    """One way from the disk to batches in this process."""

    key: str  # in the JSON
    title: str
    open: Callable[[], Generator[int]]  # starts the workers and yields the number of photos of each batch that arrives
    whole_epochs: bool = False  # it reads in lumps and without end: measured over whole epochs
    needs: tuple[str, ...] = ()  # modules that must be installed


def batches_of(loader: "DataLoader[Any]", pick: Callable[[Any], torch.Tensor]) -> Generator[int]:
    """Number of photos of each batch as it arrives; closing the generator stops the workers.

    Args:
        loader: what yields batches.
        pick: takes the pixels out of a batch.
    """
    for batch in loader:
        pixels = pick(batch)
        assert pixels.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE), pixels.shape
        yield pixels.shape[0]


def ours(photos: PhotoSet, options: LoaderOptions, *, crops_per_photo: int = 1, shuffle: bool = True) -> Generator[int]:
    """GeoMAE's stream and collator, loaded as its Trainer loads them."""
    collator = PhotoCollator(IMAGE_SIZE, augment=True, crop_scale=CROP_SCALE, crops_per_photo=crops_per_photo)
    collator.share_memory(batch_size=options.batch_size, num_workers=options.num_workers, prefetch_factor=2)
    stream = PhotoStream(
        sorted(photos.packed.glob("train-*.parquet")),
        seed=_SEED,
        batch_size=options.batch_size,
        shuffle=shuffle,
        prepare=collator.prepare,
        crops_per_photo=crops_per_photo,
    )
    return batches_of(options.load(stream, collate_fn=collator), lambda batch: batch["pixel_values"])


def own_pipelines(photos: PhotoSet, options: LoaderOptions) -> list[Pipeline]:
    """Ours, ours in the order of the files, and two upper bounds."""
    jpegs = [photo.jpeg for photo in photos.read()]
    boxes = [_draw_box(photos) for _ in jpegs]
    bare = partial(_in_processes, partial(_decode_and_resize, jpegs, boxes, options.batch_size), options)
    collated = partial(_in_processes, partial(_collate, jpegs, options.batch_size), options)
    pipelines = [
        Pipeline("ours", "GeoMAE", partial(ours, photos, options), whole_epochs=True),
        Pipeline(
            "ours_unshuffled", "GeoMAE, not shuffled", partial(ours, photos, options, shuffle=False), whole_epochs=True
        ),
        Pipeline(
            "ours_four_crops",
            "GeoMAE, four crops of each photo",
            partial(ours, photos, options, crops_per_photo=4),
            True,
        ),
        Pipeline("bound", "decode and resize alone", bare, whole_epochs=True),
        Pipeline("collator_alone", "GeoMAE's collator alone", collated, whole_epochs=True),
    ]
    return pipelines


def _draw_box(photos: PhotoSet) -> tuple[int, int, int, int, bool]:
    """Top, left, height, width and whether to mirror, drawn beforehand: chance is no part of decoding."""
    empty = torch.empty(3, photos.height, photos.width)
    top, left, height, width = transforms.RandomResizedCrop.get_params(empty, list(CROP_SCALE), [3 / 4, 4 / 3])
    return top, left, height, width, bool(torch.rand(()) < 0.5)


def _decode_and_resize(
    jpegs: Sequence[bytes], boxes: Sequence[tuple[int, int, int, int, bool]], batch_size: int
) -> Iterator[int]:
    """The two libraries that we found fastest, on bytes in memory, into one buffer, drawn boxes; nothing else."""
    crops = np.empty((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    while True:
        for begin in range(0, len(jpegs) - batch_size + 1, batch_size):
            for slot, index in enumerate(range(begin, begin + batch_size)):
                photo = simplejpeg.decode_jpeg(jpegs[index], colorspace="RGB", fastdct=True, fastupsample=True)
                top, left, height, width, mirrored = boxes[index]
                part = photo[top : top + height, left : left + width]
                if mirrored:  # 10 us; numpy takes 190 us to copy a view with a negative stride
                    cv2.flip(cv2.resize(part, _SQUARE), 1, dst=crops[slot])
                else:
                    cv2.resize(part, _SQUARE, dst=crops[slot])
            yield batch_size


def _collate(jpegs: Sequence[bytes], batch_size: int) -> Iterator[int]:
    """The work of our collator on samples in memory, without what feeds it and without sending its batches."""
    collator = PhotoCollator(IMAGE_SIZE, augment=True, crop_scale=CROP_SCALE)
    collator.share_memory(batch_size=batch_size, num_workers=0, prefetch_factor=0)
    known = {"latitude": 0.0, "longitude": 0.0}
    samples = [{"id": str(row), "image": {"bytes": jpeg, "path": None}, **known} for row, jpeg in enumerate(jpegs)]
    for epoch in itertools.count():
        for begin in range(0, len(samples) - batch_size + 1, batch_size):
            first_seed = epoch * len(samples) + begin
            batch = enumerate(samples[begin : begin + batch_size], start=first_seed)
            collator([{**sample, "augmentation_seed": seed} for seed, sample in batch])
            yield batch_size


def _in_processes(work: Callable[[], Iterator[int]], options: LoaderOptions) -> Generator[int]:
    """As many processes as a loader has workers, each doing all the work; only numbers come back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    lock = context.Lock()
    arguments = [(worker, work, options, sender, lock) for worker in range(options.num_workers)]
    processes = [context.Process(target=_send_numbers, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    try:
        while True:
            yield receiver.recv()
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _send_numbers(
    worker: int, work: Callable[[], Iterator[int]], options: LoaderOptions, sender: "Connection[int, int]", lock: Any
) -> None:
    options.start_worker(worker)
    for number in work():
        with lock:
            sender.send(number)
