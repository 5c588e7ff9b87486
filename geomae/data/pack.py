"""Photos of any source -> shards: upright RGB JPEGs of a short side at most, split by author, damaged ones named."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geomae.data.archives import Storage
from geomae.data.damage import BadPhoto, BadTally
from geomae.data.filesystems import is_url
from geomae.data.layout import shard_name
from geomae.data.manifest import read_splits, refuse_other_run, write_manifest
from geomae.data.photo_index import OPTIONAL_COLUMNS, PhotoIndex
from geomae.data.photos import (
    can_keep_jpeg,
    decode_photo,
    encode_jpeg,
    resize_short_side,
    strip_metadata,
)
from geomae.data.reading import PhotoReader, explain_unread
from geomae.data.shards import ROWS_PER_GROUP, PhotoRow, ShardTask, build_shards, digest_of, only_run, read_labels
from geomae.errors import ConfigError, DamagedPhotoError, SourceError

__all__ = ["ORDERS", "PhotoPacker", "choose_splits", "pack_photos"]

logger = logging.getLogger(__name__)

ORDERS = ("auto", "mixed", "source")


@dataclass(frozen=True)
class PhotoPacker:
    """Turns the photos of one shard into rows."""

    short_side: int = 256  # pixels; larger photos shrink to it, smaller ones stay
    jpeg_quality: int = 85  # of photos that are re-encoded, 1 to 100

    def __post_init__(self) -> None:
        if self.short_side < 16 or not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(
                f"short_side={self.short_side}, jpeg_quality={self.jpeg_quality}: expected at least 16 pixels and a "
                "quality of 1 to 100."
            )

    def __call__(self, photos: PhotoIndex) -> Iterator[PhotoRow | BadPhoto]:
        """A row or the reason why there is none, for each photo in order."""
        with closing(PhotoReader(photos.root)) as reader:
            for begin in range(0, len(photos), ROWS_PER_GROUP):
                rows = photos.table.slice(begin, ROWS_PER_GROUP).to_pylist()
                for row, data in zip(rows, reader.read_all(rows), strict=True):
                    yield self._pack(row, data)

    def _pack(self, row: dict[str, Any], data: bytes | OSError | DamagedPhotoError) -> PhotoRow | BadPhoto:
        if isinstance(data, OSError):
            return BadPhoto(row["id"], explain_unread(data), may_pass=True)
        if isinstance(data, DamagedPhotoError):
            return BadPhoto(row["id"], str(data))
        try:
            image = self.pack_bytes(data)
        except DamagedPhotoError as error:
            return BadPhoto(row["id"], str(error))
        return PhotoRow(image=image, **{name: row[name] for name in ("id", "latitude", "longitude", *OPTIONAL_COLUMNS)})

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
    photos: PhotoIndex,
    output_dir: Path,
    packer: PhotoPacker,
    *,
    folder: str | None = None,
    split_name: str = "train",
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    max_bad_fraction: float = 0.1,
    photos_per_shard: int = 5000,
    order: str = "auto",
    num_processes: int = 1,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Pack photos into shards, resuming a run that was stopped, and write the manifest.

    Args:
        photos: the index of a source; what it counts as bad is counted here too.
        output_dir: the packed folder; other splits in it stay. The bytes do not depend on `num_processes` or on Ray.
        packer: how large to store them.
        folder: name of the folder that the ids are paths in: another folder's photos may have the same ids.
        split_name: the split of all photos that the fractions do not take.
        validation_fraction: share of the authors (of the photos, where there is no author) for validation.
        test_fraction: the same for the test.
        max_bad_fraction: the share of unusable photos above which the run stops.
        photos_per_shard: planned; a shard holds fewer where photos are damaged.
        order: `mixed` stores photos in an order that depends on their ids alone; `source` as their archives have them,
            each read from end to end, which is what remote and row-grouped sources need; `auto` chooses.
        num_processes: on this machine.
        ray_address: pack on a Ray cluster instead; see `build_shards`.

    Returns:
        The manifest.

    Raises:
        SourceError: there are no photos, or `output_dir` holds a split that would share photos with the new ones, or a
            finished one that was made otherwise.
        TooManyDamagedPhotosError: more than `max_bad_fraction` are unusable.
    """
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    _check_options(fractions, split_name, max_bad_fraction, order)
    photos.bad.refuse_above(max_bad_fraction, len(photos) + len(photos.bad), photos.description)
    options = asdict(packer) | fractions | {"split_name": split_name, "photos_per_shard": photos_per_shard}
    options |= {} if folder is None else {"folder": folder}
    options["order"] = _choose_order(photos) if order == "auto" else order
    splits, known = _split_rows(photos, options), photos.known_columns()
    if validation_fraction + test_fraction > 0 and "author" not in known:
        logger.warning("no author is known: the split is by photo, and photos of one author may be on both sides")
    with only_run(output_dir):
        refuse_other_run(output_dir, set(splits), source=photos.description, options=options)
        _refuse_shared_photos(output_dir, photos, splits, folder)
        reports = build_shards(
            output_dir,
            _plan(photos, splits, photos_per_shard, [asdict(packer), known]),
            packer,
            optional_columns=known,
            num_processes=num_processes,
            ray_address=ray_address,
            max_bad_fraction=max_bad_fraction,
            left_out=photos.bad,
        )
        return write_manifest(output_dir, reports, source=photos.description, options=options, left_out=photos.bad)


