"""Test sets, predictions and training coordinates from CSV and parquet, with every row checked on the way in."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from geomae.bounded_parquet import read_table
from geomae.columns import COLUMN_ALIASES, UNKNOWN, find_column, name_scene, show_columns
from geomae.data.layout import list_shards
from geomae.errors import CoordinateError, GeoMAEError, PredictionError, SourceError
from geomae.evaluation.known_test_sets import refuse_another_set
from geomae.evaluation.metrics import check_predictions
from geomae.geography import check_coordinates

__all__ = [
    "Predictions",
    "TestSet",
    "read_predictions",
    "read_test_set",
    "read_training_coordinates",
    "read_training_ids",
]


@dataclass(frozen=True)
class TestSet:
    """Photos with true coordinates, one row each, in the order of their file."""

    __test__ = False  # pytest would take the class for a test

    name: str  # of the file or folder
    ids: list[str]  # n unique names
    coordinates_deg: NDArray[np.float64]  # (n, 2) latitude and longitude
    authors: list[str] | None = None  # n photographers; None where the file does not say
    split: str | None = None  # of a packed folder; None for files
    scenes: list[str] | None = None  # n of `indoor`, `natural`, `urban`; None where the file does not say
    countries: list[str] | None = None  # n names or codes, as the file spells them; None where it does not say

    @classmethod
    def from_columns(cls, name: str, columns: Mapping[str, Any], *, split: str | None = None) -> Self:
        """A test set from its columns, checked.

        Args:
            name: for messages and records.
            columns: `id`, `latitude`, `longitude` and perhaps `author`, `scene` (a name, or a number of S3_Label) and
                `country`: a `datasets.Dataset` or lists.
            split: which split of a packed folder this is.

        Raises:
            SourceError: an id is empty or stands in two rows, no row has coordinates, or the photos are not those of
                the known test set after which the file, the folder or the split is named.
            CoordinateError: a row is not on Earth; the message says so when the columns look swapped.
        """
        ids = ["" if value is None else str(value) for value in columns["id"]]
        _refuse_bad_ids(ids, name, SourceError)
        pairs = [np.array(list(columns[key]), dtype=np.float64) for key in ("latitude", "longitude")]
        if split is not None and np.isnan(pairs).all():
            raise SourceError(
                f"the split {split!r} of {name} has no coordinates: its {len(ids)} photos cannot be judged. "
                "It needs a labelled pack: run `python -m geomae.data pack` without --unlabelled."
            )
        check_coordinates(pairs[0], pairs[1], ids, name)
        photos: dict[str, Any] = {"num_photos": len(ids), "ids_sha256": _digest(ids)}
        for named in (split or name, name):  # a part packed as the split `test` of a folder `im2gps3k` is still a part
            refuse_another_set(named, **photos)
        unknown = [UNKNOWN] * len(ids)
        scenes = _known_texts(columns, "scene", unknown)
        return cls(
            name,
            ids,
            np.stack(pairs, axis=1),
            # a photo of an unknown author is a cluster of its own, even where another author is called like its id
            _known_texts(columns, "author", [f"unknown author of {name}" for name in ids]),
            split,
            scenes=[name_scene(scene) for scene in scenes] if scenes else None,
            countries=_known_texts(columns, "country", unknown),
        )

    @property
    def ids_sha256(self) -> str:
        """Digest of the sorted ids: equal for equal sets of photos, whatever their order."""
        return _digest(self.ids)

    @property
    def clusters(self) -> list[str]:
        """N names: photos of one name are drawn together where intervals are resampled."""
        return self.authors or self.ids

    @property
    def cluster_unit(self) -> str:
        """What a cluster is: `author`, or `photo` where no author is known."""
        return "photo" if self.authors is None else "author"


@dataclass(frozen=True)
class Predictions:
    """One answer for each id; photos without an answer are simply not here."""

    ids: list[str]  # n unique names
    coordinates_deg: NDArray[np.float64]  # (n, 2) latitude and longitude
    ten_crop: "Predictions | None" = None  # the same photos' answers from ten crops each, where they were asked for
    decoded_with: dict[str, Any] = field(default_factory=dict)  # `decoding` and its options; empty without a posterior
    decodings: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # other readings of it, (n, 2) each
    posterior: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # (n,) each; `geomae.evaluation.posterior`


def read_test_set(path: str | Path, *, split: str = "test", swap_lat_lon: bool = False) -> TestSet:
    """The ids and truths of a test set, and the authors, scenes and countries that it knows.

    Args:
        path: a packed folder, or a CSV or parquet file with an id, latitude and longitude (`geomae.columns`).
        split: which split of a packed folder; files have none.
        swap_lat_lon: read the latitude column as longitude and the other way round.

    Raises:
        SourceError: the path, a column, the split or one of its shards is missing, an id is empty or stands in two
            rows, or the photos are not those of the known test set after which the file, the folder or the split is
            named.
        CoordinateError: a row is not on Earth; the message says so when the columns look swapped.
    """
    path = Path(path)
    table = _read_columns(
        path,
        split,
        required=("id", "latitude", "longitude"),
        optional=("author", "scene", "country"),
        error=SourceError,
    )
    columns = table.to_pydict()
    if swap_lat_lon:
        columns["latitude"], columns["longitude"] = columns["longitude"], columns["latitude"]
    return TestSet.from_columns(path.name, columns, split=split if path.is_dir() else None)


def read_predictions(path: str | Path, *, swap_lat_lon: bool = False) -> Predictions:
    """Predictions from a CSV or parquet file with `id`, `latitude` and `longitude`.

    Raises:
        PredictionError: the file or a column is missing, an id is empty or stands in two rows, or a prediction is
            not finite or not on Earth.
    """
    path = Path(path)
    table = _read_columns(path, None, required=("id", "latitude", "longitude"), error=PredictionError)
    ids = [str(value) for value in table["id"].to_pylist()]
    _refuse_bad_ids(ids, path.name, PredictionError)
    coordinates_deg = _coordinates(table, swap_lat_lon)
    check_predictions(coordinates_deg, ids, path.name)
    return Predictions(ids, coordinates_deg)


def read_training_coordinates(
    path: str | Path, *, split: str = "train", swap_lat_lon: bool = False
) -> NDArray[np.float64]:
    """The coordinates `(n, 2)`, in degrees, that constants and random guesses are fitted on.

    Args:
        path: a packed folder, or a CSV or parquet file with latitude and longitude; it needs no ids.
        split: which split of a packed folder.
        swap_lat_lon: read the latitude column as longitude and the other way round.

    Raises:
        SourceError: the path, a column, the split or one of its shards is missing, or no row has coordinates.
        CoordinateError: a row is not on Earth.
    """
    path = Path(path)
    table = _read_columns(path, split, required=("latitude", "longitude"), error=SourceError)
    coordinates_deg = _coordinates(table, swap_lat_lon)
    if path.is_dir():  # packed photos without labels carry nulls
        coordinates_deg = coordinates_deg[~np.isnan(coordinates_deg).all(axis=1)]
    if len(coordinates_deg) == 0:
        raise SourceError(f"{path} has no row with coordinates; the baselines need a labelled training set")
    check_coordinates(
        coordinates_deg[:, 0],
        coordinates_deg[:, 1],
        [f"row {row + 2}" for row in range(len(coordinates_deg))],
        path.name,
        swap_flag="--swap_train_lat_lon",
    )
    return coordinates_deg


def read_training_ids(path: str | Path, *, split: str = "train") -> pa.ChunkedArray | None:
    """The ids of the photos whose coordinates `read_training_coordinates` reads; None where the file has no ids.

    Raises:
        SourceError: the path, the split or one of its shards is missing.
    """
    files = _find_files(Path(path), split, SourceError)
    with _broken_files_named(files[0], SourceError):
        column = find_column("id", _read_header(files[0]))
    if column is None:
        return None
    return pa.concat_tables([_read_file(file, {"id": column}, SourceError) for file in files])["id"]


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _column_names(columns: Any) -> Sequence[str]:
    return columns.column_names if hasattr(columns, "column_names") else list(columns)


def _known_texts(columns: Mapping[str, Any], key: str, otherwise: Sequence[str]) -> list[str] | None:
    """A column as texts, with another text in rows that have none; None where there is no text at all."""
    if key not in _column_names(columns):
        return None
    texts = ["" if value is None else str(value).strip() for value in columns[key]]
    return [text or other for text, other in zip(texts, otherwise, strict=True)] if any(texts) else None


def _coordinates(table: pa.Table, swap_lat_lon: bool) -> NDArray[np.float64]:
    names = ("longitude", "latitude") if swap_lat_lon else ("latitude", "longitude")
    columns = [table[name].to_numpy() for name in names]
    return np.stack(columns, axis=1).astype(np.float64) if len(table) else np.empty((0, 2))


def _read_columns(
    path: Path,
    split: str | None,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    error: type[GeoMAEError],
) -> pa.Table:
    """The named columns of a file or of a packed folder's split, under our names, coordinates as float64."""
    files = _find_files(path, split, error)
    with _broken_files_named(files[0], error):
        available = _read_header(files[0])
    chosen = {}
    for name in (*required, *optional):
        match = find_column(name, available)
        if match is not None:
            chosen[name] = match
        elif name in required:
            raise error(
                f"{path} has no column for the {name}; its columns are {show_columns(available)}.\n"
                f"  Accepted names: {', '.join(COLUMN_ALIASES[name])}."
            )
    table = pa.concat_tables([_read_file(file, chosen, error) for file in files])
    if len(table) == 0:
        raise error(f"{path} has a header but no rows")
    return table


