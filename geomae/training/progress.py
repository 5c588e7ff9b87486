"""What a run says about itself: photos seen, speed, running error, damaged photos; and where its stream continues."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from geomae.data.stream import PhotoStream, StreamPlace, lanes_per_rank
from geomae.errors import ConfigError, SourceError
from geomae.training.arguments import GeoMAETrainingArguments
from geomae.training.run_folder import STATE_FILE
from geomae.training.safeguards import DamageCounter, LossGuard
from geomae.training.throughput import ThroughputMeter, find_peak_flops

__all__ = ["StreamProgress"]

logger = logging.getLogger(__name__)

ORDER_DEPENDS_ON = ("seed", "photos", "num_photos", "shuffle_buffer")


class StreamProgress(TrainerCallback, ExportableState):
    """Follows a run over a stream; the trainer hands it every batch, loss and error, and asks it for the logs.

    Nothing here makes the host wait for the device between two logs.
    """

    def __init__(self, args: GeoMAETrainingArguments, accelerator: Accelerator, *, stream: PhotoStream) -> None:
        self.args = args
        self.accelerator = accelerator
        self.stream = stream
        self.num_batches_done = 0
        """Batches of this process since the stream's beginning, counted as the stream counts them now."""
        self.num_photos_seen = 0
        """Photos that went into batches, over all processes and all sessions of the run."""
        self.guard = LossGuard(args.output_dir, args.process_index)
        self.damage = DamageCounter(args.max_bad_fraction, args.num_photos, args.world_size)
        self.meter = ThroughputMeter()
        self.num_bad_photos = 0
        """Damaged photos over all processes and all sessions of the run, as of the last log or save."""
        self.ids: Sequence[str] = ()
        """Photos of this process's latest batch."""
        self.ids_of_step: list[str] = []
        """Photos of this process's batches since the last step: of several, where gradients are accumulated."""
        self.peak_flops: float | None = None
        self.peak_source = ""
        self.flops_per_photo: float | None = None
        self.lane_positions: tuple[int, ...] = ()
        """Rows of the stream that each lane of all processes has behind it, as of the last save."""
        self.owes_evaluation = False
        """Whether a signal has ended the run before the latest step was judged, which was to be."""
        self._own_positions: dict[int, int] = {}
        self._num_bad_before, self._num_seen_before = 0, 0
        self._error_km: Tensor | None = None
        self._num_errors = 0
        self.num_steps = 0
        """Of this session."""

    # ---- what the trainer reports

    def count_batch(self, batch: Mapping[str, Any]) -> None:
        """A batch has arrived: its `ids`, `num_bad`, `lane` and `position`.

        Raises:
            TooManyDamagedPhotosError: this process alone has met too many damaged photos.
        """
        self.ids = batch["ids"]
        self.ids_of_step = [*self.ids_of_step, *self.ids]
        self.num_batches_done += 1
        self.num_photos_seen += self.args.per_device_train_batch_size * self.args.world_size
        self._own_positions[batch["lane"]] = batch["position"]
        self.damage.count(len(self.ids) // self.stream.crops_per_photo, int(batch["num_bad"]))

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
        sums = torch.stack([error_km.float(), torch.tensor(float(self._num_errors), device=device)])
        total_km, num_errors = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._error_km, self._num_errors = None, 0
        if num_errors:
            logs["great_circle_km"] = total_km / num_errors
        logs["num_bad_photos"] = self.count_damage()
        photos_per_second = self.meter.take()
        if photos_per_second is not None:
            logs["photos_per_second"] = photos_per_second
            if self.flops_per_photo and self.peak_flops:
                logs["mfu"] = photos_per_second * self.flops_per_photo / (self.peak_flops * self.args.world_size)
        return logs

    def count_damage(self) -> int:
        """Damaged photos of all processes and sessions; every process must call it at the same step.

        Raises:
            TooManyDamagedPhotosError: more than `max_bad_fraction` were damaged.
        """
        own = torch.tensor([self.damage.num_bad, self.damage.num_seen], device=self.accelerator.device)
        num_bad, num_seen = (int(number) for number in self.accelerator.reduce(own, reduction="sum").tolist())
        self.num_bad_photos = self._num_bad_before + num_bad
        self.damage.check(self.num_bad_photos, self._num_seen_before + num_seen)
        return self.num_bad_photos

    def gather(self) -> None:
        """Bring together what a checkpoint says, which one process writes; every process must call it before."""
        self.count_damage()
        count = lanes_per_rank(self.stream.place, self.args.world_size, max(1, self.args.dataloader_num_workers))
        first = self.args.process_index * count
        own = torch.tensor([self._own_positions.get(lane, 0) for lane in range(first, first + count)])
        gathered = self.accelerator.gather(own.to(self.accelerator.device))
        self.lane_positions = tuple(int(position) for position in gathered.tolist())

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
        self.num_steps = 0
        self.meter.restart()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; look at every pending loss before anything is logged, judged or saved."""
        self.ids_of_step = []
        state.epoch = self.num_photos_seen / self.args.num_photos
        self.num_steps += 1
        if self.num_steps == 1 and not control.should_log:
            self.meter.restart()  # the first step starts the readers and compiles
        else:
            self.meter.count(self.args.total_batch_size)
        if control.should_log or control.should_evaluate or control.should_save:
            self.guard.check(wait=True)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say at the end what was left out; the trainer's last log has counted it."""
        if state.is_world_process_zero and self.num_bad_photos:
            logger.warning(
                "%d photos could not be decoded and were left out, %d went into batches; the log names each",
                self.num_bad_photos,
                self.num_photos_seen,
            )

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the evaluation out of the speed."""
        self.meter.restart()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the saving out of the speed, and remember where to go back to."""
        self.guard.last_checkpoint = str(Path(self.args.output_dir) / f"checkpoint-{state.global_step}")
        self.meter.restart()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: all that the order of the photos depends on, the place in it, the damage so far."""
        counts = ("num_batches_done", "num_photos_seen", "num_bad_photos")
        place = {"lane_positions": list(self.lane_positions)} | {name: getattr(self, name) for name in counts}
        return {"args": {}, "attributes": self.describe_order() | place | {"owes_evaluation": self.owes_evaluation}}

    def resume(self, checkpoint: str | None) -> None:
        """Take over a checkpoint's counts, and tell the stream the place that it was saved at.

        The lanes of the run stay as they are where processes, workers or batch size have changed, and each goes on
        where it was: no photo comes twice. Where seed, buffer or data have changed, or the lanes cannot be dealt to
        the processes, the order is another one: every lane goes on after as many photos as were seen, and the log says
        that some of them may come again.

        Raises:
            ConfigError: the checkpoint's state cannot be read, says nothing of the stream, or does not fit the workers.
        """
        self.guard.last_checkpoint = checkpoint
        self._num_bad_before, self._num_seen_before, self.num_batches_done, self.num_photos_seen = 0, 0, 0, 0
        self.stream.place, self._own_positions, self.ids_of_step = None, {}, []
        self.damage.num_bad, self.damage.num_seen, self.owes_evaluation = 0, 0, False
        if checkpoint is not None:
            saved = _read_saved(checkpoint)
            self.owes_evaluation = saved.get("owes_evaluation") is True
            self.stream.place = self._find_place(saved, checkpoint)
            self._num_bad_before = self.num_bad_photos = int(saved.get("num_bad_photos", 0))
            self._num_seen_before = self._num_bad_before + self.num_photos_seen // self.stream.crops_per_photo
            self._own_positions = dict(enumerate(self.stream.place.positions))

    def describe_order(self) -> dict[str, int | str]:
        """Everything that the order of a stream's photos is a function of, by the user's names."""
        return {
            "seed": self.args.stream_seed,
            "photos": self.stream.photos.fingerprint,
            "num_processes": self.args.world_size,
            "batch_size": self.args.per_device_train_batch_size,
            "num_workers": self.args.dataloader_num_workers,
            "num_photos": self.args.num_photos,
            "shuffle_buffer": self.stream.window_samples,
        }

    def describe_photo_order(self) -> dict[str, int | str]:
        """What `run.json` keeps: `describe_order`, the lanes, and a digest.

        Where the digest is the same, every lane has the same photos in the same order, and so has a run of one process
        and one lane as a whole. Lanes are processes x workers, of the start where a run is resumed.
        """
        order, place = self.describe_order(), self.stream.place
        lanes_now = self.args.world_size * max(1, self.args.dataloader_num_workers)
        order["num_lanes"] = len(place.positions) if place is not None else lanes_now
        decisive = [f"{name}={order[name]}" for name in (*ORDER_DEPENDS_ON, "num_lanes")]
        return order | {"digest": hashlib.sha256("\n".join(decisive).encode()).hexdigest()}

    def _find_place(self, saved: dict[str, Any], checkpoint: str) -> StreamPlace:
        if not saved.get("lane_positions"):
            raise ConfigError(
                f"{checkpoint} does not say how far its run was in the photos: another trainer or an older version "
                "of this one wrote it. Start from its weights with --init_from instead"
            )
        self.num_batches_done, self.num_photos_seen = int(saved["num_batches_done"]), int(saved["num_photos_seen"])
        place = StreamPlace(self.num_batches_done, tuple(int(position) for position in saved["lane_positions"]))
        present = self.describe_order()
        changed = [name for name in ORDER_DEPENDS_ON if saved.get(name) != present[name]]
        if len(place.positions) % self.args.world_size:
            changed.append("num_processes")
        if changed:
            return self._start_elsewhere(saved, checkpoint, changed)
        try:
            lanes_per_rank(place, self.args.world_size, max(1, self.args.dataloader_num_workers))
        except SourceError as error:
            raise ConfigError(f"{checkpoint} cannot be resumed so: {error}") from error
        return place

    def _start_elsewhere(self, saved: dict[str, Any], checkpoint: str, changed: Sequence[str]) -> StreamPlace:
        present = self.describe_order()
        logger.warning(
            "the order of the photos changes with %s: going on after as many photos as %s has seen, some of which may "
            "come again within this epoch",
            ", ".join(f"{name} {saved.get(name)} -> {present[name]}" for name in changed),
            checkpoint,
        )
        num_lanes = self.args.world_size * max(1, self.args.dataloader_num_workers)
        num_rows = self.num_photos_seen // self.stream.crops_per_photo + int(saved.get("num_bad_photos", 0))
        photos_per_lane = num_rows // num_lanes
        return StreamPlace(self.num_batches_done, (photos_per_lane,) * num_lanes)


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
