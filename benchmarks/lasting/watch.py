"""What a tree of processes holds at a moment: memory, files, threads, shared memory. Linux alone tells."""

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Holding", "Watch", "look_at", "processes_of"]

_SHARED = ("/dev/shm/", "/dev/zero")  # named, as torch's batches are, and anonymous, as ours are


@dataclass(frozen=True)
class Holding:
    """Of all processes of a tree together."""

    rss_bytes: int
    """Pages of a file or of shared memory count once for each process that has them."""

    pss_bytes: int
    """Pages count once, whoever shares them, whether he is of the tree or not."""

    own_bytes: int
    """The same without the pages of files, which others share and the kernel drops where memory is short."""

    largest_bytes: int
    """The most RSS that one of them has had so far."""

    num_files: int
    num_threads: int
    num_processes: int
    shared_bytes: int
    """Of shared memory that is mapped; every piece counts once."""

    num_shared: int
    """Pieces of it."""


def processes_of(pid: int) -> list[psutil.Process]:
    """A process and all that it has started; none where it has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def look_at(processes: Iterable[psutil.Process]) -> Holding:
    """Look at processes; those that end meanwhile, and zombies, count as nothing."""
    rss, pss, own, largest, num_files, num_threads, num_processes = 0, 0, 0, 0, 0, 0, 0
    shared: dict[str, int] = {}
    for process in processes:
        folder = Path(f"/proc/{process.pid}")
        try:
            rss_here, pss_here, own_here = _read_sizes(folder)
            largest_here = _read_largest(folder)
            files_here = sum(1 for _ in (folder / "fd").iterdir())
            threads_here = process.num_threads()
            shared_here = _read_shared(folder)
        except (OSError, psutil.Error):
            continue
        rss, pss, own = rss + rss_here, pss + pss_here, own + own_here
        largest = max(largest, largest_here)
        num_files, num_threads, num_processes = num_files + files_here, num_threads + threads_here, num_processes + 1
        shared |= shared_here
    return Holding(rss, pss, own, largest, num_files, num_threads, num_processes, sum(shared.values()), len(shared))


def _read_sizes(folder: Path) -> tuple[int, int, int]:
    sizes: dict[str, int] = {}
    for line in (folder / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = 1024 * int(rest.split()[0])
    return sizes["Rss"], sizes["Pss"], sizes["Pss"] - sizes.get("Pss_File", 0)


def _read_largest(folder: Path) -> int:
    """Of the program that runs now: `getrusage` counts what its parent had when it was forked."""
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def _read_shared(folder: Path) -> dict[str, int]:
    """Bytes by the device and inode of each piece."""
    pieces: dict[str, int] = {}
    for line in (folder / "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(_SHARED) and fields[1].endswith("s"):
            begin, end = (int(number, 16) for number in fields[0].split("-"))
            piece = f"{fields[3]} {fields[4]}"
            pieces[piece] = pieces.get(piece, 0) + end - begin
    return pieces


class Watch:
    """Looks at a process and its children again and again while the `with` block runs.

    `samples` fills with a dictionary for each look: `seconds` since the beginning, the fields of `Holding`, and what
    `also` returns of it.
    """

    def __init__(self, pid: int, every_s: float, also: Any = None) -> None:
        """The process `pid`; `also() -> dict` adds to each sample."""
        self.samples: list[dict[str, Any]] = []
        self._pid, self._every_s, self._also = pid, every_s, also
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_around, daemon=True)

    def __enter__(self) -> "Watch":
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look_around(self) -> None:
        while True:
            before = self._also() if self._also else {}
            holding = look_at(processes_of(self._pid))
            if holding.num_processes:
                seconds = round(time.perf_counter() - self._began, 3)
                self.samples.append({"seconds": seconds, **before, **asdict(holding)})
            if self._is_over.wait(self._every_s):
                return

    def peak(self, name: str) -> int:
        """The largest of a field over all samples."""
        return max((sample[name] for sample in self.samples), default=0)
