"""Evaluations in the trackers that their trainings report to: W&B, trackio, TensorBoard."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomae.reporting.records import read_evaluation
from geomae.reporting.tracked_evaluation import TrackedEvaluation, describe_evaluation
from geomae.reporting.wandb_run import send_to_wandb
from geomae.tracking import refuse_bad_tags

__all__ = ["report_evaluation"]

logger = logging.getLogger(__name__)

LABELS = {"wandb": "W&B", "trackio": "trackio", "tensorboard": "TensorBoard"}


def report_evaluation(output_dir: str | Path, report_to: Sequence[str], **naming: Any) -> bool:
    """Record an evaluation as a run of its own in each tracker.

    Args:
        output_dir: folder of `run_evaluate_geo.py`; its numbers are there already, whatever happens here.
        report_to: some of `geomae.tracking.TRACKERS`.
        naming: `checkpoint`, `name`, `group` and `tags`, as for `describe_evaluation`.

    Returns:
        Whether all have it. Where a tracker cannot be reached, nobody is logged in, or the training's `run.json` is
        broken, a warning says what to do.

    Raises:
        SourceError: the folder holds no whole evaluation.
        ConfigError: W&B would not take a tag.
    """
    refuse_bad_tags(naming.get("tags") or ())
    read_evaluation(output_dir)  # what is broken here is an error; what is broken elsewhere, a warning
    problems: dict[str, Exception] = {}
    try:
        tracked = describe_evaluation(output_dir, **naming)
    except ValueError as problem:
        problems = dict.fromkeys(report_to, problem)
    for tracker in report_to if not problems else ():
        try:
            SENDERS[tracker](tracked)
        except Exception as problem:  # of a network or a database, and of as many libraries: the numbers are safe
            problems[tracker] = problem
    for tracker, reason in problems.items():
        _warn(tracker, Path(output_dir), reason)
    return not problems


def _warn(tracker: str, output_dir: Path, problem: Exception) -> None:
    advice = "`wandb login` first, or keep it for `wandb sync` with WANDB_MODE=offline. " if tracker == "wandb" else ""
    logger.warning(
        "%s did not take the evaluation: %s\n  Its numbers are in %s. To send them: %s`python -m geomae.reporting "
        "track %s --report_to %s`.",
        *(LABELS[tracker], problem, output_dir / "metrics.json", advice, output_dir, tracker),
    )


def _send_to_trackio(tracked: TrackedEvaluation) -> None:
    import trackio

    config = {**tracked.config, "job_type": "evaluate", "run_tags": list(tracked.tags)}
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "geomae"), name=tracked.name, group=tracked.group, config=config
    )
    pictures = {key: trackio.Image(str(file), picture.caption) for key, (file, picture) in tracked.pictures.items()}
    trackio.log({**tracked.numbers, **pictures})
    trackio.finish()


def _send_to_tensorboard(tracked: TrackedEvaluation) -> None:
    """Into `runs` of the evaluation's folder; `tensorboard --logdir outputs` shows it beside the trainings."""
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    for earlier in (tracked.evaluation.folder / "runs").glob("events.out.tfevents.*"):
        earlier.unlink()  # else what is sent twice stands there twice
    with SummaryWriter(log_dir=str(tracked.evaluation.folder / "runs")) as writer:
        writer.add_text("config", f"```json\n{json.dumps(tracked.config, indent=2, default=str)}\n```")
        for key, number in tracked.numbers.items():
            writer.add_scalar(key, number, 0)
        for key, (file, _) in tracked.pictures.items():
            writer.add_image(key, imread(file)[..., :3], 0, dataformats="HWC")  # (H, W, 3 or 4) -> (H, W, 3)


SENDERS = {"wandb": send_to_wandb, "trackio": _send_to_trackio, "tensorboard": _send_to_tensorboard}
