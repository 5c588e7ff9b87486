"""Photos of any source -> shards: upright RGB JPEGs of a short side at most, split by author, damaged ones named."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geomae.data.manifest import BadPhoto, read_splits, refuse_other_run, write_manifest
from geomae.data.photos import (
    can_keep_jpeg,
    decode_photo,
    encode_jpeg,
    resize_short_side,
    strip_metadata,
)
from geomae.data.shards import OPTIONAL_COLUMNS, PhotoRow, ShardTask, build_shards, digest_of, read_ids, shard_name
from geomae.data.sources import PhotoRecord, read_gps
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError, SourceError

__all__ = ["PhotoPacker", "choose_split", "pack_photos"]


@dataclass(frozen=True)
class PhotoPacker:
    """Turns the records of one shard into rows."""

    short_side: int = 256  # pixels; larger photos shrink to it, smaller ones stay
    jpeg_quality: int = 85  # of photos that are re-encoded, 1 to 100

    def __post_init__(self) -> None:
        if self.short_side < 16 or not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(
                f"short_side={self.short_side}, jpeg_quality={self.jpeg_quality}: expected at least 16 pixels and a "
                "quality of 1 to 100."
            )

    def __call__(self, records: Sequence[PhotoRecord]) -> Iterator[PhotoRow | BadPhoto]:
        """A row or the reason why there is none, for each record in order."""
        for record in records:
            try:
                yield self._pack(record)
            except (DamagedPhotoError, CoordinateError) as error:
                yield BadPhoto(record.id, str(error))
            except OSError as error:
                yield BadPhoto(record.id, f"cannot be read: {error.strerror or error}")

    def _pack(self, record: PhotoRecord) -> PhotoRow:
        data = record.read()
        image = self.pack_bytes(data)
        latitude, longitude = read_gps(data) if record.position_in_exif else (record.latitude, record.longitude)
        optional = {name: getattr(record, name) for name in OPTIONAL_COLUMNS}
        return PhotoRow(record.id, image, latitude, longitude, **optional)

    def pack_bytes(self, data: bytes) -> bytes:
        """The JPEG to store, without EXIF: the photo's own where it fits, else shrunk or encoded anew.

        Raises:
            DamagedPhotoError: the photo cannot be decoded.
        """
        if can_keep_jpeg(data, self.short_side):
            stripped = strip_metadata(data)
            if stripped is not None:
                decode_photo(stripped, min_short_side=0)
                return stripped
        photo = decode_photo(data, min_short_side=self.short_side)
        if min(photo.shape[:2]) > self.short_side:
            photo = resize_short_side(photo, self.short_side)
        return encode_jpeg(photo, self.jpeg_quality)


def pack_photos(
    records: Iterable[PhotoRecord],
    output_dir: Path,
    packer: PhotoPacker,
    *,
    source: str,
    folder: str | None = None,
    split_name: str = "train",
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    max_bad_fraction: float = 0.1,
    photos_per_shard: int = 5000,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Pack photos into shards, resuming a run that was stopped, and write the manifest.

    Args:
        records: stored in an order that depends on their ids alone, well mixed.
        output_dir: the packed folder; other splits in it stay. The bytes do not depend on `num_processes`.
        packer: how large to store them.
        source: where the photos came from, in words, for the manifest, which is returned.
        folder: name of the folder that the ids are paths in: another folder's photos may have the same ids.
        split_name: the split of all photos that the fractions do not take.
        validation_fraction: share of the authors (of the photos, where there is no author) for validation.
        test_fraction: the same for the test.
        max_bad_fraction: the share of unusable photos above which the run stops.
        photos_per_shard: planned; a shard holds fewer where photos are damaged.

    Raises:
        SourceError: there are no photos, an id comes twice, or `output_dir` holds a split that would share photos with
            the new ones, or a finished one that was made otherwise.
        TooManyDamagedPhotosError: more than `max_bad_fraction` are unusable.
    """
    _check_shares(validation_fraction, test_fraction, max_bad_fraction)
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    options = asdict(packer) | fractions | {"split_name": split_name, "photos_per_shard": photos_per_shard}
    options |= {} if folder is None else {"folder": folder}
    tasks, known = _plan(records, asdict(packer), photos_per_shard, (validation_fraction, test_fraction, split_name))
    refuse_other_run(output_dir, {task.split for task in tasks}, source=source, options=options)
    _refuse_shared_photos(output_dir, tasks, folder)
    reports = build_shards(
        output_dir,
        tasks,
        packer,
        optional_columns=known,
        num_processes=num_processes,
        max_bad_fraction=max_bad_fraction,
    )
    return write_manifest(output_dir, reports, source=source, options=options)


