"""SIGTERM and Ctrl-C end a run with a checkpoint and a sentence, on all processes at the same step."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import mae_trainer, pack, training_arguments
from transformers import EarlyStoppingCallback, TrainerCallback

from geomae.checksums import find_damage, write_checksums
from geomae.errors import NonFiniteLossError, RunStoppedError
from geomae.training.stopping import SIGNALS, outlive_signals


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=8)


@pytest.fixture(autouse=True)
def hearing_ctrl_c() -> Iterator[None]:
    """In the background of a shell, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
    assert_same_model(resumed, unbroken)


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


def judged(trainer: Any) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]


def assert_same_model(one: Any, other: Any) -> None:
    for name, weights in one.model.state_dict().items():
        assert torch.equal(weights, other.model.state_dict()[name]), name


JUDGING: dict[str, Any] = {"eval_strategy": "steps", "per_device_eval_batch_size": 2, "save_strategy": "no"}


@pytest.mark.parametrize(("max_steps", "put_off"), [(5, True), (5, False), (4, True), (4, False)])
def test_signal_ends_an_evaluation_which_the_resumed_run_makes_up(
    photos: Path, tmp_path: Path, max_steps: int, put_off: bool
) -> None:
    """In step 4: before the evaluation, or in it; where that is the last step, nothing is left to train."""
    options = JUDGING | {"eval_steps": 2, "max_steps": max_steps, "ema_decay": 0.9}
    torch.manual_seed(0)
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "unbroken", **options))
    unbroken.train()
    torch.manual_seed(0)
    stopped = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    if put_off:
        call_in_step(stopped, 4, lambda: signal.raise_signal(signal.SIGTERM))
    batches = signal_in_evaluation(stopped, at_batch=6)  # of four of the first evaluation, and of the second
    with pytest.raises(RunStoppedError, match=r"stopped by SIGTERM after step 4 of .; .*/run/checkpoint-4 is saved"):
        stopped.train()
    assert len(batches) == (4 if put_off else 6)
    assert find_damage(tmp_path / "run/checkpoint-4") is None
    assert judged(stopped) == judged(unbroken)[:1]
    resumed = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    resumed.train(resume_from_checkpoint="true")
    assert judged(resumed) == judged(unbroken)
    assert_same_model(resumed, unbroken)


def test_early_stopping_and_evaluation_on_start_take_the_evaluation_that_is_made_up(
    photos: Path, tmp_path: Path
) -> None:
    options = JUDGING | {"eval_steps": 2, "save_steps": 2, "max_steps": 8, "save_strategy": "steps"}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_on_start": True}
    runs = []
    for name in ("unbroken", "run", "run"):
        torch.manual_seed(0)
        runs.append(mae_trainer(photos, training_arguments(tmp_path / name, **options)))
        rank_steps(runs[-1], best=2)
        runs[-1].add_callback(EarlyStoppingCallback(1))
    unbroken, stopped, resumed = runs
    unbroken.train()
    signal_in_evaluation(stopped, at_batch=10)
    with pytest.raises(RunStoppedError, match="after step 4"):
        stopped.train()
    resumed.train(resume_from_checkpoint="true")
    assert judged(resumed) == judged(unbroken)
    assert [step for step, _ in judged(resumed)] == [0, 2, 4]
    assert resumed.state.global_step == unbroken.state.global_step == 4


