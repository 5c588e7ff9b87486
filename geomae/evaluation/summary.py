"""The table that ends an evaluation: the model's row above the answers that never saw a photo."""

from collections.abc import Sequence
from typing import Any

__all__ = ["align_columns", "best_constant", "format_summary", "format_table"]


def best_constant(metrics: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and numbers of the constant answer with the least mean error; None where no constant was fitted."""
    constants = {name: each for name, each in metrics.get("baselines", {}).items() if "answer_deg" in each}
    if not constants:
        return None
    name = min(constants, key=lambda key: constants[key]["mean_km"])
    return name, constants[name]


def format_summary(metrics: dict[str, Any], label: str) -> str:
    """A readable account of one `metrics.json`: the tables, the gain over the best constant, and what is missing.

    Args:
        metrics: as `judge_predictions` gives them, with `baselines` and `test_set`; below the first table the scenes
            and continents of `by`, where it has them.
        label: what the first row is called.
    """
    test_set, bootstrap = metrics["test_set"], metrics["bootstrap"]
    title = f"{test_set['name']}" + (f", split {test_set['split']}" if test_set["split"] else "")
    intervals = bootstrap.get("reason") or (
        f"95 % intervals from {bootstrap['num_resamples']:,} resamples of "
        f"{bootstrap['num_clusters']:,} {bootstrap['clustered_by']}s"
    )
    lines = [
        f"{title}: {metrics['num_photos']:,} photos; {intervals}",
        "",
        format_table({label: metrics, **metrics["baselines"]}),
        "",
    ]
    if groups := _label_groups(metrics.get("by", {})):
        lines += [format_table(groups), ""]
    constant = best_constant(metrics)
    if constant is not None:
        name, numbers = constant
        share = metrics["mean_km"] / numbers["mean_km"] - 1.0
        lines.append(
            f"The mean error is {abs(share):.0%} {'below' if share < 0 else 'above'} that of the best constant "
            f"({name}, {numbers['mean_km']:,.0f} km)."
        )
    if metrics.get("num_missing"):
        shown = ", ".join(metrics["missing"][:3]) + (", ..." if metrics["num_missing"] > 3 else "")
        lines.append(
            f"ATTENTION: {metrics['num_missing']:,} of {metrics['num_photos']:,} photos have no answer and count as "
            f"misses of 20,015 km: {shown}. The answered ones alone: mean {metrics['answered']['mean_km']:,.0f} km."
        )
    return "\n".join(lines)


def _label_groups(by: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scenes and the continents, which are few enough to be read, under their names and numbers of photos."""
    return {
        f"{kind} {group} ({numbers['num_photos']:,})": numbers
        for kind in ("scene", "continent")
        for group, numbers in by.get(kind, {}).items()
    }


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows of metrics as aligned text: mean with its interval or spread, median, accuracies and GeoScore."""
    thresholds = list(next(iter(rows.values()))["accuracy_within_km"])
    header = ["", "mean km", "", "median km", *(f"{radius} km" for radius in thresholds), "GeoScore"]
    cells = [header]
    for label, metrics in rows.items():
        shares = [f"{metrics['accuracy_within_km'][radius]:.1%}" for radius in thresholds]
        numbers = [f"{metrics['mean_km']:,.0f}", _uncertainty(metrics), f"{metrics['median_km']:,.0f}"]
        cells.append([label, *numbers, *shares, f"{metrics['geoscore']:,.0f}"])
    return "\n".join(align_columns(cells))


def _uncertainty(metrics: dict[str, Any]) -> str:
    if "intervals_95" in metrics:
        if metrics["intervals_95"] is None:
            return "no interval"
        low, high = metrics["intervals_95"]["mean_km"]
        return f"[{low:,.0f}, {high:,.0f}]"
    return f"± {metrics['spread']['mean_km']:,.0f}" if "spread" in metrics else ""


def align_columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines: the first column aligned left, the others right, a rule below the first row."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
