"""From arguments to what a trainer takes: the stream, the validation photos, the collators, the architecture."""

import dataclasses
import logging
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor

from geomae.columns import SCENE_COLUMNS
from geomae.data.collate import PhotoCollator, refuse_unknown_scenes
from geomae.data.filesystems import is_pattern, is_url
from geomae.data.groups import GroupSource, IndexedPhotos, ParquetShards, PhotoGroups
from geomae.data.hub import is_hub_id
from geomae.data.layout import is_packed, list_shard_urls, list_shards
from geomae.data.loading import load_photos
from geomae.data.manifest import refuse_other_sizes
from geomae.data.sources import SourceOptions, open_source
from geomae.data.stream import PhotoStream
from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError, GeoMAEError, SourceError
from geomae.training.arguments import Architecture, DataArguments, GeoMAETrainingArguments

__all__ = [
    "build_collators",
    "build_stream",
    "inherit_encoder",
    "load_validation",
    "pick_panel",
    "refuse_training_photos",
    "refuse_what_the_model_refuses",
]

logger = logging.getLogger(__name__)

LARGEST_SIZE = 2**16  # of a checkpoint's encoder: features, pixels, layers
# What a checkpoint's encoder is built of; dropout, head and decoder are each run's own.
ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "qkv_bias",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "image_mean",
    "image_std",
    "position_embedding",
)


def build_stream(
    data: DataArguments, args: GeoMAETrainingArguments, *, labelled: bool, num_scenes: int = 0
) -> PhotoStream:
    """This process's endless stream of training photos.

    Args:
        data: which sources, and what part of them.
        args: seed, batch size, rank and number of processes.
        labelled: read coordinates; without, unlabelled photos will do.
        num_scenes: 3 or 16: read the scenes too, which every source must know; 0: none.

    Raises:
        SourceError: a source cannot be read, knows no scenes where they are asked for, or its manifest does not fit its
            shards.
        ConfigError: the crops of a photo do not fit into a batch, or no source has so many kinds of scenes.
    """
    if args.per_device_train_batch_size % data.crops_per_photo:
        raise ConfigError(
            f"per_device_train_batch_size is {args.per_device_train_batch_size}; it must be a multiple of "
            f"crops_per_photo, {data.crops_per_photo}"
        )
    refuse_unknown_scenes(num_scenes)
    columns = ["image", "id", "latitude", "longitude"] if labelled else ["image", "id"]
    columns += [SCENE_COLUMNS[num_scenes]] if num_scenes else []
    with args.main_process_first(desc="finding photos"):  # it leaves the others the index that it has made
        sources = [_open_group_source(source, data, columns, labelled=labelled) for source in data.data_dirs]
    photos = PhotoGroups(sources, subset=data.subset, limit=data.limit)
    named = list(zip(data.data_dirs, sources, strict=True))
    for name, source in named if labelled else ():
        _refuse_unlabelled(name, source)
    num_lanes = args.world_size * max(1, args.dataloader_num_workers)
    if photos.num_photos < num_lanes:
        raise ConfigError(
            f"{photos.num_photos} photos are fewer than {args.world_size} processes x dataloader_num_workers "
            f"{args.dataloader_num_workers}, each of which reads photos of its own: lower dataloader_num_workers"
        )
    if args.process_index == 0:
        described = [source.name if isinstance(source, IndexedPhotos) else name for name, source in named]
        print(f"{photos.num_photos:,} photos to train on: {'; '.join(described)}.")
    return PhotoStream(
        photos,
        seed=args.stream_seed,
        batch_size=args.per_device_train_batch_size,
        rank=args.process_index,
        world_size=args.world_size,
        window_samples=data.shuffle_buffer,
        crops_per_photo=data.crops_per_photo,
    )


def _refuse_unlabelled(name: str, source: GroupSource) -> None:
    """By the first photo: a source has coordinates of all its photos or of none."""
    if not source.group_sizes:
        return
    reader = source.open()
    (first,) = reader.read(0, np.array([0]))
    reader.close()
    if first["latitude"] is None and "read_error" not in first:
        raise SourceError(
            f"the photos of {name} have no coordinates: its first is {first['id']}. Only pretraining takes them; name "
            "their table with data_csv, or pack them with one."
        )


