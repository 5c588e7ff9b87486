"""Data sets of the Hub: which files a data set id stands for, as `datasets` itself resolves them."""

import logging
import re
from pathlib import Path

from geomae.data.filesystems import FileEntry, remote_entry
from geomae.errors import SourceError

__all__ = ["is_hub_id", "list_hub_files"]

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Builders of `datasets` whose files hold photos at places that can be jumped to, and what we call them.
_KINDS = {"parquet": "parquet", "webdataset": "webdataset", "imagefolder": "folder"}


def is_hub_id(source: str) -> bool:
    """Whether it looks like `owner/name` or `owner/name@revision`, and is not a path that exists."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source.partition("@")[0]).exists()


def list_hub_files(source: str, *, split: str | None = None) -> tuple[str, list[FileEntry]]:
    """The kind and the files of one split of a data set; nothing is downloaded but its description.

    Args:
        source: `owner/name`, or `owner/name@revision`.
        split: by default `train`, or the only one.

    Raises:
        SourceError: there is no such data set or split, or its files cannot be read here and there.
    """
    import datasets  # takes a second to import: packing local photos does without

    name, _, revision = source.partition("@")
    if (folder := Path(name).parent).is_dir():  # a misspelt path; without a network the Hub takes half a minute
        logger.warning("the folder %s has no %s: the Hub is asked for a data set %s", folder, Path(name).name, source)
    try:
        builder = datasets.load_dataset_builder(name, revision=revision or None)
    except Exception as error:  # the Hub's client has a family of errors of its own, and offline mode another
        raise SourceError(
            f"{source} is neither a file or folder here nor a data set that the Hub gives: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Check the spelling; a gated data set needs `hf auth login`."
        ) from error
    files = builder.config.data_files or {}
    kind = _KINDS.get(builder.name or "")
    if kind is None or not files:
        raise SourceError(
            f"{source} is made of {builder.name} files, which cannot be streamed in any order; expected one of "
            f"{', '.join(_KINDS)}. Convert it first: datasets.load_dataset({name!r}, split=...).to_parquet(...)."
        )
    splits = [str(known) for known in files]
    chosen = split or ("train" if "train" in splits or len(splits) > 1 else splits[0])
    if chosen not in splits:
        raise SourceError(f"{source} has no split {chosen!r}; it has {', '.join(splits)}.")
    urls = sorted(str(url) for url in files[chosen])
    return kind, [remote_entry(url, {"etag": builder.hash}) for url in urls]  # the hash of its commit
