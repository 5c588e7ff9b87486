"""How scripts end: in a sentence, and at once."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
