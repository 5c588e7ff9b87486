"""World maps on the relief picture that ships inside cartopy: its coastlines would have to be downloaded."""

from functools import cache
from pathlib import Path
from typing import Any

import cartopy.crs
import cartopy.img_transform
import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import vq

from geomae.evaluation.metrics import LARGEST_ERROR_KM
from geomae.reporting.plots import style

__all__ = ["cluster_map", "coordinate_map", "draw_world", "prediction_map"]

# Near to far, in steps of lightness that survive without colour; the steps are the field's radii.
ERROR_COLOURS = ListedColormap(["#fff7bc", "#fec44f", "#f07818", "#b5179e", "#3a0ca3"])
ERROR_BOUNDS_KM = (0.0, 25.0, 200.0, 750.0, 2500.0, LARGEST_ERROR_KM)
CLUSTER_COLOURS = matplotlib.colormaps["Dark2"]
MAX_ARCS = 250  # more arcs than this hide one another and the map
DEGREES = cartopy.crs.PlateCarree()
SPHERE = cartopy.crs.Geodetic()
PROJECTION = cartopy.crs.Robinson()


def prediction_map(true_deg: ArrayLike, predicted_deg: ArrayLike, error_km: ArrayLike, *, title: str) -> Figure:
    """Two maps: where the photos were taken, and where the model puts them; both coloured by the error.

    Up to 250 photos, evenly spread over the test set, have an arc on the lower map from the truth to the prediction.

    Args:
        true_deg: `(n, 2)` latitude and longitude in degrees.
        predicted_deg: `(n, 2)`, answered photos only.
        error_km: `(n,)`.
        title: stands above the maps; should say n.
    """
    true_deg, predicted_deg = np.asarray(true_deg, dtype=np.float64), np.asarray(predicted_deg, dtype=np.float64)
    error_km = np.asarray(error_km, dtype=np.float64)
    farthest_first = np.argsort(-error_km, kind="stable")  # good answers are drawn last, on top
    norm = BoundaryNorm(ERROR_BOUNDS_KM, ERROR_COLOURS.N)
    with style():
        figure = Figure(figsize=(9.0, 8.3), layout="constrained")
        figure.suptitle(title, fontsize=12, fontweight="bold")
        truths, answers = (figure.add_subplot(2, 1, row, projection=PROJECTION) for row in (1, 2))
        arcs = _evenly_spread(len(error_km), MAX_ARCS)
        for axes, points, name in ((truths, true_deg, "True places"), (answers, predicted_deg, "Predicted places")):
            draw_world(axes)
            shown = points[farthest_first]
            drawn = axes.scatter(
                shown[:, 1],
                shown[:, 0],
                c=error_km[farthest_first],
                s=_marker_area(len(shown)),
                cmap=ERROR_COLOURS,
                norm=norm,
                edgecolors="#222222",
                linewidths=0.3,
                transform=DEGREES,
                zorder=3,
            )
            axes.set_title(name + _arcs_note(arcs, len(error_km), axes is answers))
        for row in arcs:
            latitudes, longitudes = np.stack([true_deg[row], predicted_deg[row]]).T
            answers.plot(longitudes, latitudes, color="#111111", linewidth=0.5, alpha=0.35, transform=SPHERE, zorder=2)
        bar = figure.colorbar(drawn, ax=[truths, answers], shrink=0.55, spacing="uniform", ticks=ERROR_BOUNDS_KM)
        bar.ax.set_yticklabels([f"{bound:,.0f}" for bound in ERROR_BOUNDS_KM])
        bar.set_label("great-circle error, km")
    return figure


