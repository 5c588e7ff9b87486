"""What a run is called where runs are compared, and what its numbers are called: the same for every script."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from geomae.errors import ConfigError
from geomae.provenance import shown_path

__all__ = [
    "TRACKERS",
    "WITHOUT_WANDB",
    "flat_metrics",
    "flat_posterior",
    "refuse_bad_tags",
    "refuse_missing_trackers",
    "refuse_unready_wandb",
    "run_group_of",
    "run_name_of",
]

MAX_TAG_LETTERS = 64  # of W&B
TRACKERS = ("wandb", "trackio", "tensorboard")
WITHOUT_WANDB = (
    "Log in with `wandb login`, keep the run for `wandb sync` with WANDB_MODE=offline, or write --report_to none"
)
DRAWN_WITH = ("matplotlib", "cartopy")


def run_name_of(output_dir: str) -> str:
    """The folder's path below `outputs/` in one word: `outputs/earth/finetune_mae` is `earth-finetune_mae`."""
    return shown_path(output_dir).strip("/").removeprefix("outputs/").replace("/", "-")


def run_group_of(output_dir: str) -> str:
    """The experiment of a run: the first folder of its path below `outputs/`, such as `earth`."""
    return shown_path(output_dir).strip("/").removeprefix("outputs/").split("/")[0]


def refuse_bad_tags(tags: Sequence[str]) -> None:
    """Refuses tags that W&B would cut in two or not take.

    Raises:
        ConfigError: a tag is empty, has a comma in it or is longer than 64 letters.
    """
    for tag in tags:
        if not tag.strip() or "," in tag or len(tag) > MAX_TAG_LETTERS:
            raise ConfigError(
                f"run_tags holds {tag!r}; a tag has 1 to {MAX_TAG_LETTERS} letters and no comma: "
                "write --run_tags first second"
            )


def refuse_missing_trackers(report_to: str | Sequence[str] | None, *, draws: bool = False) -> None:
    """Refuses to report where a tracker, or what draws its pictures, is not installed.

    Args:
        report_to: names of trackers; others than `TRACKERS` are left to transformers.
        draws: pictures are always sent, so that matplotlib and cartopy are needed.

    Raises:
        ConfigError: a package is not installed; it names the extra that brings it.
    """
    chosen = [report_to] if isinstance(report_to, str) else report_to or ()
    named = [name for name in chosen if name in TRACKERS]
    for extra, packages in {"dashboards": named, "report": DRAWN_WITH if named and draws else ()}.items():
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"report_to {' '.join(named)} needs {', '.join(missing)}, which is not installed. Install it with "
                f"`pip install 'geomae[{extra}]'`, or write --report_to none"
            )


def refuse_unready_wandb() -> None:
    """Refuses to report to W&B where nobody is logged in, or WANDB_MODE is misspelt; at a terminal, W&B asks for a key.

    Called before an earlier run is removed: what W&B would say later would cost that run.

    Raises:
        ConfigError: W&B will not take a run.
    """
    import wandb  # seconds: only runs that report pay for it

    try:
        if os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun") and wandb.run is None:
            wandb.login()
    except wandb.errors.CommError:  # not reached, or a key that it does not know: the run is then recorded on the disk
        return
    except (wandb.Error, ValueError) as problem:
        raise ConfigError(f"report_to wandb: {problem}. {WITHOUT_WANDB}") from problem


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`mean_km`, `median_km`, `geoscore` and `accuracy_within_<radius>km` of a summary, side by side."""
    shares = {f"accuracy_within_{radius}km": share for radius, share in metrics["accuracy_within_km"].items()}
    return {name: metrics[name] for name in ("mean_km", "median_km", "geoscore")} | shares


def flat_posterior(posterior: Mapping[str, Any]) -> dict[str, Any]:
    """`nll`, `mean_expected_km` and `coverage_<share>` of a posterior, side by side."""
    shares = {f"coverage_{share}": within for share, within in posterior["coverage"].items()}
    return {name: posterior[name] for name in ("nll", "mean_expected_km")} | shares
