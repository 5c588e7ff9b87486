"""Runs beside each other: final numbers, what was set differently, curves, error distributions and paired tests."""

import json
import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomae.errors import ConfigError, SourceError
from geomae.evaluation import (
    THRESHOLDS_KM,
    compare_predictions,
    describe_difference,
    holm_adjusted,
    read_metrics,
    refuse_unwritable,
)
from geomae.reporting.page import Block, Cell, Heading, Paragraph, Table
from geomae.reporting.records import EvaluationRecord, TrainingRecord, read_evaluation, read_training, unique_names
from geomae.reporting.report import describe_provenance, draw_curves, write_pages
from geomae.reporting.results_section import common_radii, draw_error_cdf, group_by_test_set, introduce_test_set

__all__ = ["ComparedRun", "is_of", "read_runs", "write_comparison"]

logger = logging.getLogger(__name__)

# Where a run writes and what it is called says nothing about what it did.
NOT_SETTINGS = ("output_dir", "run_name", "run_group", "run_tags", "report_to", "overwrite_output_dir")
CURVES = {  # file -> title, unit, logged metric
    "training_error": ("Great-circle error in training", "mean error, km", "great_circle_km"),
    "validation_error": ("Great-circle error in validation", "mean error, km", "eval_mean_km"),
    "training_loss": ("Loss in training", "loss", "loss"),
    "validation_loss": ("Loss in validation", "loss", "eval_loss"),
}


@dataclass(frozen=True)
class ComparedRun:
    """What was trained, where that is known, and every evaluation of it."""

    name: str
    training: TrainingRecord | None
    evaluations: tuple[EvaluationRecord, ...]


def read_runs(runs: Sequence[str]) -> list[ComparedRun]:
    """What is found under each `PATH` or `NAME=PATH`.

    A folder of `run_evaluate_geo.py` is an evaluation alone. A folder of a training brings the evaluations inside it,
    and those beside it, in its parent folder, whose `checkpoint` is the end of its path. Any other folder is a run
    where its sub-folders are evaluations.

    Raises:
        SourceError: a path is none of these, or an evaluation cannot be read; one beside a training is left out with a
            warning.
        ConfigError: two runs have the same name.
    """
    split = [(None, word) if Path(word).exists() or "=" not in word else word.split("=", 1) for word in runs]
    shortest = unique_names([Path(path) for _, path in split])
    names = [name or short for (name, _), short in zip(split, shortest, strict=True)]
    _refuse_repeated(names)
    return [_read_run(name, Path(path)) for name, (_, path) in zip(names, split, strict=True)]


def _read_run(name: str, folder: Path) -> ComparedRun:
    if (folder / "metrics.json").is_file():
        return ComparedRun(name, None, (read_evaluation(folder),))
    is_training = any(folder.glob("trainer_state.json")) or any(folder.glob("checkpoint-*/trainer_state.json"))
    inside = sorted(folder.glob("**/metrics.json" if is_training else "*/metrics.json"))
    evaluations = [read_evaluation(file.parent) for file in inside if "mean_km" in read_metrics(file)]
    if not (is_training or evaluations):
        raise SourceError(
            f"{folder} is neither a training (trainer_state.json) nor an evaluation (metrics.json), and holds no "
            "evaluation: name a folder of run_pretrain_mae.py, run_finetune_geo.py or run_evaluate_geo.py"
        )
    if not is_training:
        return ComparedRun(name, None, tuple(evaluations))
    return ComparedRun(name, read_training(folder), (*evaluations, *_read_beside(folder)))


def _read_beside(training: Path) -> Iterator[EvaluationRecord]:
    """Evaluations of a training in its parent folder, where others keep theirs too: what is broken is left out."""
    for file in sorted(training.resolve().parent.glob("*/metrics.json")):
        try:
            if is_of(read_metrics(file), training):
                yield read_evaluation(file.parent)
        except SourceError as problem:
            logger.warning("%s is left out, which lies beside %s: %s", file.parent, training, problem)


def is_of(metrics: dict[str, Any], training: Path) -> bool:
    """Whether the recorded checkpoint, a path from wherever the evaluation ran, is the end of the training's."""
    judged = metrics.get("checkpoint")
    parts = tuple(part for part in Path(judged).parts if part != "..") if isinstance(judged, str) else ()
    # As it was given, too: `outputs` may be a link to a disk where it has another name.
    folders = (training.resolve(), training.absolute())
    return bool(parts) and any(folder.parts[-len(parts) :] == parts for folder in folders)


