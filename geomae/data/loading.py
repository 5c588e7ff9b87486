"""Any source as a data set of `datasets`: map-style for validation and tests, or streamed once from end to end."""

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Features, Image, IterableDataset
from numpy.typing import NDArray

from geomae.data.archives import Storage
from geomae.data.filesystems import is_url, join
from geomae.data.groups import GroupSource, IndexedPhotos
from geomae.data.layout import is_packed, list_shards
from geomae.data.photo_index import OPTIONAL_COLUMNS, PhotoIndex
from geomae.data.reading import PhotoReader
from geomae.data.shards import photo_schema
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, SourceError

__all__ = ["find_absent", "load_photos", "stream_photos"]

logger = logging.getLogger(__name__)

_PLACE = ("file", "storage", "offset", "size")
_MAX_PARTS = 64  # that a streamed data set can be split into, for the workers of a DataLoader


def load_photos(
    path: str | Path,
    split: str,
    *,
    csv_file: str | Path | None = None,
    swap_lat_lon: bool = False,
    labelled: bool = True,
) -> datasets.Dataset:
    """A map-style data set, for validation and tests: every photo once, in a fixed order, undecoded.

    Args:
        path: a packed folder, or any source that `open_source` takes, with a table of coordinates or without.
        split: which split of a packed folder or of a data set of the Hub; for others, the name of the result.
        csv_file: the table; by default the one that `find_table` finds.
        swap_lat_lon: read that table's latitude column as longitude and the other way round.
        labelled: false: of a source that is not packed every photo, without coordinates.

    Returns:
        Rows of `image` {bytes, path}, `latitude`, `longitude` (degrees), `id` and what else is known. `bytes` is None
        where `path` names a file of its own; `bytes` is empty for a photo that the table names and that is not there:
        these are counted in the log, and `find_absent` tells them.

    Raises:
        SourceError: there are no such photos, or not one of those that the table names is there.
        CoordinateError: a coordinate of the table is not on Earth.
        ConfigError: `swap_lat_lon` for a packed folder, where no table is read.
    """
    if csv_file is None and not is_url(path) and is_packed(path):
        if swap_lat_lon:
            raise ConfigError(
                f"--swap_lat_lon swaps two columns of a CSV, but {path} is a packed folder. Leave it out; if its "
                "coordinates are swapped, pack the photos again with --swap_lat_lon."
            )
        files = [str(file) for file in list_shards(path, split)]
        dataset = datasets.Dataset.from_parquet(files, split=datasets.NamedSplit(split))
        return dataset.cast_column("image", Image(decode=False))
    named = None if csv_file is None else str(csv_file)
    options = SourceOptions(
        csv_file=named, swap_lat_lon=swap_lat_lon, unlabelled=not labelled, split=split, for_test=True
    )
    index = open_source(path, options)
    if index.bad:  # a photo that a table names is not among these: it stays, and counts as missing
        counts, first = index.bad.describe(), index.bad.listed[0].file
        logger.warning("%d photos of %s are left out: %s; the first is %s", len(index.bad), path, counts, first)
    photos = _to_dataset(index, split)
    _report_absent(find_absent(photos), index, str(path))
    return photos


def find_absent(photos: datasets.Dataset) -> NDArray[np.bool_]:
    """Which photos of `load_photos` are only named by a table: `(n,)`, True where there is none to look at.

    A damaged photo is there. No photo is read.
    """
    table = photos.data
    if "storage" in table.column_names:
        return np.asarray(table["storage"].to_numpy() == Storage.MISSING)
    data, file = (pc.struct_field(table["image"], name) for name in ("bytes", "path"))
    is_empty = pc.fill_null(pc.equal(pc.binary_length(data), 0), False)
    return np.asarray(pc.and_(is_empty, pc.is_null(file)).to_numpy(), dtype=np.bool_)


