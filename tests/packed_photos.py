"""Packed photos, tiny models and arguments for the tests of training; everything is made below `tmp_path`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geomae.data.collate import PhotoCollator
from geomae.data.layout import list_shards, shard_name
from geomae.data.loading import load_photos
from geomae.data.shards import PhotoRow, write_shard
from geomae.data.stream import PhotoStream
from geomae.training import GeolocationTrainer, GeoMAETrainingArguments, MAETrainer
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
    "head_hidden_sizes": [16],
}
NOT_A_PHOTO = b"\xff\xd8 not a photo"


def rows(split: str, shard: int, num_photos: int, num_damaged: int = 0) -> Iterator[PhotoRow]:
    """Photos of four by four colours whose place follows from their colours, so that there is something to learn."""
    rng = np.random.default_rng((shard, len(split)))
    for number in range(num_photos):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((24, 24), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        latitude, longitude = colours[..., 0].mean() / 255 * 160 - 80, colours[..., 1].mean() / 255 * 340 - 170
        image = NOT_A_PHOTO if number < num_damaged else buffer.getvalue()
        yield PhotoRow(f"{split}-{shard}-{number}", image, float(latitude), float(longitude))


def pack(folder: Path, *, num_damaged: int = 0, digest: str = "test", **splits: int) -> Path:
    """Write two shards for each split, `split=photos`; the first `num_damaged` of each shard are no photos."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, num_photos in splits.items():
        for shard, size in enumerate((num_photos // 2, num_photos - num_photos // 2)):
            path = folder / shard_name(split, shard, 2)
            write_shard(path, rows(split, shard, size, num_damaged), optional_columns=(), digest=digest)
    return folder


def training_arguments(output_dir: Path, **changes: Any) -> GeoMAETrainingArguments:
    """Arguments of a run of a few steps that logs each one and draws nothing."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "save_total_limit": None,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "peak_tflops": 1.0,
    }
    return GeoMAETrainingArguments(**{**settings, **changes})


def stream_of(folder: Path, args: GeoMAETrainingArguments, shuffle_buffer: int = 16) -> PhotoStream:
    """The training photos as this process sees them."""
    return PhotoStream(
        list_shards(folder, "train"),
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
        window_samples=shuffle_buffer,
    )


def mae_trainer(
    folder: Path, args: GeoMAETrainingArguments, *, shuffle_buffer: int = 16, **architecture: Any
) -> MAETrainer:
    """A tiny masked autoencoder and its trainer."""
    config = GeoMAEConfig(**{**TINY, **architecture})
    return MAETrainer(
        GeoMAEForPreTraining(config),
        args,
        train_dataset=stream_of(folder, args, shuffle_buffer),
        train_collator=PhotoCollator(16, augment=True, labelled=False),
        eval_dataset=load_photos(folder, "validation"),
        eval_collator=PhotoCollator(16, augment=False, labelled=False, num_patches=config.num_patches),
    )


def geolocation_trainer(folder: Path, args: GeoMAETrainingArguments, **architecture: Any) -> GeolocationTrainer:
    """A tiny geolocator and its trainer."""
    return GeolocationTrainer(
        GeoMAEForGeolocation(GeoMAEConfig(**{**TINY, "head_type": "sphere", **architecture})),
        args,
        train_dataset=stream_of(folder, args),
        train_collator=PhotoCollator(16, augment=True),
        eval_dataset=load_photos(folder, "validation"),
        eval_collator=PhotoCollator(16, augment=False),
    )


def record_ids(trainer: Any) -> list[str]:
    """A list that fills with the ids of every photo that the trainer trains on."""
    seen: list[str] = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: seen.extend(inputs["ids"]) or step(model, inputs, *rest)
    return seen
