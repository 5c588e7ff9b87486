"""What `--profile` writes: a trace of a few steps by torch's profiler, and where their time went."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState

from geomae.files import write_whole
from geomae.provenance import find_commit, find_versions
from geomae.reporting.step_profile import summarise_trace
from geomae.training.streaming import StreamingTrainer

__all__ = ["StepProfiler"]

logger = logging.getLogger(__name__)

NUM_SKIPPED = 5  # the readers start, kernels are chosen, and what is compiled is compiled by the second step
NUM_WARM_UP = 1  # the profiler starts its own readers, and drops what it sees
NUM_RECORDED = 3
FOLDER = "profile"


class StepProfiler(TrainerCallback):
    """Records three steps of the main process in `profile/` of the run, once compilation and warm-up are over.

    `trace_steps_A_to_B.json.gz` is for https://ui.perfetto.dev, `profile.json` says where the time went. A step has no
    evaluation, no checkpoint and no reconstructions in it: where they come, recording begins again behind them. What is
    recorded is slower, so the speed in the logs leaves it out.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: StreamingTrainer) -> None:
        self.trainer = trainer
        self._profile: profile | None = None
        self._is_over = False
        self._num_steps = 0
        self._num_profiled = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Only the main process records; a run that is too short says so at once."""
        num_needed = NUM_SKIPPED + NUM_WARM_UP + NUM_RECORDED
        self._num_steps, self._is_over = 0, not state.is_world_process_zero
        if not self._is_over and state.max_steps - state.global_step < num_needed:
            self._is_over = True
            logger.warning(
                "profile: true records nothing: %d steps are left, and it needs %d, of which the last %d are recorded",
                *(state.max_steps - state.global_step, num_needed, NUM_RECORDED),
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin, go on, or write what was recorded."""
        if self._is_over:
            return
        self._num_steps += 1
        draws = bool(args.reconstruction_steps) and state.global_step % args.reconstruction_steps == 0
        is_interrupted = control.should_evaluate or control.should_save or draws
        if self._profile is not None:
            self._num_profiled += 1
            self._profile.step()
            if self._num_profiled == NUM_WARM_UP + NUM_RECORDED and not draws:  # the others follow the step
                self._write(state)
            elif is_interrupted:
                self._stop()
            self.trainer.progress.meter.restart()
        elif self._num_steps >= NUM_SKIPPED and not is_interrupted:
            self._num_profiled = 0
            self._profile = profile(schedule=schedule(wait=0, warmup=NUM_WARM_UP, active=NUM_RECORDED, repeat=1))
            self._profile.start()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say where nothing was recorded after all."""
        self._stop()
        if not self._is_over:
            logger.warning(
                "profile: true has recorded nothing: evaluations, checkpoints, reconstructions or the end of the run "
                "came before %d steps in a row. Raise eval_steps, save_steps, reconstruction_steps or max_steps",
                NUM_WARM_UP + NUM_RECORDED,
            )

    def _stop(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, state: TrainerState) -> None:
        assert self._profile is not None
        first, last = state.global_step - NUM_RECORDED + 1, state.global_step
        folder = Path(self.trainer.args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / f"trace_steps_{first}_to_{last}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        self._stop()
        self._is_over = True
        record = {**self._describe(), "steps": [first, last], "trace": trace.name, **summarise_trace(trace)}
        write_whole(folder / "profile.json", json.dumps(record, indent=2) + "\n")
        print(
            f"Steps {first} to {last} are recorded in {trace}, for https://ui.perfetto.dev. A picture: "
            f"python -m geomae.reporting profile {folder / 'profile.json'} --output_file {folder / 'profile.png'}"
        )

    def _describe(self) -> dict[str, Any]:
        """What was recorded, and on what."""
        args, device = self.trainer.args, self.trainer.args.device
        is_gpu = device.type == "cuda"
        return {
            "model": type(self.trainer.model).__name__,
            "batch_size": args.per_device_train_batch_size,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "torch_compile": bool(args.torch_compile),
            "device": torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} thread(s)",
            "commit": find_commit(),
            "versions": find_versions(("accelerate", "torch", "timm", "transformers")),
        }
