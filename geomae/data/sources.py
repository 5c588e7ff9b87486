"""Every kind of source -> an index of its photos, with coordinates; what cannot be used is counted and named."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from tqdm import tqdm

from geomae.columns import as_utf8
from geomae.data.archives import Member, is_hidden, walk_msgpack, walk_tar, walk_zip
from geomae.data.coordinates import PHOTO_SUFFIXES
from geomae.data.damage import BadTally, BrokenArchive, count_broken
from geomae.data.filesystems import (
    FileEntry,
    RemoteError,
    bytes_of,
    is_url,
    list_files,
    open_file,
    public_name,
    stat_remote,
)
from geomae.data.labelling import (
    SpoiltPhoto,
    TableOptions,
    drop_repeats,
    explain_emptiness,
    label_by_exif,
    label_by_table,
)
from geomae.data.listing import KINDS, MP16_PRO, Listing, choose_shards, detect_kind, find_table, list_source, suffix_of
from geomae.data.photo_index import PLACE_COLUMNS, PhotoIndex, name_apart
from geomae.data.self_described import parquet_beside, read_parquet_rows, read_webdataset
from geomae.errors import ConfigError, SourceError

__all__ = ["SourceOptions", "open_source"]

logger = logging.getLogger(__name__)

_INDEX_VERSION = 4  # another one for every change of what an index holds
_DEAD_PHOTO_BYTES = 5120  # MP16-Pro: members as small as this are what Flickr serves for photos that are gone
_OSV5M = re.compile(r"images/(\w+)/\d\d(?:\.zip$|/)")
CACHE_VARIABLE = "GEOMAE_CACHE"


@dataclass(frozen=True)
class SourceOptions:
    """What to read from a source, and how.

    Raises:
        ConfigError: options that exclude each other.
    """

    kind: str = "auto"  # one of KINDS, or auto: by the names of the files
    csv_file: str | None = None  # CSV or mapping JSON of coordinates; by default the one that is found
    exif: bool = False  # coordinates from the photos themselves, whatever table is there
    unlabelled: bool = False  # every photo, without coordinates
    swap_lat_lon: bool = False  # the table has longitude where it says latitude
    partial: bool = False  # the table names more photos than there are here: those are not bad
    split: str | None = None  # of a packed folder or a data set of the Hub; by default train
    min_photo_bytes: int | None = None  # smaller photos are dead; by default 5,121 for MP16-Pro, else 1
    for_test: bool = False  # the table decides: it must be right in every row, and photos it does not name are ignored

    def __post_init__(self) -> None:
        if sum([self.csv_file is not None, self.exif, self.unlabelled]) > 1:
            raise ConfigError(
                "--csv, --exif and --unlabelled each say where coordinates come from: choose one of them."
            )
        if self.kind not in ("auto", *KINDS):
            raise ConfigError(f"kind is {self.kind!r}; it must be auto or one of {', '.join(KINDS)}")
        if self.swap_lat_lon and (self.exif or self.unlabelled):
            raise ConfigError("--swap_lat_lon swaps two columns of a table, but none is read. Leave it out.")


@dataclass
class _Photos:
    """Photos of archives as columns, while they are collected."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in PLACE_COLUMNS})
    bad: BadTally = field(default_factory=BadTally)  # records of archives that name no photo
    broken: list[BrokenArchive] = field(default_factory=list)
    num_photos: Counter[str] = field(default_factory=Counter)  # of each archive
    spoilt: list[SpoiltPhoto] = field(default_factory=list)

    def add(self, entry: FileEntry, name: str, member: Member) -> None:
        values = (member.name, name, int(member.storage), member.offset, member.size, entry.state)
        for column, value in zip(PLACE_COLUMNS, values, strict=True):
            self.columns[column].append(value)

    def to_index(self, root: str) -> PhotoIndex:
        ids = name_apart(self.columns["id"], self.columns["file"], self.columns["size"])
        return PhotoIndex.from_columns(root, self.columns | {"id": ids}, bad=self.bad)


