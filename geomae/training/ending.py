"""How the training scripts end: in a sentence that says what to do, and with the exit code that shells expect."""

import atexit
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence

from geomae.errors import GeoMAEError, RunStoppedError
from geomae.files import FULL_DISK
from geomae.training.reading import KILLED_READER

__all__ = ["run_to_its_end"]

ENDED_PEER = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited")
NO_MEMORY = re.compile(r"DefaultCPUAllocator|bad_alloc|out of memory")


def run_to_its_end(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; anything that a user can cause ends without a traceback."""
    atexit.register(_end_readers)  # comes before multiprocessing's own end, which waits for them
    try:
        main(sys.argv[1:])
    except RunStoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume_from_checkpoint true goes on from the last checkpoint")
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


def _end_readers() -> None:
    """An error that is not ours keeps loaders alive, and their readers outlive SIGTERM by a minute."""
    for reader in multiprocessing.active_children():
        reader.kill()
