"""SIGTERM and Ctrl-C end a run with a checkpoint and a sentence, on all processes at the same step."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import ROOT, run_beside_itself
from packed_photos import mae_trainer, pack, training_arguments

from geomae.checksums import find_damage
from geomae.errors import NonFiniteLossError, RunStoppedError
from geomae.training.stopping import SIGNALS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=8)


def call_in_step(trainer: Any, number: int, action: Callable[[], None]) -> None:
    step = trainer.training_step

    def acting(*inputs: Any) -> Any:
        if trainer.state.global_step + 1 == number:
            action()
        return step(*inputs)

    trainer.training_step = acting


@pytest.mark.parametrize(("number", "save_strategy"), [(signal.SIGTERM, "no"), (signal.SIGINT, "steps")])
def test_signal_ends_the_step_and_saves_a_checkpoint_from_which_the_run_repeats_the_unbroken_one(
    photos: Path, tmp_path: Path, number: signal.Signals, save_strategy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"max_steps": 5, "save_strategy": save_strategy, "save_steps": 4}
    torch.manual_seed(0)
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "unbroken", max_steps=5))
    unbroken.train()
    before = [signal.getsignal(each) for each in SIGNALS]
    torch.manual_seed(0)
    stopped = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    call_in_step(stopped, 3, lambda: signal.raise_signal(number))
    with pytest.raises(RunStoppedError) as stop:
        stopped.train()
    assert f"stopped by {number.name} after step 3 of 5" in str(stop.value)
    assert f"{tmp_path}/run/checkpoint-3 is saved. The same command with --resume_from_checkpoint true" in str(
        stop.value
    )
    assert stop.value.exit_code == 128 + number
    again = " again" if number == signal.SIGINT else ""
    said = f"{number.name}: this step ends, then a checkpoint is saved; Ctrl-C{again} stops at once"
    assert said in capfd.readouterr().err
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert find_damage(tmp_path / "run/checkpoint-3") is None
    resumed = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    resumed.train(resume_from_checkpoint="true")
    for name, weights in unbroken.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name


@pytest.fixture
def pipe_without_reader() -> Iterator[Callable[[], None]]:
    """A function after which stdout and stderr are as behind `| tee log` when Ctrl-C has ended `tee`."""
    before = {number: os.dup(number) for number in (1, 2)}

    def close_reader() -> None:
        reader, writer = os.pipe()
        for number in before:
            os.dup2(writer, number)
        os.close(reader)
        os.close(writer)

    yield close_reader
    for number, kept in before.items():
        os.dup2(kept, number)
        os.close(kept)


def test_checkpoint_is_saved_though_ctrl_c_has_ended_the_reader_of_what_is_printed(
    photos: Path, tmp_path: Path, pipe_without_reader: Callable[[], None]
) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))

    def act() -> None:
        pipe_without_reader()
        signal.raise_signal(signal.SIGINT)
        for number in (1, 2):
            os.write(number, b"loss, a bar of progress")

    call_in_step(trainer, 2, act)
    with pytest.raises(RunStoppedError, match="stopped by SIGINT after step 2"):
        trainer.train()
    assert find_damage(tmp_path / "checkpoint-2") is None


def test_signal_puts_off_an_evaluation(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    trainer = mae_trainer(photos, training_arguments(tmp_path, **options))
    call_in_step(trainer, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStoppedError, match="after step 2"):
        trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1]


def test_signal_ends_an_evaluation_and_the_run_goes_on_as_the_unbroken_one(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 5, "ema_decay": 0.9}
    options |= {"per_device_eval_batch_size": 2, "save_strategy": "no"}
    torch.manual_seed(0)
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "unbroken", **options))
    unbroken.train()
    torch.manual_seed(0)
    stopped = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    batches = signal_in_evaluation(stopped, at_batch=6)  # of four of the first evaluation, and of the second
    with pytest.raises(RunStoppedError, match=r"stopped by SIGTERM after step 4 of 5; .*/run/checkpoint-4 is saved"):
        stopped.train()
    assert len(batches) == 6
    assert find_damage(tmp_path / "run/checkpoint-4") is None
    assert [entry["step"] for entry in stopped.state.log_history if "eval_loss" in entry] == [2]
    resumed = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    resumed.train(resume_from_checkpoint="true")
    for name, weights in unbroken.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name


def test_signal_in_an_evaluation_before_the_first_step_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, eval_strategy="steps", eval_on_start=True))
    signal_in_evaluation(trainer, at_batch=1)
    with pytest.raises(RunStoppedError, match="stopped by SIGTERM before the first step; nothing is saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def signal_in_evaluation(trainer: Any, at_batch: int) -> list[Any]:
    """The list gets the batches that are judged; at one of them comes a signal."""
    batches: list[Any] = []
    columns = trainer.evaluation_columns

    def acting(inputs: Any, *outputs: Any) -> Any:
        batches.append(inputs)
        if len(batches) == at_batch:
            signal.raise_signal(signal.SIGTERM)
        return columns(inputs, *outputs)

    trainer.evaluation_columns = acting
    return batches


def test_loss_that_is_no_number_is_not_saved_by_a_signal(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))
    step = trainer.training_step

    def poisoned(*inputs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(*inputs) * torch.nan

    trainer.training_step = poisoned
    guarded = trainer._guard
    trainer._guard = lambda value, what: guarded(value * torch.nan, what)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


START = """
import os, sys, time
from pathlib import Path
from geomae.training import StreamingTrainer, run_to_its_end
import run_pretrain_mae

step = StreamingTrainer.training_step

def slow(self, model, inputs, *rest):
    if self.args.process_index == 0:
        print("STEP", self.state.global_step + 1, flush=True)
    time.sleep(0.25)
    return step(self, model, inputs, *rest)

StreamingTrainer.training_step = slow
run_to_its_end(run_pretrain_mae.main)
"""


def start_script(photos: Path, folder: Path, *launcher: str) -> "subprocess.Popen[str]":
    """`run_pretrain_mae.py` with steps of a quarter of a second, as a shell starts it: in a group of processes."""
    (folder / "slow.py").write_text(START)
    command = [sys.executable, *launcher, str(folder / "slow.py"), "configs/pretrain/smoke.yaml"]
    command += ["--data_dirs", str(photos), "--output_dir", str(folder / "run"), "--max_steps", "400"]
    command += ["--eval_strategy", "no", "--validation_split", "null", "--save_steps", "300", "--use_cpu", "true"]
    command += ["--dataloader_num_workers", "2", "--disable_tqdm", "true", "--peak_tflops", "1"]
    command += ["--per_device_train_batch_size", "4", "--resume_from_checkpoint", "last"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to be told of the launcher's end")
def test_signal_to_the_launcher_alone_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    """`accelerate launch` of one process does not pass SIGTERM on, and its process would go on alone."""
    process = start_script(photos, tmp_path, "-m", "accelerate.commands.launch")
    process.terminate()
    text = ending(process)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert f"stopped by SIGTERM after step {checkpoint.name.rpartition('-')[2]} of 400" in text
    assert find_damage(checkpoint) is None


@pytest.mark.slow
def test_second_ctrl_c_stops_at_once(photos: Path, tmp_path: Path) -> None:
    process = start_script(photos, tmp_path)
    os.kill(process.pid, signal.SIGSTOP)  # so that the step cannot end between the two
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_signal_to_one_process_of_two_ends_the_evaluation_of_both(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(photos)
    run_beside_itself(ONE_OF_TWO_THAT_JUDGE, tmp_path, str(tmp_path))
    assert find_damage(tmp_path / "run/checkpoint-4") is None
