"""The thesis's chapter of results, done again: its tables and figures beside ours, from the folders of `make thesis`.

    RUNS/seed_0/pretrain_full, pretrain_half               run_pretrain_mae.py
    RUNS/seed_0/{mae,vit,resnet}_{full,half}               run_finetune_geo.py
    RUNS/seed_0/{mae,vit,resnet}_{full,half}/TEST_SET      run_evaluate_geo.py, TEST_SET im2gps and im2gps3k

More seeds lie beside the first. The tables show the first one, and a table of their own shows all that are asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation import compare_predictions, describe_run, read_metrics, write_evaluation
from geomae.evaluation.repeated_photos import repeated_t_test
from geomae.reporting.page import Block, Cell, Heading, Paragraph, Table
from geomae.reporting.records import EvaluationRecord, TrainingRecord, read_evaluation, read_training
from geomae.reporting.report import STAND_IN, describe_provenance, write_pages
from geomae.reporting.seeds import describe_training, difference_cells, over_seeds, t_cell
from geomae.reporting.thesis_figures import draw_thesis_figures
from geomae.reporting.thesis_tables import MODELS, TEST_SETS, read_published, thesis_tables

__all__ = ["write_thesis"]

KEPT = (
    *("num_photos", "num_missing", "mean_km", "median_km", "geoscore", "num_within_km", "accuracy_within_km"),
    *("intervals_95", "bootstrap", "command", "commit", "versions"),
)
PAIRS = (("vit_full", "mae_full"), ("resnet_full", "mae_full"), ("vit_half", "mae_half"), ("resnet_half", "mae_half"))
RUNS = ("pretrain_full", "pretrain_half", *MODELS)
TITLE = "The thesis, done again"
COMPARED_ON = "im2gps3k"  # the thesis's t-test is on this set

Seed = dict[str, dict[str, EvaluationRecord]]  # model -> test set -> record


def write_thesis(
    runs_dir: str | Path,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    training_deg: NDArray[np.float64],
    measured_on: str,
    needs_mp16: bool,
    baselines_dir: str | Path = "results/baselines",
    published_file: str | Path = "results/published.yaml",
    num_resamples: int = 10_000,
    argv: Sequence[str] = (),
) -> list[Path]:
    """Write `thesis.md`, `thesis.html`, their figures, and `metrics.json` with the numbers that were measured.

    Args:
        runs_dir: folder of the seeds.
        output_dir: folder; it is created.
        seeds: numbers of the folders that count; the tables and the figures show the first.
        training_deg: `(n, 2)` training coordinates in degrees.
        measured_on: what the runs were trained and tested on, in a few words.
        needs_mp16: the runs are of a stand-in; each model gets a line that says what is still unmeasured.
        baselines_dir: `<test set>/metrics.json` of `python -m geomae.evaluation baselines`.
        published_file: what others have published.
        num_resamples: of the bootstrap behind the comparisons.
        argv: `sys.argv`, for the record.

    Returns:
        The paths written, `metrics.json` first.

    Raises:
        SourceError: a run, an evaluation or a file of numbers is missing.
    """
    folders = {f"seed_{seed}": Path(runs_dir) / f"seed_{seed}" for seed in seeds}
    evaluated = {seed: _read_evaluations(path) for seed, path in folders.items()}
    trained = {seed: {name: read_training(path / name) for name in RUNS} for seed, path in folders.items()}
    first = next(iter(folders))
    published = read_published(published_file)
    baselines = {name: read_metrics(Path(baselines_dir) / name)["baselines"] for name in TEST_SETS}
    numbers = {"measured_on": measured_on, **_measure(evaluated, num_resamples), "trainings": _describe(trained)}
    numbers |= describe_run(argv)

    folder = Path(output_dir)
    written = write_evaluation(folder, numbers)
    tables = thesis_tables(published, numbers["models"], baselines, measured_on=measured_on, needs_mp16=needs_mp16)
    blocks: list[Block] = [
        *_introduce(measured_on, needs_mp16, published),
        Paragraph(_describe_networks(trained[first], first)),
        *tables,
        *_describe_seeds(numbers["seeds"]),
        *_describe_comparisons(numbers["comparisons"], published["thesis"]["t_test"]),
        Heading("Figures"),
        *draw_thesis_figures(trained[first], training_deg, _test_coordinates(evaluated[first]), folder),
        *describe_provenance(list(trained[first].values()), []),
        Paragraph(f"Its numbers are in metrics.json beside it, made at commit {numbers['commit']}."),
    ]
    return [*written, *write_pages(blocks, folder, "thesis", title=TITLE)]


def _read_evaluations(folder: Path) -> Seed:
    return {name: {test_set: read_evaluation(folder / name / test_set) for test_set in TEST_SETS} for name in MODELS}


def _describe(trained: Mapping[str, Mapping[str, TrainingRecord]]) -> dict[str, Any]:
    """Seed -> run -> what made it: its command, commit, versions and hardware."""
    return {
        seed: {name: describe_training(record) for name, record in records.items()} for seed, records in trained.items()
    }


def _measure(seeds: Mapping[str, Seed], num_resamples: int) -> dict[str, Any]:
    """`models` (of the first seed), `seeds` (means of all of them) and `comparisons`."""
    first = next(iter(seeds.values()))
    models: dict[str, Any] = {name: {} for name in MODELS}
    means: dict[str, Any] = {name: {} for name in MODELS}
    for name in MODELS:
        for test_set in TEST_SETS:
            models[name][test_set] = {key: first[name][test_set].metrics[key] for key in KEPT}
            means[name][test_set] = _over_seeds([seed[name][test_set].metrics for seed in seeds.values()])
    comparisons = {
        f"{pair[0]}_minus_{pair[1]}": {
            name: _compare(seed[pair[0]][COMPARED_ON], seed[pair[1]][COMPARED_ON], num_resamples)
            for name, seed in seeds.items()
        }
        for pair in PAIRS
    }
    return {"models": models, "seeds": means, "comparisons": comparisons}


def _over_seeds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the seeds' mean errors, those, and their standard deviation (n - 1) where there are several."""
    means = [float(each["mean_km"]) for each in metrics]
    return {**over_seeds([{"mean_km": mean} for mean in means]), "by_seed_km": means}