def open_source(source: str | Path, options: SourceOptions | None = None, *, cache: bool = True) -> PhotoIndex:
    """Find every photo of a source, and what is known of it; no photo is decoded.

    Args:
        source: a folder, a file, a URL that fsspec opens, a pattern such as `{00..18}.tar`, or a data set id of the
            Hub. `listing.KINDS` has the kinds.
        options: by default the kind is found out, and coordinates come from the photos' own records, from the table
            that `find_table` finds, or from EXIF blocks, whichever there is first.
        cache: keep the index in the folder that GEOMAE_CACHE names (else ~/.cache/geomae), and take it from there when
            no file has changed.

    Returns:
        An index, mapped into memory where it was cached; `bad` counts what the source names and cannot be used.

    Raises:
        SourceError: there is nothing, it is of no known kind, or nothing of it can be used.
        CoordinateError: latitude and longitude are swapped; for a test, a coordinate is not on Earth.
        ConfigError: an option does not fit the kind.
    """
    options = options or SourceOptions()
    listing = list_source(str(source), split=options.split)
    kind = detect_kind(listing, str(source)) if options.kind == "auto" else options.kind
    entries = _choose_entries(listing, kind, options, str(source))
    table_file = _choose_table(listing, kind, options, str(source))
    _refuse_idle_options(kind, table_file, options)
    if table_file is not None:
        logger.info("coordinates come from %s", public_name(table_file))
    described = _describe(str(source), kind, table_file, options)
    cached = _cache_file(listing, kind, entries, table_file, options) if cache else None
    found = _load_cached(cached)
    if found is not None:
        return replace(found, description=described)
    index = replace(_build(listing, kind, entries, table_file, options), kind=kind, description=described)
    if not len(index):
        raise SourceError(f"{source} has no photo that can be used: {explain_emptiness(index.bad)}")
    return index if cached is None else _save_cached(index, cached)


def _load_cached(path: Path | None) -> PhotoIndex | None:
    if path is None or not path.is_file():
        return None
    try:
        return PhotoIndex.load(path)
    except (OSError, ValueError, KeyError, TypeError):  # cut off, or by another version
        logger.warning("the cached index %s cannot be read and is made anew", path)
        return None


def _save_cached(index: PhotoIndex, path: Path) -> PhotoIndex:
    """The index as it is saved, mapped; itself where there is no room: that costs the next run some time."""
    try:
        index.save(path)
        return PhotoIndex.load(path)
    except OSError as error:
        logger.warning("the index cannot be cached in %s: %s", path.parent, error)
        return index


def _choose_entries(listing: Listing, kind: str, options: SourceOptions, source: str) -> list[FileEntry]:
    entries = listing.of_kind(kind)
    if not entries and options.kind != "auto" and kind != "packed":
        entries = listing.of_any_name()
    if kind == "packed" and entries:
        entries = choose_shards(entries, options.split or "train", source)
    elif options.kind == "parquet" and listing.of_kind("packed"):
        raise ConfigError(
            f"{source} is a packed folder, whose splits --kind parquet would mix. Leave it out, and choose a split "
            "with --source_split."
        )
    if part := _part_of_osv5m(listing, options):
        entries = [entry for entry in entries if listing.name(entry).startswith(part)]
    if not entries:
        raise SourceError(f"{source} holds no {KINDS[kind]}.")
    is_read_inside = kind != "folder" or options.exif  # a photo of its own is not
    return stat_remote(entries) if is_read_inside else entries


def _part_of_osv5m(listing: Listing, options: SourceOptions) -> str | None:
    """`images/train/` for `train.csv` at the top of OSV-5M, or for no table: the other photos are another split's."""
    names = [listing.name(entry) for entry in listing.entries if "images/" in entry.path]
    parts = {match[1] for name in names if (match := _OSV5M.match(name))}
    if not {"train", "test"} <= parts or not all(map(_OSV5M.match, names)):
        return None
    if options.csv_file is None:
        part = (options.split or "train") if options.unlabelled else None
    else:
        folder = options.csv_file.rpartition("/")[0]
        folder = folder if is_url(options.csv_file) else os.path.dirname(os.path.abspath(options.csv_file))
        part = Path(options.csv_file).stem if folder == listing.root else None
    if part not in parts:
        return None
    logger.warning("of OSV-5M only images/%s/ is read", part)
    return f"images/{part}/"


