"""Photos per second of a pipeline, by the clock on the wall and by the processor time of its workers."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import psutil

from loading.pipelines import Pipeline

__all__ = ["MemoryOfEpoch", "Measurement", "measure", "memory_over_epochs"]


@dataclass(frozen=True)
class Measurement:
    """One pipeline in one round."""

    num_photos: int
    wall_s: float
    worker_cpu_s: float  # user and system, all threads of all workers
    main_cpu_s: float  # of the process that receives the batches

    @property
    def photos_per_s(self) -> float:
        """By the clock on the wall."""
        return self.num_photos / self.wall_s

    @property
    def photos_per_core_s(self) -> float:
        """For each second that a core worked in a worker."""
        return self.num_photos / self.worker_cpu_s

    @property
    def main_cpu_ms_per_1000(self) -> float:
        """Milliseconds that the receiving process works for 1,000 photos."""
        return self.main_cpu_s * 1e6 / self.num_photos


@dataclass(frozen=True)
class MemoryOfEpoch:
    """Of all workers together, in units of 10^6 bytes."""

    peak_uss_mb: float  # memory that is a worker's alone; not the shards, which it maps: they are the page cache's
    last_uss_mb: float  # at the epoch's last batch
    peak_rss_mb: float  # with the mapped shards and what it shares: libraries, and pages of its parent


def measure(pipeline: Pipeline, *, num_warmup_batches: int, num_batches: int) -> Measurement:
    """Start the workers, leave out the first batches, and time the next.

    A batch is counted when it arrives in this process. While the workers are the bottleneck, they are never more than
    a batch ahead of that.
    """
    with closing(pipeline.open()) as batches:
        workers = _workers_after(batches, num_warmup_batches)
        wall, worker_cpu, main_cpu = time.perf_counter(), _cpu_seconds(workers), time.process_time()
        num_photos = sum(next(batches) for _ in range(num_batches))
        wall, main_cpu = time.perf_counter() - wall, time.process_time() - main_cpu
        worker_cpu = _cpu_seconds(workers) - worker_cpu
    return Measurement(num_photos, wall, worker_cpu, main_cpu)


def _workers_after(batches: Generator[int], num_warmup_batches: int) -> list[psutil.Process]:
    """The processes that appear while the first batches arrive."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    for _ in range(num_warmup_batches):
        next(batches)
    return [process for process in psutil.Process().children(recursive=True) if process.pid not in before]


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def memory_over_epochs(batches: Generator[int], *, num_epochs: int, batches_per_epoch: int) -> list[MemoryOfEpoch]:
    """Look at the workers' memory at every batch of some epochs.

    Args:
        batches: an open pipeline that goes on behind the end of an epoch.
        num_epochs: how many.
        batches_per_epoch: how many batches arrive from one.
    """
    epochs = []
    with closing(batches):
        workers = _workers_after(batches, 1)
        for _ in range(num_epochs):
            uss, rss = [], []
            for _ in range(batches_per_epoch):
                next(batches)
                uss.append(sum(map(_unique_bytes, workers)) / 1e6)
                rss.append(sum(worker.memory_info().rss for worker in workers) / 1e6)
            epochs.append(MemoryOfEpoch(max(uss), uss[-1], max(rss)))
    return epochs


def _unique_bytes(process: psutil.Process) -> int:
    maps = [each for each in process.memory_maps() if not each.path.endswith(".parquet")]
    return sum(each.private_clean + each.private_dirty for each in maps)
