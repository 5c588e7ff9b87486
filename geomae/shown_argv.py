"""The command line as trackers may see it: W&B records `sys.argv` with every run, tokens and home folders included."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from geomae.provenance import shown_command

__all__ = ["argv_without_secrets"]


@contextmanager
def argv_without_secrets() -> Iterator[None]:
    """Inside, the words of `sys.argv` are those that `run.json` has; for the moment in which a tracker starts."""
    words = list(sys.argv)
    sys.argv[1:] = shlex.split(shown_command(words[1:]))
    try:
        yield
    finally:
        sys.argv[:] = words
