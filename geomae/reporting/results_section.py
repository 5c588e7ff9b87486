"""What a test set's evaluations say: one table, the errors' distribution, maps, and the photos at either end."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from geomae.errors import ConfigError
from geomae.evaluation import best_constant
from geomae.evaluation.metrics import LARGEST_ERROR_KM
from geomae.evaluation.summary import compare_means, describe_shared_photos, with_other_answers
from geomae.reporting.maps import prediction_map
from geomae.reporting.page import Block, Cell, Heading, Paragraph, Picture, Table, save_picture
from geomae.reporting.plots import calibration_curve, error_cdf
from geomae.reporting.records import EvaluationRecord, unique_names

__all__ = [
    "common_radii",
    "describe_evaluations",
    "describe_posteriors",
    "draw_calibration",
    "draw_error_cdf",
    "draw_prediction_map",
    "evaluation_table",
    "group_by_test_set",
    "introduce_test_set",
    "number_cell",
]

BASELINE_NAMES = {
    "geometric_median": "constant: geometric median",
    "random_training_photo": "random training photo",
    "random_guess": "random guess by clusters",
    "random_guess_by_size": "random guess by clusters and their sizes",
    "uniform_on_sphere": "uniform on the sphere",
}
BASELINES_IN_CDF = ("geometric_median", "random_training_photo", "random_guess")
CALIBRATED = {"temperature": "temperature", "spread_scale": "spread scale"}  # of a posterior, fitted by `calibrate`
NUM_EXAMPLES = 4  # photos shown at either end of the errors


def baseline_name(key: str) -> str:
    """A baseline of `metrics.json` in words: `densest_200km` is "constant: densest 200 km"."""
    radius = re.fullmatch(r"densest_(.+)km", key)
    return f"constant: densest {radius[1]} km" if radius else BASELINE_NAMES.get(key, key)


def describe_evaluations(evaluated: Sequence[EvaluationRecord], folder: Path) -> list[Block]:
    """One section for each test set, so that only rows about the same photos stand in one table.

    Args:
        evaluated: evaluations of one or more test sets.
        folder: where the figures are written.
    """
    names = unique_names([record.folder for record in evaluated])
    blocks: list[Block] = []
    for number, group in enumerate(group_by_test_set(list(zip(names, evaluated, strict=True))), start=1):
        blocks += introduce_test_set(group)
        for name, record in group.items():
            blocks += _judge(name, record.metrics)
        blocks += [
            draw_error_cdf(group, folder, number),
            *describe_posteriors(group, folder, number),
            *_draw_answers(group, folder, number),
        ]
    return blocks


def group_by_test_set(evaluated: Sequence[tuple[str, EvaluationRecord]]) -> list[dict[str, EvaluationRecord]]:
    """The evaluations of each test set under their names, in the order in which the sets first appear.

    Raises:
        ConfigError: two evaluations on one test set have the same name: one would hide the other.
    """
    groups: dict[str, dict[str, EvaluationRecord]] = {}
    for name, record in evaluated:
        group = groups.setdefault(record.metrics["test_set"]["ids_sha256"], {})
        if name in group:
            raise ConfigError(
                f"two evaluations on {record.metrics['test_set']['name']} would be called {name}: "
                f"{group[name].folder} and {record.folder}. Give the runs other names, NAME=PATH"
            )
        group[name] = record
    return list(groups.values())


def common_radii(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The radii that all rows of metrics have, as the first has them."""
    first, *others = (list(row["accuracy_within_km"]) for row in rows)
    return [radius for radius in first if all(radius in other for other in others)]


def introduce_test_set(group: dict[str, EvaluationRecord]) -> list[Block]:
    """What was judged on, how sure the numbers are, and the tables of all that was judged there."""
    first = next(iter(group.values())).metrics
    bootstrap = first["bootstrap"]
    brackets = (
        f"There are no intervals: {bootstrap['reason']};"
        if "reason" in bootstrap
        else f"In brackets 95 % intervals from {bootstrap['num_resamples']:,} bootstrap resamples of "
        f"{bootstrap['num_clusters']:,} {bootstrap['clustered_by']}s;"
    )
    shared = dict.fromkeys(s for record in group.values() for s in describe_shared_photos(record.metrics["test_set"]))
    return [
        Heading(f"Results on {_name_test_set(group)}"),
        Paragraph(
            f"{first['test_set']['num_photos']:,} photos, every one counted once. {brackets} "
            "after ± the standard deviation over runs of a random answer."
        ),
        evaluation_table({name: record.metrics for name, record in group.items()}),
        *_tables_by_group({name: record.metrics for name, record in group.items()}),
        *(Paragraph(s.removeprefix("ATTENTION: "), is_warning=s.startswith("ATTENTION: ")) for s in shared),
    ]


def _name_test_set(group: dict[str, EvaluationRecord]) -> str:
    test_set = next(iter(group.values())).metrics["test_set"]
    return str(test_set["name"]) + (f", split {test_set['split']}" if test_set["split"] else "")


