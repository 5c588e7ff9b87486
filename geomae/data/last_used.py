"""Things that are costly to open and few of which may be open: what was used last stays."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["LastUsed"]

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")


class LastUsed(Generic[Key, Thing]):
    """Keeps so many things open as may be, and closes the one that was not used for longest.

    Args:
        most: open at once.
        close: closes a thing.
    """

    def __init__(self, most: int, close: Callable[[Thing], object]) -> None:
        self._most, self._close = most, close
        self._open: OrderedDict[Key, Thing] = OrderedDict()

    def get(self, key: Key, open_it: Callable[[], Thing]) -> Thing:
        """The thing of a key, opened where it is not."""
        if key in self._open:
            self._open.move_to_end(key)
        else:
            if len(self._open) >= self._most:
                self._close(self._open.popitem(last=False)[1])
            self._open[key] = open_it()
        return self._open[key]

    def close(self) -> None:
        """Close all; it can be used again."""
        while self._open:
            self._close(self._open.popitem()[1])
