"""The report: what was trained, how it went, and what it is worth, on one page with its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.evaluation import refuse_unwritable
from geomae.files import write_whole
from geomae.reporting.maps import coordinate_map
from geomae.reporting.page import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    copy_picture,
    render_html,
    render_markdown,
    save_picture,
)
from geomae.reporting.plots import loss_curves
from geomae.reporting.records import EvaluationRecord, TrainingRecord, read_evaluation, read_training, unique_names
from geomae.reporting.results_section import describe_evaluations

__all__ = ["STAND_IN", "describe_provenance", "draw_curves", "write_pages", "write_report"]

STAND_IN = Paragraph(
    "Numbers of a stand-in say nothing about photos: they tell methods that learn from methods that do not.",
    is_warning=True,
)

Histories = dict[str, list[dict[str, Any]]]


def write_report(
    output_dir: str | Path,
    *,
    pretrain_runs: Sequence[str | Path] = (),
    finetune_runs: Sequence[str | Path] = (),
    evaluations: Sequence[str | Path] = (),
    training_deg: NDArray[np.float64] | None = None,
    title: str = "GeoMAE report",
) -> list[Path]:
    """Write `report.md`, `report.html` and the figures that they show.

    Args:
        output_dir: folder; it is created.
        pretrain_runs: folders of `run_pretrain_mae.py`.
        finetune_runs: folders of `run_finetune_geo.py`.
        evaluations: folders of `run_evaluate_geo.py`.
        training_deg: `(n, 2)` training coordinates in degrees, for their map.
        title: of the page.

    Returns:
        The paths written, the two pages first.

    Raises:
        SourceError: a folder is not what it was given as.
        ConfigError: the folder of the report cannot be written to.
    """
    refuse_unwritable(output_dir)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained = _by_name([read_training(path) for path in pretrain_runs])
    finetuned = _by_name([read_training(path) for path in finetune_runs])
    evaluated = [read_evaluation(path) for path in evaluations]
    blocks: list[Block] = [Heading(title, level=1)]
    blocks += describe_evaluations(evaluated, folder)
    blocks += _describe_pretraining(pretrained, folder)
    blocks += _describe_finetuning(finetuned, folder)
    if training_deg is not None:
        figure = coordinate_map(training_deg, title=f"Training coordinates: {len(training_deg):,} photos")
        blocks += [
            Heading("Training coordinates"),
            save_picture(figure, folder, "training_coordinates", "Where the training photos were taken."),
        ]
    blocks += describe_provenance([*pretrained.values(), *finetuned.values()], evaluated)
    return write_pages(blocks, folder, "report", title=title)


def write_pages(blocks: Sequence[Block], folder: Path, name: str, *, title: str) -> list[Path]:
    """Write `<name>.md` and `<name>.html`; returns their paths, and those of the pictures that they show."""
    pages = [folder / f"{name}.md", folder / f"{name}.html"]
    write_whole(pages[0], render_markdown(blocks))
    write_whole(pages[1], render_html(blocks, title=title, folder=folder))
    return [*pages, *(folder / block.file for block in blocks if isinstance(block, Picture))]


def _by_name(records: Sequence[TrainingRecord]) -> dict[str, TrainingRecord]:
    return dict(zip(unique_names([record.folder for record in records]), records, strict=True))


def _describe_pretraining(runs: dict[str, TrainingRecord], folder: Path) -> list[Block]:
    if not runs:
        return []
    blocks: list[Block] = [Heading("Pretraining")]
    metrics = {"loss": "training", "eval_loss": "validation"}
    figure = loss_curves(_histories(runs), metrics, title="Reconstruction loss on hidden patches", unit="loss")
    blocks.append(save_picture(figure, folder, "pretraining_loss", "Reconstruction loss by optimiser step."))
    for rank, (name, record) in enumerate(runs.items(), start=1):
        pictures = record.pictures("reconstruction")
        for path in dict.fromkeys([*pictures[:1], *pictures[-1:]]):  # untrained, and trained
            step = int(path.stem.rpartition("_")[2])
            caption = f"{name} at step {step:,}: photos, what the encoder sees of them, and what the decoder restores."
            file = f"reconstruction_{rank}_{path.stem.removeprefix('reconstruction_')}"
            blocks.append(copy_picture(path, folder, file, caption))
    return blocks


def _describe_finetuning(runs: dict[str, TrainingRecord], folder: Path) -> list[Block]:
    if not runs:
        return []
    histories = _histories(runs)
    loss = {"loss": "training", "eval_loss": "validation"}
    error = {"great_circle_km": "training", "eval_mean_km": "validation"}
    blocks: list[Block] = [Heading("Fine-tuning")]
    blocks += draw_curves(histories, loss, folder, "finetuning_loss", title="Loss", unit="loss")
    blocks += draw_curves(
        histories, error, folder, "finetuning_error", title="Great-circle error", unit="mean error, km"
    )
    return blocks


def draw_curves(
    histories: Histories, metrics: dict[str, str], folder: Path, file: str, *, title: str, unit: str
) -> list[Picture]:
    """`loss_curves` as `<file>.png`; nothing where no run has logged any of the metrics."""
    if not any(key in entry for history in histories.values() for entry in history for key in metrics):
        return []
    figure = loss_curves(histories, metrics, title=title, unit=unit)
    return [save_picture(figure, folder, file, f"{title} by optimiser step.")]


def _histories(runs: dict[str, TrainingRecord]) -> Histories:
    return {name: record.history for name, record in runs.items()}


def describe_provenance(runs: Sequence[TrainingRecord], evaluated: Sequence[EvaluationRecord]) -> list[Block]:
    """The commands, the commits and the versions behind the page."""
    made = [(record.folder, record.run) for record in runs if record.run]
    made += [(record.folder, record.metrics) for record in evaluated]
    names = unique_names([folder for folder, _ in made])  # together: a pretraining may be called as a fine-tuning is
    records = dict(zip(names, (record for _, record in made), strict=True))
    if not records:
        return []
    blocks: list[Block] = [Heading("How it was made")]
    for name, record in records.items():
        versions = ", ".join(f"{package} {number}" for package, number in record.get("versions", {}).items() if number)
        blocks += [
            Heading(name, level=3),
            Code(str(record.get("command", "unknown command"))),
            Paragraph(f"Commit {record.get('commit') or 'unknown'}; {versions or 'versions unknown'}."),
        ]
    return blocks
