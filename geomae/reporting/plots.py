"""Figures that can be read in black and white, on a projector and by the colour-blind. None of them needs a network.

Every function returns a `matplotlib` Figure that belongs to no global state; `save_figure` writes it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geomae.evaluation.metrics import LARGEST_ERROR_KM, THRESHOLDS_KM
from geomae.files import whole_file
from geomae.reporting.step_profile import PHASES

__all__ = [
    "BASELINE_COLOURS",
    "COLOURS",
    "calibration_curve",
    "error_cdf",
    "loss_curves",
    "profile_bars",
    "reconstruction_grid",
    "save_figure",
    "show_photo",
    "style",
]

# Okabe and Ito (2008), "Color universal design", without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BASELINE_COLOURS = ("#222222", "#666666", "#8c8c8c", "#b0b0b0")
BASELINE_DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1)))
AXES = {"step": "optimiser step", "epoch": "epoch"}
MAX_PHOTOS_IN_GRID = 12
MAX_LINES_INSIDE = 7  # a longer legend covers the curves
DOTS_PER_INCH = 130

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "text.parse_math": False,  # names of runs and files may hold $, and none of our texts is a formula
}


def style() -> Any:
    """A context in which figures have our fonts, grids and line widths."""
    return matplotlib.rc_context(STYLE)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG without transparency, cut to what is drawn; the folder is created.

    The figure is empty afterwards: it refers to itself, and what it holds would stay until Python looks for such
    circles, which a training does after dozens of pictures, 300 MB later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12)
    made_by = PngInfo()
    made_by.add_text("Software", "GeoMAE")
    with whole_file(path) as file:
        Image.open(drawn).convert("RGB").save(file, "PNG", optimize=True, pnginfo=made_by)
    figure.clear()
    return path


def reconstruction_grid(original: ArrayLike, masked: ArrayLike, restored: ArrayLike, *, title: str = "") -> Figure:
    """Photos in columns; under each other the original, what the encoder sees, and what the decoder restores.

    Args:
        original: `(B, 3, H, W)` uint8; the first 12 photos are shown.
        masked: `(B, 3, H, W)` uint8, hidden patches greyed.
        restored: `(B, 3, H, W)` uint8.
        title: stands above the grid.

    Raises:
        ValueError: the three differ in shape, or are not `(B, 3, H, W)` uint8.
    """
    rows = {"original": original, "masked": masked, "restored": restored}
    photos = {label: np.asarray(batch) for label, batch in rows.items()}
    shape = photos["original"].shape
    if len(shape) != 4 or shape[1] != 3 or any(p.shape != shape or p.dtype != np.uint8 for p in photos.values()):
        described = ", ".join(f"{label} {p.shape} {p.dtype}" for label, p in photos.items())
        raise ValueError(f"expected three arrays (B, 3, H, W) of uint8 with the same shape; got {described}")
    num_photos = min(len(photos["original"]), MAX_PHOTOS_IN_GRID)
    with style():
        width, height = 1.5 * num_photos + 0.4, 4.5 * shape[2] / shape[3] + (0.5 if title else 0.1)
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
        figure = Figure(figsize=(width, height), layout=layout)
        axes = figure.subplots(3, num_photos, squeeze=False)
        for row, (label, batch) in enumerate(photos.items()):
            for column in range(num_photos):
                show_photo(axes[row, column], batch[column].transpose(1, 2, 0))
            axes[row, 0].set_ylabel(label)
        if title:
            figure.suptitle(title, x=0.0, ha="left", fontsize=12, fontweight="bold")
    return figure


def show_photo(axes: Axes, photo: NDArray[np.uint8]) -> None:
    """`(H, W, 3)` pixels without a frame, a grid or numbers along the sides."""
    axes.imshow(photo, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    metrics: Mapping[str, str],
    *,
    title: str,
    unit: str,
    along: str = "step",
    log_scale: bool = False,
) -> Figure:
    """Logged metrics over training steps, each run in its colour, each metric in its dashes.

    Args:
        histories: run -> `log_history` of its `trainer_state.json`: entries with `step` and metrics.
        metrics: metric's key -> its name in the legend; the first is drawn solid, evaluations get markers.
        title: stands above the curves.
        unit: label of the vertical axis.
        along: the horizontal axis, `step` or `epoch`: a key of every entry.
        log_scale: of the vertical axis.
    """
    with style():
        figure = Figure(figsize=(8.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for rank, (run, history) in enumerate(histories.items()):
            for number, (key, name) in enumerate(metrics.items()):
                points = [(entry[along], entry[key]) for entry in history if key in entry]
                if not points:
                    continue
                steps, values = np.array(points, dtype=np.float64).T
                label = name if len(histories) == 1 else run if len(metrics) == 1 else f"{run}: {name}"
                is_evaluation = key.startswith("eval_")
                axes.plot(
                    steps,
                    values,
                    color=_colour(rank if len(histories) > 1 else number),
                    linestyle=_dashes(number + rank // len(COLOURS)),
                    marker="o" if is_evaluation or len(points) == 1 else None,
                    markersize=4,
                    label=_shown_label(f"{label} ({values[-1]:,.4g} at the end)"),
                )
        axes.set(title=title, xlabel=AXES[along], ylabel=unit)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        if log_scale:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(matplotlib.ticker.FuncFormatter(_plain_number))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain_number))
        if axes.lines:
            _place_legend(figure, axes, inside="best")
    return figure


def _plain_number(value: float, _position: int | None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def error_cdf(
    models: Mapping[str, ArrayLike], baselines: Mapping[str, ArrayLike] | None = None, *, title: str
) -> Figure:
    """Which share of the photos lies within which error, models in colour against baselines in grey dashes.

    Args:
        models: name -> `(n,)` errors in km, every photo of the test set with one.
        baselines: the same for answers that saw no photo.
        title: stands above the curves; should say n.
    """
    with style():
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        for radius in THRESHOLDS_KM:
            axes.axvline(radius, color="#dddddd", linewidth=0.9, zorder=0)
        for number, (name, errors) in enumerate((baselines or {}).items()):
            dashes = BASELINE_DASHES[number % len(BASELINE_DASHES)]
            colour = BASELINE_COLOURS[number % len(BASELINE_COLOURS)]
            _draw_cdf(axes, errors, name, color=colour, linestyle=dashes, linewidth=1.5)
        for rank, (name, errors) in enumerate(models.items()):
            dashes = _dashes(rank // len(COLOURS))
            _draw_cdf(axes, errors, name, color=_colour(rank), linestyle=dashes, linewidth=2.4)
        axes.set_xscale("log")
        axes.set(xlim=(1, LARGEST_ERROR_KM), ylim=(0, 100), title=title)
        axes.set(xlabel="great-circle error, km (logarithmic)", ylabel="share of photos within the error, %")
        ticks = [*THRESHOLDS_KM, 10_000.0]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.grid(visible=False, axis="x")
        _place_legend(figure, axes, inside="upper left", title="median error")
    return figure


def _draw_cdf(axes: Axes, errors: ArrayLike, name: str, **line: Any) -> None:
    error_km = np.sort(np.asarray(errors, dtype=np.float64))
    share = 100.0 * np.arange(1, error_km.size + 1) / error_km.size
    label = _shown_label(f"{name}, {np.median(error_km):,.0f} km")
    axes.step(np.concatenate([[1e-3], error_km]), np.concatenate([[0.0], share]), where="post", label=label, **line)


def calibration_curve(
    curves: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Sequence[float]] | None],
    *,
    title: str,
) -> Figure:
    """The share of photos within each radius against the share that it should hold; on the diagonal where they agree.

    Bars stand beside their points, or those of two models would hide each other.

    Args:
        curves: model -> share of the mass, as text -> share of the photos within the radius that holds it.
        intervals: model -> share of the mass -> `[low, high]`; None where there are none.
        title: stands above the curves.
    """
    with style():
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color="#666666", linestyle=BASELINE_DASHES[0], linewidth=1.2, label="calibrated")
        for rank, (name, curve) in enumerate(curves.items()):
            mass, shares = (100.0 * np.array([*each], dtype=np.float64) for each in (curve, curve.values()))
            look = {"color": _colour(rank), "linestyle": _dashes(rank // len(COLOURS)), "marker": "o", "markersize": 4}
            axes.plot(mass, shares, label=_shown_label(name), **look)
            if (ends := intervals.get(name)) is not None:
                low, high = 100.0 * np.array([ends[key] for key in curve]).T
                bars = np.maximum([shares - low, high - shares], 0.0)  # an interval may leave its number out
                beside = mass + 0.8 * (rank - (len(curves) - 1) / 2)
                axes.errorbar(beside, shares, yerr=bars, fmt="none", ecolor=_colour(rank), capsize=2, elinewidth=1.0)
        axes.set(xlim=(0, 100), ylim=(0, 100), title=title)
        axes.set(xlabel="mass that the radius should hold, %", ylabel="photos within the radius, %")
        axes.text(97, 4, "below the line: too sure of itself", ha="right", color="#666666")
        _place_legend(figure, axes, inside="upper left")
    return figure


def profile_bars(profile: Mapping[str, Any]) -> Figure:
    """Where a step's time goes: a bar for each category, forward, backward and the rest in three colours.

    Args:
        profile: what `read_profile` returns; the GPU's part where there is one, else the host's.
    """
    on_device = profile["device_ms"] is not None
    parts: Mapping[str, Mapping[str, float]] = profile["device_ms" if on_device else "host_ms"]
    whole_ms = sum(sum(phases.values()) for phases in parts.values())
    names = {"idle": "GPU idle" if on_device else "between operations: Python"}
    with style():
        figure = Figure(figsize=(8.2, 0.36 * len(parts) + 1.6), layout="constrained")
        axes = figure.add_subplot()
        begins = np.zeros(len(parts))
        for number, phase in enumerate(PHASES):
            widths = np.array([phases.get(phase, 0.0) for phases in parts.values()])
            axes.barh(range(len(parts)), widths, left=begins, color=_colour(number), label=phase)
            begins += widths
        for row, value in enumerate(begins):
            axes.text(value, row, f" {_plain_number(value, None)} ms, {100 * value / whole_ms:.1f} %", va="center")
        axes.set_yticks(range(len(parts)), [names.get(category, category) for category in parts])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * begins.max())
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        compiled = ", compiled" if profile["torch_compile"] else ""
        axes.set(xlabel="milliseconds of a step")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_title(
            f"{profile['model']}: {whole_ms:,.0f} ms a step of {profile['batch_size']} photos\n"
            f"{profile['precision']}{compiled}, {profile['device']}"
        )
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3, frameon=False)
    return figure


def _place_legend(figure: Figure, axes: Axes, *, inside: Any, title: str | None = None) -> None:
    """Inside the axes while it is short; below them, in two columns, where it would hide the curves."""
    lines, labels = axes.get_legend_handles_labels()
    if len(lines) <= MAX_LINES_INSIDE:
        axes.legend(loc=inside, title=title)
        return
    figure.set_figheight(figure.get_figheight() + 0.27 * ((len(lines) + 1) // 2))
    figure.legend(lines, labels, loc="outside lower left", ncols=2, title=title, alignment="left")


def _shown_label(label: str) -> str:
    """Legends leave out what begins with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _colour(rank: int) -> str:
    return COLOURS[rank % len(COLOURS)]


def _dashes(number: int) -> Any:
    """Solid for the first of one colour, then dashes."""
    return "-" if number == 0 else BASELINE_DASHES[(number - 1) % len(BASELINE_DASHES)]
