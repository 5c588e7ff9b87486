"""Where a run shows itself: W&B, trackio, TensorBoard. One that is resumed goes on in its own record there."""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import get_session
from transformers import Trainer, TrainerCallback

from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError
from geomae.shown_argv import argv_without_secrets
from geomae.tracking import WITHOUT_WANDB
from geomae.training.publishing import SECONDS_TO_ANSWER, is_unreached
from geomae.training.run_folder import RECORD_FILE

__all__ = ["describe_to_trackers", "show_picture", "start_trackers"]

logger = logging.getLogger(__name__)


def start_trackers(trainer: Trainer, checkpoint: str | None) -> None:
    """Open the run's record before transformers' callbacks do, which know neither groups nor what is resumed.

    A run goes on in its own record where it is resumed from a checkpoint in its own `output_dir`: in W&B and trackio by
    the id in `run.json`, unless `WANDB_RUN_ID` names another; in TensorBoard in the same folder. Any other run gets a
    record of its own, though it be of the same name.

    Args:
        trainer: before its training begins.
        checkpoint: the folder that it goes on from; None at the start.

    Raises:
        ConfigError: W&B or trackio does not take the run, or `run.json` of the run that goes on is broken.
    """
    args: Any = trainer.args
    output_dir = Path(args.output_dir)
    callbacks = _callbacks(trainer)
    if "TensorBoardCallback" in callbacks and callbacks["TensorBoardCallback"].logging_dir is None:
        callbacks["TensorBoardCallback"].logging_dir = str(output_dir / "runs")
    if not trainer.is_world_process_zero() or not {"WandbCallback", "TrackioCallback"} & callbacks.keys():
        return
    continues = checkpoint is not None and Path(checkpoint).resolve().parent == output_dir.resolve()
    earlier = _read_record(output_dir / RECORD_FILE) if continues else {}
    if "WandbCallback" in callbacks:
        _start_in_wandb(callbacks["WandbCallback"]._wandb, args, earlier.get("wandb") or {})
    if "TrackioCallback" in callbacks:
        _start_in_trackio(callbacks["TrackioCallback"], args, earlier.get("trackio") or {})


def _read_record(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(parse_json(read_text(file)))
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"{file} cannot be read: {problem}. It says where the run is recorded: mend it, or remove it, and the run "
            "begins a new record"
        ) from problem


def _start_in_wandb(wandb: Any, args: Any, known: dict[str, Any]) -> None:
    """A run that is there already is somebody else's choice, a sweep's for example, and stays.

    Where W&B does not answer, the run is recorded on the disk, and the log says how to upload that.
    """
    if _is_running(wandb):
        return
    place: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "geomae")}
    if known.get("id") and not os.environ.get("WANDB_RUN_ID"):
        place = {key: known.get(key) or None for key in ("project", "entity")}
        place |= {"id": known["id"], "resume": "allow"}
    naming = {"name": args.run_name, "group": args.run_group, "tags": args.run_tags or None}  # those of WANDB_TAGS
    place |= naming | {"job_type": os.environ.get("WANDB_JOB_TYPE", "train")}
    try:
        try:
            with argv_without_secrets():
                wandb.init(**place)
        except wandb.errors.CommError as problem:
            with argv_without_secrets():
                run = wandb.init(**place, mode="offline")
            logger.warning(
                "W&B was not reached (%s): the run is recorded offline; upload it when it has ended: wandb sync %s",
                *(str(problem).splitlines()[0], shlex.quote(str(Path(run.dir).parent))),
            )
    except (wandb.Error, ValueError) as problem:
        raise ConfigError(f"report_to wandb: {problem}. {WITHOUT_WANDB}") from problem


def _start_in_trackio(callback: Any, args: Any, known: dict[str, Any]) -> None:
    """In its Space; where the Hub does not answer, on the disk, and the log says how to upload that."""
    trackio = callback._trackio
    options: dict[str, Any] = {"project": args.project, "name": args.run_name, "group": args.run_group}
    options |= {"resume": "allow" if known else "never", "private": args.hub_private_repo}
    get_session().timeout = SECONDS_TO_ANSWER
    try:
        try:
            run = trackio.init(**options, space_id=args.trackio_space_id)
        except Exception as problem:  # whatever a network can do
            if not is_unreached(problem):
                raise
            with _without_a_space():
                run = trackio.init(**options)
            space = args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID", "OWNER/SPACE")
            again = shlex.join(["trackio", "sync", "--project", args.project, "--space-id", space])
            logger.warning(
                "trackio's Space was not reached (%s): the run is recorded on the disk; upload it afterwards: %s",
                *(type(problem).__name__, again),
            )
    except (OSError, ValueError, RuntimeError) as problem:
        raise ConfigError(f"report_to trackio: {problem}. Mend it, or write --report_to none") from problem
    if known.get("id", run.id) != run.id:  # trackio goes by names, and takes the newest run of this one
        run.id = known["id"]
        last_step = trackio.sqlite_storage.SQLiteStorage.get_max_step_for_run(args.project, run.name, run_id=run.id)
        run._next_step = run._next_step if last_step is None else last_step + 1
    callback._space_id = trackio.context_vars.current_space_id.get()
    callback._initialized = True  # its own `setup` would take an older run of the same name for this one


@contextmanager
def _without_a_space() -> Iterator[None]:
    """Trackio looks there for what it is not told."""
    before = {name: os.environ.pop(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


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
        places["trackio"] = {"id": run.id, "name": run.name, "group": run.group, "project": run.project}
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
    """The `wandb` module where this process has a run in it that is not a dummy (WANDB_MODE=disabled), else None."""
    wandb = getattr(_callbacks(trainer).get("WandbCallback"), "_wandb", None)
    return wandb if wandb is not None and _is_running(wandb) else None


def _is_running(wandb: Any) -> bool:
    """Whether there is a run that is recorded; WANDB_MODE=disabled leaves a dummy, also behind its end."""
    return wandb.run is not None and not getattr(wandb.run, "disabled", False)


def _trackio_of(trainer: Trainer) -> Any:
    """The `trackio` module where this process has a run in it, else None."""
    trackio = getattr(_callbacks(trainer).get("TrackioCallback"), "_trackio", None)
    return trackio if trackio is not None and trackio.context_vars.current_run.get() is not None else None
