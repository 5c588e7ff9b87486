"""Pictures and records that a run leaves behind; all by the main process alone."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from geomae.geography import great_circle_km
from geomae.provenance import shown_path
from geomae.training.run_folder import describe_run, write_run_record
from geomae.training.streaming import StreamingTrainer
from geomae.training.trackers import describe_to_trackers, show_picture
from geomae.training.trainers import GeolocationTrainer

__all__ = ["PredictionMaps", "ReconstructionPanels", "RunRecord"]

logger = logging.getLogger(__name__)


class ReconstructionPanels(TrainerCallback):
    """Draws what the masked autoencoder makes of the same photos with the same masks, again and again.

    Args:
        trainer: whose model draws; the model has `reconstruct`.
        panel: `pixel_values` and `noise` of a few photos.
        every_steps: optimiser steps between two pictures; 0 draws none. The end of training is always drawn.
    """

    def __init__(self, trainer: StreamingTrainer, panel: Mapping[str, Tensor], *, every_steps: int) -> None:
        self.trainer = trainer
        self.panel = panel
        self.every_steps = every_steps

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The untrained model, to compare with; a resumed run has drawn it."""
        if state.global_step == 0:
            self._draw(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw when it is time."""
        if self.every_steps and (state.global_step % self.every_steps == 0 or state.global_step >= state.max_steps):
            with self.trainer.progress.meter.paused():
                self._draw(state)

    def _draw(self, state: TrainerState) -> None:
        if not self.every_steps:
            return
        model = self.trainer.model
        was_training = model.training
        inputs = {name: tensor.to(self.trainer.args.device) for name, tensor in self.panel.items()}
        with torch.random.fork_rng(devices=[]), self.trainer.judged_weights():
            pictures = model.eval().reconstruct(**inputs)  # by every process: FSDP gathers the weights of all
        model.train(was_training)
        if not state.is_world_process_zero:
            return
        path = Path(self.trainer.args.output_dir) / "pictures" / f"reconstruction_step_{state.global_step:06d}.png"
        from geomae.reporting.plots import reconstruction_grid, save_figure  # matplotlib: only runs that draw need it

        grids = (getattr(pictures, name).cpu().numpy() for name in ("original", "masked", "restored"))
        save_figure(reconstruction_grid(*grids, title=f"step {state.global_step:,}"), path)
        show_picture(self.trainer, "reconstructions", path)


class PredictionMaps(TrainerCallback):
    """Draws truths and answers of each evaluation on a world map.

    Args:
        trainer: whose `latest_evaluation` is drawn.
    """

    def __init__(self, trainer: GeolocationTrainer) -> None:
        self.trainer = trainer

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw the evaluation that has just ended."""
        rows = self.trainer.latest_evaluation
        if rows is None or not state.is_world_process_zero:
            return
        moment = f"step_{state.global_step:06d}" if self.trainer.is_in_train else "final"
        path = Path(self.trainer.args.output_dir) / "pictures" / f"predictions_{moment}.png"
        from geomae.reporting.maps import prediction_map  # matplotlib and cartopy: only runs that draw need them
        from geomae.reporting.plots import save_figure

        target, predicted = (rows.columns[name].astype(np.float64) for name in ("target_deg", "predicted_deg"))
        when = f"at step {state.global_step:,}" if self.trainer.is_in_train else "after training"
        title = f"{len(rows.ids):,} validation photos {when}"
        save_figure(prediction_map(target, predicted, great_circle_km(predicted, target), title=title), path)
        show_picture(self.trainer, "predictions", path)


class RunRecord(TrainerCallback):
    """Writes `run.json`: what was run, on what, from what, and how it ended; trackers get the same.

    Args:
        trainer: of the run.
        config: every argument by its key; tokens are left out.
    """

    def __init__(self, trainer: StreamingTrainer, config: Mapping[str, Any]) -> None:
        self.trainer = trainer
        self.config = config
        self.record: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what is known before the first step."""
        training = self.trainer.args
        self.record = describe_run(self.config, seed=training.seed, num_processes=training.world_size)
        progress = self.trainer.progress
        self.record["training"] = {
            "num_photos": training.num_photos,
            "total_batch_size": training.total_batch_size,
            "max_steps": state.max_steps,
            "learning_rate": training.learning_rate,
            "resumed_from": progress.guard.last_checkpoint and shown_path(progress.guard.last_checkpoint),
            "flops_per_photo": progress.flops_per_photo,
            "peak_flops_per_device": progress.peak_flops,
            "peak_flops_source": progress.peak_source,
            "photo_order": progress.describe_photo_order(),
        }
        made_by = {name: self.record[name] for name in ("commit", "versions", "hardware")}
        self.record |= describe_to_trackers(self.trainer, {**self.record["config"], "made_by": made_by})
        self._write(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add how it ended."""
        self.record["result"] = {
            "global_step": state.global_step,
            "epoch": state.epoch,
            "best_metric": state.best_metric,
            "best_model_checkpoint": state.best_model_checkpoint and shown_path(state.best_model_checkpoint),
            "num_bad_photos": self.trainer.progress.num_bad_photos,
        }
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            write_run_record(self.trainer.args.output_dir, self.record)
