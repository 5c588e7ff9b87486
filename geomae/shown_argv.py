"""The command line as trackers may see it: W&B records `sys.argv` with every run, tokens and home folders included."""

import shlex
import sys

from geomae.provenance import shown_command

__all__ = ["hide_secrets_in_argv"]


def hide_secrets_in_argv() -> None:
    """Make the words of `sys.argv` those that `run.json` has; call it once they are read, before trackers start."""
    sys.argv[1:] = shlex.split(shown_command(sys.argv[1:]))