def _refuse_idle_options(kind: str, table_file: str | None, options: SourceOptions) -> None:
    """An option that would change nothing is a misunderstanding."""
    if options.partial and table_file is None:
        raise ConfigError(
            "--partial is about a table that names more photos than are here, but no table is read. Leave it out, or "
            "name the table with --csv."
        )
    if options.min_photo_bytes is not None and kind in ("packed", "parquet"):
        raise ConfigError(f"--min_photo_bytes is for photos in files and archives, and this is {KINDS[kind]}.")


def _choose_table(listing: Listing, kind: str, options: SourceOptions, source: str) -> str | None:
    """The table that is named, or the one that is found where the photos have no records of their own."""
    if options.csv_file is not None:
        return options.csv_file
    finds = not (options.exif or options.unlabelled or kind in ("packed", "parquet", "webdataset"))
    found = find_table(listing, source) if finds else None
    if found is None and options.swap_lat_lon and kind not in ("parquet", "webdataset"):
        raise ConfigError(
            f"--swap_lat_lon swaps two columns of a table, but none is read for {source}. Name it with --csv."
        )
    if found is None and finds and kind != "folder":
        raise SourceError(
            f"{source} holds no coordinates, and no CSV was found in it or beside it. Name the table with --csv "
            "(data_csv in the configuration of a training), or take the photos without any with --unlabelled. Where "
            "JSONs lie beside the photos of a tar, --kind webdataset reads them."
        )
    return found


def _build(
    listing: Listing, kind: str, entries: Sequence[FileEntry], table_file: str | None, options: SourceOptions
) -> PhotoIndex:
    finds_places = not (options.unlabelled or options.exif or table_file)
    spoilt: list[SpoiltPhoto] = []
    lost_are_named = table_file is not None and not options.partial
    if kind in ("packed", "parquet", "webdataset"):
        strict = options.for_test and table_file is None
        read = read_parquet_rows if kind != "webdataset" else partial(read_webdataset, lost_are_named=lost_are_named)
        swapped = finds_places and options.swap_lat_lon
        index = read(listing, entries, labelled=finds_places, swap_lat_lon=swapped, strict=strict)
        if strict and index.bad:
            raise SourceError(
                f"{len(index.bad)} photos of a test set cannot be used: {index.bad.describe()}. A test set must be "
                "whole: mend it, or name the table of all its photos with --csv, and those count as misses."
            )
    elif kind == "folder":
        index = _index_files(listing, entries)
    else:
        photos = _index_archives(listing, kind, entries, options)
        index, spoilt = photos.to_index(listing.root), photos.spoilt
        count_broken(photos.broken, {} if lost_are_named else photos.num_photos, entries, index.bad)
    if options.min_photo_bytes is not None and kind in ("folder", "webdataset"):
        index = _leave_out_small(index, options.min_photo_bytes)
    if table_file is not None:
        table_options = TableOptions(options.swap_lat_lon, options.partial, options.for_test)
        return label_by_table(index, table_file, table_options, spoilt)
    for photo in spoilt:
        photo.count(index.bad)
    if options.exif or (finds_places and kind == "folder"):
        index = label_by_exif(index)
    return drop_repeats(index, strict=options.for_test)


def _leave_out_small(index: PhotoIndex, fewest: int) -> PhotoIndex:
    sizes = index.table["size"].to_numpy()
    small = (sizes >= 0) & (sizes < fewest)
    index.bad.add_all([index.table["id"][int(row)].as_py() for row in np.flatnonzero(small)], _dead(fewest))
    return index.take(np.flatnonzero(~small)) if small.any() else index


def _dead(fewest: int) -> str:
    return f"fewer than {fewest:,} bytes: dead photos"


def _index_files(listing: Listing, entries: Sequence[FileEntry]) -> PhotoIndex:
    entries, bad = _sift_names(listing, entries)
    names = [listing.name(entry) for entry in entries]
    ids = [unquote(name) for name in names] if listing.root.startswith(("http://", "https://")) else names
    sizes = [-1 if entry.size is None else entry.size for entry in entries]
    states = [entry.state for entry in entries]
    return PhotoIndex.from_columns(listing.root, {"id": ids, "file": names, "size": sizes, "state": states}, bad=bad)


