"""The panels of `docs/wandb.md` as a saved view of W&B: every team builds the same one, with one command."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from geomae.errors import ConfigError, GeoMAEError

__all__ = ["PANELS", "PanelSpec", "WorkspaceError", "build_workspace", "describe_workspace", "save_workspace"]

Kind = Literal["line", "log_line", "smooth_line", "bar", "parallel", "importance", "media"]
STEP = "train/global_step"
TEST_SET = "{test_set}"  # in a name of `PANELS`: the test set that the view is about


class WorkspaceError(GeoMAEError):
    """W&B cannot be reached, nobody is logged in, or it refuses the view."""


@dataclass(frozen=True)
class PanelSpec:
    """One panel of the view."""

    section: str
    title: str
    """Of `importance` W&B's own name of the panel: the library takes no other."""
    kind: Kind
    logged: tuple[str, ...]
    """Numbers or pictures by the names under which runs log them."""
    settings: tuple[str, ...] = ()
    """Keys of the configuration, for `parallel`."""


SWEPT = ("base_learning_rate", "layer_decay", "drop_path_rate", "pooling")
PRETRAINING_SWEPT = ("base_learning_rate", "mask_ratio", "decoder_num_hidden_layers", "decoder_hidden_size")
PANELS = (
    PanelSpec("Validation", "Mean error, km", "log_line", ("eval/mean_km",)),
    PanelSpec("Validation", "Median error, km", "log_line", ("eval/median_km",)),
    PanelSpec("Validation", "Share within 200 km", "line", ("eval/accuracy_within_200km",)),
    PanelSpec("Validation", "Loss", "line", ("eval/loss",)),
    PanelSpec("Training", "Loss", "smooth_line", ("train/loss",)),
    PanelSpec("Training", "Error of the batches, km", "smooth_line", ("train/great_circle_km",)),
    PanelSpec("Training", "Learning rate", "line", ("train/learning_rate",)),
    PanelSpec("Training", "Gradient norm", "smooth_line", ("train/grad_norm",)),
    PanelSpec("Speed and health", "Photos per second", "line", ("train/photos_per_second",)),
    PanelSpec("Speed and health", "Model FLOP utilisation", "line", ("train/mfu",)),
    PanelSpec("Speed and health", "Damaged photos", "line", ("train/num_bad_photos",)),
    PanelSpec("Final numbers", "Mean error, km", "bar", (f"test/{TEST_SET}/mean_km",)),
    PanelSpec("Final numbers", "Median error, km", "bar", (f"test/{TEST_SET}/median_km",)),
    PanelSpec("Final numbers", "Share within 25 km", "bar", (f"test/{TEST_SET}/accuracy_within_25km",)),
    PanelSpec("Final numbers", "Share within 200 km", "bar", (f"test/{TEST_SET}/accuracy_within_200km",)),
    PanelSpec("Final numbers", "Share within the 90 % radius", "bar", (f"test/{TEST_SET}/coverage_0.9",)),
    PanelSpec("Settings against error", "On the test set", "parallel", (f"test/{TEST_SET}/mean_km",), SWEPT),
    PanelSpec("Settings against error", "In a sweep", "parallel", ("eval/mean_km",), SWEPT),
    PanelSpec("Settings against error", "Parameter importance", "importance", ("eval/mean_km",)),
    PanelSpec("Settings against error", "In a sweep of pretraining", "parallel", ("eval/loss",), PRETRAINING_SWEPT),
    PanelSpec("Pictures", "Answers on the test set", "media", (f"test/{TEST_SET}/map",)),
    PanelSpec("Pictures", "Distribution of the errors", "media", (f"test/{TEST_SET}/error_cdf",)),
    PanelSpec("Pictures", "Calibration", "media", (f"test/{TEST_SET}/calibration",)),
    PanelSpec("Pictures", "Answers in validation, over steps", "media", ("predictions",)),
    PanelSpec("Pictures", "Reconstructions, over steps", "media", ("reconstructions",)),
)
PINNED = (
    *("mean_km", "mean_km_low", "mean_km_high", "median_km"),
    *("accuracy_within_25km", "accuracy_within_200km", "accuracy_within_750km"),
)  # columns beside each run's name


def build_workspace(
    entity: str, project: str, *, test_set: str = "im2gps3k", name: str = "GeoMAE", panels: Sequence[PanelSpec] = PANELS
) -> Any:
    """A view of runs that are grouped by experiment and job type; nothing is sent.

    Args:
        entity: user or team of W&B.
        project: of the runs.
        test_set: whose final numbers are shown, as `docs/wandb.md` names test sets.
        name: of the view.
        panels: in their order; equal sections follow each other.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`.

    Raises:
        ConfigError: wandb-workspaces is not installed, or W&B would not take the name.
    """
    if find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "a workspace needs wandb-workspaces, which is not installed: pip install 'geomae[dashboards]'"
        )
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    sections: dict[str, list[Any]] = {}
    for panel in panels:
        sections.setdefault(panel.section, []).append(_draw(panel, test_set))
    described: dict[str, Any] = {
        "entity": entity,
        "project": project,
        "name": name,
        "sections": [ws.Section(name=title, panels=drawn, is_open=True) for title, drawn in sections.items()],
        "settings": ws.WorkspaceSettings(x_axis=STEP, max_runs=20),
        "runset_settings": ws.RunsetSettings(
            groupby=[expr.Metric("Group"), expr.Metric("JobType")],
            pinned_columns=["run:displayName", *(f"summary:test/{test_set}/{number}" for number in PINNED)],
        ),
    }
    try:
        return ws.Workspace(**described)
    except ValueError as problem:  # pydantic's
        raise ConfigError(f"--name {name!r} is no name for a view of W&B: take letters and digits") from problem


def _draw(panel: PanelSpec, test_set: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    names: list[Any] = [name.replace(TEST_SET, test_set) for name in panel.logged]
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=names, num_columns=2)
    if panel.kind == "bar":
        return wr.BarPlot(title=panel.title, metrics=names)
    if panel.kind == "importance":
        return wr.ParameterImportancePlot(with_respect_to=names[0])
    if panel.kind == "parallel":
        columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in panel.settings]
        columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name), log=True) for name in names]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    smoothed: dict[str, Any] = {"smoothing_type": "exponential", "smoothing_factor": 0.6}
    return wr.LinePlot(
        title=panel.title,
        x=STEP,
        y=list(names),
        log_y=panel.kind == "log_line",
        **(smoothed if panel.kind == "smooth_line" else {}),
    )


def describe_workspace(workspace: Any) -> str:
    """The view as the JSON that `save_workspace` would send."""
    view = workspace._to_model()
    return json.dumps(view.spec.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2)


def save_workspace(workspace: Any) -> str:
    """Save the view in W&B as a new one; returns its address.

    Raises:
        WorkspaceError: nobody is logged in, W&B cannot be reached, or it refuses the view.
    """
    try:
        return str(workspace.save_as_new_view().url)
    except Exception as problem:  # the library lets through what wandb, requests and its own transport raise
        raise WorkspaceError(
            f"W&B did not take the view: {problem}. Log in with `wandb login`, and check that {workspace.entity}/"
            f"{workspace.project} exists; --dry_run prints the view without W&B"
        ) from problem
