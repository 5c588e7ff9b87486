"""Numbers with one home: Markdown between markers is filled from `results/**/metrics.json`, and can be checked.

A Markdown file says where:

    <!-- results:NAME -->
    ... replaced ...
    <!-- /results:NAME -->

and `results/tables.yaml` says what, one entry for each NAME, files relative to its own folder:

    headline:                                  # a table
      columns: [mean_km, median_km, accuracy_within_km.200]
      rows:
        - {label: GeoMAE, file: earth/geomae/metrics.json}
        - {label: best constant, file: earth/geomae/metrics.json, under: baselines.geometric_median}
        - {label: "PlaNet, published", published: {accuracy_within_km: {"200": 0.343}}}
      titles: {mean_km: "mean error, km"}      # of columns that should have another than theirs
    gain: {value: mean_km, file: earth/geomae/metrics.json}           # one number, in the running text
    picture: {figure: earth/reconstruction.png, caption: Photos ...}  # a picture
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geomae.documents import parse_json, parse_yaml, read_text
from geomae.errors import ConfigError, SourceError
from geomae.evaluation.bootstrap import RESAMPLED
from geomae.files import write_whole

__all__ = ["fill_file", "fill_text"]

MARKED = re.compile(r"<!-- results:(?P<name>[\w-]+) -->(?P<old>.*?)<!-- /results:(?P=name) -->", re.DOTALL)
OPENING = re.compile(r"<!-- results:([\w-]+) -->")
TITLES = {
    "num_photos": "photos",
    "mean_km": "mean, km",
    "median_km": "median, km",
    "geoscore": "GeoScore",
}
NOTHING = "–"


def fill_file(path: str | Path, tables_file: str | Path, *, writes: bool = True) -> bool:
    """Fill a Markdown file's markers; returns whether its text was out of date.

    Args:
        path: the Markdown file.
        tables_file: the YAML file that defines every NAME.
        writes: replace the file where it is out of date; else only look.

    Raises:
        ConfigError: a marker is not closed or not defined, or a definition cannot be read.
        SourceError: a file of results is missing, or lacks a number.
    """
    path, tables_file = Path(path), Path(tables_file)
    try:
        old = path.read_text(encoding="utf-8")
        definitions = parse_yaml(read_text(tables_file)) or {}
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot fill {path} from {tables_file}: {problem}") from problem
    if not isinstance(definitions, dict):
        raise ConfigError(f"{tables_file} holds a {type(definitions).__name__}; expected tables by name")
    new = fill_text(old, definitions, results=tables_file.parent, page=path)
    if new != old and writes:
        write_whole(path, new)
    return new != old


def fill_text(text: str, definitions: Mapping[str, Any], *, results: Path, page: Path) -> str:
    """The text with everything between its markers replaced.

    Args:
        text: Markdown.
        definitions: NAME -> what it shows, as the head of this file describes.
        results: folder that the definitions' files are relative to.
        page: the Markdown file, for messages and for links to pictures.
    """
    # Counted, because a marker that is not closed would else take the text up to the next one of its name with it.
    unclosed = Counter(OPENING.findall(text)) - Counter(match["name"] for match in MARKED.finditer(text))
    if unclosed:
        name = min(unclosed)
        raise ConfigError(f"{page}: <!-- results:{name} --> is not followed by <!-- /results:{name} -->")

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in definitions:
            nearest = difflib.get_close_matches(name, definitions, n=1, cutoff=0.0)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"{page} shows results:{name}, which no table defines{hint}")
        shown = _render(name, definitions[name], results, page)
        is_inline = "\n" not in match["old"] and isinstance(definitions[name], Mapping) and "value" in definitions[name]
        gap = "" if is_inline else "\n"
        return f"<!-- results:{name} -->{gap}{shown}{gap}<!-- /results:{name} -->"

    return MARKED.sub(replace, text)


def _render(name: str, definition: Any, results: Path, page: Path) -> str:
    if isinstance(definition, Mapping):
        if {"columns", "rows"} <= definition.keys():
            return _render_table(definition, results)
        if {"value", "file"} <= definition.keys():
            return _format(_read(results, definition), str(definition["value"]), results / definition["file"])
        if "figure" in definition:
            picture = results / definition["figure"]
            if not picture.is_file():
                raise SourceError(f"results:{name} shows {picture}, which does not exist")
            link = Path(os.path.relpath(picture, page.parent)).as_posix().replace(" ", "%20")
            return f"![{definition.get('caption', name)}]({link})"
    raise ConfigError(f"results:{name} must define columns and rows, or value and file, or figure")


def _render_table(definition: Mapping[str, Any], results: Path) -> str:
    columns = [str(column) for column in definition["columns"]]
    titles = definition.get("titles", {})
    lines = [
        "| | " + " | ".join(titles.get(column) or _title(column) for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for row in definition["rows"]:
        if "file" in row:
            metrics, source = _read(results, row), str(results / row["file"])
            cells = [_format(metrics, column, source) for column in columns]
        elif "published" in row:
            cells = [_format_published(row["published"], column) for column in columns]
        else:
            raise ConfigError(f"the row {row.get('label')!r} needs a file of results, or published numbers")
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(column: str) -> str:
    key, _, rest = column.partition(".")
    return f"≤ {rest} km, %" if key == "accuracy_within_km" else TITLES.get(column, column)


def _read(results: Path, row: Mapping[str, Any]) -> Any:
    """The metrics that a row is about: a JSON file, or what stands `under` a dotted key of it."""
    path = results / row["file"]
    try:
        metrics = parse_json(read_text(path))
    except (OSError, ValueError) as problem:
        raise SourceError(f"cannot read the results in {path}: {problem}") from problem
    return _look_up(metrics, row["under"], path) if "under" in row else metrics


def _look_up(metrics: Any, dotted: str, source: Any) -> Any:
    value = metrics
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise SourceError(f"{source} has no {dotted}")
        value = value[part]
    return value


def _format(metrics: Any, column: str, source: Any) -> str:
    """A number with its interval, or with the spread over runs."""
    text = _format_number(_look_up(metrics, column, source), column)
    for key, pattern in {"intervals_95": "{} [{}, {}]", "spread": "{} ± {}"}.items():
        if isinstance(metrics, Mapping) and key in metrics:
            if metrics[key] is None and column.partition(".")[0] in RESAMPLED:
                return f"{text} (no interval)"
            try:
                beside = _look_up(metrics[key], column, source)
            except SourceError:
                continue  # counts have no interval
            numbers = beside if isinstance(beside, list) else [beside]
            return pattern.format(text, *(_format_number(number, column) for number in numbers))
    return text


def _format_published(published: Mapping[str, Any], column: str) -> str:
    try:
        return _format_number(_look_up(published, column, "published"), column)
    except SourceError:
        return NOTHING


def _format_number(value: Any, column: str) -> str:
    if isinstance(value, (str, bool)) or value is None:
        return str(value)
    if column.startswith("accuracy_within_km"):
        return f"{100.0 * value:.1f}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"