def _open_group_source(source: str, data: DataArguments, columns: list[str], *, labelled: bool) -> GroupSource:
    """Packed shards by their row groups, anything else by its index."""
    if data.data_kind in ("auto", "packed") and _is_packed(source, data.data_kind):
        files = list_shard_urls(source, data.train_split) if is_url(source) else list_shards(source, data.train_split)
        shards = ParquetShards(files, columns=columns)
        if not is_url(source) and (data.subset is not None or data.limit is not None):
            refuse_other_sizes(Path(source), data.train_split, shards.num_rows_of_files())
        return shards
    options = SourceOptions(
        kind=data.data_kind,
        csv_file=data.data_csv if labelled else None,
        swap_lat_lon=data.swap_lat_lon and labelled,
        partial=data.data_partial and labelled,
        unlabelled=not labelled,
        split=data.train_split,
    )
    index = open_source(source, options)
    if len(index.bad):
        logger.warning("%s: %d photos are left out: %s", source, len(index.bad), index.bad.describe())
        allowed, total = data.max_bad_source_fraction, len(index) + len(index.bad)
        index.bad.refuse_above(allowed, total, source, option="max_bad_source_fraction")
    return IndexedPhotos(index, columns=columns)


def _is_packed(source: str, kind: str) -> bool:
    """A folder that is absent counts as packed: what to say of it is said there."""
    if is_url(source):
        return not is_pattern(source) and is_packed(source)
    return (
        kind == "packed" or is_packed(source) or not (Path(source).exists() or is_hub_id(source) or is_pattern(source))
    )


def load_validation(data: DataArguments, *, labelled: bool = True) -> Dataset | None:
    """The validation photos, or as many of them, evenly spread, as `max_validation_photos` says; None: no split.

    Args:
        data: which source and split.
        labelled: their coordinates are needed; without, unlabelled photos will do.

    Raises:
        SourceError: the folder does not hold the split, or training would be judged on its own photos.
    """
    if data.validation_split is None:
        return None
    source = data.validation_dir or data.data_dirs[0]
    if data.validation_dir is None and Path(source).exists() and not is_packed(source):
        raise SourceError(
            f"{source} is not packed, so it has no split {data.validation_split!r}, and judging a model by the photos "
            "that it is trained on says nothing. Name other photos with validation_dir, pack it with "
            "--validation_fraction 0.1, or train without validation: validation_split: null."
        )
    try:
        photos = load_photos(source, data.validation_split, labelled=labelled)
    except SourceError as error:
        raise SourceError(
            f"{error} validation_dir and validation_split say where validation photos are; `python -m geomae.data pack "
            "... --validation_fraction 0.1` sets some aside; to train without, write validation_split: null."
        ) from error
    if data.max_validation_photos is None or data.max_validation_photos >= len(photos):
        return photos
    return photos.select(np.linspace(0, len(photos) - 1, data.max_validation_photos).round().astype(int))


def refuse_training_photos(stream: PhotoStream, validation: Dataset | None) -> None:
    """A model is not judged by photos that it is trained on: looked for where the source of a training is not packed.

    Packed splits were checked when they were packed.

    Raises:
        SourceError: a validation photo has the id and the coordinates of a training photo.
    """
    indexed = [source.index for source in stream.photos.sources if isinstance(source, IndexedPhotos)]
    if validation is None or not indexed:
        return
    rows = validation.with_format(None).select_columns(["id", "latitude", "longitude"])
    judged = {row["id"]: (row["latitude"], row["longitude"]) for row in rows}
    for index in indexed:
        known = index.table.select(["id", "latitude", "longitude"])
        known = known.filter(pc.is_in(known["id"], pa.array(list(judged), pa.string())))
        pairs = [(row["id"], (row["latitude"], row["longitude"]), judged[row["id"]]) for row in known.to_pylist()]
        shared = [name for name, here, there in pairs if here == there and None not in here]
        if unknown := [name for name, here, there in pairs if None in here or None in there]:
            logger.warning(
                "%d validation photos are called as some of the %s that are trained on, such as %s: see to it that "
                "they are others",
                *(len(unknown), index.description, unknown[0]),
            )
        if shared:
            raise SourceError(
                f"{len(shared)} of {len(validation)} validation photos are among the {index.description}, which are "
                f"trained on; the first is {shared[0]}. Pack the source with --validation_fraction and train on the "
                "packed folder, or validate on other photos."
            )


