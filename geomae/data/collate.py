"""A list of undecoded samples -> one batch of uint8 pixels. Runs in the workers of the DataLoader."""

import hashlib
import itertools
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from geomae.columns import SCENE_COLUMNS, label_scene
from geomae.data.augmentation import PixelAugmentation
from geomae.data.photos import center_crop, decode_photo, evaluation_short_side, random_resized_crop, ten_crops
from geomae.data.shared_batches import BatchMemory, small_tensor
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError

__all__ = ["PhotoCollator", "SkippingDamagedBatches"]

logger = logging.getLogger(__name__)

NO_CHANGE = PixelAugmentation()


class PhotoCollator:
    """Decodes, crops and stacks photos; damaged ones are left out, named in the log and counted.

    Called with B samples `{image: {bytes, path}, latitude, longitude, id, augmentation_seed}`, or with what `prepare`
    has made of them in a stream, it returns
    - `pixel_values` (B, 3, image_size, image_size) uint8, 0 to 255, in channels_last memory order; with `ten_crop`
      (10 B, ...), crop by crop: the first B are what they are without it;
    - `coordinates_deg` (B, 2) float32 latitude and longitude, where `labelled`;
    - `scene_labels` (B,) int64, -1 where unknown, where `num_scenes` is not 0;
    - `ids`, B strings;
    - `num_bad`, an int: photos left out of this batch, or passed over by the stream on the way to it;
    - `lane` and `position`, ints: the place in the stream behind the batch, where it comes from one;
    - `noise` (B, num_patches) float32 in [0, 1), where `num_patches` is given and `augment` is not.
    """

    def __init__(
        self,
        image_size: int,
        *,
        augment: bool,
        crop_scale: tuple[float, float] = (0.66, 1.0),
        flip: bool = True,
        pixels: PixelAugmentation = NO_CHANGE,
        num_patches: int | None = None,
        labelled: bool = True,
        num_scenes: int = 0,
        crops_per_photo: int = 1,
        ten_crop: bool = False,
    ) -> None:
        """Check the options; nothing is read yet.

        Args:
            image_size: pixels of a side of the square that the model sees.
            augment: random crop and flip, a pure function of the sample's `augmentation_seed`; else the central crop.
            crop_scale: smallest and largest share of the photo that a random crop covers, 0 to 1.
            flip: whether half of the augmented photos are mirrored.
            pixels: what else becomes of a random crop, drawn from the same seed.
            num_patches: with it, a photo not augmented gets masking noise that is a function of its id alone, so that a
                validation loss of the masked autoencoder can be repeated.
            labelled: whether coordinates are needed.
            num_scenes: 3 or 16: read the column `SCENE_COLUMNS[num_scenes]`, as far as a photo has it; 0: no scenes.
            crops_per_photo: random crops made of each photo that is decoded: where decoding is what training waits for.
            ten_crop: for an evaluation, the ten crops of `ten_crops` in place of the central one.

        Raises:
            ConfigError: the crop scale is not an interval within 0 to 1, a number is not positive, there is no column
                of so many scenes, or `ten_crop` meets `augment`, which makes crops of its own.
        """
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale={list(crop_scale)}: expected 0 < smallest share <= largest share <= 1.")
        if image_size < 1 or crops_per_photo < 1:
            raise ConfigError(
                f"image_size={image_size}, crops_per_photo={crops_per_photo}: expected at least 1 pixel and 1 crop."
            )
        refuse_unknown_scenes(num_scenes)
        if ten_crop and augment:
            raise ConfigError("ten_crop is for evaluations, whose photos are not augmented: leave out one of both.")
        self.crops_per_photo, self.ten_crop = crops_per_photo, ten_crop
        self.image_size, self.augment, self.flip = image_size, augment, flip
        self.crop_scale, self.pixels = (low, high), pixels
        self.num_patches, self.labelled, self.num_scenes = num_patches, labelled, num_scenes
        self._memory = BatchMemory(0, image_size)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of samples, prepared already or not.

        Raises:
            DamagedPhotoError: not one photo of the batch can be decoded.
            CoordinateError: `labelled`, and a photo has no coordinates.
        """
        kept: list[Mapping[str, Any]] = []
        for sample in samples:
            if "crop" in sample:
                kept.append(sample)
                continue
            try:
                kept += self.prepare(sample)
            except (DamagedPhotoError, OSError) as error:
                logger.warning("left out damaged photo %s: %s", sample["id"], error)
                last_error = error
        if not kept:
            raise DamagedPhotoError(
                f"all {len(samples)} photos of a batch are damaged; the last is {samples[-1]['id']}: {last_error}. "
                "Look at the source of the photos, or pack it anew."
            )
        return self._stack(kept, num_samples=len(samples))

    def prepare(self, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One photo decoded: a sample with a `crop` for each of `crops_per_photo`.

        Raises:
            DamagedPhotoError: the photo cannot be decoded.
            OSError: its file cannot be read.
            CoordinateError: `labelled`, and it has no coordinates.
        """
        cv2.setNumThreads(1)  # workers are the parallelism; OpenCV would start a thread per core in each
        photo = decode_photo(_read_bytes(sample), min_short_side=self._short_side_needed())
        known: dict[str, Any] = {"id": str(sample["id"])}
        if self.labelled:
            known["coordinates_deg"] = _coordinates(sample)
        if self.num_scenes:
            known["scene_label"] = label_scene(sample.get(SCENE_COLUMNS[self.num_scenes]), self.num_scenes)
        if self.ten_crop:
            return [{**known, "crop": ten_crops(photo, self.image_size)}]
        if not self.augment:
            return [{**known, "crop": center_crop(photo, self.image_size)}] * self.crops_per_photo
        rng = random.Random(_augmentation_seed(sample))
        return [{**known, "crop": self._random_crop(photo, rng)} for _ in range(self.crops_per_photo)]

    def _random_crop(self, photo: np.ndarray, rng: random.Random) -> np.ndarray:
        flip_probability = 0.5 if self.flip else 0.0
        place = self._memory.next_place()
        size, scale = self.image_size, self.crop_scale
        crop = random_resized_crop(photo, size, scale, rng, flip_probability=flip_probability, out=place)
        self.pixels.apply(crop, rng)
        return crop

    def share_memory(self, *, batch_size: int, num_workers: int, prefetch_factor: int) -> None:
        """Write crops straight into memory that forked workers share with this process; before they are started.

        Args:
            batch_size: photos of a full batch.
            num_workers: of the DataLoader; 0: the memory is this process's own.
            prefetch_factor: batches that each worker makes ahead.
        """
        self._memory = BatchMemory(batch_size, self.image_size, num_workers, places_per_worker=prefetch_factor + 1)

    def _stack(self, kept: Sequence[Mapping[str, Any]], *, num_samples: int) -> dict[str, Any]:
        crops = [sample["crop"] for sample in kept]
        if self.ten_crop:
            crops = list(itertools.chain.from_iterable(zip(*crops, strict=True)))  # B photos of 10 -> 10 crops of B
        batch: dict[str, Any] = {"pixel_values": self._memory.finish(crops)}
        batch["ids"] = [sample["id"] for sample in kept]
        if "position" in kept[-1]:  # from a stream, which has passed over what is damaged
            batch["num_bad"] = sum(sample["num_bad"] for sample in kept)
            batch["lane"], batch["position"] = kept[-1]["lane"], kept[-1]["position"]
        else:
            batch["num_bad"] = num_samples - len(kept) // self.crops_per_photo
        if self.labelled:
            batch["coordinates_deg"] = small_tensor(np.array([s["coordinates_deg"] for s in kept], dtype=np.float32))
        if self.num_scenes:
            batch["scene_labels"] = small_tensor(np.array([sample["scene_label"] for sample in kept], dtype=np.int64))
        if self.num_patches is not None and not self.augment:
            batch["noise"] = torch.from_numpy(np.stack([_noise(name, self.num_patches) for name in batch["ids"]]))
        return batch

    def _short_side_needed(self) -> int:
        """Pixels that the decoded photo must keep so that no crop has to be enlarged because of scaled decoding."""
        if not self.augment:
            return evaluation_short_side(self.image_size)
        return math.ceil(self.image_size / math.sqrt(self.crop_scale[0] * 3 / 4))