def _check_shares(validation_fraction: float, test_fraction: float, max_bad_fraction: float) -> None:
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction > 1:
        raise ConfigError(
            f"validation_fraction={validation_fraction:g}, test_fraction={test_fraction:g}: expected shares from 0 "
            "that leave something to train on."
        )
    if not 0 <= max_bad_fraction <= 1:
        raise ConfigError(f"max_bad_fraction={max_bad_fraction:g}: expected a share from 0 to 1.")


def _refuse_shared_photos(output_dir: Path, tasks: Sequence[ShardTask], folder: str | None) -> None:
    """No photo in two splits: neither in a finished one, nor in what a killed run with other options left behind."""
    planned = {record.id: task.split for task in tasks for record in task.payload}
    splits, listed = {task.split for task in tasks}, read_splits(output_dir)
    for name, ids in read_ids(output_dir, apart_from=splits).items():
        known = listed[name]["options"].get("folder") if name in listed else None
        shared = [photo_id for photo_id in ids if photo_id in planned]
        if shared and (folder is None or known is None or known == folder):
            raise SourceError(
                f"{output_dir} holds {len(shared)} of these photos in its split {name!r}; the first is {shared[0]}, "
                f"which this run would put into {planned[shared[0]]!r} too. Choose another --output_dir, or delete "
                f"{name}-*.parquet there."
            )


def _mix(records: Iterable[PhotoRecord]) -> list[PhotoRecord]:
    """In the order of a hash of the ids: photos of one author or one folder do not stay neighbours."""
    by_hash: dict[bytes, PhotoRecord] = {}
    for record in records:
        key = hashlib.blake2b(record.id.encode(), digest_size=16).digest()
        if key in by_hash:
            raise SourceError(f"the id {record.id} comes twice: {by_hash[key].file} and {record.file}.")
        by_hash[key] = record
    if not by_hash:
        raise SourceError("there are no photos to pack.")
    return [by_hash[key] for key in sorted(by_hash)]


def choose_split(record: PhotoRecord, validation_fraction: float, test_fraction: float, split_name: str) -> str:
    """The split of a photo: a pure function of its author (of its id where there is none): no author is in two."""
    key = f"author {record.author}" if record.author else f"id {record.id}"
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    if share < validation_fraction:
        return "validation"
    return "test" if share < validation_fraction + test_fraction else split_name


def _plan(
    records: Iterable[PhotoRecord],
    packer_options: dict[str, Any],
    photos_per_shard: int,
    split_rule: tuple[float, float, str],
) -> tuple[list[ShardTask], list[str]]:
    """The shards of all splits, and the optional columns that any photo fills."""
    mixed = _mix(records)
    known = [name for name in OPTIONAL_COLUMNS if any(getattr(record, name) for record in mixed)]
    splits: dict[str, list[PhotoRecord]] = {}
    for record in mixed:
        splits.setdefault(choose_split(record, *split_rule), []).append(record)
    tasks = []
    for split, own in sorted(splits.items()):
        parts = [tuple(own[first : first + photos_per_shard]) for first in range(0, len(own), photos_per_shard)]
        for index, part in enumerate(parts):
            digest = digest_of(packer_options, known, [asdict(record) | _file_state(record.file) for record in part])
            tasks.append(ShardTask(shard_name(split, index, len(parts)), split, len(part), digest, part))
    return tasks, known


def _file_state(file: str) -> dict[str, int]:
    """In the digest of a shard, so that a photo that was mended, replaced or made readable is packed again."""
    try:
        state = os.stat(file)
    except OSError:
        return {}
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "mode": state.st_mode}