def _check_options(fractions: dict[str, float], split_name: str, max_bad_fraction: float, order: str) -> None:
    if not (min(fractions.values()) >= 0 and sum(fractions.values()) <= 1):  # nor NaN
        named = ", ".join(f"{name}={fraction:g}" for name, fraction in fractions.items())
        raise ConfigError(f"{named}: expected shares from 0 that leave something to train on.")
    if fractions.get(f"{split_name}_fraction"):
        raise ConfigError(
            f"split_name is {split_name!r}, and {split_name}_fraction takes photos out of it for itself: leave one out."
        )
    if not 0 <= max_bad_fraction <= 1:
        raise ConfigError(f"max_bad_fraction={max_bad_fraction:g}: expected a share from 0 to 1.")
    if order not in ORDERS:
        raise ConfigError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")


def _choose_order(photos: PhotoIndex) -> str:
    """Mixed where a photo costs the same wherever it lies: not by network, and not in the row groups of parquet."""
    grouped = Storage.PARQUET in photos.table["storage"].unique().to_pylist()
    remote = is_url(photos.root) or (len(photos) > 0 and is_url(photos.table["file"][0].as_py()))
    return "source" if grouped or remote else "mixed"


def choose_splits(
    ids: Sequence[str], authors: Sequence[str | None], *, validation_fraction: float, test_fraction: float
) -> np.ndarray:
    """0 (the rest), 1 (validation) or 2 (test) for each of n photos, `(n,)` int8.

    A pure function of the photo's author, of its id where there is none: no author is in two splits.
    """
    of_key: dict[str, int] = {}
    chosen = np.zeros(len(ids), dtype=np.int8)
    if validation_fraction or test_fraction:
        for row, (photo_id, author) in enumerate(zip(ids, authors, strict=True)):
            key = f"author {author}" if author else f"id {photo_id}"
            if key not in of_key:
                of_key[key] = _draw_split(key, validation_fraction, test_fraction)
            chosen[row] = of_key[key]
    return chosen


def _draw_split(key: str, validation_fraction: float, test_fraction: float) -> int:
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    if share < validation_fraction:
        return 1
    return 2 if share < validation_fraction + test_fraction else 0