def _sift_names(listing: Listing, entries: Sequence[FileEntry]) -> tuple[Sequence[FileEntry], BadTally]:
    """The files whose paths an index can hold; the others are counted."""
    bad = BadTally()
    named = [(entry, as_utf8(entry.path) == entry.path) for entry in entries]
    for entry in (entry for entry, is_text in named if not is_text):
        bad.add(as_utf8(listing.public_name(entry)), "its path is not UTF-8: rename it")
    return (entries if not bad else [entry for entry, is_text in named if is_text]), bad


def _index_archives(listing: Listing, kind: str, entries: Sequence[FileEntry], options: SourceOptions) -> _Photos:
    photos = _Photos()
    for entry in tqdm(entries, desc="index", unit=" archives", disable=len(entries) < 2):
        archive, shown = listing.name(entry), listing.public_name(entry)
        fewest = options.min_photo_bytes
        if fewest is None:
            fewest = _DEAD_PHOTO_BYTES + 1 if Path(archive).name.startswith(MP16_PRO) else 1
        for member in _walk(entry, kind):
            if member.lost_bytes:
                photos.broken.append(BrokenArchive(shown, str(member.problem), member.lost_bytes))
            elif member.problem is not None and not member.name:
                photos.bad.add(shown, member.problem)
            elif kind != "msgpack" and (suffix_of(member.name) not in PHOTO_SUFFIXES or is_hidden(member.name)):
                continue
            elif member.problem is not None:
                photos.spoilt.append(SpoiltPhoto(member.name, shown, member.problem, member.problem))
            elif member.size < fewest:
                reason = f"{member.size} bytes: a dead photo"
                photos.spoilt.append(SpoiltPhoto(member.name, shown, reason, _dead(fewest)))
            else:
                photos.add(entry, archive, member)
                photos.num_photos[shown] += 1
    return photos


def _walk(entry: FileEntry, kind: str) -> Iterator[Member]:
    try:
        with open_file(entry.path, whole=True) as file:
            if kind == "msgpack":
                yield from walk_msgpack(file, bytes_of(entry))
            elif kind == "zip":
                yield from walk_zip(file)
            else:
                yield from walk_tar(file, bytes_of(entry))
    except RemoteError:
        raise
    except SourceError as error:  # one broken archive among many is counted like one broken photo
        yield Member("", problem=f"the archive cannot be read: {error}", lost_bytes=-1)
    except OSError as error:
        raise SourceError(f"{public_name(entry.path)} cannot be read: {error}.") from error


def _describe(source: str, kind: str, table_file: str | None, options: SourceOptions) -> str:
    """Where the photos came from, in words that name no folder of this machine."""
    name = public_name(source)
    if options.unlabelled:
        return f"photos of {name}, without coordinates"
    if table_file is not None:
        return f"photos of {name} with coordinates of {public_name(table_file).rpartition('/')[2]}"
    return f"photos of {name} with {'EXIF positions' if options.exif or kind == 'folder' else 'their own coordinates'}"


def _cache_file(
    listing: Listing, kind: str, entries: Sequence[FileEntry], table_file: str | None, options: SourceOptions
) -> Path | None:
    """Named after everything that the index depends on; None where that cannot be known."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "geomae")
    digest = hashlib.blake2b(digest_size=16)
    asked = asdict(options) | {"kind": kind, "csv_file": table_file, "root": listing.root, "version": _INDEX_VERSION}
    digest.update(json.dumps(asked, sort_keys=True).encode())
    tables = stat_remote(list_files(table_file)) if table_file else []
    if kind == "webdataset":  # img2dataset writes one beside each tar
        beside = {parquet_beside(entry.path) for entry in entries}
        tables += [entry for entry in listing.entries if entry.path in beside]
    read_inside = [] if kind == "folder" and (options.unlabelled or table_file) else entries
    if not all(entry.is_dated for entry in [*read_inside, *tables]):
        return None  # whether a file has changed cannot be known
    for entry in [*entries, *tables]:
        digest.update(f"{entry.path}\0{entry.size}\0{entry.state}\n".encode(errors="surrogateescape"))
    return folder / "indexes" / f"{digest.hexdigest()}.arrow"
