"""How the training scripts end: in a sentence that says what to do, and with the exit code that shells expect."""

import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from geomae.errors import GeoMAEError, RunStoppedError
from geomae.files import FULL_DISK
from geomae.training.reading import KILLED_READER
from geomae.training.stopping import SIGNALS, drop_what_nobody_reads

__all__ = ["run_to_its_end"]

ENDED_PEER = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited")
STOPPED = (
    "stopped. What was saved is kept: the same command with --resume_from_checkpoint last goes on from the last "
    "checkpoint, and begins anew where there is none"
)
NO_MEMORY = re.compile(r"DefaultCPUAllocator|bad_alloc|out of memory")


def run_to_its_end(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; anything that a user can cause ends without a traceback."""
    atexit.register(_end_readers)  # comes before multiprocessing's own end, which waits for them
    heard = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # Ctrl-C is Python's own
    for number in heard:
        signal.signal(number, _stop)
    try:
        _explain(main)
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _explain(main: Callable[[Sequence[str]], None]) -> None:
    try:
        main(sys.argv[1:])
    except RunStoppedError as stop:
        drop_what_nobody_reads()  # behind `| tee log`, which Ctrl-C ends too
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        drop_what_nobody_reads()
        print(f"\n{STOPPED}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"{error.strerror}{where}: free space, then go on with --resume_from_checkpoint true")
    except MemoryError:  # of Python and NumPy, in this process or in one that reads photos
        sys.exit(
            "memory ran out: lower dataloader_num_workers, dataloader_prefetch_factor or shuffle_buffer; "
            "--resume_from_checkpoint last goes on from what was saved"
        )
    except RuntimeError as error:
        if NO_MEMORY.search(str(error)):  # before the first step; what comes later is explained where it happens
            sys.exit(f"the model does not fit into memory: {str(error).splitlines()[0]}. Lower its sizes")
        if KILLED_READER.search(str(error)):
            sys.exit(f"a process that reads photos was killed: {error}. Lower dataloader_num_workers")
        if ENDED_PEER.search(str(error)):
            sys.exit("another process of this run has ended; its own message says why")
        raise


def _stop(number: int, frame: FrameType | None) -> None:
    """At a signal before the first step or after the last: between them `StopOnSignal` listens, and saves."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"\n{signal.Signals(number).name}: {STOPPED}\n".encode())
    _end_readers()
    os._exit(128 + number)


def _end_readers() -> None:
    """An error that is not ours keeps loaders alive, and their readers outlive SIGTERM by a minute."""
    for reader in multiprocessing.active_children():
        reader.kill()