def refuse_unknown_scenes(num_scenes: int) -> None:
    """ConfigError where photos are labelled with another number of kinds of scenes."""
    if num_scenes and num_scenes not in SCENE_COLUMNS:
        raise ConfigError(f"num_scenes is {num_scenes}; write 3 (S3_Label), 16 (S16_Label), or 0: none")


class SkippingDamagedBatches:
    """A collator that gives a batch without `ids` where every photo is damaged: the last batch of a set may hold one.

    Args:
        collator: samples -> batch; raises DamagedPhotoError where nothing is left of them.
    """

    def __init__(self, collator: Callable[[Any], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch; `num_bad` counts what is missing from it."""
        try:
            return self.collator(samples)
        except DamagedPhotoError as problem:
            logger.warning("a whole batch is damaged: %s", problem)
            return {"ids": [], "num_bad": len(samples)}


def _read_bytes(sample: Mapping[str, Any]) -> bytes:
    if "read_error" in sample:
        raise DamagedPhotoError(str(sample["read_error"]))
    data, path = sample["image"]["bytes"], sample["image"]["path"]
    if not data and path is None:
        raise DamagedPhotoError("it is named, but there is no such photo, or it cannot be read")
    return Path(path).read_bytes() if data is None else bytes(data)


def _augmentation_seed(sample: Mapping[str, Any]) -> int:
    """A map-style data set gives none: torch's generator, which the DataLoader seeds in every worker, then does."""
    seed = sample.get("augmentation_seed")
    return int(torch.randint(2**62, ())) if seed is None else int(seed)


def _coordinates(sample: Mapping[str, Any]) -> tuple[float, float]:
    latitude, longitude = sample["latitude"], sample["longitude"]
    if latitude is None or longitude is None or math.isnan(latitude) or math.isnan(longitude):
        raise CoordinateError(
            f"photo {sample['id']} has no coordinates: latitude={latitude}, longitude={longitude}. "
            "Only pretraining takes unlabelled photos; train and test a geolocator on a labelled split."
        )
    return latitude, longitude


def _noise(photo_id: str, num_patches: int) -> np.ndarray:
    """`(num_patches,)` float32, the same for the same id on every machine."""
    seed = int.from_bytes(hashlib.blake2b(photo_id.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).random(num_patches, dtype=np.float32)