def _split_rows(photos: PhotoIndex, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """The rows of each split, in the order in which they are stored."""
    if not len(photos):
        raise SourceError("there are no photos to pack.")
    ids = photos.column("id")
    if options["order"] == "mixed":  # by a hash of the ids: photos of one author or one folder do not stay neighbours
        hashes = np.array([hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids], dtype="S16")
        stored = np.argsort(hashes, kind="stable")
    else:
        stored = _by_place(photos)
    chosen = choose_splits(
        ids,
        photos.column("author"),
        validation_fraction=options["validation_fraction"],
        test_fraction=options["test_fraction"],
    )[stored]
    _refuse_empty_splits(chosen, options, "author" if "author" in photos.known_columns() else "photo")
    named = {options["split_name"]: stored[chosen == 0], "validation": stored[chosen == 1], "test": stored[chosen == 2]}
    if options["split_name"] in ("validation", "test"):  # one of the names is taken twice: join them in the same order
        number = ("validation", "test").index(options["split_name"]) + 1
        named[options["split_name"]] = stored[(chosen == 0) | (chosen == number)]
    return {name: rows for name, rows in sorted(named.items()) if len(rows)}


def _refuse_empty_splits(chosen: np.ndarray, options: dict[str, Any], unit: str) -> None:
    """A split that was asked for and is not there would be missed by the next command, or by the one after."""
    for number, name in enumerate(("validation", "test"), start=1):
        share = options[f"{name}_fraction"]
        if share > 0 and not (chosen == number).any():
            raise SourceError(
                f"{name}_fraction is {share:g}, but no {unit} of the {len(chosen)} photos falls into it: each is "
                f"drawn by a hash of its name. Ask for a larger one, leave it out, or pack folders of your choice with "
                f"--split_name {name}."
            )


def _by_place(photos: PhotoIndex) -> np.ndarray:
    """Rows in the order of their files and of the places in them."""
    keys = [("file", "ascending"), ("offset", "ascending"), ("size", "ascending")]
    numbered = photos.table.select(["file", "offset", "size"]).append_column("row", [np.arange(len(photos))])
    return np.asarray(numbered.sort_by(keys)["row"].to_numpy())


def _plan(
    photos: PhotoIndex, splits: dict[str, np.ndarray], photos_per_shard: int, options: list[Any]
) -> list[ShardTask]:
    """The shards of all splits; the digest of each covers its photos' places, states and coordinates."""
    tasks = []
    for split, rows in splits.items():
        stored = photos.take(rows)  # once: taking from a long table costs the same for few rows as for all
        firsts = range(0, len(rows), photos_per_shard)
        for index, first in enumerate(firsts):
            table = stored.table.slice(first, photos_per_shard)
            payload = replace(stored, table=table, bad=BadTally())
            digest = digest_of(options, payload.digest())
            name = shard_name(split, index, len(firsts))
            named = payload.digest(("id", "latitude", "longitude"))
            tasks.append(ShardTask(name, split, len(payload), digest, payload, named))
    return tasks


def _refuse_shared_photos(
    output_dir: Path, photos: PhotoIndex, splits: dict[str, np.ndarray], folder: str | None
) -> None:
    """No photo in two splits: neither in a finished one, nor in what a killed run with other options left behind.

    Photos of two folders may have one id; they are the same where their coordinates are, too.
    """
    listed = read_splits(output_dir)
    others = read_labels(output_dir, apart_from=set(splits))
    if not others:
        return
    planned = photos.table.select(["id", "latitude", "longitude"]).to_pandas().set_index("id")
    authors = set(photos.table["author"].unique().to_pylist()) - {None}
    for name, packed in others.items():
        known = listed[name]["options"].get("folder") if name in listed else None
        stored = packed.select(["id", "latitude", "longitude"]).to_pandas().set_index("id")
        shared = stored.index[stored.index.isin(planned.index)]
        here, there = planned.loc[shared].to_numpy(np.float64), stored.loc[shared].to_numpy(np.float64)
        same = (here == there).all(axis=1)
        if folder is None or known is None or known == folder:  # without coordinates the folder's name has to do
            same |= np.isnan(here).any(axis=1) | np.isnan(there).any(axis=1)
        shared = shared[same]
        if len(shared):
            raise SourceError(
                f"{output_dir} holds {len(shared)} of these photos in its split {name!r}; the first is {shared[0]}, "
                f"which this run would put into {_split_of(shared[0], photos, splits)!r} too. Choose another "
                f"--output_dir, or delete {name}-*.parquet there."
            )
        if "author" in packed.column_names and (both := authors & set(packed["author"].unique().to_pylist())):
            logger.warning(
                "%d authors of these photos, such as %s, have photos in the split %r of %s too: a model that knows an "
                "author's places is judged too well. --validation_fraction splits by author",
                *(len(both), min(both), name, output_dir),
            )


def _split_of(photo_id: str, photos: PhotoIndex, splits: dict[str, np.ndarray]) -> str:
    row = photos.column("id").index(photo_id)
    return next(name for name, rows in splits.items() if row in rows)
