"""What stops a run: a loss that is no number, or too many photos that cannot be decoded."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from geomae.errors import NonFiniteLossError, TooManyDamagedPhotosError
from geomae.files import write_whole

__all__ = ["DamageCounter", "LossGuard"]

NUM_IDS_NAMED = 8


@dataclass
class _Watched:
    value: Tensor  # scalar, on the host once `arrived` has happened
    arrived: torch.cuda.Event | None
    what: str
    step: int
    ids: Sequence[str]


class LossGuard:
    """Refuses losses and gradients that are not finite, without making the host wait for the device.

    On a GPU each value is copied to pinned memory behind the step's kernels and looked at when it has arrived, a step
    or two later; `check(wait=True)` looks at all, which the trainer does before it logs, evaluates or saves.

    Args:
        folder: of the run; the ids of the photos that a bad value was computed from are left there in a file.
        process_index: stands in the file's name: each process names the photos of its own.
    """

    def __init__(self, folder: str | None = None, process_index: int = 0) -> None:
        self.folder, self.process_index = folder, process_index
        self.last_checkpoint: str | None = None
        self._pending: deque[_Watched] = deque()

    def add(self, value: Tensor, *, what: str, step: int, ids: Sequence[str]) -> None:
        """Watch a scalar.

        Args:
            value: `()` on any device.
            what: its name in the message, such as `loss`.
            step: number of the optimiser step that it belongs to, from 1.
            ids: the photos that it was computed from.

        Raises:
            NonFiniteLossError: a value watched earlier, or this one, has arrived and is not finite.
        """
        value, arrived = value.detach().float(), None
        if value.device.type == "cuda":
            on_host = torch.empty((), pin_memory=True)
            on_host.copy_(value, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            value = on_host
        self._pending.append(_Watched(value, arrived, what, step, ids))
        self.check(wait=False)

    def check(self, *, wait: bool) -> None:
        """Look at the values that have arrived, or with `wait` at all; raises as `add` does."""
        while self._pending:
            watched = self._pending[0]
            if watched.arrived is not None and not watched.arrived.query():
                if not wait:
                    return
                watched.arrived.synchronize()
            if not torch.isfinite(watched.value):
                raise NonFiniteLossError(self._describe(watched))
            self._pending.popleft()

    def _describe(self, watched: _Watched) -> str:
        named = ", ".join(watched.ids[:NUM_IDS_NAMED])
        more = f" and {len(watched.ids) - NUM_IDS_NAMED} more" if len(watched.ids) > NUM_IDS_NAMED else ""
        saved = (
            f"The last checkpoint is {self.last_checkpoint}: go on from it with --resume_from_checkpoint true"
            if self.last_checkpoint
            else "No checkpoint was saved: start again"
        )
        named += more + self._keep_ids(watched)
        return (
            f"the {watched.what} of step {watched.step} is {watched.value.item()}; the photos of this process's batch: "
            f"{named}. {saved}, with a lower learning_rate, a longer warm-up or bf16 in the place of fp16."
        )

    def _keep_ids(self, watched: _Watched) -> str:
        """Leave all ids in a file; where it is, for the message."""
        if self.folder is None:
            return ""
        path = Path(self.folder) / f"not_finite_step_{watched.step}_process_{self.process_index}.json"
        found = {"step": watched.step, "what": watched.what, "value": str(watched.value.item())}
        try:
            write_whole(path, json.dumps({**found, "ids": list(watched.ids)}, indent=2) + "\n")
        except OSError as error:
            return f" ({path} could not be written: {error.strerror})"
        return f" (all are in {path})"


class DamageCounter:
    """Counts photos that could not be decoded, and stops the run above a stated share.

    Damage comes in lumps: a broken archive's photos stand side by side. So the share is taken of at least one epoch,
    and a run never stops for damage that the whole of its photos would forgive.

    Args:
        max_bad_fraction: the share.
        num_photos: photos of one epoch over all processes.
        num_processes: that read about as many photos as this one.
    """

    def __init__(self, max_bad_fraction: float, num_photos: int, num_processes: int = 1) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.num_seen = 0
        self.num_bad = 0
        self._num_photos, self._num_processes = num_photos, num_processes

    def count(self, num_good: int, num_bad: int) -> None:
        """Add a batch of this process; raises as `check` does, where its damage alone is too much for all."""
        self.num_seen += num_good + num_bad
        self.num_bad += num_bad
        self.check(self.num_bad, self.num_seen * self._num_processes)

    def check(self, num_bad: int, num_seen: int) -> None:
        """Compare counts of all processes with the allowed share.

        Raises:
            TooManyDamagedPhotosError: more than `max_bad_fraction` of the photos were damaged.
        """
        if num_bad > self.max_bad_fraction * max(num_seen, self._num_photos):
            raise TooManyDamagedPhotosError(
                f"{num_bad} of {num_seen} photos so far could not be decoded, more than the share "
                f"{self.max_bad_fraction:g} of an epoch's {self._num_photos} photos that max_bad_fraction allows. The "
                "log names them: pack the data again, or raise --max_bad_fraction."
            )
