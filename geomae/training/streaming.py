"""transformers' `Trainer` on an endless stream of photos: exact resuming, exact evaluation."""

import copy
import functools
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from geomae.data.collate import PhotoCollator
from geomae.data.stream import PhotoStream
from geomae.errors import ConfigError
from geomae.training.arguments import GeoMAETrainingArguments
from geomae.training.averaging import WeightAverage, load_trained_weights, save_trained_weights
from geomae.training.judging import Batch, Collator, JudgingTrainer
from geomae.training.memory import explains_memory
from geomae.training.optimization import build_optimizer, build_schedule, set_hyperparameters
from geomae.training.progress import StreamProgress
from geomae.training.reading import RestartingLoader, loader_options
from geomae.training.run_folder import STATE_FILE
from geomae.training.saving import refuse_full_disk
from geomae.training.sharding import own_class, refuse_other_sharding, set_up_sharding
from geomae.training.stopping import StopOnSignal
from geomae.training.trackers import start_trackers

__all__ = ["StreamingTrainer"]

logger = logging.getLogger(__name__)


class StreamingTrainer(JudgingTrainer):
    """Trains on a `PhotoStream` that shards itself, and evaluates every photo of a map-style data set exactly once.

    Resuming jumps: the stream is told the place that it had come to, and reads nothing of what lies before.
    """

    args: GeoMAETrainingArguments
    model: PreTrainedModel
    loss_is_scaled_for_ga = False  # our losses are of one batch; the Trainer divides by gradient_accumulation_steps

    def __init__(
        self,
        model: PreTrainedModel,
        args: GeoMAETrainingArguments,
        *,
        train_dataset: PhotoStream,
        train_collator: PhotoCollator,
        eval_dataset: Dataset[Any] | None = None,
        eval_collator: Collator | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Turn epochs into steps, and prepare the run.

        Args:
            model: what to train; see `compute_loss` for what it must return.
            args: `fit_to` is called with the stream's `num_photos`.
            train_dataset: a `PhotoStream` made for this process.
            train_collator: decodes its photos in the stream, and stacks them.
            eval_dataset: map-style; every process holds all of it.
            eval_collator: the same without augmentation.
            callbacks: beside transformers' own.
        """
        if train_collator.crops_per_photo != train_dataset.crops_per_photo:
            raise ConfigError(
                f"the collator makes {train_collator.crops_per_photo} crops of a photo and the stream counts "
                f"{train_dataset.crops_per_photo}; give both the same crops_per_photo"
            )
        args.fit_to(train_dataset.num_photos)
        if eval_dataset is None and (args.load_best_model_at_end or args.eval_strategy != IntervalStrategy.NO):
            logger.warning("there are no validation photos: nothing is judged in training, and the last model is kept")
            args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
        super().__init__(
            model=model,
            args=args,
            data_collator=train_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=list(callbacks),
        )
        self.accelerator.ddp_handler.gradient_as_bucket_view = True  # DDP holds every gradient once instead of twice
        if self.is_fsdp_enabled:
            set_up_sharding(self.accelerator.state.fsdp_plugin, args)
        # an evaluation in batches of another size than training's would get a graph for any size, which is slower
        self.accelerator.state.dynamo_plugin.dynamic = False
        self.stream = train_dataset
        # a copy has no part in the memory of training batches
        self.train_collator, self.eval_collator = train_collator, eval_collator or copy.copy(train_collator)
        self.progress = StreamProgress(args, self.accelerator, stream=train_dataset)
        self.stopping = StopOnSignal(self.progress)
        self.add_callback(self.stopping)  # before `progress`, which looks at all losses where a checkpoint is due
        self.add_callback(self.progress)
        if args.ema_decay is not None:
            self.average = WeightAverage(model, decay=args.ema_decay, warmup_power=args.ema_warmup_power)
            self.add_callback(self.average)

    # ---- training

    @explains_memory
    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the beginning or from where a checkpoint was saved.

        Args:
            resume_from_checkpoint: see `find_checkpoint`; a run resumed with unchanged processes, batch size, seed and
                shuffle_buffer sees the photos that the unbroken run would have seen; see `StreamProgress.resume` for
                what may change. Learning rate, schedule and weight decay are those of `args`, not of the checkpoint.

        Raises:
            ConfigError: the checkpoint does not fit this run.
            DeviceMemoryError: a step does not fit into the memory of the device.
            NonFiniteLossError: the loss or its gradient is no number.
            RunStoppedError: SIGTERM or SIGINT came; a checkpoint is saved.
            TooManyDamagedPhotosError: more than `args.max_bad_fraction` of the photos cannot be decoded.
        """
        self.is_in_train = False  # of a run that this trainer has made before, and that was stopped
        checkpoint = self.choose_checkpoint(resume_from_checkpoint)
        self.progress.resume(checkpoint)
        start_trackers(self, checkpoint)
        if checkpoint is not None:
            refuse_other_sharding(checkpoint, is_sharded=self.is_fsdp_enabled)
            state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))
            self._keep_epochs(checkpoint, state.global_step)
            if state.global_step >= self.args.max_steps:  # transformers would train one step more
                self._take_over(checkpoint, state)
                return TrainOutput(state.global_step, math.nan, {})
            self.accelerator.print(f"Going on from {checkpoint}.")
        if self.average is not None:
            self.average.restart()
        torch.manual_seed(self.args.seed + self.args.process_index)  # each process masks and drops on its own
        refuse_full_disk(self)
        with self.stopping.listening():
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
            self.stopping.leave_if_told(self.args, self.state, self.progress.guard.last_checkpoint)
        has_best_model = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.average is not None and not has_best_model:
            self.model.load_state_dict(self.average.state_dict())
        return output

    def _keep_epochs(self, checkpoint: str, done: int) -> None:
        """As many epochs as were asked for, also where a step has another number of photos than before."""
        seen = self.progress.num_photos_seen
        if self.args.steps_are_given or seen == done * self.args.total_batch_size:
            return
        left = self.args.num_train_epochs * self.args.num_photos - seen
        planned, self.args.max_steps = self.args.max_steps, max(done, done + round(left / self.args.total_batch_size))
        logger.warning(
            "a step has %d photos where it had %g in %s: %d steps in the place of %d make %g epochs, and the schedule "
            "goes by steps",
            *(self.args.total_batch_size, seen / max(1, done), checkpoint),
            *(self.args.max_steps, planned, self.args.num_train_epochs),
        )

    def _take_over(self, checkpoint: str, state: TrainerState) -> None:
        """Make a checkpoint that is the end of the run this trainer's own."""
        logger.warning("%s has all %d steps: nothing is left to train", checkpoint, self.args.max_steps)
        self.state = state
        self.state.is_world_process_zero, self.state.is_local_process_zero = (
            self.is_world_process_zero(),
            self.is_local_process_zero(),
        )
        self._find_best(checkpoint)
        super()._load_from_checkpoint(checkpoint)  # the model, not what training would go on with
        self.make_up_evaluation(checkpoint)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; an evaluation that the run goes on with comes first."""
        self.make_up_evaluation(self.progress.guard.last_checkpoint)
        return None if self.control.should_training_stop else super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """The stream, as it is: it knows its rank, so Accelerate must not shard it a second time."""
        self.stream.prepare = self.train_collator.prepare
        args = self.args
        size, collator = self._train_batch_size, self.train_collator
        loader = RestartingLoader(self.stream, batch_size=size, collate_fn=collator, **loader_options(args))
        loader.before_start = functools.partial(
            collator.share_memory,
            batch_size=size,
            num_workers=0 if args.dataloader_multiprocessing_context == "spawn" else args.dataloader_num_workers,
            # transformers takes the batches of a step together
            prefetch_factor=(args.dataloader_prefetch_factor or 2) + args.gradient_accumulation_steps - 1,
        )
        return loader

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch without waiting for the copy; transformers waits."""
        if isinstance(data, Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, after taking out what is no tensor of the model."""
        self.progress.count_batch({name: inputs.pop(name) for name in ("ids", "num_bad", "lane", "position")})
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._guard(loss, "loss")
        return loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """Autocast for FSDP as well, where accelerate has none of its own; see `set_up_sharding`."""
        return self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, looked at: an infinite one would only show in the loss of the next batch."""
        if grad_norm is None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.accelerator.unscale_gradients()  # transformers clips at infinity: it multiplies every gradient by 1
            grad_norm = nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of all shares that FSDP has dealt out
        if isinstance(norm, Tensor) and self.accelerator.scaler is None:  # the scaler of fp16 handles its own overflows
            self._guard(norm, "norm of the gradient")
        return norm

    def _guard(self, value: Tensor, what: str) -> None:
        ids = self.progress.ids if what == "loss" else self.progress.ids_of_step
        self.progress.guard.add(value, what=what, step=self.state.global_step + 1, ids=ids)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of `args.optim` over `build_parameter_groups`."""
        if self.optimizer is None:
            trained = cast(PreTrainedModel, self.model if model is None else model)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = build_optimizer(trained, self.args, optimizer_class, options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The schedule of `args.schedule`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.create_optimizer(), self.args, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """State comes from the checkpoint, hyperparameters from `args`; transformers takes both from the checkpoint."""
        if checkpoint is None:
            return
        optimizer, schedule = cast(Optimizer, self.optimizer), cast(LambdaLR, self.lr_scheduler)
        fresh = [dict(group) for group in optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise ConfigError(
                f"{checkpoint} was saved with other groups of parameters ({error}): resume with the weight_decay, "
                "layer_decay and decays_all_parameters of that run, or start from its weights with --init_from"
            ) from error
        set_hyperparameters(optimizer, schedule, fresh)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, running error and damaged photos to the logs of training."""
        if "loss" in logs:
            logs.update(self.progress.collect_logs())
        elif "train_runtime" in logs:  # the last one of a run
            logs["num_bad_photos"] = self.progress.count_damage()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """FLOPs of a batch by the model's own count; transformers' estimate is for language models."""
        return int((self.progress.flops_per_photo or 0) * len(inputs["pixel_values"]))

    def _before_saving(self) -> None:
        self.progress.gather()

    # ---- the weights that are saved: where there is an average, in training, not those that are trained

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A checkpoint's model is the one that was judged."""
        if self.average is not None and self.is_in_train:
            state_dict = self.average.state_dict()
        with own_class(self.model):
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """All that only a resumed run needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            save_trained_weights(self.model, output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The average is the checkpoint's model; training goes on with the weights beside it."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.restart()
        load_trained_weights(self.model, resume_from_checkpoint)
