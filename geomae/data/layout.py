"""How the shards of a packed folder are called."""

import re
from collections.abc import Iterable
from pathlib import Path

from geomae.data.filesystems import is_url, list_files
from geomae.errors import ConfigError, SourceError

__all__ = ["MAX_SHARDS", "SHARD_PATTERN", "is_packed", "list_shard_urls", "list_shards", "shard_name"]

MAX_SHARDS = 99_999
SHARD_PATTERN = re.compile(r"(?P<split>[a-z0-9_]+)-(?P<index>\d{5})-of-(?P<total>\d{5})\.parquet")


def shard_name(split: str, index: int, num_shards: int) -> str:
    """File name of a shard, as the Hub names them.

    Raises:
        ConfigError: there are more shards than such names can count.
    """
    if num_shards > MAX_SHARDS:
        raise ConfigError(
            f"{num_shards} shards of {split!r} are more than the {MAX_SHARDS} that their names count: pack more photos "
            "into each with --photos_per_shard."
        )
    return f"{split}-{index:05d}-of-{num_shards:05d}.parquet"


def is_packed(path: str | Path) -> bool:
    """Whether the folder, or what a URL lists, holds packed shards, of any split."""
    if is_url(path):
        return any(SHARD_PATTERN.fullmatch(_name(entry.path)) for entry in list_files(str(path)))
    return any(SHARD_PATTERN.fullmatch(file.name) for file in Path(path).glob("*.parquet"))


def list_shards(path: str | Path, split: str) -> list[Path]:
    """The shards of one split of a folder, in order.

    Raises:
        SourceError: the folder holds no such split, or not all of its shards.
    """
    return [Path(file) for file in _choose(path, split, map(str, Path(path).glob("*.parquet")))]


def list_shard_urls(url: str, split: str) -> list[str]:
    """As `list_shards`, below a URL; raises as it does."""
    return _choose(url, split, (entry.path for entry in list_files(url)))


def _choose(path: str | Path, split: str, files: Iterable[str]) -> list[str]:
    found: dict[str, list[tuple[int, str]]] = {}
    for file in sorted(files):
        if match := SHARD_PATTERN.fullmatch(_name(file)):
            found.setdefault(match["split"], []).append((int(match["total"]), file))
    if split not in found and not is_url(path) and not Path(path).exists():
        raise SourceError(f"there is nothing at {path}.")
    if split not in found:
        have = f"it holds the splits {', '.join(sorted(found))}" if found else "it holds no packed shards at all"
        raise SourceError(
            f"{path} has no split {split!r} (files {split}-00000-of-*.parquet); {have}. "
            "Make one with `python -m geomae.data pack` or `python -m geomae.data earth`."
        )
    total = found[split][0][0]
    if any(count != total for count, _ in found[split]) or len(found[split]) != total:
        raise SourceError(
            f"{path} holds {len(found[split])} shards of {split!r} where their names promise {total}. "
            "Was the run that wrote them stopped? Start it again with the same options: it finishes what is missing."
        )
    return [file for _, file in found[split]]


def _name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]
