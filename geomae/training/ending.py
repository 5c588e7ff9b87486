"""How the training scripts end: in a sentence that says what to do, and with the exit code that shells expect."""

import errno
import re
import sys
from collections.abc import Callable, Sequence

from geomae.errors import GeoMAEError, RunStoppedError
from geomae.training.reading import KILLED_READER

__all__ = ["run_to_its_end"]

ENDED_PEER = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_to_its_end(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the command line; anything that a user can cause ends without a traceback."""
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
    except RuntimeError as error:
        if KILLED_READER.search(str(error)):
            sys.exit(f"a process that reads photos was killed: {error}. Lower dataloader_num_workers")
        if ENDED_PEER.search(str(error)):
            sys.exit("another process of this run has ended; its own message says why")
        raise
