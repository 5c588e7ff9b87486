"""What a source is made of: its files, what kind of source they make, and the table of coordinates beside them."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from geomae.data.archives import is_tar, walk_tar
from geomae.data.coordinates import PHOTO_SUFFIXES
from geomae.data.filesystems import (
    FileEntry,
    bytes_of,
    expand_pattern,
    is_url,
    list_files,
    open_file,
    path_exists,
    public_name,
)
from geomae.data.hub import is_hub_id, list_hub_files
from geomae.data.layout import SHARD_PATTERN
from geomae.errors import SourceError

__all__ = ["KINDS", "MP16_PRO", "Listing", "choose_shards", "detect_kind", "find_table", "list_source", "suffix_of"]

logger = logging.getLogger(__name__)

KINDS = {
    "packed": "shards of `python -m geomae.data pack` (train-00000-of-00012.parquet)",
    "msgpack": "GeoEstimation's shards (*.msg, *.msgpack)",
    "webdataset": "WebDataset tars (a .jpg and a .json of one name)",
    "tar": "tars of photos (MP16-Pro's mp-16-images00, with or without .tar)",
    "zip": "zips of photos (OSV-5M's 00.zip)",
    "parquet": "parquet with an image column",
    "folder": "photos (.jpg, .png, ...)",
}

MP16_PRO = "mp-16-images"  # its tars have no suffix: mp-16-images00 to 18
_SUFFIX_KINDS = {".msg": "msgpack", ".msgpack": "msgpack", ".tar": "tar", ".zip": "zip"}
_BESIDE_SUFFIXES = (".csv", ".json", ".jsonl", ".txt", ".md", ".html")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_NUM_PEEKED = 64  # members of the first tar that tell whether its photos come with JSONs


@dataclass(frozen=True)
class Listing:
    """The files of a source."""

    root: str  # folder or URL that they are below; empty where they share none
    entries: Sequence[FileEntry]
    kind: str | None = None  # where the Hub says it
    is_file: bool = False  # the source is one file, and not a folder

    def name(self, entry: FileEntry) -> str:
        """Path of a file below the root, with `/`."""
        if not self.root:
            return entry.path
        name = entry.path[len(self.root) :]
        return name.lstrip("/") if is_url(self.root) else name.replace(os.sep, "/").lstrip("/")

    def public_name(self, entry: FileEntry) -> str:
        """The same for records: without what may be secret in a URL."""
        if not is_url(entry.path):
            return self.name(entry)
        return public_name(entry.path) if not self.root else self.name(entry).partition("?")[0]

    def of_kind(self, kind: str) -> list[FileEntry]:
        """The files that hold the photos of a source of that kind."""
        wanted = {"webdataset": {"tar"}, "parquet": {"parquet", "packed"}}.get(kind, {kind})
        return [entry for entry in self.entries if _kind_of(entry) in wanted]

    def of_any_name(self) -> list[FileEntry]:
        """All files that are no table or text beside photos: for a kind that is forced on files called otherwise."""
        return [entry for entry in self.entries if suffix_of(entry.path) not in _BESIDE_SUFFIXES]


def list_source(source: str, *, split: str | None = None) -> Listing:
    """The files that a path, a URL, a pattern such as `{00..18}.tar`, or a data set id of the Hub stands for.

    Raises:
        SourceError: there are none.
    """
    if is_hub_id(source):
        kind, entries = list_hub_files(source, split=split)
        return Listing(_common_folder(entries), entries, kind)
    if is_url(source):
        source = source if source.endswith("://") else source.rstrip("/")
    else:
        source = os.path.abspath(source)  # an index outlives the working folder, and Ray's workers have others
    paths = expand_pattern(source)
    entries = [entry for path in paths for entry in list_files(path)]
    if len(paths) == 1 and [entry.path for entry in entries] != paths:
        return Listing(paths[0], entries)
    return Listing(_common_folder(entries), entries, is_file=len(paths) == 1)


def _common_folder(entries: Sequence[FileEntry]) -> str:
    """The folder or URL that all files are below; empty where they share none."""
    folders = [entry.path.split("/")[:-1] for entry in entries]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False))
    root = "/".join(part for part, _ in shared)
    return "" if root.endswith((":", ":/")) else root


def suffix_of(path: str) -> str:
    """The suffix of a path, a URL or a member of an archive, in small letters, with its dot."""
    path = path.partition("?")[0] if is_url(path) else path.replace("\\", "/")
    base = path.rpartition("/")[2]
    return base[base.rindex(".") :].lower() if "." in base[1:] else ""


def _kind_of(entry: FileEntry) -> str | None:
    """The kind that one file speaks for; whether tars are a WebDataset, their members tell."""
    suffix = suffix_of(entry.path)
    if suffix in PHOTO_SUFFIXES:  # first: there may be millions
        return "folder"
    if suffix == ".parquet":
        return "packed" if SHARD_PATTERN.fullmatch(entry.path.rpartition("/")[2]) else "parquet"
    if suffix in _SUFFIX_KINDS:
        return _SUFFIX_KINDS[suffix]
    is_tar_by_name = entry.path.rpartition("/")[2].startswith(MP16_PRO)  # a broken one is to be named, not passed over
    return "tar" if not suffix and (is_tar_by_name or _looks_like_tar(entry)) else None


@lru_cache(maxsize=4096)
def _looks_like_tar(entry: FileEntry) -> bool:
    try:
        with open_file(entry.path) as file:
            return is_tar(file)
    except (OSError, SourceError):
        return False


def detect_kind(listing: Listing, source: str) -> str:
    """The kind of a source: that of most of its bytes, or of its files where a server does not tell their sizes.

    Raises:
        SourceError: its files are of no kind that is known.
    """
    if listing.kind is not None:
        return listing.kind
    sizes_known = all(entry.size is not None for entry in listing.entries)
    weights: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for entry in listing.entries:
        if kind := _kind_of(entry):
            weights[kind] += (entry.size or 0) + 1 if sizes_known else 1
            numbers[kind] += 1
    if "tar" in weights:
        del weights["parquet"], numbers["parquet"]  # img2dataset writes one beside each tar
    if weights:
        kind = "packed" if "packed" in weights else weights.most_common(1)[0][0]
        _name_other_kinds(source, kind, numbers)
        return _tar_kind(listing.of_kind("tar")) if kind == "tar" else kind
    looked_for = "\n".join(f"  {name:<11} {what}" for name, what in KINDS.items())
    found = ", ".join(sorted({suffix_of(entry.path) or "no suffix" for entry in listing.entries})[:10])
    compressed = any(entry.path.endswith(_COMPRESSED_TARS) for entry in listing.entries)
    advice = " Compressed tars cannot be read here and there: decompress them first." if compressed else ""
    raise SourceError(
        f"{source} holds no photos that are known: its {len(listing.entries)} files end in {found}.{advice} Looked "
        f"for:\n{looked_for}\n  Name the kind with --kind if the files are called otherwise."
    )


def _name_other_kinds(source: str, kind: str, numbers: Counter[str]) -> None:
    """Say what is left out of a source that is made of several kinds of files."""
    for other, count in numbers.items():
        if other != kind:
            logger.warning(
                "%s is read as %s; %d files that are %s are left out, and --kind %s reads them instead",
                *(public_name(source), KINDS[kind], count, KINDS[other], other),
            )


def _tar_kind(entries: Sequence[FileEntry]) -> str:
    """By the first archive that can be read."""
    for entry in entries:
        try:
            with open_file(entry.path, whole=True) as file:
                members = walk_tar(file, bytes_of(entry))
                names = [member.name for member in itertools.islice(members, _NUM_PEEKED)]
        except (OSError, SourceError):  # named and counted when it is indexed
            continue
        return "webdataset" if any(name.endswith(".json") for name in names) else "tar"
    return "tar"


def choose_shards(entries: Sequence[FileEntry], split: str, source: str) -> list[FileEntry]:
    """The shards of one split, all of them.

    Raises:
        SourceError: the split is absent or not whole.
    """
    named = [(entry, SHARD_PATTERN.fullmatch(PurePosixPath(entry.path).name)) for entry in entries]
    chosen = [(entry, match) for entry, match in named if match is not None and match["split"] == split]
    if not chosen:
        splits = sorted({match["split"] for _, match in named if match is not None})
        raise SourceError(f"{source} has no split {split!r}; it holds the splits {', '.join(splits) or '(none)'}.")
    if {int(match["total"]) for _, match in chosen} != {len(chosen)}:
        raise SourceError(
            f"{source} holds {len(chosen)} shards of {split!r} where their names promise {int(chosen[0][1]['total'])}. "
            "Was the run that wrote them stopped? Start it again with the same options: it finishes what is missing."
        )
    return [entry for entry, _ in chosen]


def find_table(listing: Listing, source: str) -> str | None:
    """The table of coordinates that goes with a source, or None.

    It is the only CSV in the folder, in its `metadata/`, beside it under its name, or beside its parent (as OSV-5M's
    `train.csv` lies beside `images/train`); or else the only `*mapping*.json` in it. That of a file lies beside it
    under its name.

    Raises:
        SourceError: there are several.
    """
    names = {} if listing.is_file else {listing.name(entry): entry.path for entry in listing.entries}
    choices = [
        [path for name, path in names.items() if name.lower().endswith(".csv") and "/" not in name],
        [path for name, path in names.items() if name.lower().endswith(".csv") and name.startswith("metadata/")],
        *([path] for path in _tables_beside(listing) if path_exists(path)),
        [path for name, path in names.items() if name.endswith("/metadata.csv")],
        [path for name, path in names.items() if name.endswith(".json") and "mapping" in name and "/" not in name],
    ]
    found = next((files for files in choices if files), [])
    if len(found) > 1:
        shown = ", ".join(path.rpartition("/")[2] for path in found)
        raise SourceError(
            f"looked for one CSV in {source} or beside it and found several: {shown}. Name it with --csv."
        )
    return found[0] if found else None


def _tables_beside(listing: Listing) -> list[str]:
    """`a/b/c.csv` and `a/c.csv` for the folder `a/b/c`."""
    path = listing.entries[0].path if listing.is_file else listing.root
    folders = path.removesuffix(suffix_of(path)).split("/") if listing.is_file else path.split("/")
    first = 3 if is_url(path) else 1  # what stands before are no folders: `s3:`, nothing, the bucket
    beside = [folders, [*folders[:-2], folders[-1]]]
    return [f"{'/'.join(parts)}.csv" for parts in beside if len(parts) > first and listing.kind is None]
