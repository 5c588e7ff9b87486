"""What the models of `modeling` are trained to do, and how each is judged while it is."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from geomae.evaluation.metrics import summarise_errors
from geomae.evaluation.posterior_head import posterior_head
from geomae.geography import great_circle_km
from geomae.populated_places import write_places
from geomae.tracking import flat_metrics
from geomae.training.evaluation_rows import EvaluationRows
from geomae.training.judging import Batch
from geomae.training.streaming import StreamingTrainer

__all__ = ["GeolocationTrainer", "MAETrainer"]


class MAETrainer(StreamingTrainer):
    """Trains a masked autoencoder on photos without labels.

    The validation loss repeats: its collator gives every photo the same `noise` each time. It is per photo also where
    `loss_reduction` is `sum`.
    """

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's `loss`: squared error of the hidden patches."""
        outputs = model(pixel_values=inputs["pixel_values"], noise=inputs.get("noise"))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluation_columns(self, inputs: Batch, loss: Tensor, outputs: Any) -> dict[str, Tensor]:
        """The loss per photo."""
        if getattr(self.model.config, "loss_reduction", "mean") == "sum":
            loss = loss / len(inputs["pixel_values"])
        return super().evaluation_columns(inputs, loss, outputs)


class GeolocationTrainer(StreamingTrainer):
    """Trains a model that answers with coordinates; its running great-circle error is in the logs of every head."""

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's `loss`; the great-circle errors of training batches are kept for the log."""
        scenes = {"scene_labels": inputs["scene_labels"]} if "scene_labels" in inputs else {}
        outputs = model(pixel_values=inputs["pixel_values"], coordinates_deg=inputs["coordinates_deg"], **scenes)
        if model.training:
            self.progress.add_errors(outputs.error_km)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """With the names of places, which the pipeline in the folder reads."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # others come here too, for the parts of the weights that they hold
            write_places(output_dir or self.args.output_dir)

    def evaluation_columns(self, inputs: Batch, loss: Tensor, outputs: Any) -> dict[str, Tensor]:
        """The loss; coordinates answered and true, degrees; a posterior's NLL; scenes where the model tells them."""
        columns = super().evaluation_columns(inputs, loss, outputs)
        columns |= {"predicted_deg": outputs.coordinates_deg.float(), "target_deg": inputs["coordinates_deg"]}
        if (head := posterior_head(self.model)) is not None:
            columns["nll"] = -head.log_density(outputs.logits, inputs["coordinates_deg"])
        if "scene_labels" in inputs:
            columns |= {"predicted_scene": outputs.scene_logits.argmax(dim=-1), "scene": inputs["scene_labels"]}
        return columns

    def evaluation_metrics(self, rows: EvaluationRows) -> dict[str, float]:
        """Mean and median great-circle error, GeoScore, the share of photos within each radius.

        And, where there are such columns, `nll` in nats per steradian and `scene_accuracy` of the scenes known.
        """
        predicted, target = (rows.columns[name].astype(np.float64) for name in ("predicted_deg", "target_deg"))
        summary = summarise_errors(great_circle_km(predicted, target))
        metrics = super().evaluation_metrics(rows) | flat_metrics(summary)
        if "nll" in rows.columns:
            metrics["nll"] = float(rows.columns["nll"].astype(np.float64).mean())
        if "scene" in rows.columns and (is_known := rows.columns["scene"] >= 0).any():
            is_right = rows.columns["predicted_scene"] == rows.columns["scene"]
            metrics["scene_accuracy"] = float(is_right[is_known].mean())
        return metrics
