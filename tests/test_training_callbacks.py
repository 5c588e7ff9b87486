"""Pictures and records: drawn when they should be, by the main process, and shown by W&B and TensorBoard."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from PIL import Image

from geomae.training import MAETrainer, PredictionMaps, ReconstructionPanels, RunRecord, pick_panel


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=32, validation=6)


def add_panels(trainer: MAETrainer, *, every_steps: int) -> None:
    panel = pick_panel(trainer.eval_dataset, trainer.eval_collator, num_photos=3)
    assert panel is not None
    assert set(panel) == {"pixel_values", "noise"}
    trainer.add_callback(ReconstructionPanels(trainer, panel, every_steps=every_steps))


def test_panels_are_drawn_before_during_and_at_the_end(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=5))
    add_panels(trainer, every_steps=2)
    trainer.train()
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == [f"reconstruction_step_{step:06d}.png" for step in (0, 2, 4, 5)]
    first, last = (Image.open(tmp_path / "pictures" / drawn[place]).convert("RGB") for place in (0, -1))
    assert first.tobytes() != last.tobytes()


def test_panels_change_nothing_about_the_training(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    silent = mae_trainer(photos, training_arguments(tmp_path / "a", max_steps=3), drop_path_rate=0.5)
    silent.train()
    torch.manual_seed(0)
    drawing = mae_trainer(photos, training_arguments(tmp_path / "b", max_steps=3), drop_path_rate=0.5)
    add_panels(drawing, every_steps=1)
    drawing.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (silent, drawing)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("every_steps, is_main", [(0, True), (1, False)], ids=["switched_off", "other_process"])
def test_panels_are_not_drawn(photos: Path, tmp_path: Path, every_steps: int, is_main: bool) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=2))
    add_panels(trainer, every_steps=every_steps)
    trainer.is_world_process_zero = lambda: is_main
    trainer.train()
    assert not (tmp_path / "pictures").exists()


def test_there_is_no_panel_without_photos(photos: Path) -> None:
    assert pick_panel(None, None, num_photos=3) is None


def test_record_is_written_before_the_first_step_and_completed_at_the_end(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=2))
    trainer.add_callback(RunRecord(trainer, {"mask_ratio": 0.75, "hub_token": "secret"}))
    step, seen = trainer.training_step, []
    trainer.training_step = lambda *a: seen.append(json.loads((tmp_path / "run.json").read_text())) or step(*a)
    trainer.train()
    assert "result" not in seen[0]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == {"mask_ratio": 0.75}
    assert record["training"]["num_photos"] == 32
    assert record["training"]["peak_flops_source"] == "given"
    assert record["result"] == {
        "global_step": 2,
        "epoch": 0.5,
        "best_metric": None,
        "best_model_checkpoint": None,
        "num_bad_photos": 0,
    }


@pytest.fixture
def finished_wandb() -> Iterator[None]:
    wandb = pytest.importorskip("wandb")  # offline, below a folder that vanishes: see conftest.py
    yield
    wandb.finish()


def keys_missing(run_file: Path, keys: tuple[str, ...]) -> list[str]:
    """Which keys are not in an offline run's file: protocol buffers, uncompressed, so a key stands there as it is."""
    written = run_file.read_bytes()
    return [key for key in keys if key.encode() not in written]


@pytest.mark.usefixtures("finished_wandb")
def test_wandb_offline_gets_curves_and_panels(photos: Path, tmp_path: Path) -> None:
    import wandb

    args = training_arguments(tmp_path / "run", report_to="wandb", max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = mae_trainer(photos, args)
    add_panels(trainer, every_steps=2)
    trainer.train()
    assert wandb.run is not None
    assert wandb.run.project == "geomae"
    files = Path(wandb.run.dir)
    wandb.finish()
    assert len(list((files / "media/images").glob("reconstructions_*.png"))) == 2
    (run_file,) = files.parent.glob("*.wandb")
    keys = ("train/loss", "train/learning_rate", "train/photos_per_second", "train/mfu", "eval/loss")
    deadline = time.monotonic() + 60  # `finish` returns before wandb's own process has written its last block
    while (missing := keys_missing(run_file, keys)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not missing


@pytest.mark.usefixtures("finished_wandb")
def test_wandb_offline_gets_the_prediction_map(photos: Path, tmp_path: Path) -> None:
    import wandb

    pytest.importorskip("cartopy")
    args = training_arguments(tmp_path / "run", report_to="wandb", max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = geolocation_trainer(photos, args)
    trainer.add_callback(PredictionMaps(trainer))
    trainer.train()
    trainer.evaluate()
    files = Path(wandb.run.dir)
    wandb.finish()
    assert len(list((files / "media/images").glob("predictions_*.png"))) == 2
    drawn = sorted(path.name for path in (tmp_path / "run/pictures").iterdir())
    assert drawn == ["predictions_final.png", "predictions_step_000002.png"]


def test_tensorboard_gets_curves_and_panels(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    args = training_arguments(tmp_path, report_to="tensorboard", max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = mae_trainer(photos, args)
    add_panels(trainer, every_steps=2)
    trainer.train()
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert {"train/loss", "train/photos_per_second", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in events.Images("reconstructions")] == [0, 2]