def build_collators(
    data: DataArguments, *, image_size: int, labelled: bool, num_patches: int | None = None, num_scenes: int = 0
) -> tuple[PhotoCollator, PhotoCollator]:
    """The collators of training and of validation.

    Args:
        data: what augmentation does.
        image_size: side of the photos, pixels.
        labelled: batches hold coordinates.
        num_patches: validation batches hold `noise` for so many patches.
        num_scenes: 3 or 16: batches hold `scene_labels`.
    """
    low, high = data.crop_scale
    training = PhotoCollator(
        image_size,
        augment=data.augment,
        crop_scale=(low, high),
        flip=data.flip,
        pixels=data.pixel_augmentation,
        labelled=labelled,
        num_scenes=num_scenes,
        crops_per_photo=data.crops_per_photo,
    )
    validation = PhotoCollator(
        image_size, augment=False, labelled=labelled, num_scenes=num_scenes, num_patches=num_patches
    )
    return training, validation


def pick_panel(photos: Dataset | None, collator: PhotoCollator, *, num_photos: int) -> dict[str, Tensor] | None:
    """One fixed batch of validation photos, evenly spread over the set, for pictures; None without photos."""
    if photos is None or num_photos < 1:
        return None
    places = np.unique(np.linspace(0, len(photos) - 1, num_photos).round().astype(int))
    batch: dict[str, Any] = collator([photos[int(place)] for place in places])
    return {name: value for name, value in batch.items() if name in ("pixel_values", "noise")}


@contextmanager
def refuse_what_the_model_refuses() -> Iterator[None]:
    """Make a `ValueError` of `modeling`, whose text says what to do, a `ConfigError`, which ends without traceback."""
    try:
        yield
    except GeoMAEError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def inherit_encoder(architecture: Architecture, init_from: str | None, *, given: Set[str]) -> Architecture:
    """Take the encoder's sizes from the checkpoint that a run starts from, so that no YAML has to repeat them.

    Args:
        architecture: of the run; a baseline has only the photos' size and normalisation in common with GeoMAE.
        init_from: a checkpoint folder of GeoMAE gives its sizes; anything else gives none.
        given: keys that the user has set; they stand.

    Raises:
        ConfigError: the checkpoint's `config.json` is none, or a size in it cannot be.
    """
    config_file = Path(init_from or "") / "config.json"
    if init_from is None or not config_file.is_file():
        return architecture
    try:
        saved = dict(parse_json(read_text(config_file)))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"init_from: {config_file} is no configuration of a model: {error}") from error
    if saved.get("model_type") != "geomae":
        return architecture
    known = {field.name for field in dataclasses.fields(architecture)}
    taken = {name: saved[name] for name in ENCODER_FIELDS if name in known & saved.keys() - given}
    for name, value in taken.items():
        if not _is_like(value, getattr(architecture, name)):
            raise ConfigError(f"init_from: {name} in {config_file} is {str(value)[:100]!r}, which cannot be")
    return dataclasses.replace(architecture, **taken)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value of JSON is of the type that a key has, and a size one that a model can have."""
    if isinstance(default, list):
        return isinstance(value, list) and all(_is_like(each, 0.0) for each in value)
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int):
        return isinstance(value, int) and 1 <= value <= LARGEST_SIZE
    return isinstance(value, int | float if isinstance(default, float) else type(default))