def _report_absent(is_absent: NDArray[np.bool_], index: PhotoIndex, path: str) -> None:
    if not is_absent.any():
        return
    first = index.table["id"][int(np.argmax(is_absent))].as_py()
    if is_absent.all():
        raise SourceError(
            f"not one of the {len(is_absent):,} photos that the table names is in {path}, such as {first}"
        )
    logger.warning(
        "%d of the %d photos that the table names are not in %s; the first is %s",
        int(is_absent.sum()),
        len(is_absent),
        path,
        first,
    )


def _to_dataset(index: PhotoIndex, split: str) -> datasets.Dataset:
    """An index as a data set; photos inside archives are read when a row is asked for."""
    storage = index.table["storage"].to_numpy()
    known = ["latitude", "longitude", "id", *index.known_columns()]
    in_files = not is_url(index.root) and bool(np.isin(storage, (Storage.WHOLE, Storage.MISSING)).all())
    if in_files:
        columns: dict[str, Any] = {
            "image": [_own_file(index.root, *place) for place in zip(index.column("file"), storage, strict=True)]
        }
        columns |= {name: index.column(name) for name in known}
        features = Features.from_arrow_schema(photo_schema(index.known_columns()))
        features["image"] = Image(decode=False)
        return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
    table = index.table.select([*known, *_PLACE])
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table), split=datasets.NamedSplit(split))
    return dataset.with_transform(_ReadPhotos(index.root))


def _own_file(root: str, file: str, storage: int) -> dict[str, Any]:
    if storage == Storage.MISSING:
        return {"bytes": b"", "path": None}  # datasets refuses None twice
    return {"bytes": None, "path": join(root, file)}


class _ReadPhotos:
    """Puts `image` in the place of the columns that say where its bytes lie."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._reader: PhotoReader | None = None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not all(name in batch for name in _PLACE):  # one column alone was asked for
            return batch
        self._reader = self._reader or PhotoReader(self.root)
        rows = [dict(zip(_PLACE, place, strict=True)) for place in zip(*(batch[name] for name in _PLACE), strict=True)]
        read = self._reader.read_all(rows)
        images = [{"bytes": data if isinstance(data, bytes) else b"", "path": None} for data in read]
        return {"image": images} | {name: values for name, values in batch.items() if name not in _PLACE}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_reader": None}


def stream_photos(source: str | Path, options: SourceOptions | None = None) -> IterableDataset:
    """Every photo of any source once, in the source's order, with the columns of a packed folder.

    Training reads `PhotoStream`, which shuffles and resumes; this is for looking at a source, and for tools that take a
    `datasets.IterableDataset`. It has several shards, so a DataLoader's workers and `split_dataset_by_node` share it.

    Args:
        source: as `open_source`.
        options: as `open_source`.

    Returns:
        Rows of `image` {bytes, path}, `latitude`, `longitude` (degrees or None), `id`, and the `OPTIONAL_COLUMNS`,
        None where unknown.
    """
    photos = IndexedPhotos(open_source(source, options))
    num_parts = max(1, min(_MAX_PARTS, len(photos.group_sizes)))
    bounds = np.linspace(0, len(photos.group_sizes), num_parts + 1).round().astype(int).tolist()
    features = Features.from_arrow_schema(photo_schema(OPTIONAL_COLUMNS))
    features["image"] = Image(decode=False)
    parts = list(pairwise(bounds))
    return IterableDataset.from_generator(
        _rows_of_parts, features=features, gen_kwargs={"parts": parts, "photos": photos}
    )


def _rows_of_parts(parts: Sequence[tuple[int, int]], photos: GroupSource) -> Iterator[dict[str, Any]]:
    reader = photos.open()
    for begin, end in parts:
        for group in range(begin, end):
            for row in reader.read(group, np.arange(photos.group_sizes[group])):
                if row.pop("read_error", None) is not None:
                    row["image"]["bytes"] = b""  # datasets refuses None twice
                yield dict.fromkeys(OPTIONAL_COLUMNS) | row
