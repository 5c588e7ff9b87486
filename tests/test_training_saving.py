"""Checkpoints are there whole or not at all; one that was damaged later is named, and the one before it is used."""

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from safetensors.torch import load_file
from test_checksums import DAMAGES

from geomae.checksums import CHECKSUMS_FILE, find_damage
from geomae.errors import CheckpointError, ConfigError, NonFiniteLossError
from geomae.training import find_checkpoint
from geomae.training.run_folder import STAGING_FOLDER, remove_checkpoints
from geomae.training.saving import SavingTrainer

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
# What transformers writes into every checkpoint of a run on one process, and what we add.
RESUMED_FROM = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
ALL_FILES = (*RESUMED_FROM, "config.json", "training_args.bin", "modeling_geomae.py", CHECKSUMS_FILE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=13)


@pytest.fixture(scope="module")
def saved(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with the checkpoints of 4 and 6."""
    folder = tmp_path_factory.mktemp("saved")
    mae_trainer(photos, training_arguments(folder, max_steps=6, **SAVING)).train()
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """A function after which no file can become larger than so many bytes: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_lists_every_file_that_it_has_and_nothing_lies_beside_it(saved: Path) -> None:
    assert names(saved) == ["checkpoint-4", "checkpoint-6"]
    known = json.loads((saved / "checkpoint-6" / CHECKSUMS_FILE).read_text())["files"]
    assert sorted([*known, CHECKSUMS_FILE]) == names(saved / "checkpoint-6")
    assert set(ALL_FILES) <= set(names(saved / "checkpoint-6"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ALL_FILES)
def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    run: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](run / "checkpoint-6" / name)
    for resume_from in ("true", "last", True):
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(resume_from, str(run)) == str(run / "checkpoint-4")
    assert "checkpoint-6 is damaged and is left out" in caplog.text
    assert name in caplog.text
    with pytest.raises(ConfigError, match=rf"checkpoint-6, which is no whole checkpoint: .*{name}.*write true for the"):
        find_checkpoint(str(run / "checkpoint-6"), str(run))


@pytest.mark.parametrize("resume_from", ["true", "last"])
def test_run_of_damaged_checkpoints_alone_is_not_begun_anew_unasked(run: Path, resume_from: str) -> None:
    for step in (4, 6):
        (run / f"checkpoint-{step}/optimizer.pt").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"holds no whole checkpoint .*: checkpoint-4 is damaged: optimizer.pt has 0 b"
    ):
        find_checkpoint(resume_from, str(run))


def test_run_that_goes_on_before_a_damaged_checkpoint_repeats_it_and_keeps_as_many_whole_ones(
    photos: Path, run: Path
) -> None:
    weights = (run / "checkpoint-6/model.safetensors").read_bytes()
    (run / "checkpoint-6/model.safetensors").write_bytes(weights[:-1])
    again = mae_trainer(photos, training_arguments(run, max_steps=6, **SAVING))
    again.train(resume_from_checkpoint="true")
    assert names(run) == ["checkpoint-4", "checkpoint-6", "damaged-checkpoint-6"]
    assert (run / "checkpoint-6/model.safetensors").read_bytes() == weights
    assert find_damage(run / "checkpoint-6") is None


def test_what_a_killed_run_was_writing_is_no_checkpoint_and_vanishes_with_the_next_one(photos: Path, run: Path) -> None:
    (run / STAGING_FOLDER).mkdir()
    shutil.copytree(run / "checkpoint-6", run / STAGING_FOLDER / "checkpoint-8")
    assert find_checkpoint("true", str(run)) == str(run / "checkpoint-6")
    mae_trainer(photos, training_arguments(run, max_steps=8, **SAVING)).train(resume_from_checkpoint="true")
    assert names(run) == ["checkpoint-6", "checkpoint-8"]


def test_oldest_checkpoints_go_first_and_those_of_a_future_that_was_given_up_before_them(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    kept = {str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-6")}
    remove_checkpoints(str(tmp_path), 3, latest=6, kept=kept)
    shutil.rmtree(tmp_path / STAGING_FOLDER)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    remove_checkpoints(str(tmp_path), 1, latest=6, kept=kept)
    shutil.rmtree(tmp_path / STAGING_FOLDER)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    remove_checkpoints(str(tmp_path), None, latest=6, kept=set())
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]


def test_best_checkpoint_is_known_by_its_own_name(photos: Path, tmp_path: Path) -> None:
    options = SAVING | {
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
    }
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, max_steps=6, learning_rate=0.3, **options))
    trainer.train()
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best == tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert find_damage(best) is None
    newest = (
        json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text()) if best.name != "checkpoint-6" else {}
    )
    assert newest.get("best_model_checkpoint", str(best)) == str(best)


