"""Photos that are left out: named, counted by reason, and too many of them refused."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from geomae.errors import TooManyDamagedPhotosError

__all__ = ["MAX_BAD_LISTED", "BadPhoto", "BadTally"]

MAX_BAD_LISTED = 1000  # photos listed by name; all of them are counted


@dataclass(frozen=True)
class BadPhoto:
    """A photo that was left out, and why."""

    file: str
    reason: str


@dataclass
class BadTally:
    """Photos left out: how many for each kind of reason, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[BadPhoto] = field(default_factory=list)

    def __len__(self) -> int:
        return self.counts.total()

    def __add__(self, other: "BadTally") -> "BadTally":
        """Both together; the other's photos are listed first."""
        return BadTally(self.counts + other.counts, [*other.listed, *self.listed][:MAX_BAD_LISTED])

    def add(self, file: str, reason: str, *, kind: str | None = None) -> None:
        """Count one; `kind` is the reason without what is particular to this photo."""
        self.counts[kind or reason] += 1
        if len(self.listed) < MAX_BAD_LISTED:
            self.listed.append(BadPhoto(file, reason))

    def add_all(self, files: Sequence[str], reason: str) -> None:
        """Count many that share a reason."""
        if len(files):
            self.counts[reason] += len(files)
            self.listed += [BadPhoto(file, reason) for file in files[: MAX_BAD_LISTED - len(self.listed)]]

    def describe(self) -> str:
        """The counts in words, the largest first."""
        return "; ".join(f"{count:,} x {kind}" for kind, count in self.counts.most_common())

    def refuse_above(self, max_bad_fraction: float, num_photos: int, source: str) -> None:
        """Stop where too many photos are left out.

        Args:
            max_bad_fraction: the allowed share.
            num_photos: of the source, those left out included.
            source: what they came from, for the message.

        Raises:
            TooManyDamagedPhotosError: the share is larger.
        """
        if len(self) > max_bad_fraction * num_photos:
            first = self.listed[0]
            raise TooManyDamagedPhotosError(
                f"{len(self)} of {num_photos} photos of {source} cannot be used, more than the allowed share "
                f"{max_bad_fraction:g}; the first is {first.file or '(no name)'}: {first.reason}. In all: "
                f"{self.describe()}. Mend the source, or allow more with --max_bad_fraction."
            )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"counts": dict(self.counts), "listed": [[photo.file, photo.reason] for photo in self.listed]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "BadTally":
        """The tally that `to_json` wrote."""
        return cls(Counter(record["counts"]), [BadPhoto(file, reason) for file, reason in record["listed"]])

    @classmethod
    def of(cls, photos: Iterable[BadPhoto]) -> "BadTally":
        """A tally of photos already named."""
        tally = cls()
        for photo in photos:
            tally.add(photo.file, photo.reason)
        return tally