def write_comparison(
    output_dir: str | Path,
    runs: Sequence[ComparedRun],
    *,
    reference: str | None = None,
    num_resamples: int = 10_000,
    title: str = "Comparison of runs",
) -> list[Path]:
    """Write `compare.md`, `compare.html` and the figures that they show.

    Args:
        output_dir: folder; it is created.
        runs: at least two, of `read_runs`.
        reference: name of the run that every other is tested against; the first where left out.
        num_resamples: of the bootstrap behind the paired tests.
        title: of the page.

    Returns:
        The paths written, the two pages first.

    Raises:
        ConfigError: there is only one run, two have the same name, or none is called as the reference; or the folder
            cannot be written to.
        PredictionError, SourceError: two evaluations of one test set are not of the same photos and truths.
    """
    names = [run.name for run in runs]
    if len(runs) < 2:
        raise ConfigError(f"a comparison needs at least two runs; got {', '.join(names) or 'none'}")
    _refuse_repeated(names)
    reference = reference or names[0]
    if reference not in names:
        raise ConfigError(f"no run is called {reference}; --reference is one of {', '.join(names)}")
    refuse_unwritable(output_dir)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Block] = [Heading(title, level=1)]
    evaluated = [(run.name, label, record) for run in runs for label, record in _label_evaluations(run)]
    references = {label for name, label, _ in evaluated if name == reference}
    groups = group_by_test_set([(label, record) for _, label, record in evaluated])
    for number, group in enumerate(groups, start=1):
        blocks += [*introduce_test_set(group), draw_error_cdf(group, folder, number)]
        blocks += _describe_tests(group, references, num_resamples)
    blocks += _describe_settings(runs)
    blocks += _describe_curves(runs, folder)
    trainings = [run.training for run in runs if run.training is not None]
    blocks += describe_provenance(trainings, [record for run in runs for record in run.evaluations])
    return write_pages(blocks, folder, "compare", title=title)


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise ConfigError(f"two runs are called {repeated[0]}: give each a name of its own, NAME=PATH")


def _label_evaluations(run: ComparedRun) -> Iterator[tuple[str, EvaluationRecord]]:
    """Each evaluation under its run's name, with what tells the folders apart where there are several of a test set."""
    for group in group_by_test_set([(str(place), record) for place, record in enumerate(run.evaluations)]):
        folders = unique_names([record.folder for record in group.values()])
        for folder, record in zip(folders, group.values(), strict=True):
            yield (run.name if len(group) == 1 else f"{run.name}/{folder}"), record


def _describe_tests(group: dict[str, EvaluationRecord], references: Set[str], num_resamples: int) -> list[Block]:
    """Every evaluation against the reference's, or against the first where the reference was not judged here."""
    compared_with = next((label for label in group if label in references), next(iter(group)))
    others = [name for name in group if name != compared_with]
    if not others:
        return [Paragraph(f"Only {compared_with} was judged on these photos: there is nothing to test it against.")]
    radii = [float(radius) for radius in common_radii(record.metrics for record in group.values())]
    folders = {name: record.folder for name, record in group.items()}
    how: dict[str, Any] = {"thresholds_km": radii or THRESHOLDS_KM, "num_resamples": num_resamples}
    comparisons = {name: compare_predictions(folders[name], folders[compared_with], **how) for name in others}
    adjusted = _adjusted([comparison["bootstrap"]["p"] for comparison in comparisons.values()])
    sentences = [
        describe_difference(comparison, name, compared_with, adjusted_p=p)
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    ]
    return [
        Heading(f"Against {compared_with}, photo by photo", level=3),
        *map(Paragraph, sentences),
        _table_of_differences(comparisons, compared_with),
        _table_of_tests(comparisons),
        Paragraph(
            "The bootstrap draws whole authors where the evaluations name them; that is the test to go by. The t-test "
            "and Wilcoxon's test take every photo for independent, which photos of one author are not: there, their "
            "p-values can be far too small. Wilcoxon's test leaves out photos on which both err alike."
            + (" Holm's adjustment is for the number of runs compared here." if len(others) > 1 else "")
        ),
    ]


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """By Holm where there are several; None for a single one."""
    return holm_adjusted(p_values) if len(p_values) > 1 else [None] * len(p_values)


