"""The page and the picture of `benchmarks/soak.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from geomae.reporting.plots import COLOURS, style
from loading.report import markdown_table

__all__ = ["draw", "summarise", "to_markdown"]

_TITLES = {
    "own_bytes": "memory without pages of files, bytes",
    "rss_bytes": "memory (RSS, added up), bytes",
    "num_files": "open files",
    "num_threads": "threads",
    "num_processes": "processes",
    "shared_bytes": "shared memory, bytes",
    "num_shared": "pieces of shared memory",
}
_RECIPE_STEPS = 115_000  # 100 epochs of MP-16's 4.72 million photos in batches of 4,096


def summarise(growth: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers that a reader asks for first: memory without pages of files, open files, shared memory.

    Args:
        growth: what was watched -> what `fit_growth` says of it.
    """
    memory, files, shared = growth["own_bytes"], growth["num_files"], growth["shared_bytes"]
    return {
        "memory_mib_least": memory["least"] / 2**20,
        "memory_mib_most": memory["most"] / 2**20,
        "memory_kib_per_1000_steps": memory["per_1000_steps"] / 2**10,
        "files_least": int(files["least"]),
        "files_most": int(files["most"]),
        "files_per_1000_steps": files["per_1000_steps"],
        "shared_kib_most": shared["most"] / 2**10,
        "intervals_95": {
            "memory_kib_per_1000_steps": [end / 2**10 for end in memory["interval_95"]],
            "files_per_1000_steps": files["interval_95"],
        },
    }


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    settings, machine = record["settings"], record["machine"]
    parts = [
        "# What a long run keeps\n\n"
        f"Written by `{record['command']}` at commit `{(record['commit'] or 'unknown')[:12]}`; {machine['cpu']}, "
        f"{machine['num_cores']} cores, load average {machine['load_average_before']:.1f} before and "
        f"{machine['load_average_after']:.1f} after. All processes of a run together, once a second. Evaluation, "
        f"pictures and a checkpoint every {settings['every_steps']} steps; {settings['num_workers']} reader(s)."
    ]
    for title, run in record["runs"].items():
        parts += [f"## {title}: {run['num_steps']:,} steps in {run['seconds'] / 60:.1f} minutes", _growth_table(run)]
    parts.append(
        "The first half of the steps is left out: until then pools of memory find their size. A line goes through the "
        "medians of ten stretches of the rest; the "
        "interval is Student's, of 95 %. The last column is the interval's upper end times "
        f"{_RECIPE_STEPS:,} steps: 100 epochs of MP-16 in batches of 4,096."
    )
    return "\n\n".join(parts) + "\n"


def _growth_table(run: Mapping[str, Any]) -> str:
    header = ["", "least", "most", "growth in 1,000 steps", "95 % interval", f"at most in {_RECIPE_STEPS:,} steps"]
    rows = []
    for name, title in _TITLES.items():
        growth = run["growth"][name]
        low, high = growth["interval_95"]
        digits = 0 if name.endswith("bytes") else 3
        row = [title, f"{growth['least']:,.0f}", f"{growth['most']:,.0f}"]
        row += [f"{growth['per_1000_steps']:,.{digits}f}", f"{low:,.{digits}f} to {high:,.{digits}f}"]
        rows.append([*row, f"{max(0.0, high) * _RECIPE_STEPS / 1000:,.0f}"])
    return markdown_table(header, rows)


def draw(record: Mapping[str, Any]) -> Figure:
    """Memory above, files and threads below; a column for each run."""
    runs = record["runs"]
    with style():
        figure = Figure(figsize=(5.2 * len(runs) + 0.6, 6.4), layout="constrained")
        axes = figure.subplots(2, len(runs), squeeze=False, sharex="col")
        for column, (title, run) in enumerate(runs.items()):
            steps = np.array([sample["step"] for sample in run["samples"]])
            above, below = axes[:, column]
            pss = np.array([sample["own_bytes"] for sample in run["samples"]]) / 2**20
            above.plot(steps, pss, color=COLOURS[0], linewidth=0.8, label="samples")
            growth = run["growth"]["own_bytes"]
            medians = np.array(growth["stretch_medians"]) / 2**20
            above.plot(
                growth["stretch_steps"], medians, "o", color=COLOURS[1], markersize=5, label="median of a stretch"
            )
            above.set(title=f"{title}: {growth['per_1000_steps'] / 1024:+,.1f} KiB in 1,000 steps", ylim=(0, None))
            for number, (name, label) in enumerate({"num_files": "open files", "num_threads": "threads"}.items()):
                values = [sample[name] for sample in run["samples"]]
                below.plot(steps, values, color=COLOURS[number], linewidth=0.9, label=label)
            below.set(xlabel="optimiser step", ylim=(0, None))
            below.xaxis.set_major_formatter("{x:,.0f}")
            below.locator_params(axis="x", nbins=5)
            above.legend(loc="lower right")
            below.legend(loc="lower right")
        axes[0, 0].set_ylabel("memory of all processes, MiB")
        axes[1, 0].set_ylabel("number, all processes")
    return figure