def evaluation_table(models: dict[str, dict[str, Any]]) -> Table:
    """Models, each with its other decodings and its rows from ten crops, above the baselines of the test set.

    The best of a column is marked.

    Shares are shown of the radii that all rows have.

    Args:
        models: name -> content of its `metrics.json`.
    """
    baselines = max((metrics.get("baselines", {}) for metrics in models.values()), key=len)
    rows = {
        **with_other_answers(models),
        **{baseline_name(name): metrics for name, metrics in baselines.items()},
    }
    header, keys = _columns(common_radii(rows.values()))
    errors = ("mean_km", "median_km")  # of these the least is the best, of the others the greatest
    best = [(min if key[0] in errors else max)(_look_up(row, key) for row in rows.values()) for key in keys]
    cells: list[list[str | Cell]] = [
        [
            name,
            *(
                number_cell(metrics, key, is_best=_look_up(metrics, key) == top)
                for key, top in zip(keys, best, strict=True)
            ),
        ]
        for name, metrics in rows.items()
    ]
    return Table(["", *header], cells)


def _columns(radii: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """What stands above the numbers of a row, and where each is in its metrics."""
    header = ["mean, km", "median, km", *(f"≤ {radius} km, %" for radius in radii), "GeoScore"]
    return header, [("mean_km",), ("median_km",), *(("accuracy_within_km", radius) for radius in radii), ("geoscore",)]


def _tables_by_group(models: dict[str, dict[str, Any]]) -> list[Block]:
    """Every model by scene and by continent, where its evaluation has them."""
    blocks: list[Block] = []
    for kind in ("scene", "continent"):
        by_model = {name: metrics.get("by", {}).get(kind, {}) for name, metrics in models.items()}
        groups = dict.fromkeys(group for entries in by_model.values() for group in entries)
        rows = [(g, name, entries[g]) for g in groups for name, entries in by_model.items() if g in entries]
        if rows:
            header, keys = _columns(common_radii(numbers for _, _, numbers in rows))
            cells: list[list[str | Cell]] = [
                [
                    f"{group}: {name}" if len(models) > 1 else group,
                    f"{numbers['num_photos']:,}",
                    *(number_cell(numbers, key) for key in keys),
                ]
                for group, name, numbers in rows
            ]
            blocks.append(Table([kind, "photos", *header], cells, f"By {kind}"))
    return blocks


def _look_up(metrics: Mapping[str, Any], key: Sequence[str]) -> Any:
    value: Any = metrics
    for part in key:
        value = value[part]
    return value


def number_cell(metrics: Mapping[str, Any], key: Sequence[str], *, is_best: bool = False) -> Cell:
    """A number with its interval, or its spread over runs; `no interval` where there is none for it.

    Args:
        metrics: content of a `metrics.json`, or an entry of its baselines or groups.
        key: where the number is in it, such as `("accuracy_within_km", "200")`.
        is_best: of its column; nobody is best at 0.0 %.
    """
    is_share = key[0] in ("accuracy_within_km", "coverage")
    digits = 2 if key[0] == "nll" else 0

    def shown(value: float) -> str:
        return f"{100.0 * value:.1f}" if is_share else f"{value:,.{digits}f}"

    note = ""
    if "intervals_95" in metrics:
        intervals = metrics["intervals_95"]
        has_one = intervals is not None and key[0] in intervals  # of published means nobody knows one
        note = "[{}, {}]".format(*map(shown, _look_up(intervals, key))) if has_one else "no interval"
    elif "spread" in metrics:
        note = f"± {shown(_look_up(metrics['spread'], key))}"
    text = shown(_look_up(metrics, key))
    return Cell(text, note, is_best and text.strip("0.") != "")


def _judge(name: str, metrics: dict[str, Any]) -> list[Block]:
    """The comparison with the best constant in words, and a warning where photos have no answer."""
    blocks: list[Block] = []
    constant = best_constant(metrics)
    if constant is not None:
        interval = "(no interval)"
        if metrics["intervals_95"] is not None:
            interval = "[{:,.0f}, {:,.0f}]".format(*metrics["intervals_95"]["mean_km"])
        blocks.append(
            Paragraph(
                f"{name}: mean error {metrics['mean_km']:,.0f} km {interval}, "
                f"{compare_means(metrics['mean_km'], constant[1]['mean_km'])} the best constant answer "
                f"({baseline_name(constant[0])}, {constant[1]['mean_km']:,.0f} km)."
            )
        )
    if metrics.get("num_missing"):
        blocks.append(
            Paragraph(
                f"{name}: {metrics['num_missing']:,} of {metrics['num_photos']:,} photos have no answer and count as "
                f"misses of {LARGEST_ERROR_KM:,.0f} km, for example {', '.join(metrics['missing'][:3])}.",
                is_warning=True,
            )
        )
    return blocks


def draw_error_cdf(group: dict[str, EvaluationRecord], folder: Path, number: int) -> Picture:
    """The distribution of the errors of all that was judged on a test set, as `error_cdf_<number>.png`."""
    errors = {name: record.error_km for name, record in group.items()}
    baselines = next((r.baseline_errors for r in group.values() if r.baseline_errors is not None), None)
    columns = {} if baselines is None else {name: baselines[name].to_numpy() for name in baselines.column_names}
    grey = {  # of a random answer the first of its runs was kept
        BASELINE_NAMES[key] + ", one run" * key.startswith("random"): columns[key]
        for key in BASELINES_IN_CDF
        if key in columns
    }
    num_photos = len(next(iter(errors.values())))
    figure = error_cdf(errors, grey, title=f"{_name_test_set(group)}: {num_photos:,} photos")
    caption = "Share of photos within each error, against answers that saw no photo."
    return save_picture(figure, folder, f"error_cdf_{number}", caption)


def describe_posteriors(group: dict[str, EvaluationRecord], folder: Path, number: int) -> list[Block]:
    """A table of what the posteriors are worth and their calibration; nothing where no model has one."""
    posteriors = _posteriors(group)
    if not posteriors:
        return []
    shares = list(next(iter(posteriors.values()))["coverage"])
    keys = [("nll",), *(("coverage", q) for q in shares), ("mean_expected_km",), ("mean_error_km",)]
    fitted = [key for key in CALIBRATED if any(key in posterior for posterior in posteriors.values())]
    header = [*(CALIBRATED[key] for key in fitted), "NLL, nats / sr"]
    header += [f"within the {float(q):.0%} radius, %" for q in shares]
    cells: list[list[str | Cell]] = [
        [
            name,
            *(f"{posterior[key]:.3g}" if key in posterior else "–" for key in fitted),  # a retrieval has none
            *(number_cell(posterior, key) for key in keys),
        ]
        for name, posterior in posteriors.items()
    ]
    caption = "What the models say of their own errors, around their first answer"
    table = Table(["", *header, "expected error, km", "true error, km"], cells, caption)
    return [table, draw_calibration(group, folder, f"calibration_{number}")]


def draw_calibration(group: dict[str, EvaluationRecord], folder: Path, file: str) -> Picture:
    """The calibration of every posterior of a test set, as `<file>.png`."""
    posteriors = _posteriors(group)
    curves = {name: posterior["calibration"] for name, posterior in posteriors.items()}
    intervals = {name: (posterior["intervals_95"] or {}).get("calibration") for name, posterior in posteriors.items()}
    figure = calibration_curve(curves, intervals, title=f"{_name_test_set(group)}: do the radii hold what they say?")
    caption = "Share of photos whose truth lies within the radius that should hold that share; bars are 95 % intervals."
    return save_picture(figure, folder, file, caption)


def _posteriors(group: dict[str, EvaluationRecord]) -> dict[str, dict[str, Any]]:
    rows = with_other_answers({name: record.metrics for name, record in group.items()})
    return {name: metrics["posterior"] for name, metrics in rows.items() if "posterior" in metrics}


def _draw_answers(group: dict[str, EvaluationRecord], folder: Path, number: int) -> list[Block]:
    """A map and examples for each model."""
    blocks: list[Block] = []
    for rank, (name, record) in enumerate(group.items(), start=1):
        blocks += [
            draw_prediction_map(name, record, folder, f"prediction_map_{number}_{rank}"),
            _show_examples(name, record),
        ]
    return blocks


def draw_prediction_map(name: str, record: EvaluationRecord, folder: Path, file: str) -> Picture:
    """Truths and answers of the answered photos, as `<file>.png`."""
    answered = record.is_answered
    true_deg = record.columns("true_latitude", "true_longitude")[answered]
    predicted_deg = record.columns("latitude", "longitude")[answered]
    title = f"{name} on {_name_test_set({name: record})}: {int(answered.sum()):,} photos"
    figure = prediction_map(true_deg, predicted_deg, record.error_km[answered], title=title)
    return save_picture(figure, folder, file, f"{name}: truths and predictions, coloured by the error.")


def _show_examples(name: str, record: EvaluationRecord) -> Table:
    table = record.predictions.filter(record.predictions["error_km"].is_valid()).sort_by("error_km")
    rows = table.to_pylist()
    chosen = rows if len(rows) <= 2 * NUM_EXAMPLES else [*rows[:NUM_EXAMPLES], *rows[-NUM_EXAMPLES:]]
    cells = [
        [
            row["id"],
            f"{row['true_latitude']:.2f}, {row['true_longitude']:.2f}",
            f"{row['latitude']:.2f}, {row['longitude']:.2f}",
            f"{row['error_km']:,.0f}",
        ]
        for row in chosen
    ]
    return Table(
        ["photo", "truth, degrees", "prediction, degrees", "error, km"],
        cells,
        f"{name}: its nearest and farthest answers",
    )
