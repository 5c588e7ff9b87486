"""The parser of every command: options in full, and an unknown one is refused with the nearest that is known."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["CommandParser", "advise"]


class CommandParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that refuses unknown options as the configurations of trainings refuse unknown keys.

    A subcommand of it answers with its own usage, and before it complains of what is missing: `--ouput_dir` is the
    reason why `--output_dir` is.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]  # its overloads
        """As `argparse` does it, but nothing is left unknown."""
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:
            self._refuse_unknown(words)
        known, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self._refuse_unknown(unknown)
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        for word in words:
            if word == "--":  # all that follows are no options
                return
            option = word.partition("=")[0]
            if word.startswith("--") and " " not in option and option not in self._option_string_actions:
                self._refuse(option)

    def _refuse(self, option: str) -> NoReturn:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        self.error(f"unknown option {option}; {advise(option, known)}")


def advise(name: str, known: Sequence[str], *, dashes: str = "") -> str:
    """What to say of an unknown name: the nearest of those that are known, with `dashes` in front, if one is near."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {dashes}{nearest[0]}?" if nearest else "--help lists the known ones"
