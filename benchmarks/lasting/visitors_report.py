"""The page and the picture of `benchmarks/page_visitors.py`."""

import html
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from geomae.reporting.plots import COLOURS, style
from loading.report import markdown_table

__all__ = ["draw", "to_markdown"]

_PHASES = {"crowd": "the crowd", "rush": "the rush", "afterwards": "a visitor afterwards"}
_MOMENTS = {"before": "before", "after_the_crowd": "after the crowd", "at_the_end": "after the rush"}


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    machine, settings = record["machine"], record["settings"]
    introduction = (
        "# The page under a crowd\n\n"
        f"Written by `{record['command']}` at commit `{(record['commit'] or 'unknown')[:12]}`; {machine['cpu']}, "
        f"{machine['num_cores']} cores, which page, visitors and others share (load average "
        f"{machine['load_average_before']:.1f} before, {machine['load_average_after']:.1f} after). "
        f"{settings['visitors']} visitors at once for {settings['seconds']:.0f} s, who look at an answer for "
        f"{settings['pause_s']:.0f} s in the mean; then {settings['rush']} at one moment. Photos of "
        f"{'x'.join(map(str, settings['photo_size']))}, {max(record['photo_bytes']) / 1024:.0f} KiB."
    )
    header = ["", "visits", "photos", "answered", "refused with a sentence", "told that it is too full", "failed"]
    header += ["p50, s", "p95, s", "p99, s", "photos/s"]
    rows = []
    for key, title in _PHASES.items():
        phase = record[key]
        latency = phase.get("latency_s", {})
        rows.append(
            [title, str(phase["num_visits"]), str(phase["num_photos"]), *map(str, phase["outcomes"].values())]
            + [f"{latency[name]:.2f}" if name in latency else "" for name in ("p50", "p95", "p99")]
            + [f"{phase['photos_per_s']:.1f}" if "photos_per_s" in phase else ""]
        )
    memory = [
        [
            title,
            f"{record['holding'][key]['own_bytes'] / 2**20:,.0f}",
            f"{record['holding'][key]['rss_bytes'] / 2**20:,.0f}",
        ]
        + [str(record["holding"][key][name]) for name in ("num_files", "num_threads")]
        for key, title in _MOMENTS.items()
    ]
    parts = [
        introduction,
        markdown_table(header, rows),
        _describe_sentences(record),
        "## What the page's process holds",
    ]
    parts.append(markdown_table(["", "memory without files, MiB", "RSS, MiB", "open files", "threads"], memory))
    return "\n\n".join(parts) + "\n"


def _describe_sentences(record: Mapping[str, Any]) -> str:
    lines = []
    for key, title in _PHASES.items():
        for outcome, said in record[key]["said"].items():
            if said is not None:
                words = html.unescape(re.sub(r"<[^>]+>", " ", said))
                lines.append(f"- {title}, {outcome}: {' '.join(words.split())[:300]}")
    return "\n".join(lines)


def draw(record: Mapping[str, Any]) -> Figure:
    """Waiting times of the crowd above, the page's memory below."""
    with style():
        figure = Figure(figsize=(8.2, 6.0), layout="constrained")
        above, below = figure.subplots(2, 1)
        for number, outcome in enumerate(("answered", "refused")):
            asked = [each for each in record["asked"] if each["outcome"] == outcome]
            look = {"markersize": 3, "color": COLOURS[number], "label": f"{outcome} ({len(asked)})"}
            above.plot([each["began_s"] for each in asked], [each["seconds"] for each in asked], "o", **look)
        visitors = record["settings"]["visitors"]
        above.set(title=f"{visitors} visitors at once", xlabel="sent after, s", ylabel="answered within, s")
        above.set_ylim(0, None)
        above.legend()
        samples = record["samples"]
        seconds = [each["seconds"] for each in samples]
        below.plot(seconds, [each["own_bytes"] / 2**20 for each in samples], color=COLOURS[0])
        below.set(title="Memory of the page's process", xlabel="seconds: crowd, silence, rush, silence", ylabel="MiB")
        below.set_ylim(0, None)
    return figure
