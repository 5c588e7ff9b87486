"""The heads beside each other: every head on the same trunk, from the folders of `make heads`.

    RUNS/PHOTOS/START/seed_0/HEAD                run_finetune_geo.py; a retrieval has no training of its own
    RUNS/PHOTOS/START/seed_0/HEAD/TEST_SET       run_evaluate_geo.py, python -m geomae.retrieval search
    RUNS/PHOTOS/posteriors.png                   python -m geomae.reporting posteriors

PHOTOS is a kind of photos, plain or ambiguous; START is pretrained or scratch. More seeds lie beside the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geomae.errors import SourceError
from geomae.evaluation import compare_predictions, describe_run, holm_adjusted, write_evaluation
from geomae.reporting.heads_tables import (
    HEADS,
    POINT,
    STARTS,
    accuracy_table,
    comparison_table,
    head_name,
    posterior_table,
)
from geomae.reporting.page import Block, Heading, Paragraph, copy_picture, save_picture
from geomae.reporting.plots import calibration_curve
from geomae.reporting.records import EvaluationRecord, TrainingRecord, read_evaluation, read_training
from geomae.reporting.report import STAND_IN, write_pages
from geomae.reporting.results_section import CALIBRATED, draw_error_cdf
from geomae.reporting.seeds import describe_training, over_seeds

__all__ = ["write_heads"]

KEPT = ("num_photos", "mean_km", "median_km", "geoscore", "accuracy_within_km", "intervals_95", "bootstrap")
AVERAGED = ("mean_km", "median_km", "geoscore", "accuracy_within_km")
OF_POSTERIOR = ("nll", "coverage", "calibration", "mean_expected_km", "mean_error_km")
TITLE = "Heads"
PHOTOS = {"plain": "Crops in colour", "ambiguous": "Small grey crops, which fit many places"}


@dataclass(frozen=True)
class Run:
    """One evaluation, and the training behind it where it has one of its own."""

    evaluation: EvaluationRecord
    training: TrainingRecord | None


Heads = dict[str, dict[str, Run]]  # head -> seed -> run


def write_heads(
    runs_dir: str | Path,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    measured_on: str,
    test_set: str = "im2gps3k",
    reference: str = "sphere",
    num_resamples: int = 10_000,
    argv: Sequence[str] = (),
) -> list[Path]:
    """Write `heads.md`, `heads.html`, their figures, and `metrics.json` with the numbers.

    Args:
        runs_dir: folder of the kinds of photos.
        output_dir: folder; it is created.
        seeds: numbers of the folders that count; intervals and figures are of the first.
        measured_on: what the runs were trained and tested on, in a few words.
        test_set: name of the evaluations' folders.
        reference: the head that the others are compared with.
        num_resamples: of the bootstrap behind the comparisons.
        argv: `sys.argv`, for the record.

    Returns:
        The paths written, `metrics.json` first.

    Raises:
        SourceError: there are no runs of the first seed, or a run has no evaluation.
    """
    sections = _read_sections(Path(runs_dir), seeds, test_set)
    measured = {place: _measure(heads, reference, num_resamples) for place, heads in sections.items()}
    numbers: dict[str, Any] = {"measured_on": measured_on, "test_set": test_set, "seeds": list(seeds)}
    numbers |= {"sections": _nest(measured)} | describe_run(argv)
    folder = Path(output_dir)
    written = write_evaluation(folder, numbers)
    blocks: list[Block] = [Heading(TITLE, level=1), *_introduce(measured_on, seeds)]
    for number, (place, heads) in enumerate(sections.items(), start=1):
        blocks += [Heading(f"{PHOTOS[place[0]]}: {STARTS[place[1]]}")]
        blocks += _describe_section(heads, measured[place], reference, folder, number)
        if (drawn := Path(runs_dir, *place, "posteriors.png")).is_file():
            caption = f"{PHOTOS[place[0]]}, drawn at random from the test set: what the model thinks possible."
            blocks.append(copy_picture(drawn, folder, f"posteriors_{number}", caption))
    return [*written, *write_pages(blocks, folder, "heads", title=TITLE)]


def _read_sections(runs_dir: Path, seeds: Sequence[int], test_set: str) -> dict[tuple[str, str], Heads]:
    sections = {}
    for place in ((photos, start) for photos in PHOTOS for start in STARTS):
        folder = runs_dir.joinpath(*place)
        found = {head: _read_seeds(folder, head, seeds, test_set) for head in HEADS}
        if any(found.values()):
            sections[place] = {head: runs for head, runs in found.items() if runs}
    if not sections:
        expected = runs_dir / next(iter(PHOTOS)) / next(iter(STARTS)) / f"seed_{seeds[0]}" / next(iter(HEADS))
        raise SourceError(f"{runs_dir} has no runs of `make heads`, such as {expected}")
    return sections


def _read_seeds(folder: Path, head: str, seeds: Sequence[int], test_set: str) -> dict[str, Run]:
    """The runs of a head; one may have fewer seeds than others, but not without the first."""
    found = {f"seed_{seed}": folder / f"seed_{seed}" / head for seed in seeds}
    found = {seed: path for seed, path in found.items() if path.is_dir()}
    if found and f"seed_{seeds[0]}" not in found:
        raise SourceError(
            f"{folder} has {head} of {', '.join(found)}, but not of seed_{seeds[0]}: intervals are of that"
        )
    return {seed: _read_run(path, test_set) for seed, path in found.items()}


def _read_run(path: Path, test_set: str) -> Run:
    is_trained = (path / "trainer_state.json").is_file()
    return Run(read_evaluation(path / test_set), read_training(path) if is_trained else None)


def _measure(heads: Heads, reference: str, num_resamples: int) -> dict[str, Any]:
    """Of one kind of photos and one start: `baselines`, `heads`, and `comparisons` with the reference."""
    first = next(iter(next(iter(heads.values())).values())).evaluation.metrics
    comparisons = {
        head: {
            seed: _compare(run.evaluation, heads[reference][seed].evaluation, num_resamples)
            for seed, run in runs.items()
            if seed in heads[reference]
        }
        for head, runs in heads.items()
        if reference in heads and head != reference
    }
    _adjust([compared for seeds in comparisons.values() for compared in seeds.values()])
    measured = {head: _measure_head(list(runs.values())) for head, runs in heads.items()}
    return {"baselines": first["baselines"], "heads": measured, "comparisons": comparisons}


def _adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Adds `holm`: each test's p, adjusted for all differences of the table."""
    tests = ("bootstrap", "paired_t_test", "wilcoxon")
    adjusted = [holm_adjusted([compared[test]["p"] for compared in comparisons]) for test in tests]
    for place, compared in enumerate(comparisons):
        compared["holm"] = {test: p_values[place] for test, p_values in zip(tests, adjusted, strict=True)}


