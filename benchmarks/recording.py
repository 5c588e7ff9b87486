"""Where a benchmark leaves what it measured: JSON, and a page for people beside it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from geomae.files import write_whole

__all__ = ["write_results"]


def write_results(output: Path, record: Mapping[str, Any], to_markdown: Callable[[Mapping[str, Any]], str]) -> None:
    """Write `output` and the page of the same name that ends in `.md`, and print the page."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, json.dumps(record, indent=2) + "\n")
    page = to_markdown(record)
    write_whole(output.with_suffix(".md"), page)
    print(page)