BEST: dict[str, Any] = {
    **{"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
    **{"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"},
}


def trainer_that_worsens(photos: Path, folder: Path | str, **changes: Any) -> Any:
    """Whose best model is that of the first step, so that a limit would remove it first."""
    args = training_arguments(Path(folder), **BEST | changes)
    args.output_dir = str(folder)  # as it was typed
    trainer = geolocation_trainer(photos, args)
    measure = trainer.evaluation_metrics
    trainer.evaluation_metrics = lambda rows: measure(rows) | {"loss": float(trainer.state.global_step)}
    return trainer


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("spelling", ["./run", "run/"])
def test_best_checkpoint_is_kept_however_the_folder_is_spelt(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, limit: int
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = trainer_that_worsens(photos, spelling, max_steps=3, save_total_limit=limit)
    trainer.train()
    best = load_file(tmp_path / "run/checkpoint-1/model.safetensors")
    assert all(torch.equal(weights, best[name]) for name, weights in trainer.model.state_dict().items())


def test_newest_checkpoint_stays_beside_the_best_so_that_an_ended_run_is_not_trained_again(
    photos: Path, tmp_path: Path
) -> None:
    trainer_that_worsens(photos, tmp_path, max_steps=3, save_total_limit=1).train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    again = trainer_that_worsens(photos, tmp_path, max_steps=3, save_total_limit=1)
    again.training_step = lambda *_: pytest.fail("it was trained again")
    again.train(resume_from_checkpoint="last")
    best = load_file(tmp_path / "checkpoint-1/model.safetensors")
    assert all(torch.equal(weights, best[name]) for name, weights in again.model.state_dict().items())


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("max_steps", [2, 4])
def test_best_checkpoint_is_found_again_where_the_run_goes_on_by_another_path(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool, max_steps: int
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer_that_worsens(photos, "run", max_steps=2, save_total_limit=2).train()
    folder = (tmp_path / "run").rename(tmp_path / "moved") if moved else tmp_path / "run"
    again = trainer_that_worsens(photos, folder, max_steps=max_steps, save_total_limit=2)
    again.train(resume_from_checkpoint="true")
    assert again.state.best_model_checkpoint == str(folder / "checkpoint-1")
    best = load_file(folder / "checkpoint-1/model.safetensors")
    assert all(torch.equal(weights, best[name]) for name, weights in again.model.state_dict().items())


@pytest.mark.parametrize("when", ["before it goes on", "while it trains", "when it has ended"])
def test_damaged_best_checkpoint_is_named_and_keeps_no_run_from_its_end(
    photos: Path, tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "checkpoint-1/model.safetensors"
    trainer_that_worsens(photos, tmp_path, max_steps=2, save_total_limit=3).train()
    again = trainer_that_worsens(
        photos, tmp_path, max_steps=2 if when == "when it has ended" else 4, save_total_limit=3
    )
    if when == "while it trains":
        step = again.training_step
        again.training_step = lambda *inputs: (weights.write_bytes(b"cut"), step(*inputs))[1]
    else:
        weights.write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint="true")
    assert f"{tmp_path}/checkpoint-1, the best checkpoint" in caplog.text
    assert "model.safetensors has 3 bytes" in caplog.text
    expected = f"{tmp_path}/checkpoint-3" if when == "before it goes on" else None
    assert again.state.best_model_checkpoint == expected
    kept = load_file(tmp_path / f"checkpoint-{3 if expected else again.state.global_step}/model.safetensors")
    assert all(torch.equal(weights, kept[name]) for name, weights in again.model.state_dict().items())


@pytest.mark.parametrize("room", [3000, 12_000, 60_000])
def test_full_disk_is_told_and_leaves_the_last_checkpoint_and_no_half_of_another(
    photos: Path, run: Path, room: int, small_files: Callable[[int], None]
) -> None:
    """Where the room ends: within the configuration, the source files, the weights or the optimizer."""
    trainer = mae_trainer(photos, training_arguments(run, max_steps=8, **SAVING))
    before = names(run)
    small_files(room)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-8 could not be written to .*MiB were free.*free space, then"
    ):
        trainer.train(resume_from_checkpoint="true")
    small_files(resource.RLIM_INFINITY)
    assert names(run) == before
    assert find_checkpoint("true", str(run)) == str(run / "checkpoint-6")


def test_full_disk_leaves_the_earlier_model_at_the_top(
    photos: Path, tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))
    trainer.save_model()
    trainer.save_state()
    weights, before = (tmp_path / "model.safetensors").read_bytes(), names(tmp_path)
    torch.nn.init.ones_(next(trainer.model.parameters()))
    small_files(len(weights) // 2)
    with pytest.raises(CheckpointError, match="the model could not be written"):
        trainer.save_model()
    small_files(0)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json could not be written"):
        trainer.save_state()
    small_files(resource.RLIM_INFINITY)
    assert names(tmp_path) == before
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    trainer.save_model()
    assert names(tmp_path) == before
    assert (tmp_path / "model.safetensors").read_bytes() != weights


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"5"])
def test_metrics_that_were_cut_off_do_not_end_a_later_run(
    photos: Path, tmp_path: Path, left: bytes, small_files: Callable[[int], None]
) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))
    (tmp_path / "all_results.json").write_bytes(left)
    trainer.save_metrics("eval", {"eval_loss": 1.0})
    trainer.save_metrics("train", {"train_loss": 2.0})
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*_results.json")}
    assert json.loads(before["eval_results.json"]) == {"eval_loss": 1.0}
    assert json.loads(before["all_results.json"]) == {"eval_loss": 1.0, "train_loss": 2.0}
    small_files(10)
    with pytest.raises(CheckpointError, match="the metrics could not be written"):
        trainer.save_metrics("eval", {"eval_loss": 3.0})
    small_files(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*_results.json")} == before


def test_too_small_a_disk_is_refused_before_the_first_step(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, optim="adamw_torch", **SAVING))
    needed = 3 * 4 * sum(weight.numel() for weight in trainer.model.parameters())  # weights and two moments, float32
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("geomae.training.saving.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        ConfigError, match=r"a checkpoint takes about .* MiB, and .* has .* MiB left: free space, or ch"
    ):
        trainer.train()
    usage.free = needed
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "too little for save_total_limit 2" in caplog.text


