"""Photos that are left out: named, counted by reason, and too many of them refused."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from geomae.data.filesystems import FileEntry, bytes_of
from geomae.errors import TooManyDamagedPhotosError

__all__ = ["MAX_BAD_LISTED", "BadPhoto", "BadTally", "BrokenArchive", "count_broken"]

MAX_BAD_LISTED = 1000  # photos listed by name; all of them are counted

_NUMBERS = re.compile(r"\d[\d,.]*\d")


@dataclass(frozen=True)
class BadPhoto:
    """A photo that was left out, and why."""

    file: str
    reason: str
    may_pass: bool = False  # its file or its server could not be read, which may be otherwise another time

    def to_json(self) -> dict[str, str]:
        """What manifests list."""
        return {"file": self.file, "reason": self.reason}


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

    def add(self, file: str, reason: str, *, kind: str | None = None, count: int = 1) -> None:
        """Count one, or what stands for several.

        Args:
            file: its name.
            reason: why.
            kind: the reason without what is particular to this photo; by default what stands before a colon, and `N`
                for each number.
            count: photos that are lost with it.
        """
        self.counts[kind or _NUMBERS.sub("N", reason.partition(": ")[0])] += count
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

    def refuse_above(
        self, max_bad_fraction: float, num_photos: int, source: str, *, option: str = "max_bad_fraction"
    ) -> None:
        """Stop where too many photos are left out.

        Args:
            max_bad_fraction: the allowed share.
            num_photos: of the source, those left out included.
            source: what they came from, for the message.
            option: what allows more.

        Raises:
            TooManyDamagedPhotosError: the share is larger.
        """
        if len(self) > max_bad_fraction * num_photos:
            first = self.listed[0]
            raise TooManyDamagedPhotosError(
                f"{len(self)} of {num_photos} photos cannot be used ({source}), more than the allowed share "
                f"{max_bad_fraction:g}; the first is {first.file or '(no name)'}: {first.reason}. In all: "
                f"{self.describe()}. Mend the source, or allow more with --{option}."
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


@dataclass(frozen=True)
class BrokenArchive:
    """An archive that cannot be read to its end."""

    name: str
    problem: str
    lost_bytes: int  # -1 where nobody knows


def count_broken(
    broken: Sequence[BrokenArchive], num_photos: Mapping[str, int], archives: Sequence[FileEntry], bad: BadTally
) -> None:
    """Count the photos that broken archives have lost, about.

    That is what their unreadable bytes would hold at the source's mean; where an archive was cut off, which does not
    say how long it was, what it lacks to the median of the whole ones.

    Args:
        broken: the archives.
        num_photos: found in each archive of the source; empty where a table names those that are lost: each broken
            archive counts once then.
        archives: all of the source.
        bad: counts them, each archive at least once.
    """
    if not broken:
        return
    num_read = sum(map(bytes_of, archives)) - sum(max(0, archive.lost_bytes) for archive in broken)
    names = {archive.name for archive in broken}
    whole = [number for name, number in num_photos.items() if name not in names]
    usual = median(whole) if whole else 0
    for archive in broken:
        if archive.lost_bytes < 0:
            lost = round(usual) - num_photos.get(archive.name, 0)
        else:
            lost = round(archive.lost_bytes * sum(num_photos.values()) / max(1, num_read))
        reason = f"{archive.problem}; about {lost:,} photos are lost" if lost > 1 else archive.problem
        bad.add(archive.name, reason, kind=archive.problem.partition(": ")[0], count=max(1, lost))
