"""Lines through what was measured at several numbers of rows, the page and the picture of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from geomae.reporting.plots import COLOURS, style
from loading.report import markdown_table

__all__ = ["MOST_BEND", "draw", "summarise", "to_markdown"]

MOST_BEND = 1.3  # an added row may cost so many times what one cost between the numbers of rows before
MEASURES = {
    "core_seconds": "core-seconds",
    "peak_own_bytes": "memory of all processes at the most, without pages of files",
}


def summarise(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What one more row costs, between every two neighbouring numbers of rows, and whether that stays the same.

    Args:
        rows: number of rows as text -> what was measured.

    Returns:
        For each of `MEASURES` `per_row`: a number for each two neighbours; `bend`: the last of them over the one
        before, None with fewer than two, or where one is not positive; `is_straight`: it is at most `MOST_BEND`.
    """
    numbers = np.array([int(number) for number in rows], dtype=np.float64)
    summary: dict[str, Any] = {}
    for measure in MEASURES:
        values = np.array([entry[measure] for entry in rows.values()], dtype=np.float64)
        per_row = np.diff(values) / np.diff(numbers)
        bend = float(per_row[-1] / per_row[-2]) if len(per_row) > 1 and min(per_row[-2:]) > 0 else None
        is_straight = None if len(per_row) < 2 else bend is None or bend <= MOST_BEND
        summary[measure] = {"per_row": per_row.tolist(), "bend": bend, "is_straight": is_straight}
    return summary


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    machine = record["machine"]
    parts = [
        "# Time and memory against rows\n\n"
        f"Written by `{record['command']}` at commit `{(record['commit'] or 'unknown')[:12]}`; {machine['cpu']}, "
        f"{machine['num_cores']} cores, load average {machine['load_average_before']:.1f} before and "
        f"{machine['load_average_after']:.1f} after: seconds by the clock are noisy, core-seconds less. JPEGs of "
        f"{record['settings']['jpeg_side']} pixels. Each stage is a process of its own with one thread, start included."
    ]
    for stage, entry in record["stages"].items():
        parts += [f"## {stage}", _table(entry["rows"]), _describe(entry)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["rows", "seconds", "core-seconds", "memory, MiB", "RSS of the largest process, MiB", "open files"]
    cells = [
        [f"{int(number):,}", f"{entry['seconds']:.1f}", f"{entry['core_seconds']:.1f}"]
        + [f"{entry[name] / 2**20:,.0f}" for name in ("peak_own_bytes", "largest_process_bytes")]
        + [str(entry["peak_num_files"])]
        for number, entry in rows.items()
    ]
    return markdown_table(header, cells)


def _describe(entry: Mapping[str, Any]) -> str:
    lines = []
    for measure, unit in {"core_seconds": ("us", 1e6), "peak_own_bytes": ("bytes", 1)}.items():
        of_row = [f"{unit[1] * value:,.1f}" for value in entry[measure]["per_row"]]
        if of_row:
            lines.append(f"One more row costs {', '.join(of_row)} {unit[0]} ({MEASURES[measure].partition(',')[0]}).")
    said = "said_seconds_to_first_batch"
    seconds = [each[said] for each in entry["rows"].values() if said in each]
    if seconds:
        lines.append(f"Seconds to the first batch: {', '.join(f'{value:.2f}' for value in seconds)}.")
    return " ".join(lines)


def draw(record: Mapping[str, Any]) -> Figure:
    """Core-seconds on the left, memory on the right; a line for each stage."""
    with style():
        figure = Figure(figsize=(11.0, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (stage, entry) in enumerate(record["stages"].items()):
            rows = np.array([int(each) for each in entry["rows"]]) / 1e6
            look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 4, "label": stage}
            left.plot(rows, [each["core_seconds"] for each in entry["rows"].values()], **look)
            right.plot(rows, [each["peak_own_bytes"] / 2**20 for each in entry["rows"].values()], **look)
        left.set(title="Time", xlabel="rows, millions", ylabel="core-seconds", xlim=(0, None), ylim=(0, None))
        right.set(title="Memory", xlabel="rows, millions", ylabel="all processes at the most, MiB", xlim=(0, None))
        right.set_ylim(0, None)
        left.legend()
    return figure
