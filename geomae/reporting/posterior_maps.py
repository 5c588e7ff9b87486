"""What a model thinks possible: each photo beside a world map of its posterior, its answers and the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geomae.geography import great_circle_km
from geomae.reporting.maps import DEGREES, PROJECTION, draw_world
from geomae.reporting.plots import COLOURS, show_photo, style

__all__ = ["PhotoPosterior", "posterior_map"]

LEAST_MASS = 1e-3  # what is less likely is not drawn: a thousand such places would hide the map
MASS_COLOURS = matplotlib.colormaps["YlOrRd"]
MARKERS = ("v", "s", "D", "^", "P", "X")
PHOTOS_PER_ROW = 2
MAX_NAME = 20  # letters of a photo's name that fit above it


@dataclass(frozen=True)
class PhotoPosterior:
    """One photo, where a model thinks it may have been taken, what it answers, and where it was taken."""

    name: str
    photo: NDArray[np.uint8]  # (H, W, 3)
    mass: NDArray[np.float64]  # (K,) probabilities of the places
    places_deg: NDArray[np.float64]  # (K, 2)
    answers_deg: Mapping[str, NDArray[np.float64]]  # decoding -> (2,)
    true_deg: NDArray[np.float64]  # (2,)


def posterior_map(photos: Sequence[PhotoPosterior], *, title: str) -> Figure:
    """Two photos in a row, each with its map: places by their probability, the answers as marks, the truth as a star.

    Args:
        photos: at least one; all with the same decodings.
        title: stands above the maps.
    """
    num_rows = -(-len(photos) // PHOTOS_PER_ROW)
    norm = LogNorm(LEAST_MASS, 1.0)
    with style():
        figure = Figure(figsize=(16.0, 3.05 * num_rows + 1.0), layout="constrained")
        figure.suptitle(title, fontsize=13, fontweight="bold")
        grid = figure.add_gridspec(num_rows, 2 * PHOTOS_PER_ROW, width_ratios=(1.0, 2.6) * PHOTOS_PER_ROW)
        maps = []
        for number, shown in enumerate(photos):
            row, column = divmod(number, PHOTOS_PER_ROW)
            photo = figure.add_subplot(grid[row, 2 * column])
            show_photo(photo, shown.photo)
            name = shown.name if len(shown.name) <= MAX_NAME else f"{shown.name[: MAX_NAME - 1]}…"
            photo.set_title(name, fontsize=9, fontweight="normal")
            maps.append(figure.add_subplot(grid[row, 2 * column + 1], projection=PROJECTION))
            _draw_posterior(maps[-1], shown, norm)
        scale = matplotlib.cm.ScalarMappable(norm, MASS_COLOURS)
        bar = figure.colorbar(scale, ax=maps, shrink=min(1.0, 2.0 / num_rows), aspect=30, pad=0.01)
        bar.ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        bar.ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        bar.set_label(f"probability of a place; below {100 * LEAST_MASS:g} % not drawn")
        lines, labels = maps[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_posterior(axes: Any, shown: PhotoPosterior, norm: LogNorm) -> None:
    draw_world(axes)
    drawn = np.flatnonzero(shown.mass >= LEAST_MASS)
    drawn = drawn[np.argsort(shown.mass[drawn], kind="stable")]  # the likeliest last, on top
    axes.scatter(
        shown.places_deg[drawn, 1],
        shown.places_deg[drawn, 0],
        c=shown.mass[drawn],
        s=20.0 + 200.0 * np.sqrt(shown.mass[drawn]),
        cmap=MASS_COLOURS,
        norm=norm,
        edgecolors="#222222",
        linewidths=0.3,
        transform=DEGREES,
        zorder=2,
    )
    for (name, place), marker, colour in zip(shown.answers_deg.items(), MARKERS, COLOURS, strict=False):
        _draw_mark(axes, place, name, marker=marker, markersize=7, markerfacecolor="white", markeredgecolor=colour)
    _draw_mark(axes, shown.true_deg, "truth", marker="*", markersize=14, markerfacecolor="#111111")
    axes.set_title(_describe_errors(shown), fontsize=9, fontweight="normal")


def _draw_mark(axes: Any, place_deg: NDArray[np.float64], label: str, **marker: Any) -> None:
    marker = {"markeredgecolor": "white", "markeredgewidth": 1.6, "linestyle": "none", "zorder": 4} | marker
    axes.plot(*place_deg[::-1], transform=DEGREES, label=label, **marker)


def _describe_errors(shown: PhotoPosterior) -> str:
    errors = {name: float(great_circle_km(place, shown.true_deg)) for name, place in shown.answers_deg.items()}
    return "km: " + ", ".join(f"{name} {error:,.0f}" for name, error in errors.items())
