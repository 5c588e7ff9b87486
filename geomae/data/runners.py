"""Where tasks are worked on: in this process, on several, or on a Ray cluster; the result is the same."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
from tqdm import tqdm

from geomae.errors import SourceError

__all__ = ["Work", "run_tasks"]

_MAX_WAITING = 4  # tasks of each process or core that are handed over ahead


class Work(Protocol):
    """Turns a task into its result; picklable. `count` is told of progress."""

    def __call__(self, task: Any, count: Callable[[int], object]) -> Any:
        """The result of a task."""
        ...


def run_tasks(
    tasks: Sequence[Any], work: Work, *, num_processes: int, ray_address: str | None, bar: "tqdm[Any]"
) -> Iterator[Any]:
    """The results of all tasks, in the order in which they are finished.

    Args:
        tasks: picklable.
        work: what is done with each.
        num_processes: on this machine, without Ray; 1 works in this process.
        ray_address: of a Ray cluster; see `build_shards`.
        bar: moves with the progress.

    Raises:
        SourceError: Ray is asked for and not installed, or a process was killed.
    """
    if ray_address is not None:
        return _run_on_ray(tasks, work, ray_address, bar)
    if num_processes <= 1 or len(tasks) <= 1:
        return (work(task, bar.update) for task in tasks)
    return _run_in_processes(tasks, work, num_processes, bar)


def _run_in_processes(tasks: Sequence[Any], work: Work, num_processes: int, bar: "tqdm[Any]") -> Iterator[Any]:
    # spawn: a forked child of a process that has already run OpenCV, Arrow or torch threads can hang
    context = multiprocessing.get_context("spawn")
    num_made = context.Value("q", 0)  # its lock also starts multiprocessing's tracker, which would unblock Ctrl-C later
    num_processes = min(num_processes, len(tasks))
    pool = ProcessPoolExecutor(num_processes, context, _start_worker, (work, num_made))
    waiting = iter(tasks)
    try:
        pending: set[Future[Any]] = set()
        start = bar.n
        while True:
            while len(pending) < num_processes * _MAX_WAITING and (task := next(waiting, None)) is not None:
                with _deaf_to_ctrl_c():  # submitting starts the processes
                    pending.add(pool.submit(_work_in_process, task))
            if not pending:
                return
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(start + num_made.value - bar.n)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise SourceError(
            "a process that worked on a shard was killed, as happens where memory is short. Start the command again "
            "with a smaller --num_processes: finished shards are kept."
        ) from error
    except KeyboardInterrupt:
        for process in list(pool._processes.values()):  # their half shards are removed by the next run
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started in here never hears Ctrl-C, not even while it imports; the parent hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_own_work: tuple[Work, Callable[[int], object]] | None = None  # set once in each process: a task carries only itself


def _start_worker(work: Work, num_made: Any) -> None:
    global _own_work
    cv2.setNumThreads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def count(number: int) -> None:
        with num_made.get_lock():
            num_made.value += number

    _own_work = work, count


def _die_with_parent() -> None:
    """Otherwise the workers of a parent that was killed wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_in_process(task: Any) -> Any:
    assert _own_work is not None
    work, count = _own_work
    return work(task, count)


def _run_on_ray(tasks: Sequence[Any], work: Work, address: str, bar: "tqdm[Any]") -> Iterator[Any]:
    """Each task on one core of the cluster; a task whose machine dies is started again elsewhere."""
    try:
        import ray
    except ImportError as error:
        raise SourceError("--ray needs Ray: install it on every machine with `pip install ray`.") from error
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)

    def do(shared_work: Work, task: Any) -> tuple[Any, int]:
        cv2.setNumThreads(1)
        counts = [0]
        return shared_work(task, lambda number: counts.append(number)), sum(counts)

    remote, shared = ray.remote(num_cpus=1, max_retries=3)(do), ray.put(work)
    waiting = iter(tasks)
    pending: list[Any] = []
    most = max(1, int(ray.cluster_resources().get("CPU", 1))) * _MAX_WAITING
    while True:
        while len(pending) < most and (task := next(waiting, None)) is not None:
            pending.append(remote.remote(shared, task))
        if not pending:
            return
        done, pending = ray.wait(pending, timeout=1.0)
        for result, num_made in ray.get(done):
            bar.update(num_made)
            yield result
