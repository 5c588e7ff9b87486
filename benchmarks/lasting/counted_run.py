"""A script of ours as it is, but that it says at which step it is and ends after some time.

    python benchmarks/lasting/counted_run.py FILE SECONDS run_pretrain_mae.py CONFIG --key value ...

FILE gets the number of the last finished step, eight bytes, little-endian.
"""

import mmap
import runpy
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import transformers.trainer
from transformers import TrainerCallback

NUM_BYTES = 8


class StepCounter(TrainerCallback):
    """Writes the step, and stops the training when its time is over."""

    file: Path
    seconds: float

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The time begins."""
        with self.file.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), NUM_BYTES)
        self._ends = time.monotonic() + self.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say so."""
        self._memory[:] = state.global_step.to_bytes(NUM_BYTES, "little")
        if time.monotonic() >= self._ends:
            control.should_training_stop = True


if __name__ == "__main__":
    StepCounter.file, StepCounter.seconds = Path(sys.argv[1]), float(sys.argv[2])
    transformers.trainer.DEFAULT_CALLBACKS.append(StepCounter)
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
