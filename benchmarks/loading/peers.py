"""The pipelines that we are compared with: their recipes, written anew against the public API of each library."""

import importlib.util
import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info
from torchvision import transforms
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from loading.photo_set import PhotoSet
from loading.pipelines import CROP_SCALE, IMAGE_SIZE, LoaderOptions, Pipeline, batches_of

__all__ = ["missing_modules", "peer_pipelines"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHUFFLE_BUFFER = 1000  # of WebDataset, photos

PixelsOf = Callable[[Image.Image], Tensor]


def peer_pipelines(photos: PhotoSet, options: LoaderOptions) -> list[Pipeline]:
    """All of them; those whose `needs` are not installed cannot be opened."""
    return [
        Pipeline("thesis", "the thesis: msgpack, PIL", partial(_thesis, photos, options), needs=("msgpack",)),
        Pipeline("run_mae", "transformers' `run_mae.py`", partial(_run_mae, photos, options)),
        Pipeline("webdataset", "WebDataset, PIL", partial(_webdataset, photos, options), needs=("webdataset",)),
        Pipeline("mosaicml", "MosaicML streaming, PIL", partial(_mosaicml, photos, options), needs=("streaming",)),
        Pipeline("torchvision_v2", "torchvision `decode_jpeg`, v2 transforms", partial(_torchvision, photos, options)),
    ]


def missing_modules(pipeline: Pipeline) -> list[str]:
    """Which of the modules that a pipeline needs are not installed."""
    return [module for module in pipeline.needs if importlib.util.find_spec(module) is None]


def _usual_transforms() -> PixelsOf:
    """What most recipes of the field write down, with the crop scale of the thesis: PIL -> float32."""
    return transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


class _MsgpackPhotos(IterableDataset[tuple[Tensor, float, float]]):
    """Files of concatenated maps, dealt to the workers, decoded one by one; not shuffled."""

    def __init__(self, files: Sequence[Path], pixels_of: PixelsOf) -> None:
        self._files, self._pixels_of = files, pixels_of

    def __iter__(self) -> Iterator[tuple[Tensor, float, float]]:
        import msgpack

        worker = get_worker_info()
        files = self._files if worker is None else self._files[worker.id :: worker.num_workers]
        for path in files:
            with path.open("rb") as file:
                for record in msgpack.Unpacker(file):
                    pixels = self._pixels_of(_decode(record["image"]))
                    yield pixels, record["latitude"], record["longitude"]


def _thesis(photos: PhotoSet, options: LoaderOptions) -> Generator[int]:
    """Recipe of the thesis: no shuffling behind the shards, float32, the default collate function."""
    dataset = _MsgpackPhotos(sorted(photos.msgpack.glob("*.msg")), _usual_transforms())
    return batches_of(options.load(dataset), lambda batch: batch[0])


def _run_mae(photos: PhotoSet, options: LoaderOptions) -> Generator[int]:
    """Recipe of transformers' examples/pytorch/image-pretraining/run_mae.py, on a table that holds the bytes."""
    dataset = datasets.load_from_disk(str(photos.arrow)).select_columns(["image"])
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                IMAGE_SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )

    def preprocess(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [augment(image.convert("RGB")) for image in rows["image"]]}

    dataset.set_transform(preprocess)
    loader = options.load(dataset, shuffle=True, collate_fn=_stack_pixels)
    return batches_of(loader, lambda batch: batch["pixel_values"])


def _stack_pixels(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}


def _webdataset(photos: PhotoSet, options: LoaderOptions) -> Generator[int]:
    """Tar files in random order, a shuffle buffer of undecoded photos, PIL."""
    import webdataset

    tars = [str(path) for path in sorted(photos.tars.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(_SHUFFLE_BUFFER)
    dataset = dataset.decode("pil").to_tuple("jpg", "json").map_tuple(_usual_transforms(), dict)
    return batches_of(options.load(dataset), lambda batch: batch[0])


def _mosaicml(photos: PhotoSet, options: LoaderOptions) -> Generator[int]:
    """MDS shards, shuffled by the library's default algorithm, PIL."""
    return batches_of(options.load(_mosaicml_dataset(photos, options.batch_size)), lambda batch: batch[0])


@cache  # the library refuses a second data set on the same folder
def _mosaicml_dataset(photos: PhotoSet, batch_size: int) -> Any:
    import streaming

    class _Photos(streaming.StreamingDataset):
        pixels_of = staticmethod(_usual_transforms())

        def __getitem__(self, index: int) -> tuple[Tensor, float, float]:
            row = super().__getitem__(index)
            return self.pixels_of(_decode(row["image"])), row["latitude"], row["longitude"]

    streaming.base.util.clean_stale_shared_memory()
    return _Photos(local=str(photos.mds), shuffle=True, batch_size=batch_size)


def _torchvision(photos: PhotoSet, options: LoaderOptions) -> Generator[int]:
    """The decoder and the tensor transforms of torchvision, uint8, on the bytes of a table read in random order."""
    dataset = datasets.load_from_disk(str(photos.arrow)).cast_column("image", datasets.Image(decode=False))
    augment = v2.Compose(
        [v2.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE, antialias=True), v2.RandomHorizontalFlip()]
    )

    def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return default_collate([{**row, "image": augment(_to_tensor(row["image"]["bytes"]))} for row in rows])

    return batches_of(options.load(dataset, shuffle=True, collate_fn=collate), lambda batch: batch["image"])


def _to_tensor(data: bytes) -> Tensor:
    writable = bytearray(data)  # torch warns of bytes, which it cannot write to
    return decode_jpeg(torch.frombuffer(writable, dtype=torch.uint8), mode="RGB")