def test_checkpoint_has_its_name_only_when_it_is_on_the_disk(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut may take: files are synced before the folder gets its name, and the name after."""
    done: list[str] = []
    for name in ("write_checksums", "sync_folder", "replace_folder"):
        original = getattr(__import__("geomae.training.saving", fromlist=[name]), name)

        def noted(*paths: Path, name: str = name, original: Callable[..., None] = original) -> None:
            done.append(name)
            assert not (tmp_path / "checkpoint-2").exists()
            original(*paths)

        monkeypatch.setattr(f"geomae.training.saving.{name}", noted)
    mae_trainer(photos, training_arguments(tmp_path, max_steps=2, **SAVING)).train()
    assert done == ["write_checksums", "sync_folder", "replace_folder"]
    assert isinstance(mae_trainer(photos, training_arguments(tmp_path / "other")), SavingTrainer)


def test_loss_that_is_no_number_leaves_the_ids_in_a_file_and_the_last_checkpoint_as_it_was(
    photos: Path, run: Path
) -> None:
    trainer = mae_trainer(photos, training_arguments(run, max_steps=12, **SAVING))
    step, ids = trainer.training_step, []

    def poisoned(model: Any, inputs: Any, *rest: Any) -> Any:
        if trainer.state.global_step == 8:
            ids.extend(inputs["ids"])
            torch.nn.init.constant_(next(model.parameters()), torch.inf)
        return step(model, inputs, *rest)

    trainer.training_step = poisoned
    with pytest.raises(
        NonFiniteLossError, match=r"the loss of step 9 is nan.*not_finite_step_9_process_0\.json.*point-8: go on"
    ):
        trainer.train(resume_from_checkpoint="true")
    assert json.loads((run / "not_finite_step_9_process_0.json").read_text())["ids"] == ids
    assert find_checkpoint("true", str(run)) == str(run / "checkpoint-8")
    assert torch.isfinite(load_file(run / "checkpoint-8/model.safetensors")["geomae.encoder.cls_token"]).all()


def test_gradient_that_is_no_number_names_the_photos_of_all_batches_of_its_step(photos: Path, tmp_path: Path) -> None:
    """Of several batches whose gradients are added up, any may be the cause."""
    args = training_arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    trainer = mae_trainer(photos, args)
    step, ids = trainer.training_step, []

    def poisoned(model: Any, inputs: Any, *rest: Any) -> Any:
        if trainer.state.global_step == 1:
            ids.extend(inputs["ids"])
            if len(ids) == 4:
                model.decoder.mask_token.register_hook(lambda gradient: gradient * torch.nan)
        return step(model, inputs, *rest)

    trainer.training_step = poisoned
    with pytest.raises(NonFiniteLossError, match="norm of the gradient of step 2 is nan"):
        trainer.train()
    assert len(ids) == 8
    assert json.loads((tmp_path / "not_finite_step_2_process_0.json").read_text())["ids"] == ids
