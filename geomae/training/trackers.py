"""Where a run shows itself: W&B, trackio, TensorBoard. One that is resumed goes on in its own record there."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from geomae.shown_argv import hide_secrets_in_argv
from geomae.training.run_folder import RECORD_FILE

__all__ = ["describe_to_trackers", "show_picture", "start_trackers"]


def start_trackers(trainer: Trainer, checkpoint: str | None) -> None:
    """Open the run's record before transformers' callbacks do, which know neither groups nor what is resumed.

    A run goes on in its own record where it is resumed from a checkpoint in its own `output_dir`: in W&B by the id in
    `run.json`, unless `WANDB_RUN_ID` names another; in trackio by its name; in TensorBoard in the same folder. Any
    other run gets a record of its own, though it be of the same name.

    Args:
        trainer: before its training begins.
        checkpoint: the folder that it goes on from; None at the start.
    """
    hide_secrets_in_argv()
    args: Any = trainer.args
    output_dir = Path(args.output_dir)
    callbacks = _callbacks(trainer)
    if "TensorBoardCallback" in callbacks and callbacks["TensorBoardCallback"].logging_dir is None:
        callbacks["TensorBoardCallback"].logging_dir = str(output_dir / "runs")
    if not trainer.is_world_process_zero():
        return
    continues = checkpoint is not None and Path(checkpoint).resolve().parent == output_dir.resolve()
    if continues and "WandbCallback" in callbacks:
        _continue_in_wandb(callbacks["WandbCallback"]._wandb, output_dir, args.run_name)
    if "TrackioCallback" in callbacks:
        _start_in_trackio(callbacks["TrackioCallback"], args, continues=continues)


def _continue_in_wandb(wandb: Any, output_dir: Path, run_name: str) -> None:
    earlier = json.loads((output_dir / RECORD_FILE).read_text()) if (output_dir / RECORD_FILE).is_file() else {}
    known = earlier.get("wandb") or {}
    if known.get("id") and wandb.run is None and not os.environ.get("WANDB_RUN_ID"):
        place = {key: known.get(key) or None for key in ("project", "entity")}
        wandb.init(id=known["id"], resume="allow", name=run_name, **place)


def _start_in_trackio(callback: Any, args: Any, *, continues: bool) -> None:
    trackio = callback._trackio
    trackio.init(
        project=args.project,
        name=args.run_name,
        group=args.run_group,
        resume="allow" if continues else "never",
        space_id=args.trackio_space_id,
        private=args.hub_private_repo,
    )
    callback._space_id = trackio.context_vars.current_space_id.get()
    callback._initialized = True  # its own `setup` would take an older run of the same name for this one


def describe_to_trackers(trainer: Trainer, config: dict[str, Any]) -> dict[str, Any]:
    """Tell W&B and trackio what is run; returns where W&B and trackio have it, for `run.json`."""
    places: dict[str, Any] = {}
    if (wandb := _wandb_of(trainer)) is not None:
        wandb.config.update(config, allow_val_change=True)
        names = ("id", "name", "group", "project", "entity", "url")
        places["wandb"] = {name: getattr(wandb.run, name) or None for name in names}
    if (trackio := _trackio_of(trainer)) is not None:
        trackio.config.update(config)
        run = trackio.context_vars.current_run.get()
        places["trackio"] = {"name": run.name, "group": run.group, "project": run.project}
    return places


def show_picture(trainer: Trainer, name: str, path: Path) -> None:
    """Send a picture to the trackers that the run reports to."""
    step = trainer.state.global_step
    if (wandb := _wandb_of(trainer)) is not None:
        wandb.log({name: wandb.Image(str(path)), "train/global_step": step})
    if (trackio := _trackio_of(trainer)) is not None:
        trackio.log({name: trackio.Image(str(path)), "train/global_step": step})
    writer = getattr(_callbacks(trainer).get("TensorBoardCallback"), "tb_writer", None)
    if writer is not None:
        from matplotlib.image import imread

        writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")  # (H, W, 3 or 4) -> (H, W, 3)


def _callbacks(trainer: Trainer) -> dict[str, Any]:
    callbacks: list[TrainerCallback] = trainer.callback_handler.callbacks
    return {type(callback).__name__: callback for callback in callbacks}


def _wandb_of(trainer: Trainer) -> Any:
    """The `wandb` module where this process has a run in it, else None."""
    callback = _callbacks(trainer).get("WandbCallback")
    return callback._wandb if callback is not None and callback._wandb.run is not None else None


def _trackio_of(trainer: Trainer) -> Any:
    """The `trackio` module where this process has a run in it, else None."""
    trackio = getattr(_callbacks(trainer).get("TrackioCallback"), "_trackio", None)
    return trackio if trackio is not None and trackio.context_vars.current_run.get() is not None else None
