"""What a run says about itself: photos seen, speed, running error, damaged photos; and where its stream continues."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from geomae.errors import ConfigError
from geomae.training.arguments import GeoMAETrainingArguments
from geomae.training.run_folder import STATE_FILE
from geomae.training.safeguards import DamageCounter, LossGuard
from geomae.training.throughput import ThroughputMeter, find_peak_flops

__all__ = ["StreamProgress", "find_start_batch"]

logger = logging.getLogger(__name__)

ORDER_DEPENDS_ON = ("seed", "num_processes", "batch_size", "num_workers", "num_photos")


class StreamProgress(TrainerCallback, ExportableState):
    """Follows a run over a stream; the trainer hands it every batch, loss and error, and asks it for the logs.

    Nothing here makes the host wait for the device between two logs.
    """

    def __init__(self, args: GeoMAETrainingArguments, accelerator: Accelerator) -> None:
        self.args = args
        self.accelerator = accelerator
        self.guard = LossGuard()
        self.damage = DamageCounter(args.max_bad_fraction, args.num_photos)
        self.meter = ThroughputMeter()
        self.num_bad_photos = 0
        """Damaged photos over all processes and all sessions of the run, as of the last log."""
        self.ids: Sequence[str] = ()
        """Photos of this process's latest batch."""
        self.peak_flops: float | None = None
        self.peak_source = ""
        self.flops_per_photo: float | None = None
        self._num_bad_before = 0
        self._error_km: Tensor | None = None
        self._num_errors = 0
        self._num_steps = 0

    # ---- what the trainer reports

    def count_batch(self, ids: Sequence[str], num_bad: int) -> None:
        """A batch has arrived; raises TooManyDamagedPhotosError above `max_bad_fraction` of this process's photos."""
        self.ids = ids
        self.damage.count(len(ids), num_bad)

    def add_errors(self, error_km: Tensor) -> None:
        """Great-circle errors `(B,)` of a training batch, on the device."""
        total = error_km.detach().float().sum()
        self._error_km = total if self._error_km is None else self._error_km + total
        self._num_errors += len(error_km)

    def collect_logs(self) -> dict[str, float]:
        """What to add to a training log; every process must call it at the same step.

        Raises:
            TooManyDamagedPhotosError: more than `max_bad_fraction` of all processes' photos were damaged.
        """
        logs: dict[str, float] = {}
        device = self.accelerator.device
        error_km = torch.zeros((), device=device) if self._error_km is None else self._error_km
        counts = (self._num_errors, self.damage.num_bad, self.damage.num_seen)
        sums = torch.stack([error_km.float(), *(torch.tensor(float(count), device=device) for count in counts)])
        total_km, num_errors, num_bad, num_seen = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._error_km, self._num_errors = None, 0
        if num_errors:
            logs["great_circle_km"] = total_km / num_errors
        self.damage.check(int(num_bad), int(num_seen))
        self.num_bad_photos = self._num_bad_before + int(num_bad)
        logs["num_bad_photos"] = self.num_bad_photos
        photos_per_second = self.meter.take()
        if photos_per_second is not None:
            logs["photos_per_second"] = photos_per_second
            if self.flops_per_photo and self.peak_flops:
                logs["mfu"] = photos_per_second * self.flops_per_photo / (self.peak_flops * self.args.world_size)
        return logs

    # ---- what transformers calls

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Find out what the device and the model can do, then start the clock."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        flops_per_photo = getattr(model, "flops_per_photo", None)
        if callable(flops_per_photo):
            self.flops_per_photo = float(flops_per_photo())
            peak = find_peak_flops(self.accelerator.device, dtype, given_tflops=self.args.peak_tflops)
            self.peak_flops, self.peak_source = peak.flops_per_second, peak.source
            if state.is_world_process_zero:
                logger.info("mfu is relative to %.4g TFLOP/s (%s)", peak.flops_per_second / 1e12, peak.source)
        self._num_steps = 0
        self.meter.restart()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; look at every pending loss before anything is logged, judged or saved."""
        state.epoch = state.global_step / self.args.steps_per_epoch
        self._num_steps += 1
        if self._num_steps == 1 and not control.should_log:
            self.meter.restart()  # the first step starts the readers and compiles
        else:
            self.meter.count(self.args.total_batch_size)
        if control.should_log or control.should_evaluate or control.should_save:
            self.guard.check(wait=True)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the evaluation out of the speed."""
        self.meter.restart()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the saving out of the speed, and remember where to go back to."""
        self.guard.last_checkpoint = str(Path(self.args.output_dir) / f"checkpoint-{state.global_step}")
        self.meter.restart()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: everything that the order of the photos depends on, and the damage so far."""
        return {"args": {}, "attributes": {**describe_order(self.args), "num_bad_photos": self.num_bad_photos}}

    def resume(self, checkpoint: str | None) -> int:
        """Take over a checkpoint's counts; returns the batches that each process has already trained on."""
        self.guard.last_checkpoint = checkpoint
        if checkpoint is None:
            self._num_bad_before = 0
            return 0
        saved = _read_saved(checkpoint)
        self._num_bad_before = int(saved.get("num_bad_photos", 0))
        return find_start_batch(checkpoint, self.args)


def describe_order(args: GeoMAETrainingArguments) -> dict[str, int]:
    """Everything that the order of a stream's photos is a function of."""
    return {
        "seed": args.stream_seed,
        "num_processes": args.world_size,
        "batch_size": args.per_device_train_batch_size,
        "num_workers": args.dataloader_num_workers,
        "num_photos": args.num_photos,
        "total_batch_size": args.total_batch_size,
    }


def find_start_batch(checkpoint: str, args: GeoMAETrainingArguments) -> int:
    """Batches that each process has already trained on, counted in the batches of the run that continues.

    Where processes, batch size, workers, seed or data have changed since, the order is another one: the stream goes on
    after as many photos as were seen, and the log says that some of them may come again in this epoch.

    Raises:
        ConfigError: the checkpoint's state cannot be read.
    """
    global_step = int(_read_state(checkpoint)["global_step"])
    saved, present = _read_saved(checkpoint), describe_order(args)
    changed = [name for name in ORDER_DEPENDS_ON if name in saved and saved[name] != present[name]]
    if not changed:
        return global_step * args.gradient_accumulation_steps
    differences = ", ".join(f"{name} {saved[name]} -> {present[name]}" for name in changed)
    logger.warning(
        "the order of the photos changes with %s: going on after as many photos as %s has seen, some of which may come "
        "again within this epoch",
        differences,
        checkpoint,
    )
    num_photos_seen = global_step * int(saved["total_batch_size"])
    return round(num_photos_seen / (args.per_device_train_batch_size * args.world_size))


def _read_state(checkpoint: str) -> dict[str, Any]:
    path = Path(checkpoint) / STATE_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): resume from another checkpoint") from error


def _read_saved(checkpoint: str) -> dict[str, Any]:
    """Our own part of a checkpoint's state; empty in a checkpoint that another trainer wrote."""
    saved = _read_state(checkpoint).get("stateful_callbacks", {}).get(StreamProgress.__name__, {})
    return dict((saved[-1] if isinstance(saved, list) else saved).get("attributes", {}))
