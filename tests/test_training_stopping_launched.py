"""Signals to runs that were launched: to all their processes, to the launcher alone, to one of two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, run_beside_itself
from packed_photos import pack

from geomae.checksums import find_damage
from geomae.training.stopping import SIGNALS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=8)


START = """
import os, sys, time
from pathlib import Path
from geomae.training import StreamingTrainer, run_to_its_end
import run_pretrain_mae

step = StreamingTrainer.training_step

def slow(self, model, inputs, *rest):
    if self.args.process_index == 0:
        print("STEP", self.state.global_step + 1, flush=True)
    time.sleep(float(os.environ["SECONDS"]) if self.state.global_step > 1 else 0.25)
    return step(self, model, inputs, *rest)

StreamingTrainer.training_step = slow
run_to_its_end(run_pretrain_mae.main)
"""


def start_script(photos: Path, folder: Path, *launcher: str, seconds: float = 0.25) -> "subprocess.Popen[str]":
    """`run_pretrain_mae.py` with steps of so many seconds, as a shell starts it: in a group of processes."""
    (folder / "slow.py").write_text(START)
    command = [sys.executable, *launcher, str(folder / "slow.py"), "configs/pretrain/smoke.yaml"]
    command += ["--data_dirs", str(photos), "--output_dir", str(folder / "run"), "--max_steps", "400"]
    command += ["--eval_strategy", "no", "--validation_split", "null", "--save_steps", "300", "--use_cpu", "true"]
    command += ["--dataloader_num_workers", "2", "--disable_tqdm", "true", "--peak_tflops", "1"]
    command += ["--per_device_train_batch_size", "4", "--resume_from_checkpoint", "last"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SECONDS": str(seconds)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("STEP 3"):
            return process
    raise AssertionError("the run ended before its third step")


def ending(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait(60)
    return text


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")])
def test_signal_to_everything_that_a_run_has_started_leaves_a_checkpoint(
    photos: Path, tmp_path: Path, launcher: tuple[str, ...], number: signal.Signals
) -> None:
    """As a terminal's Ctrl-C and Slurm do it: the launcher and the readers of photos get the signal as well."""
    process = start_script(photos, tmp_path, *launcher)
    os.killpg(process.pid, number)
    text = ending(process)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert f"stopped by {number.name} after step {checkpoint.name.rpartition('-')[2]} of 400" in text
    assert "--resume_from_checkpoint true goes on from it" in text
    assert find_damage(checkpoint) is None
    assert "DataLoader worker" not in text
    assert text.count(f"{number.name}: this step ends") == (2 if launcher else 1)  # the readers say nothing
    if not launcher:
        assert process.returncode == 128 + number
        assert "Traceback" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be told of the launcher's end")
def test_signal_to_the_launcher_alone_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    """`accelerate launch` of one process does not pass SIGTERM on, and its process would go on alone."""
    process = start_script(photos, tmp_path, "-m", "accelerate.commands.launch")
    process.terminate()
    text = ending(process)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert f"stopped by SIGTERM after step {checkpoint.name.rpartition('-')[2]} of 400" in text
    assert find_damage(checkpoint) is None


def test_second_ctrl_c_stops_at_once(photos: Path, tmp_path: Path) -> None:
    process = start_script(photos, tmp_path, seconds=60)
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert any("this step ends" in line for line in process.stdout)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGINT)
    text = ending(process)
    assert process.returncode == 130
    assert "stopped at once; --resume_from_checkpoint true goes on from the last checkpoint" in text
    assert not list((tmp_path / "run").glob("checkpoint-*"))


ONE_OF_TWO = """
import os, signal, sys
from pathlib import Path
import kill_rehearsal
from geomae.training import StreamingTrainer
from kill_rehearsal import join, make_photos, read_steps, start

work = Path(sys.argv[1])
make_photos(work)
step = StreamingTrainer.training_step

def signalled(self, model, inputs, *rest):
    if (self.args.process_index, self.state.global_step) == (1, 4):
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, model, inputs, *rest)

whole = start("pretrain", 2, work / "photos", work / "unbroken", work / "unbroken-steps")
assert join(whole) == [0, 0]
StreamingTrainer.training_step = signalled
assert join(start("pretrain", 2, work / "photos", work / "run", work / "first")) == [1, 1]
StreamingTrainer.training_step = step
assert "RunStoppedError: stopped by SIGTERM after step 5 of 40" in (work / "first/log-0.txt").read_text()
assert [path.name for path in (work / "run").glob("checkpoint-5")] == ["checkpoint-5"]
assert join(start("pretrain", 2, work / "photos", work / "run", work / "second")) == [0, 0]
assert read_steps(work / "first") | read_steps(work / "second") == read_steps(work / "unbroken-steps")
assert len(read_steps(work / "first")) == 10
"""


def test_signal_to_one_process_of_two_stops_both_at_the_same_step(tmp_path: Path) -> None:
    run_beside_itself(ONE_OF_TWO, tmp_path, str(tmp_path))


ONE_OF_TWO_THAT_JUDGE = """
import os, signal, sys
from pathlib import Path
import kill_rehearsal
from geomae.training import StreamingTrainer
from kill_rehearsal import join, start

work = Path(sys.argv[1])
columns = StreamingTrainer.evaluation_columns
judging = ["--eval_strategy", "steps", "--eval_steps", "4", "--validation_split", "validation", "--max_steps", "8"]
judging += ["--per_device_eval_batch_size", "2", "--save_strategy", "no"]

def signalled(self, *inputs):
    if (self.args.process_index, self.state.global_step) == (1, 4):
        os.kill(os.getpid(), signal.SIGTERM)
    return columns(self, *inputs)

StreamingTrainer.evaluation_columns = signalled
assert join(start("pretrain", 2, work / "photos", work / "run", work / "first", *judging)) == [1, 1]
log = (work / "first/log-0.txt").read_text()
assert "RunStoppedError: stopped by SIGTERM after step 4 of 8" in log, log
StreamingTrainer.evaluation_columns = columns
assert join(start("pretrain", 2, work / "photos", work / "run", work / "second", *judging)) == [0, 0]
"""


def test_signal_to_one_process_of_two_ends_the_evaluation_of_both(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(photos)
    run_beside_itself(ONE_OF_TWO_THAT_JUDGE, tmp_path, str(tmp_path))
    assert find_damage(tmp_path / "run/checkpoint-4") is None
