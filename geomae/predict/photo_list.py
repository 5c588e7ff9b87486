"""The words of a command line -> one index of photos: files, folders, lists, URLs, and whatever `open_source` reads."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from geomae.columns import find_column
from geomae.data.archives import Storage
from geomae.data.coordinates import PHOTO_SUFFIXES
from geomae.data.damage import BadTally
from geomae.data.filesystems import PASSWORD, FileEntry, is_url, join, list_files
from geomae.data.hub import is_hub_id
from geomae.data.labelling import drop_repeats, explain_emptiness
from geomae.data.listing import Listing, detect_kind, list_source, suffix_of
from geomae.data.photo_index import PLACE_COLUMNS, PhotoIndex
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import SourceError
from geomae.predict.printing import printable

__all__ = ["list_photos"]

logger = logging.getLogger(__name__)

ARCHIVES = ("tar", "zip", "msgpack", "parquet")
MAX_FIELD = 2**24  # letters of a field of a list: answers with a thousand places have more than csv's own 131,072
_STARTS_A_FORMULA = tuple("=+-@\t\r")  # in a spreadsheet that opens a table of ids


def list_photos(words: Sequence[str], *, split: str | None = None) -> PhotoIndex:
    """Every photo that is named, once, in the order of the words; no photo is read.

    Args:
        words: photos, folders of photos, URLs of both, every other source that `open_source` takes, and `@FILE`: a
            text file with one of these a line, or a CSV with a column of them.
        split: which split of packed folders and of data sets of the Hub; by default train.

    Returns:
        Without coordinates. The id of a photo is its path as given: of one in a folder or in an archive the word, a
        slash, and its name there. A path that a spreadsheet would take for a formula gets `./` in front, which leads to
        the same file. `bad` counts what is named and cannot be read for certain.

    Raises:
        SourceError: a file, a folder or a list does not exist, or there is no photo at all.
    """
    named = list(_expand_lists(words))
    photos = _Photos()
    for word in named:
        photos.add(_harmless(word), split)
    if photos.missing:
        raise SourceError(
            f"{len(photos.missing):,} of the {len(named):,} photos and folders that are named do not exist; the first: "
            f"{', '.join(map(printable, photos.missing[:5]))}. Check the spelling, or leave them out."
        )
    index = PhotoIndex.from_columns("", photos.columns)
    unique = drop_repeats(index, strict=False)
    if len(unique) < len(index):
        logger.warning("%d photos are named more than once and answered once", len(index) - len(unique))
    if not len(unique):
        raise SourceError(f"no photo is left of what is named: {explain_emptiness(photos.bad)}")
    return PhotoIndex("", unique.table, bad=photos.bad)


def _expand_lists(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("@"):
            yield from _read_list(word[1:])
        else:
            yield word


def _read_list(path: str) -> list[str]:
    """The lines of a text file, or the ids of a table: paths from the working folder, as everywhere on a command line.

    Bytes that are no UTF-8 stay what they are in file names.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            if suffix_of(path) != ".csv":
                lines = (line.rstrip("\r\n") for line in file)
                return [line for line in lines if line.strip()]
            csv.field_size_limit(MAX_FIELD)
            rows = csv.DictReader(file)
            column = find_column("id", rows.fieldnames or ())
            if column is None:
                raise SourceError(f"{path} names no photos: its columns are {', '.join(rows.fieldnames or ())}.")
            return [row[column] for row in rows if row[column]]
    except csv.Error as error:
        raise SourceError(f"the list {path} is no CSV that can be read: {error}.") from error
    except OSError as error:
        raise SourceError(
            f"the list {path} cannot be read: {error.strerror}. A photo of that name is ./@..."
        ) from error


def _harmless(word: str) -> str:
    return f"./{word}" if word.startswith(_STARTS_A_FORMULA) else word


def _without_password(word: str) -> str:
    """An address as answers name it: they are passed on, and `user:password@` is for this machine alone."""
    return PASSWORD.sub("", word)


@dataclass
class _Photos:
    """Photos of all words, while they are collected."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in PLACE_COLUMNS})
    bad: BadTally = field(default_factory=BadTally)
    missing: list[str] = field(default_factory=list)

    def add(self, word: str, split: str | None) -> None:
        """A photo by its name, a folder's photos, or another source."""
        is_photo = suffix_of(word) in PHOTO_SUFFIXES
        if is_url(word) and is_photo:
            self._add_file(word, FileEntry(word, None, 0))
        elif not is_url(word) and is_photo and os.path.isfile(word):
            self._add_file(word, list_files(word)[0])
        elif not is_url(word) and not os.path.exists(word) and (is_photo or not is_hub_id(word)):
            self.missing.append(word)
        else:
            self._add_source(word, split)

    def _add_source(self, word: str, split: str | None) -> None:
        listing = list_source(word, split=split)
        if _kind_of(listing, word) == "folder":
            for entry in listing.of_kind("folder") or listing.entries:
                name = unquote(listing.name(entry)) if word.startswith("http") else listing.name(entry)
                self._add_file(word if listing.is_file else join(word, name), entry)
            return
        index = open_source(word, SourceOptions(unlabelled=True, split=split))
        for name in PLACE_COLUMNS:
            self.columns[name] += index.column(name)
        begin = len(self.columns["id"]) - len(index)
        for name, folder in {"id": _without_password(word), "file": index.root}.items():
            self.columns[name][begin:] = [join(folder, value) for value in self.columns[name][begin:]]
        self.bad.counts += index.bad.counts
        for photo in index.bad.listed:
            self.bad.listed.append(type(photo)(join(_without_password(word), photo.file), photo.reason))

    def _add_file(self, name: str, entry: FileEntry) -> None:
        path = entry.path if is_url(entry.path) else os.path.abspath(entry.path)
        try:
            path.encode()
        except UnicodeEncodeError:
            self.bad.add(printable(name), "its name is not UTF-8: rename it")
            return
        size = -1 if entry.size is None else entry.size
        values = (_without_password(name), path, int(Storage.WHOLE), 0, size, entry.state)
        for column, value in zip(PLACE_COLUMNS, values, strict=True):
            self.columns[column].append(value)


def _kind_of(listing: Listing, word: str) -> str:
    """The kind of a source; one file that is called like nothing else is taken for a photo, and its bytes will tell.

    A folder that holds photos is a folder of photos, however large the archives beside them are.
    """
    if not listing.is_file and listing.kind is None and listing.of_kind("folder"):
        others = [entry.path for kind in ARCHIVES for entry in listing.of_kind(kind)]
        if others:
            logger.warning(
                "%d archives or tables among the photos of %s are not looked into: name them too, if photos in them "
                "are to be answered, such as %s",
                *(len(others), printable(word), printable(others[0])),
            )
        return "folder"
    try:
        return detect_kind(listing, word)
    except SourceError:
        if not listing.is_file:
            raise
        return "folder"