def _compare(first: EvaluationRecord, second: EvaluationRecord, num_resamples: int) -> dict[str, Any]:
    """The differences of the first minus the second, their tests, and what the thesis's repeats would have claimed."""
    compared = compare_predictions(first.folder, second.folder, num_resamples=num_resamples)  # refuses other photos
    row_of = {name: row for row, name in enumerate(second.predictions["id"].to_pylist())}
    matched = [row_of[name] for name in first.predictions["id"].to_pylist()]
    return {
        "test_set": COMPARED_ON,
        **compared["difference"],
        **{key: compared[key] for key in ("num_photos", "intervals_95", "bootstrap", "paired_t_test", "wilcoxon")},
        "as_the_thesis_tested": repeated_t_test(first.error_km, second.error_km[matched]),
    }


def _test_coordinates(seed: Seed) -> dict[str, NDArray[np.float64]]:
    return {
        label: seed["mae_full"][test_set].columns("true_latitude", "true_longitude")
        for test_set, label in TEST_SETS.items()
    }


def _introduce(measured_on: str, needs_mp16: bool, published: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [
        Heading(TITLE, level=1),
        Paragraph(
            f"The published rows are from {published['thesis']['source']}, and for PlaNet from "
            f"{published['planet']['source']}. Ours are measured on {measured_on}; the random guess and the constants "
            "need no photos and are measured on the real coordinates of MP-16 and of the test sets."
        ),
        Paragraph(
            "Each cell has the number of distinct photos behind it, n, and a 95 % interval: of what is measured here "
            "by the bootstrap clustered by author; of a published share Wilson's, as if photos were independent; of a "
            "published mean none can be given. After ± the standard deviation over runs of a random guess. The "
            "thesis's models saw 64 of the 237 and 384 of the 2,997 photos, most of them several times. The tables' "
            "numbers, 5.1 to 5.5, follow the order in which the thesis reports them."
        ),
    ]
    return [*blocks, STAND_IN] if needs_mp16 else blocks


def _describe_networks(runs: Mapping[str, TrainingRecord], seed: str) -> str:
    """What was trained, which on a stand-in is smaller than what the thesis trained."""
    told = []
    for name in ("resnet_full", "vit_full", "mae_full"):
        config = runs[name].run.get("config", {})
        if "backbone" in config:
            options = ", ".join(f"{key} {value}" for key, value in config["backbone_kwargs"].items())
            network = config["backbone"] + (f" ({options})" if options else "")
        else:
            network = f"{config.get('num_hidden_layers')} layers of width {config.get('hidden_size')}"
        told.append(f"{MODELS[name].partition(',')[0]}: {network}, {config.get('image_size')} px")
    shown = f"Tables 5.1 to 5.5 and the figures show {seed.replace('_', ' ')}."
    return f"Trained here: {'; '.join(told)}. {shown}"


def _describe_seeds(seeds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Block]:
    """One line a model: the mean error of each seed, and their mean and standard deviation."""
    rows: list[list[str | Cell]] = [
        [MODELS[name], *(_seeds_cell(numbers) for numbers in test_sets.values())] for name, test_sets in seeds.items()
    ]
    header = ["", *(f"{label}, km" for label in TEST_SETS.values())]
    caption = "Mean errors over the seeds, ± their standard deviation; below, seed by seed."
    return [Heading("Over seeds"), Table(header, rows, caption)]


def _seeds_cell(numbers: Mapping[str, Any]) -> Cell:
    spread = f" ± {numbers['spread']['mean_km']:,.0f}" if "spread" in numbers else ""
    return Cell(f"{numbers['mean_km']:,.0f}{spread}", ", ".join(f"{mean:,.0f}" for mean in numbers["by_seed_km"]))


def _describe_comparisons(comparisons: Mapping[str, Mapping[str, Any]], published: Mapping[str, Any]) -> list[Block]:
    """The thesis's t-test done right, and beside it what its repeats claim."""
    claims = next(iter(next(iter(comparisons.values())).values()))["as_the_thesis_tested"]
    text = (
        f"The thesis compared its ViT and its MAE by a paired t-test: t = {published['t']}, p = {published['p']:.2g}. "
        f"Its loader had shown {claims['num_photos']} distinct photos in {claims['num_rows']:,} rows, and a t-test "
        "counts rows. The last column is that mistake, made again on our errors; the column before it has the same "
        "photos once each. Even on all photos the t-test takes them for independent, which photos of one author are "
        "not: the interval and its p, from the bootstrap clustered by author, are the ones to believe. They are about "
        "two checkpoints; that a sign holds for every seed is what speaks about the methods."
    )
    tests = ("t, all photos", f"t, {claims['num_photos']} photos", f"t, {claims['num_rows']:,} rows")
    header = [f"first minus second, {TEST_SETS[COMPARED_ON]}", "seed", "mean, km", "p, bootstrap", *tests]
    rows = [
        _comparison_row(pair, seed, comparison)
        for pair, seeds in comparisons.items()
        for seed, comparison in seeds.items()
    ]
    return [Heading("The paired test, done right"), Paragraph(text), Table(header, rows)]


def _comparison_row(pair: str, seed: str, comparison: Mapping[str, Any]) -> list[str | Cell]:
    claims = comparison["as_the_thesis_tested"]
    names = [MODELS[name].partition(",")[0] for name in pair.split("_minus_")]
    return [
        f"{' – '.join(names)}, {pair.rpartition('_')[2]} set",
        seed.removeprefix("seed_"),
        *difference_cells(comparison),
        *(t_cell(test) for test in (claims["without"], claims["with_repeats"])),
    ]
