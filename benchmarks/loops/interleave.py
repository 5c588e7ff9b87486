"""The bare loop and a live Trainer take turns in one process, each on its own copy of the model; parts are timed."""

import multiprocessing
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from geomae.training import StreamingTrainer, build_parameter_groups

__all__ = ["Alternation", "BareLoop", "Parts", "Round"]

# What Trainer does by name, and what of it: (owner within the trainer, method, part).
WATCHED = (
    ("", "get_batch_samples", "next batch"),
    ("", "_prepare_inputs", "transfer"),
    ("", "compute_loss", "forward"),
    ("accelerator", "backward", "backward"),
    ("accelerator", "clip_grad_norm_", "gradient norm, clipping"),
    ("", "_get_grad_norm", "gradient norm, clipping"),
    ("", "_guard", "guards"),
    ("", "floating_point_ops", "floating_point_ops"),
    ("optimizer", "step", "optimizer"),
    ("lr_scheduler", "step", "schedule"),
    ("model_wrapped", "zero_grad", "zero_grad"),
    ("callback_handler", "call_event", "callbacks"),
    ("average", "on_step_end", "moving average"),
    ("", "_maybe_log_save_evaluate", "logging"),
)


@dataclass(frozen=True)
class Round:
    """So many steps inside Trainer, then as many of the bare loop: seconds by the clock and of this process's cores."""

    trainer_s: float
    bare_s: float
    trainer_cpu_s: float
    bare_cpu_s: float


class Parts:
    """Seconds of the host by part; a part inside another one counts alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the block's time to `part`."""
        self._inside.append(0.0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            self.seconds[part] += elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Time every call of a method from now on."""
        original = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.timing(part):
                return original(*arguments, **options)

        setattr(owner, method, timed)


class BareLoop:
    """Forward under autocast, backward, clipping, fused AdamW, zero_grad: nothing else, on batches that are ready.

    Args:
        model: on its device; compiled or not.
        batches: arguments of the model, on its device.
        max_grad_norm: 0: gradients are not looked at.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], *, max_grad_norm: float) -> None:
        self.parts = Parts()
        self._model, self._batches, self._max_grad_norm = model.train(), cycle(batches), max_grad_norm
        groups = build_parameter_groups(getattr(model, "_orig_mod", model), learning_rate=1e-4, weight_decay=0.05)
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        self._parameters = [parameter for group in groups for parameter in group["params"]]

    def step(self) -> None:
        """One step."""
        batch = next(self._batches)
        with self.parts.timing("forward"), torch.autocast(batch["pixel_values"].device.type, torch.bfloat16):
            loss = self._model(**batch).loss
        with self.parts.timing("backward"):
            loss.backward()
        if self._max_grad_norm:
            with self.parts.timing("gradient norm, clipping"):
                nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        with self.parts.timing("optimizer"):
            self._optimizer.step()
        with self.parts.timing("zero_grad"):
            self._optimizer.zero_grad()


class Alternation(TrainerCallback):
    """Lets the bare loop run after every so many steps of a Trainer; to be its last callback.

    Meanwhile the readers sleep, or they would prepare batches for Trainer in time that is not its own. The first round
    warms up and is left out.

    Args:
        trainer: the other contestant.
        bare: has a model of its own.
        steps_per_round: steps until the other one's turn. A GPU is waited for then, so there it should be many.
    """

    def __init__(self, trainer: StreamingTrainer, bare: BareLoop, *, steps_per_round: int) -> None:
        self.parts = Parts()
        self.rounds: list[Round] = []
        self._trainer, self._bare, self._steps_per_round = trainer, bare, steps_per_round
        self._num_steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Optimizer, schedule and wrapped model are there now."""
        for place, method, part in WATCHED:
            owner = getattr(self._trainer, place) if place else self._trainer
            if owner is not None:
                self.parts.watch(owner, method, part)
        self.parts.watch(self, "_give_turn", "bare loop")
        self._begin, self._begin_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Another step of Trainer is done."""
        self._num_steps += 1
        if self._num_steps % self._steps_per_round == 0:
            self._give_turn()
            self._begin, self._begin_cpu = time.perf_counter(), time.process_time()

    def _give_turn(self) -> None:
        self._wait()
        trainer = time.perf_counter() - self._begin, time.process_time() - self._begin_cpu
        with _asleep(), self._trainer.progress.meter.paused():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(self._steps_per_round):
                self._bare.step()
            self._wait()
            bare = time.perf_counter() - begin, time.process_time() - begin_cpu
        if self._num_steps == self._steps_per_round:
            self.parts.seconds.clear()
            self._bare.parts.seconds.clear()
        else:
            self.rounds.append(Round(trainer[0], bare[0], trainer[1], bare[1]))

    def _wait(self) -> None:
        if self._trainer.args.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.args.device)


@contextmanager
def _asleep() -> Iterator[None]:
    """The readers of this process do nothing meanwhile."""
    readers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    for reader in readers:
        os.kill(reader, signal.SIGSTOP)
    try:
        yield
    finally:
        for reader in readers:
            os.kill(reader, signal.SIGCONT)