def test_owed_evaluation_is_forgotten_by_a_run_that_judges_no_steps(photos: Path, tmp_path: Path) -> None:
    options = JUDGING | {"eval_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    stopped = mae_trainer(photos, training_arguments(tmp_path, **options))
    signal_in_evaluation(stopped, at_batch=1)
    with pytest.raises(RunStoppedError, match="after step 2 of 4"):
        stopped.train()
    resumed = mae_trainer(
        photos, training_arguments(tmp_path, **options | {"eval_strategy": "no", "eval_on_start": True})
    )
    resumed.train(resume_from_checkpoint="true")
    assert [step for step, _ in judged(resumed)] == [2]
    assert not resumed.progress.owes_evaluation


@pytest.mark.parametrize("older", [False, True], ids=["", "of a version that knew of no owed evaluations"])
def test_stopped_run_goes_on_in_the_same_trainer_too(photos: Path, tmp_path: Path, older: bool) -> None:
    options = JUDGING | {"eval_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = mae_trainer(photos, training_arguments(tmp_path, **options))
    signal_in_evaluation(trainer, at_batch=6)
    with pytest.raises(RunStoppedError, match="after step 4 of 4"):
        trainer.train()
    if older:
        path = tmp_path / "checkpoint-4/trainer_state.json"
        state = json.loads(path.read_text())
        del state["stateful_callbacks"]["StreamProgress"]["attributes"]["owes_evaluation"]
        path.write_text(json.dumps(state))
        write_checksums(path.parent)
    trainer.train(resume_from_checkpoint="true")
    assert [step for step, _ in judged(trainer)] == ([2] if older else [2, 4])


@pytest.mark.parametrize("save_strategy", ["steps", "best"])
@pytest.mark.parametrize("max_steps", [4, 6])
def test_the_best_model_is_that_of_the_unbroken_run_where_a_signal_has_ended_its_evaluation(
    photos: Path, tmp_path: Path, save_strategy: str, max_steps: int
) -> None:
    options = JUDGING | {"eval_steps": 2, "save_steps": 2, "max_steps": max_steps, "save_strategy": save_strategy}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 1e-3}
    torch.manual_seed(0)
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "unbroken", **options))
    rank_steps(unbroken, best=4)
    unbroken.train()
    torch.manual_seed(0)
    stopped = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    rank_steps(stopped, best=4)
    signal_in_evaluation(stopped, at_batch=6)
    with pytest.raises(RunStoppedError, match="after step 4"):
        stopped.train()
    resumed = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    rank_steps(resumed, best=4)
    resumed.train(resume_from_checkpoint="true")
    assert Path(resumed.state.best_model_checkpoint or "") == tmp_path / "run/checkpoint-4"
    assert_same_model(resumed, unbroken)


def rank_steps(trainer: Any, best: int) -> None:
    """Whatever the photos say, this step is judged to be the best."""
    metrics = trainer.evaluation_metrics
    trainer.evaluation_metrics = lambda rows: metrics(rows) | {"loss": abs(trainer.state.global_step - best)}


def test_signal_before_a_resumed_run_has_made_a_step_leaves_its_checkpoint_as_it_was(
    photos: Path, tmp_path: Path
) -> None:
    first = mae_trainer(photos, training_arguments(tmp_path, **JUDGING | {"save_strategy": "steps", "save_steps": 2}))
    call_in_step(first, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStoppedError, match="after step 2"):
        first.train()
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()}
    options = JUDGING | {"eval_on_start": True}
    again = mae_trainer(photos, training_arguments(tmp_path, **options))
    signal_in_evaluation(again, at_batch=1)
    with pytest.raises(RunStoppedError, match=f"{tmp_path}/checkpoint-2 is saved"):
        again.train(resume_from_checkpoint="true")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()} == before


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_signal_after_the_last_step_ends_the_run_where_that_is_saved(
    photos: Path, tmp_path: Path, save_strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = JUDGING | {"eval_steps": 2, "max_steps": 2, "save_strategy": save_strategy, "save_steps": 2}
    trainer = mae_trainer(photos, training_arguments(tmp_path, **options))
    finish = trainer._finalize_training

    def signalled(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return finish(*args)

    trainer._finalize_training = signalled
    if save_strategy == "steps":
        with pytest.raises(RunStoppedError, match=r"stopped by SIGTERM after step 2 of 2; .*checkpoint-2 is saved"):
            trainer.train()
    else:
        trainer.train()
        assert "no checkpoint has the last one: the run ends once its model is saved" in caplog.text


def test_evaluation_that_a_callback_asks_for_is_not_left(photos: Path, tmp_path: Path) -> None:
    class Judging(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                assert len(trainer.evaluate()) > 0

    trainer = mae_trainer(photos, training_arguments(tmp_path, **JUDGING | {"eval_strategy": "no"}))
    trainer.add_callback(Judging())
    batches = signal_in_evaluation(trainer, at_batch=1)
    with pytest.raises(RunStoppedError, match="after step 2"):
        trainer.train()
    assert len(batches) == 4


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


def test_reader_of_a_run_under_nohup_outlives_its_terminal() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        outlive_signals(0)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert callable(signal.getsignal(signal.SIGTERM))
        signal.raise_signal(signal.SIGTERM)
        assert 0 < signal.alarm(0) <= 60
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
