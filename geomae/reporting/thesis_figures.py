"""The thesis's figures, drawn from our runs: coordinates, clusters, losses and reconstructions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.errors import SourceError
from geomae.evaluation.baselines import NUM_CLUSTERS, fit_clusters
from geomae.reporting.maps import cluster_map, coordinate_map
from geomae.reporting.page import Picture, copy_picture, save_picture
from geomae.reporting.plots import loss_curves
from geomae.reporting.records import TrainingRecord
from geomae.reporting.thesis_tables import MODELS

__all__ = ["draw_thesis_figures"]

NETWORKS = ("resnet", "vit", "mae")  # each in the same colour in both figures
PARTS = {"full": "5.3", "half": "5.4"}  # what was trained on -> the figure of its loss curves


def draw_thesis_figures(
    runs: Mapping[str, TrainingRecord],
    training_deg: NDArray[np.float64],
    test_deg: Mapping[str, NDArray[np.float64]],
    folder: Path,
) -> list[Picture]:
    """Write figures 1.1, 1.2, 4.2 and 5.1 to 5.4 as PNGs.

    Args:
        runs: `pretrain_full`, `pretrain_half` and the models of `MODELS`.
        training_deg: `(n, 2)` training coordinates, degrees.
        test_deg: name of a test set -> its `(n, 2)` true coordinates, degrees.
        folder: where they are written; exists.

    Raises:
        SourceError: the pretraining drew no reconstructions.
    """
    pictures = [
        save_picture(
            coordinate_map(training_deg, title=f"Training coordinates: {len(training_deg):,} photos"),
            folder,
            "figure_1_1_training_coordinates",
            "Figure 1.1: where the training photos were taken.",
        )
    ]
    for name, coordinates_deg in test_deg.items():
        title = f"{name}: {len(coordinates_deg):,} photos"
        picture = coordinate_map(coordinates_deg, title=title)
        caption = f"Figure 1.2: where the photos of {name} were taken."
        pictures.append(save_picture(picture, folder, f"figure_1_2_{name.lower()}", caption))
    clusters = fit_clusters(training_deg, NUM_CLUSTERS, np.random.default_rng(0))
    title = f"The random guess's {len(clusters.means_deg)} clusters of {len(training_deg):,} training coordinates"
    picture = cluster_map(training_deg, clusters.means_deg, clusters.deviations_deg, title=title)
    caption = "Figure 4.2: k-means clusters, with the mean and one standard deviation that the random guess draws from."
    pictures.append(save_picture(picture, folder, "figure_4_2_clusters", caption))
    return [*pictures, *_draw_losses(runs, folder), *_copy_reconstructions(runs["pretrain_full"], folder)]


def _draw_losses(runs: Mapping[str, TrainingRecord], folder: Path) -> list[Picture]:
    pretraining = {f"{part} set": _losses_per_photo(runs[f"pretrain_{part}"]) for part in PARTS}
    figure = loss_curves(
        pretraining,
        {"loss": "training", "eval_loss": "validation"},
        title="Masked autoencoder: reconstruction loss",
        unit="loss, per photo",
        along="epoch",
        log_scale=True,
    )
    caption = "Figure 5.1: loss of the masked autoencoder by epoch, for the full set and for its first half."
    pictures = [save_picture(figure, folder, "figure_5_1_pretraining_loss", caption)]
    for part, number in PARTS.items():
        names = [f"{network}_{part}" for network in NETWORKS]
        histories = {MODELS[name].partition(",")[0]: runs[name].history for name in names}
        figure = loss_curves(
            histories,
            {"loss": "training", "eval_loss": "validation"},
            title=f"Regressors on the {part} set: mean great-circle error",
            unit="loss, km",
            along="epoch",
        )
        caption = f"Figure {number}: loss of the regressors by epoch, trained on the {part} set."
        pictures.append(save_picture(figure, folder, f"figure_{number.replace('.', '_')}_{part}_set_loss", caption))
    return pictures


def _losses_per_photo(record: TrainingRecord) -> list[dict[str, Any]]:
    """The log with training losses of one photo, as its validation losses are, where they were sums over a batch."""
    if record.run.get("config", {}).get("loss_reduction") != "sum":
        return record.history
    num_photos = record.run["training"]["total_batch_size"]
    return [{**entry, "loss": entry["loss"] / num_photos} if "loss" in entry else entry for entry in record.history]


def _copy_reconstructions(pretraining: TrainingRecord, folder: Path) -> list[Picture]:
    """The last picture that the pretraining drew."""
    drawn = pretraining.pictures("reconstruction")
    if not drawn:
        raise SourceError(
            f"{pretraining.folder} has no pictures of reconstructions; train it with reconstruction_steps above 0"
        )
    step = int(drawn[-1].stem.rpartition("_")[2])
    caption = f"Figure 5.2: validation photos, what the encoder sees, what is restored, at step {step:,}."
    return [copy_picture(drawn[-1], folder, "figure_5_2_reconstructions", caption)]