def _find_files(path: Path, split: str | None, error: type[GeoMAEError]) -> list[Path]:
    if path.is_dir():
        if split is None:
            raise error(f"{path} is a folder; expected a file that ends in .csv or .parquet")
        return list_shards(path, split)
    if not path.is_file():
        raise error(f"there is no file or folder {path}")
    if path.suffix.lower() not in {".csv", ".parquet"}:
        raise error(f"{path} must end in .csv or .parquet, or be a packed folder")
    return [path]


def _read_header(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        return list(pa.parquet.read_schema(file).names)
    with file.open(encoding="utf-8-sig") as lines:
        return [name.strip().strip('"') for name in lines.readline().rstrip("\r\n").split(",")]


@contextmanager
def _broken_files_named(file: Path, error: type[GeoMAEError]) -> Iterator[None]:
    """What Arrow and Python raise about a file's content, as our error."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError, KeyError) as problem:
        raise error(
            f"{file} cannot be read as a table: {problem}.\n"
            "  Expected a whole parquet file, or a CSV in UTF-8 (`iconv -f latin1 -t utf-8` converts one in Latin-1)."
        ) from problem


def _read_file(file: Path, chosen: dict[str, str], error: type[GeoMAEError]) -> pa.Table:
    """The chosen columns under our names, coordinates as float64 and the others as strings."""
    with _broken_files_named(file, error):
        if file.suffix.lower() == ".parquet":
            table = read_table(file, list(chosen.values()))
        else:
            table = _read_csv(file, list(chosen.values()))
        columns = {}
        for name, original in chosen.items():
            column = table[original].combine_chunks()
            if name in ("latitude", "longitude"):
                columns[name] = pa.array(_as_degrees(column, original, file, error))
            else:
                columns[name] = column.cast(pa.string())
                columns[name].validate(full=True)  # Arrow takes any bytes of a parquet file for text, unseen
    return pa.table(columns)


def _read_csv(file: Path, columns: list[str]) -> pa.Table:
    """The columns as strings."""
    return pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(column_names=_read_header(file), skip_rows=1),
        convert_options=pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )


def _as_degrees(column: pa.Array, name: str, path: Path, error: type[GeoMAEError]) -> NDArray[np.float64]:
    """Float64 values; empty cells become NaN, which the checks of coordinates then refuse by id."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    values = np.empty(len(column))  # every other type is read as text: there are four of strings alone
    for row, text in enumerate(column.cast(pa.string()).to_pylist()):
        try:
            values[row] = float(text) if text and text.strip() else np.nan
        except ValueError as problem:
            wrong = CoordinateError if error is SourceError else error
            raise wrong(f"row {row + 2} of {path}: {name}={text!r} is not a number of degrees") from problem
    return values


def _refuse_bad_ids(ids: list[str], source: str, error: type[GeoMAEError]) -> None:
    """Ids must be there and be unique: a photo counted twice is the fault this project began with."""
    empty = [row for row, name in enumerate(ids) if name in ("", "None")]
    if empty:
        raise error(f"{len(empty)} of {len(ids)} rows of {source} have no id; the first is row {empty[0] + 2}")
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise error(
            f"{len(repeated)} ids of {source} stand in more than one row; the first is id {repeated[0]}. "
            "Every photo counts once: remove the repeated rows."
        )


def nearest_ids(name: str, ids: Sequence[str]) -> str:
    """A hint for an unknown id: the most similar known one, or any known one."""
    return next(iter(difflib.get_close_matches(name, ids[:5000], n=1)), ids[0])
