"""What a signal does to a run: it ends the step, saves, and says how to go on."""

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from geomae.errors import RunStoppedError
from geomae.training.progress import StreamProgress

__all__ = ["EvaluationLeft", "StopOnSignal", "drop_what_nobody_reads", "outlive_signals"]

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SECONDS_OF_ONE_SIGNAL = 1.0  # a terminal sends Ctrl-C to all processes, and torchrun sends it to its own once more
SECONDS_OF_THE_READER = 0.2  # Ctrl-C ends `tee` of `| tee log` as well, a moment later
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that comes when the parent dies
STEPS_ON_ITS_WAY = 2  # on a GPU: steps that the host may be ahead of the device before it looks at their answers


class EvaluationLeft(Exception):  # noqa: N818  # no error: the run saves and stops
    """A signal came in the middle of an evaluation."""


class StopOnSignal(TrainerCallback):
    """Stops a run at SIGTERM, SIGINT or SIGHUP once the step is done: all processes at the same one, with a checkpoint.

    An evaluation in training is left at its next batch, and the resumed run begins with it. A second Ctrl-C ends the
    process at once. Whether one of several processes has got a signal is asked in every step, by adding up a number on
    the device; on a GPU the answer is looked at two steps later, so that the host never waits.
    """

    def __init__(self, progress: StreamProgress) -> None:
        """Listen to signals.

        Args:
            progress: told of an evaluation that is left.
        """
        self.progress = progress
        self.received: signal.Signals | None = None
        self.is_stopping = self.can_leave_evaluation = False
        self._received_at = 0.0
        self._answers: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals mean this meanwhile; only the main thread of a process can listen."""
        self.received, self.is_stopping = None, False
        self._answers.clear()
        heard: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            stop_with_the_launcher()
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup does
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
            again = " again" if number == signal.SIGINT else ""
            text = f"{self.received.name}: this step ends, then a checkpoint is saved; Ctrl-C{again} stops at once"
        elif number == signal.SIGINT and now - self._received_at > SECONDS_OF_ONE_SIGNAL:
            text = "stopped at once; --resume_from_checkpoint true goes on from the last checkpoint"
        else:
            return
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())  # print is not reentrant
        if text.startswith("stopped"):
            os._exit(128 + number)
        time.sleep(SECONDS_OF_THE_READER)
        drop_what_nobody_reads()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where any process was told to."""
        if self._is_any_told(args):
            self.is_stopping = control.should_save = control.should_training_stop = True
            self.progress.owes_evaluation = control.should_evaluate
            control.should_evaluate = False  # it may take longer than whoever sent the signal waits

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the evaluation of a step where any process was told to stop.

        Raises:
            EvaluationLeft: from all processes at the same batch.
        """
        if self.can_leave_evaluation and self._is_any_told(args):
            self.is_stopping = self.progress.owes_evaluation = True
            raise EvaluationLeft

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave once the checkpoint is there.

        Raises:
            RunStoppedError: the run was told to stop.
        """
        if self.is_stopping:
            self.leave(state, f"{args.output_dir}/checkpoint-{state.global_step}")

    def leave(self, state: TrainerState, checkpoint: str | None) -> NoReturn:
        """Stop the run, whose steps up to now are in a checkpoint.

        Raises:
            RunStoppedError: in any case.
        """
        number = self.received or signal.SIGTERM
        when = "before the first step; nothing is saved"
        if checkpoint is not None:
            when = (
                f"after step {state.global_step} of {state.max_steps}; {checkpoint} is saved. The same command with "
                "--resume_from_checkpoint true goes on from it"
            )
        raise RunStoppedError(f"stopped by {number.name} {when}", exit_code=128 + number)

    def leave_if_told(self, args: Any, state: TrainerState, checkpoint: str | None) -> None:
        """Where a signal came after the last step was looked at; every process must call it.

        Raises:
            RunStoppedError: the run was told to stop, and the last step is in a checkpoint.
        """
        if not self._is_any_told(args, wait=True):
            return
        if checkpoint is not None and Path(checkpoint).name == f"checkpoint-{state.global_step}":
            self.leave(state, checkpoint)
        logger.warning("all steps are done, and no checkpoint has the last one: the run ends once its model is saved")

    def _is_any_told(self, args: Any, *, wait: bool = False) -> bool:
        if args.world_size == 1:
            return self.received is not None
        told = torch.tensor(float(self.received is not None), device=args.device)
        torch.distributed.all_reduce(told)
        if wait or told.device.type != "cuda":
            return bool(told)
        on_host = torch.empty((), pin_memory=True)
        on_host.copy_(told, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._answers.append((on_host, arrived))
        if len(self._answers) <= STEPS_ON_ITS_WAY:
            return False
        answer, event = self._answers.popleft()
        event.synchronize()
        return bool(answer)


def stop_with_the_launcher() -> None:
    """`accelerate launch` of one process dies of SIGTERM without passing it on: Linux then sends it to this process."""
    with contextlib.suppress(OSError):  # no /proc: not Linux
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
        if any(b"accelerate" in word for word in words[:4]):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def drop_what_nobody_reads() -> None:
    """Where the other end of stdout or stderr is gone, prints go nowhere: a `BrokenPipeError` would end the run."""
    for opened in (1, 2) if hasattr(select, "poll") else ():  # not on Windows
        with contextlib.suppress(OSError):
            waiting = select.poll()
            waiting.register(opened, 0)  # errors are always told
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, opened)
                os.close(nowhere)


def outlive_signals(worker: int) -> None:
    """In a process that reads photos: its parent decides when it ends, for which a signal to all leaves it a minute."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP of nohup
            signal.signal(number, lambda *_: signal.alarm(60))
