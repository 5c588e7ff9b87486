"""Evaluations: every photo of a data set exactly once, over all processes; a signal ends one, and it is made up."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy

from geomae.compilation import compiled_if_full
from geomae.data.collate import SkippingDamagedBatches
from geomae.errors import SourceError
from geomae.training.averaging import WeightAverage
from geomae.training.evaluation_rows import EvaluationRows, black_photo, count_photos, join_rows
from geomae.training.memory import explains_memory
from geomae.training.progress import StreamProgress
from geomae.training.reading import loader_options
from geomae.training.safeguards import DamageCounter
from geomae.training.saving import SavingTrainer
from geomae.training.stopping import EvaluationLeft, StopOnSignal

__all__ = ["Batch", "Collator", "JudgingTrainer"]

Batch = dict[str, Any]
Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


class JudgingTrainer(SavingTrainer):
    """A trainer that evaluates every photo of a map-style data set exactly once."""

    eval_collator: Collator
    stopping: StopOnSignal
    progress: StreamProgress
    average: WeightAverage | None = None
    latest_evaluation: EvaluationRows | None = None

    def judged_weights(self) -> AbstractContextManager[None]:
        """The model has the weights that are judged meanwhile."""
        if self.average is not None and self.is_in_train:
            return self.average.inside_the_model()
        return nullcontext()

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """In training: where a signal ends it, the steps since the last checkpoint are saved.

        Raises:
            RunStoppedError: a signal came.
        """
        if self._owes_evaluation and kwargs.get("skip_scheduler"):
            return {}  # `eval_on_start` comes before the one that is made up, and would be the same
        self.stopping.can_leave_evaluation = self.is_in_train
        try:
            metrics: dict[str, float] = super()._evaluate(trial, *args, **kwargs)
        except EvaluationLeft:
            if self.progress.num_steps > 0:
                self._save_checkpoint(self.model, trial)
                self.progress.on_save(self.args, self.state, self.control)
            self.stopping.leave(self.state, self.progress.guard.last_checkpoint)
        finally:
            self.stopping.can_leave_evaluation = False
        return metrics

    @property
    def _owes_evaluation(self) -> bool:
        is_judging = self.eval_dataset is not None and self.args.eval_strategy != IntervalStrategy.NO
        return self.progress.owes_evaluation and is_judging

    def make_up_evaluation(self, checkpoint: str | None) -> None:
        """Judge a checkpoint whose run a signal has ended before it was judged, as the unbroken run does."""
        if self._owes_evaluation and checkpoint is not None:
            is_best = self._determine_best_metric(self._evaluate(None, None), None)
            if is_best and self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = checkpoint
        self.progress.owes_evaluation = False

    def get_eval_dataloader(self, eval_dataset: Any = None) -> "DataLoader[Any]":
        """This process's part of the data set, a stretch of its own: no photo is repeated to even out the parts.

        Raises:
            SourceError: there are fewer photos than processes.
        """
        if isinstance(eval_dataset, str):
            eval_dataset = cast(dict[str, Any], self.eval_dataset)[eval_dataset]
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        world_size, rank, num_photos = self.args.world_size, self.args.process_index, len(dataset)
        if num_photos < world_size:
            raise SourceError(f"{num_photos} photos to evaluate are fewer than the {world_size} processes")
        part = range(num_photos * rank // world_size, num_photos * (rank + 1) // world_size)
        collator = SkippingDamagedBatches(self.eval_collator)
        options = loader_options(self.args)
        return DataLoader(Subset(dataset, part), self.args.eval_batch_size, collate_fn=collator, **options)

    def get_test_dataloader(self, test_dataset: "Dataset[Any]") -> "DataLoader[Any]":
        """As `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    @explains_memory
    def evaluation_loop(
        self,
        dataloader: "DataLoader[Any]",
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Judge every photo of the data set once, over all processes; `latest_evaluation` keeps the rows.

        Raises:
            PredictionError: the processes together have not seen each photo once, or an answer is no number.
            TooManyDamagedPhotosError: more than `args.max_bad_fraction` of the photos cannot be decoded.
        """
        model = self._prepare_for_evaluation()
        self.callback_handler.eval_dataloader = dataloader
        own, num_photos = EvaluationRows(), count_photos(dataloader)
        chunks: list[dict[str, Tensor]] = []
        with self.judged_weights(), torch.no_grad():
            for inputs, is_repeat in self._evenly_many_batches(dataloader, own):
                in_full = compiled_if_full(len(inputs["pixel_values"]), self.args.eval_batch_size)
                with self.compute_loss_context_manager(), in_full:
                    loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                columns = self.evaluation_columns(inputs, loss, outputs)
                chunks.append({name: column[:0] for name, column in columns.items()} if is_repeat else columns)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        own.columns = {name: torch.cat([chunk[name] for chunk in chunks]).cpu().numpy() for name in chunks[0]}
        rows = join_rows(gather_object([own]) if self.args.world_size > 1 else [own], num_photos)
        DamageCounter(self.args.max_bad_fraction, num_photos).check(rows.num_bad, num_photos)
        self.latest_evaluation = rows
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluation_metrics(rows).items()}
        return EvalLoopOutput(
            predictions=rows.columns.get("predicted_deg", rows.columns["loss"]),
            label_ids=rows.columns.get("target_deg"),
            metrics=metrics,
            num_samples=len(rows.ids),
        )

    def _prepare_for_evaluation(self) -> nn.Module:
        """The model as training uses it: with its autocast, its compilation and its wrapping."""
        if not self.accelerator._models and self.model_wrapped is self.model:  # training will go on with this
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=self.is_fsdp_enabled)
        return self.model_wrapped.eval()

    def _evenly_many_batches(self, dataloader: "DataLoader[Any]", own: EvaluationRows) -> Iterator[tuple[Batch, bool]]:
        """Batches on the device, and whether they repeat one; their ids go to `own`.

        Wrapped models communicate in every forward pass, so all processes make equally many: a process that is short
        of one repeats its last batch, or a black photo where all of its own are damaged. That result is dropped.
        """
        largest_part = math.ceil(count_photos(dataloader) / self.args.world_size)
        num_batches = math.ceil(largest_part / self.args.eval_batch_size)
        inputs: Batch | None = None
        num_yielded = 0
        for batch in dataloader:
            own.num_bad += int(batch.pop("num_bad"))
            ids = batch.pop("ids")
            if ids:
                own.ids += ids
                inputs = self._prepare_inputs(batch)
                num_yielded += 1
                yield inputs, False
        if inputs is None:
            blank = self.eval_collator([black_photo()])
            inputs = self._prepare_inputs({name: value for name, value in blank.items() if isinstance(value, Tensor)})
        for _ in range(num_batches - num_yielded):
            yield inputs, True

    def evaluation_columns(self, inputs: Batch, loss: Tensor, outputs: Any) -> dict[str, Tensor]:
        """What to keep of a batch of B photos: named tensors `(B, ...)`, `loss` among them."""
        return {"loss": loss.float().expand(len(inputs["pixel_values"]))}

    def evaluation_metrics(self, rows: EvaluationRows) -> dict[str, float]:
        """Metrics of all photos, by their names without prefix."""
        return {"loss": float(rows.columns["loss"].astype(np.float64).mean()), "num_bad_photos": rows.num_bad}