def coordinate_map(coordinates_deg: ArrayLike, *, title: str) -> Figure:
    """One map of many places: how many of them each hexagon holds, on a logarithmic scale.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees.
        title: stands above the map; should say n.
    """
    coordinates_deg = np.asarray(coordinates_deg, dtype=np.float64)
    with style():
        figure = Figure(figsize=(9.0, 4.9), layout="constrained")
        axes = figure.add_subplot(projection=PROJECTION)
        draw_world(axes)
        points = PROJECTION.transform_points(DEGREES, coordinates_deg[:, 1], coordinates_deg[:, 0])
        columns = 140 if len(points) > 3000 else 70
        (west, east), (south, north) = PROJECTION.x_limits, PROJECTION.y_limits
        drawn = axes.hexbin(
            points[:, 0],
            points[:, 1],
            gridsize=(columns, round(columns / np.sqrt(3.0) * (north - south) / (east - west))),  # regular hexagons
            extent=(west, east, south, north),
            mincnt=1,
            norm=LogNorm(vmin=1),
            cmap="inferno",
            linewidths=0.1,
            zorder=3,
        )
        axes.set_global()
        axes.set_title(title)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.75)
        bar.ax.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        bar.ax.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter())  # the usual one writes formulas
        bar.set_label("photos per hexagon")
    return figure


def cluster_map(coordinates_deg: ArrayLike, means_deg: ArrayLike, deviations_deg: ArrayLike, *, title: str) -> Figure:
    """Clusters of places in colours, each with its number at its mean and an ellipse of one standard deviation.

    Args:
        coordinates_deg: `(n, 2)` degrees; each has the colour of the mean that is nearest in degrees.
        means_deg: `(k, 2)` degrees.
        deviations_deg: `(k, 2)` degrees.
        title: stands above the map; should say n.
    """
    coordinates_deg, means_deg = np.asarray(coordinates_deg, dtype=np.float64), np.asarray(means_deg, dtype=np.float64)
    nearest, _ = vq(coordinates_deg, means_deg)
    turn = np.linspace(0.0, 2.0 * np.pi, 73)
    with style():
        figure = Figure(figsize=(9.0, 4.7), layout="constrained")
        axes = figure.add_subplot(projection=PROJECTION)
        draw_world(axes)
        for number, (mean, deviation) in enumerate(zip(means_deg, np.asarray(deviations_deg), strict=True)):
            colour = CLUSTER_COLOURS(number % CLUSTER_COLOURS.N)
            latitude, longitude = coordinates_deg[nearest == number].T
            axes.scatter(longitude, latitude, color=colour, s=2.0, linewidths=0, transform=DEGREES, zorder=2)
            latitude = np.clip(mean[0] + deviation[0] * np.sin(turn), -90.0, 90.0)
            longitude = mean[1] + deviation[1] * np.cos(turn)
            axes.plot(longitude, latitude, color="#111111", linewidth=1.3, transform=DEGREES, zorder=3)
            axes.text(
                mean[1],
                mean[0],
                str(number + 1),
                transform=DEGREES,
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5},
                zorder=4,
            )
        axes.set_title(title)
    return figure


@cache
def _world_picture() -> tuple[Any, tuple[float, float, float, float]]:
    """The relief picture in the maps' projection, and its extent; projected once, as that takes a second."""
    file = Path(cartopy.config["repo_data_dir"]) / "raster" / "natural_earth" / "50-natural-earth-1-downsampled.png"
    relief = matplotlib.image.imread(file)[::-1, :, :3]  # south first
    world, extent = cartopy.img_transform.warp_array(
        relief, PROJECTION, DEGREES, target_res=(1200, 600), source_extent=(-180, 180, -90, 90)
    )
    return np.ma.filled(world, 1.0), extent


def draw_world(axes: Any) -> None:
    """The whole Earth in `PROJECTION`, pale, for points to be drawn on."""
    axes.set_global()
    world, extent = _world_picture()
    axes.imshow(world, extent=extent, origin="lower", alpha=0.55, zorder=0)  # paler than its points
    axes.grid(visible=False)
    axes.spines["geo"].set_linewidth(0.6)


def _evenly_spread(num_photos: int, limit: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, num_photos - 1, min(num_photos, limit)).astype(np.intp))


def _arcs_note(arcs: NDArray[np.intp], num_photos: int, has_arcs: bool) -> str:
    if not has_arcs:
        return ""
    return ", joined to the truth" if len(arcs) == num_photos else f", {len(arcs)} of them joined to the truth"


def _marker_area(num_points: int) -> float:
    """Square points: 36 for a handful, 6 for thousands."""
    return float(np.clip(1200.0 / np.sqrt(num_points * 20.0), 6.0, 36.0))
