"""How scripts end: in a sentence, and at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT

from geomae.training import run_to_its_end

LEAVES_A_READER = """
import torch
from torch.utils.data import DataLoader
from geomae.training import run_to_its_end
from geomae.training.stopping import outlive_signals

def main(argv):
    numbers = iter(DataLoader(list(range(64)), num_workers=1, worker_init_fn=outlive_signals))
    next(numbers)
    raise ZeroDivisionError("unforeseen")

run_to_its_end(main)
"""


def test_reader_that_an_unforeseen_error_has_left_does_not_hold_up_the_end(tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES_A_READER)
    begin = time.monotonic()
    done = subprocess.run([sys.executable, script], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, b"ZeroDivisionError: unforeseen" in done.stderr) == (1, True)
    assert time.monotonic() - begin < 45  # readers are given a minute


WAITS = """
import time
from geomae.training import run_to_its_end

def main(argv):
    print("begun", flush=True)
    time.sleep(60)

run_to_its_end(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_before_or_after_the_steps_says_what_is_kept(number: signal.Signals, tmp_path: Path) -> None:
    """As while the last evaluation runs and the model is saved."""
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, preexec_fn=hear_signals, **options) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        run.send_signal(number)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "stopped. What was saved is kept: the same command with --resume_from_checkpoint last goes on" in stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_that_ends_tee_as_well_has_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    reader, writer = os.pipe()
    options: dict[str, Any] = {"stdout": writer, "stderr": writer, "cwd": ROOT, "preexec_fn": hear_signals}
    with subprocess.Popen([sys.executable, str(script)], env={"PYTHONPATH": str(ROOT)}, **options) as run:
        os.close(writer)
        assert os.read(reader, 6) == b"begun\n"
        os.close(reader)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 128 + signal.SIGINT


def hear_signals() -> None:
    """Also where the tests run in a shell's background, or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Caught MemoryError in DataLoader worker process 0."), "lower dataloader_num_workers"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "the model does not fit"),
        (RuntimeError("std::bad_alloc"), "the model does not fit"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "out of memory. Lower its sizes"),
    ],
    ids=["reader", "cpu", "c++", "gpu"],
)
def test_memory_that_runs_out_beside_training_is_told_in_a_sentence(error: Exception, words: str) -> None:
    def main(argv: Sequence[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_to_its_end(main)
    assert words in str(end.value)
