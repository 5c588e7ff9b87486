"""Where a run shows itself: W&B, trackio, TensorBoard. One that is resumed goes on in its own record there."""

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from geomae.training.run_folder import RECORD_FILE

__all__ = ["describe_to_trackers", "show_picture", "start_trackers"]

logger = logging.getLogger(__name__)


def start_trackers(trainer: Trainer, checkpoint: str | None) -> None:
    """Open the run's record before transformers' callbacks do, which know neither groups nor what is resumed.

    A run goes on in its own record where it is resumed from a checkpoint in its own `output_dir`: in W&B by the id in
    `run.json`, unless `WANDB_RUN_ID` names another; in trackio by its name; in TensorBoard in the same folder. Any
    other run gets a record of its own, though it be of the same name.

    Args:
        trainer: before its training begins.
        checkpoint: the folder that it goes on from; None at the start.
    """
    args: Any = trainer.args
    output_dir = Path(args.output_dir)
    callbacks = _callbacks(trainer)
    if "TensorBoardCallback" in callbacks and callbacks["TensorBoardCallback"].logging_dir is None:
        callbacks["TensorBoardCallback"].logging_dir = str(output_dir / "runs")
    if not trainer.is_world_process_zero():
        return
    continues = checkpoint is not None and Path(checkpoint).resolve().parent == output_dir.resolve()
    if "WandbCallback" in callbacks:
        earlier = _known_in_wandb(output_dir) if continues else {}
        _start_in_wandb(callbacks["WandbCallback"]._wandb, args.run_name, earlier)
    if "TrackioCallback" in callbacks:
        _start_in_trackio(callbacks["TrackioCallback"], args, continues=continues)


def _known_in_wandb(output_dir: Path) -> dict[str, Any]:
    """Where the run of this folder is in W&B; a run that `WANDB_RUN_ID` names goes before it."""
    earlier = json.loads((output_dir / RECORD_FILE).read_text()) if (output_dir / RECORD_FILE).is_file() else {}
    known = earlier.get("wandb") or {}
    if not known.get("id") or os.environ.get("WANDB_RUN_ID"):
        return {}
    return {"id": known["id"], "resume": "allow"} | {key: known.get(key) or None for key in ("project", "entity")}


def _start_in_wandb(wandb: Any, run_name: str, earlier: dict[str, Any]) -> None:
    """Where W&B does not answer, the run is recorded on the disk, and the log says how to upload that."""
    if wandb.run is not None:
        return
    place = {"name": run_name, "project": os.environ.get("WANDB_PROJECT", "geomae"), **earlier}
    try:
        wandb.init(**place)
    except wandb.errors.CommError as error:
        run = wandb.init(**place, mode="offline")
        logger.warning(
            "W&B was not reached (%s): the run is recorded offline; when it has ended, upload it with: wandb sync %s",
            *(str(error).splitlines()[0], shlex.quote(str(Path(run.dir).parent))),
        )


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
