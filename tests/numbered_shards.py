"""Shards of numbered rows, for tests of what is read and in what order; no row holds a photo."""

import itertools
from pathlib import Path

from geomae.data.layout import list_shards, shard_name
from geomae.data.shards import PhotoRow, write_shard

NUM_PHOTOS = 1003  # a prime-like count: no number of ranks, workers or photos of a batch divides it
EVERYTHING = [f"photo-{number:05d}" for number in range(NUM_PHOTOS)]
UNEVEN = [456, 0, 47, 500]  # shards that do not divide into 100-row groups; one of them is empty


def write_photos(folder: Path, sizes: list[int], split: str = "train") -> list[Path]:
    """Shards of `sizes` rows; the image bytes are the photo's number, undecodable, for the stream must not look."""
    folder.mkdir(parents=True, exist_ok=True)
    number = itertools.count()
    for index, size in enumerate(sizes):
        rows = [PhotoRow(f"photo-{(n := next(number)):05d}", b"%d" % n, n % 90, n % 180) for _ in range(size)]
        write_shard(folder / shard_name(split, index, len(sizes)), rows, optional_columns=(), digest="")
    return list_shards(folder, split)