def _table_of_differences(comparisons: dict[str, dict[str, Any]], compared_with: str) -> Table:
    radii = list(next(iter(comparisons.values()))["difference"]["accuracy_within_km"])
    header = ["", "mean, km", "median, km", *(f"≤ {radius} km, points" for radius in radii), "GeoScore"]
    rows: list[list[str | Cell]] = []
    for name, comparison in comparisons.items():
        difference, intervals = comparison["difference"], comparison["intervals_95"] or {}
        cells = [_difference(difference[key], intervals.get(key)) for key in ("mean_km", "median_km")]
        ends = intervals.get("accuracy_within_km", {})
        cells += [
            _difference(difference["accuracy_within_km"][radius], ends.get(radius), scale=100.0) for radius in radii
        ]
        rows.append([name, *cells, _difference(difference["geoscore"], intervals.get("geoscore"))])
    return Table(header, rows, f"Difference from {compared_with}: below 0 is better for km, above 0 for the others")


def _difference(value: float, interval: Sequence[float] | None, *, scale: float = 1.0) -> Cell:
    digits = ".1f" if scale != 1.0 else ",.0f"
    note = "no interval" if interval is None else "[" + ", ".join(f"{scale * end:+{digits}}" for end in interval) + "]"
    return Cell(f"{scale * value:+{digits}}", note)


def _table_of_tests(comparisons: dict[str, dict[str, Any]]) -> Table:
    tests = {"bootstrap": "p, clustered bootstrap", "paired_t_test": "p, t-test", "wilcoxon": "p, Wilcoxon"}
    columns = []
    for test in tests:
        p_values = [comparison[test]["p"] for comparison in comparisons.values()]
        columns.append([_p_value(*both) for both in zip(p_values, _adjusted(p_values), strict=True)])
    statistics = [_t_value(comparison["paired_t_test"]) for comparison in comparisons.values()]
    rows: list[list[str | Cell]] = [
        [name, columns[0][place], statistics[place], columns[1][place], columns[2][place]]
        for place, name in enumerate(comparisons)
    ]
    header = ["", tests["bootstrap"], "t (degrees of freedom)", tests["paired_t_test"], tests["wilcoxon"]]
    return Table(header, rows, "Is the difference of the errors more than chance? Two-sided p-values")


def _p_value(p: float | None, adjusted: float | None) -> Cell:
    if p is None:
        return Cell("undefined")
    return Cell(f"{p:.2g}", "" if adjusted is None else f"Holm {adjusted:.2g}")


def _t_value(tested: dict[str, Any]) -> str:
    return "undefined" if tested["t"] is None else f"{tested['t']:.2f} ({tested['degrees_of_freedom']:,})"


def _describe_settings(runs: Sequence[ComparedRun]) -> list[Block]:
    """The keys of `run.json` in which the trainings differ."""
    configs = {run.name: run.training.run.get("config", {}) for run in runs if run.training is not None}
    configs = {name: config for name, config in configs.items() if config}
    if len(configs) < 2:
        return []
    keys = [
        key for key in dict.fromkeys(key for config in configs.values() for key in config) if key not in NOT_SETTINGS
    ]
    rows: list[list[str]] = []
    for key in keys:
        values = [json.dumps(config[key]) if key in config else "–" for config in configs.values()]
        if len(set(values)) > 1:
            rows.append([key, *(value.strip('"') for value in values)])
    heading = Heading("What was set differently")
    if not rows:
        return [heading, Paragraph(f"{', '.join(configs)} were trained with the same settings.")]
    return [heading, Table(["", *configs], rows, "Keys of the configuration in which the trainings differ")]


def _describe_curves(runs: Sequence[ComparedRun], folder: Path) -> list[Block]:
    """Each metric in a figure of its own, so that many runs stay apart; pretrainings have another loss."""
    histories = {run.name: run.training.history for run in runs if run.training is not None}
    tuned = {
        name: history
        for name, history in histories.items()
        if any("great_circle_km" in entry or "eval_mean_km" in entry for entry in history)
    }
    blocks: list[Block] = []
    for kind, chosen in (
        ("Fine-tuning", tuned),
        ("Pretraining", {name: history for name, history in histories.items() if name not in tuned}),
    ):
        pictures: list[Block] = []
        for file, (title, unit, metric) in CURVES.items():
            name = f"{kind.lower().replace('-', '')}_{file}"
            pictures += draw_curves(chosen, {metric: title}, folder, name, title=title, unit=unit)
        blocks += [Heading(kind), *pictures] if pictures else []
    return blocks
