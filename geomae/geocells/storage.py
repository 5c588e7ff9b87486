"""Geocells in one parquet file: a row for each cell, the partitions under each other, coarse to fine."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from geomae.bounded_parquet import read_table
from geomae.columns import show_columns
from geomae.errors import SourceError
from geomae.files import write_whole
from geomae.geocells.partitions import Geocells, Partition
from geomae.geography import find_off_earth

__all__ = ["read_geocells", "write_geocells"]

SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),  # 0 is the coarsest
        pa.field("cell", pa.int64(), nullable=False),  # row of its partition, from 0
        pa.field("latitude", pa.float64(), nullable=False),  # of the centroid
        pa.field("longitude", pa.float64(), nullable=False),
        pa.field("num_photos", pa.int64(), nullable=False),
        pa.field("area_km2", pa.float64(), nullable=False),
        pa.field("spread_km", pa.float64(), nullable=False),
        pa.field("parent", pa.int64()),  # row of the next coarser partition; null in the coarsest
        pa.field("s2_token", pa.string()),  # null where cells are not of S2
    ]
)


def write_geocells(path: str | Path, geocells: Geocells) -> Path:
    """Write geocells as one parquet file, whole or not at all; its folder must exist."""
    tables = [_to_table(number, partition) for number, partition in enumerate(geocells.partitions)]
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.concat_tables(tables), sink)
    write_whole(Path(path), sink.getvalue().to_pybytes())
    return Path(path)


def _to_table(number: int, partition: Partition) -> pa.Table:
    num_cells = len(partition)
    columns = {
        "partition": np.full(num_cells, number, np.int32),
        "cell": np.arange(num_cells),
        "latitude": partition.centroids_deg[:, 0],
        "longitude": partition.centroids_deg[:, 1],
        "num_photos": partition.num_photos,
        "area_km2": partition.area_km2,
        "spread_km": partition.spread_km,
        "parent": pa.nulls(num_cells, pa.int64()) if partition.parents is None else partition.parents,
        "s2_token": pa.nulls(num_cells, pa.string()) if partition.s2_tokens is None else list(partition.s2_tokens),
    }
    return pa.table(columns, schema=SCHEMA)


def read_geocells(path: str | Path) -> Geocells:
    """Geocells as `write_geocells` wrote them.

    Raises:
        SourceError: there is no such file, it is damaged, it holds something else, or its cells do not nest.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"there is no file {path}; `python -m geomae.geocells build` writes geocells.parquet")
    try:
        table = read_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise SourceError(f"{path} cannot be read as parquet: {problem}. Build it again.") from problem
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise SourceError(
            f"{path} holds no geocells: it lacks the columns {', '.join(missing)} and has "
            f"{show_columns(table.column_names)}. Expected the geocells.parquet of `python -m geomae.geocells build`."
        )
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA)
        rows.validate(full=True)  # Arrow takes bytes for text unseen
    except (pa.ArrowException, ValueError, KeyError) as problem:
        raise SourceError(f"{path} holds no geocells: {problem}. Build it again.") from problem
    numbers = rows["partition"].to_numpy()
    present = np.unique(numbers)
    absent = np.setdiff1d(np.arange(len(present)), present)  # one number may be two billion
    if len(absent):
        raise SourceError(
            f"the geocells of {path} cannot be used: partition {absent[0]} has no cells. Build them again."
        )
    partitions = tuple(_to_partition(rows.filter(pa.array(numbers == n))) for n in range(len(present)))
    _refuse_inconsistent(partitions, path)
    return Geocells(partitions)


def _to_partition(rows: pa.Table) -> Partition:
    def column(name: str) -> Any:
        return rows[name].combine_chunks().to_numpy(zero_copy_only=False)

    parents, tokens = rows["parent"], rows["s2_token"]
    return Partition(
        centroids_deg=np.stack([column("latitude"), column("longitude")], axis=1),
        num_photos=column("num_photos"),
        area_km2=column("area_km2"),
        spread_km=column("spread_km"),
        # one null among numbers becomes -1, which is no row
        parents=None if parents.null_count == len(rows) else parents.fill_null(-1).to_numpy(),
        s2_tokens=None if tokens.null_count else tuple(tokens.to_pylist()),
    )


def _refuse_inconsistent(partitions: tuple[Partition, ...], path: Path) -> None:
    """Refuses cells that are not on Earth, have no parent or no child, or numbers that cannot be."""
    for number, partition in enumerate(partitions):
        numbers = np.stack([partition.num_photos, partition.area_km2, partition.spread_km])
        if len(partition) == 0:
            wrong = "has no cells"
        elif find_off_earth(*partition.centroids_deg.T).any():
            wrong = "has a centroid that is not on Earth"
        elif not (np.isfinite(numbers).all() and (numbers > 0).all()):
            wrong = "has a count, an area or a spread that is not above 0"
        elif (partition.parents is None) != (number == 0):
            wrong = "has parents, and none is coarser" if number == 0 else "has no parents"
        elif partition.parents is not None and not _are_all_parents(partition.parents, len(partitions[number - 1])):
            wrong = "does not nest: each cell needs a parent in the next coarser partition, and each of those a child"
        else:
            continue
        raise SourceError(f"the geocells of {path} cannot be used: partition {number} {wrong}. Build them again.")
    if not partitions:
        raise SourceError(f"{path} has the columns of geocells and no cells. Build it again.")


def _are_all_parents(parents: np.ndarray, num_coarser: int) -> bool:
    return np.array_equal(np.unique(parents), np.arange(num_coarser))
