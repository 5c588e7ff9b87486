"""Loaders of a run; the one it trains from replaces readers that are killed, and no photo is lost or comes twice."""

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from geomae.data.stream import PhotoStream, StreamPlace
from geomae.errors import GeoMAEError, ReaderKilledError
from geomae.training.arguments import GeoMAETrainingArguments
from geomae.training.stopping import outlive_signals

__all__ = ["KILLED_READER", "RestartingLoader", "loader_options"]

logger = logging.getLogger(__name__)

KILLED_READER = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)")
MAX_RESTARTS = 3


def loader_options(args: GeoMAETrainingArguments) -> dict[str, Any]:
    """What every loader of a run has in common."""
    options: dict[str, Any] = {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
        # Without its own, every new iterator draws from the global generator: a resumed run would mask otherwise.
        "generator": torch.Generator().manual_seed(args.seed),
    }
    if args.dataloader_num_workers:
        options["prefetch_factor"] = args.dataloader_prefetch_factor
        options["multiprocessing_context"] = args.dataloader_multiprocessing_context
        options["worker_init_fn"] = outlive_signals
    return options


class RestartingLoader(DataLoader[Any]):
    """A loader over a `PhotoStream` that starts its readers anew, up to three times in a run, where one was killed.

    The kernel kills readers when memory is short, or when a file shrinks that they have mapped.
    """

    before_start: Callable[[], None] = staticmethod(lambda: None)
    """What is to be done each time before readers are started."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # over several of torch's iterators
        stream = self.dataset
        assert isinstance(stream, PhotoStream)
        num_lanes = stream.world_size * max(1, self.num_workers)
        place = stream.place or StreamPlace(0, (0,) * num_lanes)
        num_batches, positions, num_killed = place.num_batches, list(place.positions), 0
        while True:
            self.before_start()
            batches = super().__iter__()
            _look_for_the_dead_when_waiting()
            try:
                for batch in batches:
                    num_batches, positions[batch["lane"]] = num_batches + 1, batch["position"]
                    yield batch
                return
            except GeoMAEError as error:
                raise type(error)(_without_traceback(error)) from None
            except RuntimeError as error:
                if not KILLED_READER.search(str(error)):
                    raise
                num_killed += 1
                reason = str(error).splitlines()[0]
                if num_killed > MAX_RESTARTS:
                    raise ReaderKilledError(_describe(num_killed, reason)) from error
            del batches  # ends the others
            logger.warning("%s: the readers are started anew, %d of %d times", reason, num_killed, MAX_RESTARTS)
            stream.place = StreamPlace(num_batches, tuple(positions))


def _without_traceback(error: GeoMAEError) -> str:
    """What a reader said; torch puts the traceback of the reader's process into the message."""
    return re.split(rf"\n(?:[\w.]+\.)?{type(error).__name__}: ", str(error))[-1].strip()


def _describe(num_killed: int, reason: str) -> str:
    return (
        f"processes that read photos were killed {num_killed} times: {reason}. Memory may be short: lower "
        "dataloader_num_workers, dataloader_prefetch_factor or shuffle_buffer; or a source is broken: `python -m "
        "geomae.data inspect` says what is wrong with it. --resume_from_checkpoint true goes on from what was saved"
    )


def _look_for_the_dead_when_waiting() -> None:
    """Torch would raise wherever the training process is when a reader dies, in the midst of a step too.

    Without that it finds out when it has waited five seconds for a batch.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