def _refuse_unequal(runs: Sequence[Run]) -> None:
    """Seeds that answer otherwise, whose mean would be of nothing."""
    first, *others = (_answers_of(run.evaluation.metrics) for run in runs)
    for run, answers in zip(runs[1:], others, strict=True):
        if answers != first:
            raise SourceError(
                f"{run.evaluation.folder} has {_in_words(answers)}, but {runs[0].evaluation.folder} has "
                f"{_in_words(first)}: no mean is over both. Evaluate them with the same --decoding and --decodings."
            )


def _answers_of(metrics: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """The headline, the other decodings, and what was calibrated."""
    fitted = [name for name in CALIBRATED if name in metrics.get("posterior", {})]
    return metrics.get("decoding") or POINT, sorted(metrics.get("decodings") or {}), fitted


def _in_words(answers: tuple[str, list[str], list[str]]) -> str:
    headline, decodings, fitted = answers
    return f"the headline {headline}, the decodings {decodings} and values of {fitted}"


def _measure_head(runs: Sequence[Run]) -> dict[str, Any]:
    _refuse_unequal(runs)
    metrics = [run.evaluation.metrics for run in runs]
    headline, _, fitted = _answers_of(metrics[0])
    by_decoding = {headline: metrics}
    by_decoding |= {name: [each["decodings"][name] for each in metrics] for name in metrics[0].get("decodings") or {}}
    trainings = [run.training for run in runs if run.training is not None]
    seconds = [entry["train_runtime"] for each in trainings for entry in each.history if "train_runtime" in entry]
    measured: dict[str, Any] = {
        "headline": headline,
        "num_seeds": len(runs),
        "minutes": float(np.mean(seconds)) / 60.0 if seconds else None,
        "decodings": {name: _average(each, AVERAGED, KEPT) for name, each in by_decoding.items()},
        "posterior": None,
        "calibrated": None,
        "trainings": [describe_training(training) for training in trainings],
    }
    if "posterior" in metrics[0]:
        posteriors = [each["posterior"] for each in metrics]
        measured["posterior"] = _average(posteriors, OF_POSTERIOR, (*OF_POSTERIOR, "intervals_95"))
        measured["calibrated"] = over_seeds([{name: each[name] for name in fitted} for each in posteriors])
    return measured


def _average(metrics: Sequence[Mapping[str, Any]], averaged: Sequence[str], kept: Sequence[str]) -> dict[str, Any]:
    over = over_seeds([{key: each[key] for key in averaged} for each in metrics])
    return over | {"first_seed": {key: metrics[0][key] for key in kept}}


def _compare(first: EvaluationRecord, second: EvaluationRecord, num_resamples: int) -> dict[str, Any]:
    compared = compare_predictions(first.folder, second.folder, num_resamples=num_resamples)
    kept = ("num_photos", "intervals_95", "bootstrap", "paired_t_test", "wilcoxon")
    return {**compared["difference"], **{key: compared[key] for key in kept}}


def _nest(measured: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (photos, start), numbers in measured.items():
        nested.setdefault(photos, {})[start] = numbers
    return nested


def _introduce(measured_on: str, seeds: Sequence[int]) -> list[Block]:
    text = (
        f"Every head was trained on the same trunk, on the same photos, for as long: {measured_on}. Retrieval has no "
        "training of its own: it looks for similar photos by the features of the fine-tuned geocells head, and costs "
        "that training and the indexing. Each number is the mean over as many seeds as the row says, after ± their "
        f"standard deviation; in brackets the 95 % interval of seed {seeds[0]}, from the bootstrap clustered by "
        "author. Every posterior was calibrated on validation photos before it was judged: a head's temperature and "
        "spread scale by the likelihood there; retrieval's k, sigma, exponent and uniform share were chosen on the "
        "same photos. A head with a posterior has one row for each way of "
        "reading an answer off it; the first is the one that its checkpoint answers with, and that is compared, drawn "
        "and measured by its radii. Random guesses have the spread over their runs. The training time is that of one "
        "process on the machine as it was, often with others beside it."
    )
    return [Paragraph(text), STAND_IN]


def _describe_section(
    heads: Heads, measured: Mapping[str, Any], reference: str, folder: Path, number: int
) -> list[Block]:
    blocks: list[Block] = [accuracy_table(measured["heads"], measured["baselines"])]
    posteriors = {head: entry["posterior"] for head, entry in measured["heads"].items() if entry["posterior"]}
    records = {head_name(head): next(iter(runs.values())).evaluation for head, runs in heads.items()}
    blocks.append(draw_error_cdf(records, folder, number))
    if posteriors:
        num_photos = len(next(iter(records.values())).predictions)
        curves = {head_name(head): posterior["calibration"] for head, posterior in posteriors.items()}
        figure = calibration_curve(curves, {}, title=f"{num_photos:,} photos")
        caption = (
            "Share of the photos whose truth lies within the radius that holds so much of the mass, mean over seeds."
        )
        blocks += [
            Heading("Posteriors", level=3),
            posterior_table(measured["heads"]),
            save_picture(figure, folder, f"calibration_{number}", caption),
        ]
    if measured["comparisons"]:
        text = (
            "Differences of mean errors on the same photos, seed by seed; below zero the first is better. The interval "
            "and its p are from the bootstrap clustered by author. Holm's adjustment of p is for all "
            f"{sum(map(len, measured['comparisons'].values()))} differences of the table, and it decides."
        )
        table = comparison_table(measured["comparisons"], reference)
        blocks += [Heading(f"Against {head_name(reference)}", level=3), Paragraph(text), table]
    return blocks
