"""`geocells.json`: what cells were made of, how many, and what they allow; in words, for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError, SourceError
from geomae.geocells.build import BuiltGeocells
from geomae.geocells.partitions import Partition

__all__ = ["FILES", "describe_partitions", "format_ceilings", "format_partitions", "refuse_other_content"]

FILES = ("geocells.parquet", "geocells.png", "geocells.json")


def describe_partitions(built: BuiltGeocells) -> dict[str, dict[str, Any]]:
    """What a reader wants to know of each partition, coarse to fine, as JSON can hold it.

    Returns:
        The partition's number (0 for the coarsest) -> `num_geocells`, `num_dropped`; `coverage`, the share of training
        photos that shaped a cell (for S2, that lie in a kept S2 cell), and `num_moved`, how many of these belong to
        another cell, whose centroid is nearer; `least`, `median` and `most` of `num_photos`, `area_km2`, `spread_km`.
    """
    return {
        str(level): {
            "num_geocells": len(partition),
            "num_dropped": built.num_dropped[level],
            "coverage": built.coverage[level],
            "num_moved": built.num_moved[level],
            **_ranges(partition),
        }
        for level, partition in enumerate(built.geocells.partitions)
    }


def _ranges(partition: Partition) -> dict[str, dict[str, float]]:
    return {name: _range(getattr(partition, name)) for name in ("num_photos", "area_km2", "spread_km")}


def _range(values: NDArray[Any]) -> dict[str, float]:
    return {"least": float(np.min(values)), "median": float(np.median(values)), "most": float(np.max(values))}


def format_partitions(partitions: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of `describe_partitions` for the terminal."""
    header = ["cells", "dropped", "photos a cell", "spread, km", "photos that shape cells", "that belong to others"]
    rows = [
        [
            f"{each['num_geocells']:,}",
            f"{each['num_dropped']:,}",
            _in_words(each["num_photos"], 0),
            _in_words(each["spread_km"], 1),
            f"{100 * each['coverage']:.1f} %",
            f"{each['num_moved']:,}",
        ]
        for each in partitions.values()
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [header, *rows]
    )


def _in_words(values: Mapping[str, float], digits: int) -> str:
    least, median, most = (f"{values[name]:,.{digits}f}" for name in ("least", "median", "most"))
    return f"{least} to {most}, median {median}"


def format_ceilings(ceilings: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines that say how near the nearest centroids are to the photos of each test set."""
    return "\n".join(
        f"{name}: nearest centroids of {ceiling['num_photos']:,} photos are off by {ceiling['mean_km']:,.1f} km in the "
        "mean; within "
        + ", ".join(f"{radius} km: {100 * share:.1f} %" for radius, share in ceiling["accuracy_within_km"].items())
        for name, ceiling in ceilings.items()
    )


def refuse_other_content(output_dir: str | Path, options: Mapping[str, Any]) -> None:
    """Refuses a folder that holds anything but the cells that the same options gave.

    Args:
        output_dir: need not exist.
        options: what the cells are made of, as `geocells.json` records it.

    Raises:
        ConfigError: names a file of somebody else's, or the first option that differs.
        SourceError: `geocells.json` there cannot be read.
    """
    folder = Path(output_dir)
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if strangers:
        raise ConfigError(
            f"output_dir {output_dir} holds something else, such as {strangers[0]}: choose a folder of their own"
        )
    file = folder / "geocells.json"
    if not file.is_file():
        return
    try:
        old = parse_json(read_text(file))["options"]
        differing = [name for name in {**old, **options} if old.get(name) != options.get(name)]
    except (ValueError, KeyError, TypeError) as problem:
        raise SourceError(f"{file} is no record of geocells: {problem!r}. Choose another output_dir.") from problem
    if differing:
        name = differing[0]
        raise ConfigError(
            f"output_dir {output_dir} holds geocells of {name} {old.get(name)}, and these are of {options.get(name)}: "
            "choose another output_dir, or delete that one"
        )
