"""How the shards of a packed folder are called."""

import re
from pathlib import Path

from geomae.errors import SourceError

__all__ = ["SHARD_PATTERN", "is_packed", "list_shards", "shard_name"]

SHARD_PATTERN = re.compile(r"(?P<split>[a-z0-9_]+)-(?P<index>\d{5})-of-(?P<total>\d{5})\.parquet")


def shard_name(split: str, index: int, num_shards: int) -> str:
    """File name of a shard, as the Hub names them."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.parquet"


def is_packed(path: str | Path) -> bool:
    """Whether the folder holds packed shards, of any split."""
    return any(SHARD_PATTERN.fullmatch(file.name) for file in Path(path).glob("*.parquet"))


def list_shards(path: str | Path, split: str) -> list[Path]:
    """The shards of one split, in order.

    Raises:
        SourceError: the folder holds no such split, or not all of its shards.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(Path(path).glob("*.parquet")):
        if match := SHARD_PATTERN.fullmatch(file.name):
            found.setdefault(match["split"], []).append((int(match["total"]), file))
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
