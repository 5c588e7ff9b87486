"""The table that ends an evaluation: the model's row above the answers that never saw a photo."""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "align_columns",
    "best_constant",
    "compare_means",
    "describe_posterior",
    "describe_shared_photos",
    "format_summary",
    "format_table",
    "with_other_answers",
]


def best_constant(metrics: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and numbers of the constant answer with the least mean error; None where no constant was fitted."""
    constants = {name: each for name, each in metrics.get("baselines", {}).items() if "answer_deg" in each}
    if not constants:
        return None
    name = min(constants, key=lambda key: constants[key]["mean_km"])
    return name, constants[name]


def compare_means(mean_km: float, constant_km: float) -> str:
    """By how much a mean error is below or above a constant's: `12% below`; in km where that one is never wrong."""
    difference = mean_km - constant_km
    size = f"{abs(difference) / constant_km:.0%}" if constant_km > 0 else f"{abs(difference):,.0f} km"
    return f"{size} {'below' if difference < 0 else 'above'}"


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
        format_table({**with_other_answers({label: metrics}), **metrics["baselines"]}),
        "",
    ]
    for name, row in with_other_answers({label: metrics}).items():
        if "posterior" in row:
            lines += [f"{name}: {describe_posterior(row['posterior'])}", ""]
    if groups := _label_groups(metrics.get("by", {})):
        lines += [format_table(groups), ""]
    constant = best_constant(metrics)
    if constant is not None:
        name, numbers = constant
        lines.append(
            f"The mean error is {compare_means(metrics['mean_km'], numbers['mean_km'])} that of the best constant "
            f"({name}, {numbers['mean_km']:,.0f} km)."
        )
    if metrics.get("num_missing"):
        shown = ", ".join(metrics["missing"][:3]) + (", ..." if metrics["num_missing"] > 3 else "")
        absent = f" ({num_absent:,} are not among the photos)" if (num_absent := metrics.get("num_absent")) else ""
        lines.append(
            f"ATTENTION: {metrics['num_missing']:,} of {metrics['num_photos']:,} photos have no answer{absent} and "
            f"count as misses of 20,015 km: {shown}. "
            f"The answered ones alone: mean {metrics['answered']['mean_km']:,.0f} km."
        )
    return "\n".join([*lines, *describe_shared_photos(test_set)])


def with_other_answers(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of metrics; behind each its other decodings, named after it, and the same from ten crops, where it has them.

    Where there are other decodings, the headline's row says by which it was decoded.
    """
    expanded = {}
    for name, metrics in rows.items():
        decodings = metrics.get("decodings", {})
        expanded[f"{name}, {metrics['decoding']}" if decodings else name] = metrics
        expanded |= {f"{name}, {decoding}": each for decoding, each in decodings.items()}
        if "ten_crop" in metrics:
            expanded |= with_other_answers({f"{name}, ten crops": metrics["ten_crop"]})
    return expanded


def describe_posterior(posterior: dict[str, Any]) -> str:
    """What a posterior is worth, in one sentence with intervals.

    Args:
        posterior: the entry of `metrics.json`.
    """
    intervals = posterior["intervals_95"]

    def interval(key: str, share: str | None = None) -> str:
        if intervals is None:
            return ""
        ends = intervals[key] if share is None else intervals[key][share]
        return " [{}, {}]".format(*(f"{end:.2f}" if share is None else f"{end:.1%}" for end in ends))

    radii = [
        f"the {float(q):.0%} radius holds {share:.1%}{interval('coverage', q)} of the truths"
        for q, share in posterior["coverage"].items()
    ]
    return (
        f"NLL {posterior['nll']:.2f}{interval('nll')} nats per steradian; {'; '.join(radii)}; expected error "
        f"{posterior['mean_expected_km']:,.0f} km where it is {posterior['mean_error_km']:,.0f} km "
        f"(temperature {posterior['temperature']:.3g})."
    )


def describe_shared_photos(test_set: dict[str, Any]) -> list[str]:
    """Sentences about photos that are in other known test sets too, or among the training photos: loud, as these are.

    Args:
        test_set: the entry of `metrics.json`; older ones, which say nothing of it, give nothing.
    """
    sentences = []
    if num_in_training := test_set.get("num_in_training"):
        sentences.append(
            f"ATTENTION: {num_in_training:,} of {test_set['num_photos']:,} photos are among the training photos (by "
            f"their Flickr numbers), such as {', '.join(test_set['in_training'][:3])}: their places may be remembered."
        )
    for other, ids in test_set.get("shared_with", {}).items():
        if ids:
            sentences.append(f"{len(ids):,} of its photos are also in {other}, such as {', '.join(ids[:3])}.")
    return sentences


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
