"""Kills training runs at random moments and compares what they come to with a run that nothing has stopped.

    python tests/kill_rehearsal.py --num_kills 20

Every run is a fork of one process that has everything imported, so that a kill costs a second. Of two processes one
is killed, and what is left of the other a moment later, as torchrun does it. Prints one line of JSON for each of
pretraining and fine-tuning, on one process and on two.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where modeling/ and the scripts lie

from launching import ROOT, find_free_port
from packed_photos import pack

import run_finetune_geo
import run_pretrain_mae
from geomae.training import StreamingTrainer
from geomae.training.run_folder import STAGING_FOLDER

MAINS = {"pretrain": run_pretrain_mae.main, "finetune": run_finetune_geo.main}
NUM_PHOTOS, BATCH_SIZE, SAVE_STEPS, MAX_STEPS = 80, 8, 3, 40  # four epochs of ten steps of 8 photos
TIMEOUT_S = 300


@dataclass
class Tally:
    """What the kills of one kind of run have come to."""

    kind: str
    num_processes: int
    num_kills: int = 0
    num_while_saving: int = 0
    num_before_first_step: int = 0
    num_runs: int = 0
    most_steps_lost: int = 0
    steps_repeated: int = 0
    steps_that_differ: list[str] = field(default_factory=list)


def record_steps(folder: Path) -> None:
    """In a fork: each step's loss and photos go to a file at once."""
    step = StreamingTrainer.training_step

    def recording(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        number, rank, ids = self.state.global_step + 1, self.args.process_index, inputs["ids"]
        loss = step(self, model, inputs, *rest)
        line = json.dumps({"step": number, "rank": rank, "loss": float(loss).hex(), "ids": ids})
        with open(folder / f"steps-{rank}.jsonl", "a") as file:
            file.write(line + "\n")
        return loss

    StreamingTrainer.training_step = recording  # type: ignore[method-assign]


def start(kind: str, num_processes: int, photos: Path, folder: Path, attempt: Path, *more: str) -> list[int]:
    """Fork the processes of one attempt at a run; returns their ids."""
    attempt.mkdir(parents=True)
    options = {"--data_dirs": str(photos), "--output_dir": str(folder), "--max_steps": str(MAX_STEPS)}
    options |= {"--save_strategy": "steps", "--save_steps": str(SAVE_STEPS), "--logging_steps": "1"}
    options |= {"--per_device_train_batch_size": str(BATCH_SIZE // num_processes), "--eval_strategy": "no"}
    options |= {"--validation_split": "null", "--peak_tflops": "1", "--disable_tqdm": "true"}
    options |= {"--shuffle_buffer": "16", "--resume_from_checkpoint": "last"}
    options |= {"--load_best_model_at_end": "false"} if kind == "finetune" else {}
    options |= dict(zip(more[::2], more[1::2], strict=True))
    argv = [f"{ROOT}/configs/{kind}/smoke.yaml", *(word for option in options.items() for word in option)]
    port = find_free_port()
    processes = []
    for rank in range(num_processes):
        if (process := os.fork()) == 0:
            _be_a_run(kind, argv, attempt, rank, num_processes, port)
        processes.append(process)
    return processes


def _be_a_run(kind: str, argv: list[str], attempt: Path, rank: int, num_processes: int, port: int) -> None:
    log = os.open(attempt / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if num_processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"ACCELERATE_USE_CPU": "true"}
    status = 1
    try:
        record_steps(attempt)
        MAINS[kind]([*argv, "--use_cpu", "true"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def read_steps(attempt: Path) -> dict[tuple[int, int], tuple[str, tuple[str, ...]]]:
    """(step, rank) -> loss and photos; a line that was cut off is no step."""
    steps = {}
    for path in attempt.glob("steps-*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                steps[row["step"], row["rank"]] = (row["loss"], tuple(row["ids"]))
    return steps


def is_alive(process: int) -> bool:
    """Whether a child still runs."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_until(happened: Callable[[], bool], processes: list[int]) -> bool:
    """Whether it happened before the processes ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        if not all(is_alive(process) for process in processes):
            return False
        assert time.monotonic() < deadline, "a run hangs"
        time.sleep(0.001)
    return True


def join(processes: list[int]) -> list[int]:
    """Exit statuses; what outlives another for long is killed."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def kill_somewhen(processes: list[int], folder: Path, attempt: Path, rng: random.Random, tally: Tally) -> bool:
    """Kill a run at a random moment: while it starts, between two steps or while it saves; False: it ended before."""
    victim, aim = rng.choice(processes), ("saving", "step", "start")[tally.num_kills % 3]
    if aim == "start":
        time.sleep(rng.uniform(0.0, 1.0))
    else:
        lines, after = attempt / "steps-0.jsonl", rng.randint(1, 2 * SAVE_STEPS)
        if not wait_until(lambda: lines.is_file() and lines.read_bytes().count(b"\n") >= after, processes):
            return False
    while True:
        if aim == "saving" and not wait_until(lambda: is_saving(folder, attempt), processes):
            return False
        time.sleep(rng.uniform(0.0, 0.06) if aim != "start" else 0.0)
        if not all(is_alive(process) for process in processes):
            return False
        os.kill(victim, signal.SIGSTOP)  # so that what is looked at is what it is killed in
        was_saving = is_saving(folder, attempt)
        if was_saving or aim != "saving":
            break
        os.kill(victim, signal.SIGCONT)  # the checkpoint was written before: the next one
    tally.num_while_saving += was_saving
    tally.num_before_first_step += not (attempt / "steps-0.jsonl").is_file()
    os.kill(victim, signal.SIGKILL)
    time.sleep(rng.uniform(0.0, 0.3) if len(processes) > 1 else 0.0)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    tally.num_kills += 1
    return True


def is_saving(folder: Path, attempt: Path) -> bool:
    """Whether this attempt is writing a checkpoint; an earlier one may have left a beginning of one."""
    try:
        return (folder / STAGING_FOLDER).stat().st_mtime > attempt.stat().st_mtime
    except FileNotFoundError:
        return False


def compare(attempts: list[Path], expected: dict[Any, Any], tally: Tally) -> None:
    """Every step of every attempt is the unbroken run's, and none goes back by more than a save interval."""
    furthest = 0
    for attempt in attempts:
        steps = read_steps(attempt)
        tally.steps_that_differ += [f"{attempt}: {key}" for key in steps if steps[key] != expected[key]]
        if steps:
            begun = min(step for step, _ in steps)
            tally.most_steps_lost = max(tally.most_steps_lost, furthest - (begun - 1))
            tally.steps_repeated += max(0, furthest - (begun - 1))
            furthest = max(furthest, max(step for step, _ in steps))
    assert furthest == MAX_STEPS


def effective_photos(attempts: list[Path]) -> list[str]:
    """The photos that the model has in it: of each step, those of the last attempt at it."""
    steps: dict[Any, Any] = {}
    for attempt in attempts:
        steps |= read_steps(attempt)
    return [name for key in sorted(steps) for name in steps[key][1]]


def rehearse(kind: str, num_processes: int, num_kills: int, work: Path, *more: str, seed: int = 0) -> Tally:
    """Kill runs `num_kills` times in all, and let each come to its end."""
    tally, rng = Tally(kind, num_processes), random.Random(seed)
    photos = work / "photos"
    assert join(start(kind, num_processes, photos, work / "unbroken", work / "unbroken-steps", *more)) == (
        [0] * num_processes
    ), (work / "unbroken-steps/log-0.txt").read_text()[-2000:]
    expected = read_steps(work / "unbroken-steps")
    assert len(expected) == MAX_STEPS * num_processes
    while tally.num_kills < num_kills:
        folder, attempts = work / f"run-{tally.num_runs}", []
        for number in _count():
            attempts.append(work / f"steps-{tally.num_runs}-{number}")
            processes = start(kind, num_processes, photos, folder, attempts[-1], *more)
            if tally.num_kills < num_kills and kill_somewhen(processes, folder, attempts[-1], rng, tally):
                join(processes)
                continue
            if join(processes) == [0] * num_processes:
                break
            raise AssertionError((attempts[-1] / "log-0.txt").read_text()[-3000:])
        tally.num_runs += 1
        compare(attempts, expected, tally)
        for epoch in range(MAX_STEPS * BATCH_SIZE // NUM_PHOTOS):
            seen = effective_photos(attempts)[epoch * NUM_PHOTOS : (epoch + 1) * NUM_PHOTOS]
            assert len(set(seen)) == NUM_PHOTOS, f"{folder}: epoch {epoch} saw {len(set(seen))} photos"
        for name in ("model.safetensors", f"checkpoint-{MAX_STEPS // SAVE_STEPS * SAVE_STEPS}/optimizer.pt"):
            assert (folder / name).read_bytes() == (work / "unbroken" / name).read_bytes(), f"{folder}/{name}"
        shutil.rmtree(folder)
    return tally


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def make_photos(work: Path) -> None:
    """In a fork: the runs must not inherit pyarrow's threads."""
    if (process := os.fork()) == 0:
        pack(work / "photos", train=NUM_PHOTOS)
        os._exit(0)
    assert join([process]) == [0]


def main() -> None:
    """Rehearse what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=MAINS, default=list(MAINS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--num_kills", type=int, default=20, help="of each kind, on each number of processes")
    parser.add_argument("--workers", type=int, default=1, help="readers of each process")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind in given.kinds:
        for num_processes in given.processes:
            with tempfile.TemporaryDirectory() as folder:
                work, began = Path(folder), time.monotonic()
                make_photos(work)
                more = ("--dataloader_num_workers", str(given.workers))
                tally = rehearse(kind, num_processes, given.num_kills, work, *more, seed=given.seed)
            print(json.dumps(vars(tally) | {"seconds": round(time.monotonic() - began)}), flush=True)
            assert not tally.steps_that_differ
            assert tally.most_steps_lost <= SAVE_STEPS


if __name__ == "__main__":
    main()
