"""Answers as a table for a terminal, as CSV, GeoJSON, KML or parquet: one answer at a time, however many there are."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from geomae.predict.answer_schema import answer_schema, rows_of
from geomae.predict.geojson import rounded, to_geojson
from geomae.predict.kml import to_kml
from geomae.predict.printing import printable, shorten_left, text_width

__all__ = ["FORMATS", "format_of", "to_csv", "to_table", "write_answers"]

FORMATS = ("table", "csv", "geojson", "kml", "parquet")
"""What `--format` may be."""

_SUFFIXES = {".csv": "csv", ".geojson": "geojson", ".json": "geojson", ".kml": "kml", ".parquet": "parquet"}
_PAGE = 1000  # answers that decide how wide the columns of a table are
_NARROWEST_NAME = 12  # columns of a terminal that a photo's name is never shortened below

Answers = Iterable[Mapping[str, Any]]


def format_of(path: str | None) -> str:
    """The format that a file's suffix asks for; a table where it asks for none."""
    suffix = "" if path is None or "." not in path else path[path.rindex(".") :].lower()
    return _SUFFIXES.get(suffix, "table")


def write_answers(
    batches: Iterable[pa.RecordBatch], kind: str, file: BinaryIO, *, compares: bool, width: int | None = None
) -> None:
    """Write answers in one of `FORMATS`, in UTF-8.

    Args:
        batches: of `answer_schema` without `problem`.
        kind: the format.
        file: open for bytes.
        compares: whether the answers have true places beside them.
        width: columns of the terminal that a table must fit into; None: as wide as it is.
    """
    if kind == "parquet":
        schema = answer_schema(compares=compares)
        with pq.ParquetWriter(file, schema.remove(len(schema) - 1), compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        return
    writers: dict[str, Callable[[Answers], Iterator[str]]] = {
        "table": partial(to_table, compares=compares, width=width),
        "csv": partial(to_csv, compares=compares),
        "geojson": to_geojson,
        "kml": to_kml,
    }
    for piece in writers[kind](rows_of(batches)):
        file.write(piece.encode())


def to_csv(answers: Answers, *, compares: bool) -> Iterator[str]:
    """Answers -> lines of a CSV with a header; the top places are JSON in one field.

    Source: RFC 4180 (2005), with its line ends, in UTF-8.
    """
    truth = ["true_latitude", "true_longitude", "error_km"] if compares else []
    near = ["nearest_place", "nearest_country", "nearest_distance_km"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "latitude", "longitude", "radius_50_km", "radius_90_km", *near, *truth, "top_places"])
    for answer in map(rounded, answers):
        numbers = [answer[name] for name in ("latitude", "longitude", "radius_50_km", "radius_90_km")]
        top_places = json.dumps(answer["top_places"], ensure_ascii=False)
        nearest = answer["nearest_place"].values()
        writer.writerow([answer["id"], *numbers, *nearest, *(answer[name] for name in truth), top_places])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()  # the header, where there is no answer


def to_table(answers: Answers, *, compares: bool, width: int | None = None) -> Iterator[str]:
    """Answers -> aligned lines for a terminal, photo first; a name that is too wide loses its beginning.

    Args:
        answers: any number; the first thousand decide the widths.
        compares: with the error where the true place is known.
        width: columns that a line may have; None: any number.
    """
    header = ["photo", "latitude", "longitude", "50 % km", "90 % km", *(["error km"] if compares else []), "top"]
    rows = (_cells(answer, compares) for answer in answers)
    page = list(itertools.islice(rows, _PAGE))
    shown = [[*header, "nearest place"], *page]
    widths = [max(text_width(cells[column]) for cells in shown) for column in range(len(header) + 1)]
    if width is not None:
        others = sum(widths[1:]) + 2 * len(header)
        widths[0] = max(_NARROWEST_NAME, min(widths[0], width - others))
        widths[-1] = max(0, min(widths[-1], width - sum(widths[:-1]) - 2 * len(header)))
    for cells in itertools.chain(shown, rows):
        yield _line(cells, widths, is_cut=width is not None) + "\n"


def _cells(answer: Mapping[str, Any], compares: bool) -> list[str]:
    near = answer["nearest_place"]
    top = answer["top_places"]
    return [
        printable(answer["id"]),
        f"{answer['latitude']:.4f}",
        f"{answer['longitude']:.4f}",
        _kilometres(answer["radius_50_km"]),
        _kilometres(answer["radius_90_km"]),
        *([_kilometres(answer["error_km"])] if compares else []),
        f"{top[0]['probability']:.1%}" if top else "-",
        f"{near['name']}, {near['country']} ({_kilometres(near['distance_km'])} km)",
    ]


def _kilometres(distance_km: float | None) -> str:
    if distance_km is None:
        return "-"
    return f"{distance_km:.1f}" if distance_km < 10 else f"{distance_km:,.0f}"


def _line(cells: list[str], widths: list[int], *, is_cut: bool) -> str:
    name = shorten_left(cells[0], widths[0])
    padded = [name + " " * (widths[0] - text_width(name))]
    padded += [" " * (width - text_width(cell)) + cell for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    last = cells[-1]
    while is_cut and text_width(last) > widths[-1]:
        last = last[:-1]
    return "  ".join([*padded, last]).rstrip()
