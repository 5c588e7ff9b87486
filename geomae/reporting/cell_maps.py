"""Maps of geocells: their borders, and their centroids in the colour of how many photos they have."""

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geomae.geocells import Geocells
from geomae.geography import find_off_earth
from geomae.reporting.maps import DEGREES, PROJECTION, draw_world
from geomae.reporting.plots import style

__all__ = ["geocell_map"]

COLUMNS, ROWS = 2000, 1014  # pixels of a world map, twice as many as are shown: borders come out smooth
COLOURS = matplotlib.colormaps["inferno_r"]


def geocell_map(geocells: Geocells, *, title: str) -> Figure:
    """One world map for each partition, coarse to fine.

    Args:
        geocells: with their counts.
        title: stands above the maps; should say what the cells are of.
    """
    coordinates_deg, is_earth = _pixels()
    cells = np.full((ROWS, COLUMNS, len(geocells.partitions)), -1)
    cells[is_earth] = geocells.assign(coordinates_deg[is_earth])
    counts = np.concatenate([partition.num_photos for partition in geocells.partitions])
    norm = LogNorm(vmin=max(1.0, np.quantile(counts, 0.01)), vmax=max(10.0, counts.max()), clip=True)
    with style():
        figure = Figure(figsize=(9.0, 4.3 * len(geocells.partitions) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=12, fontweight="bold")
        all_axes = []
        for level, partition in enumerate(geocells.partitions):
            axes = figure.add_subplot(len(geocells.partitions), 1, level + 1, projection=PROJECTION)
            draw_world(axes)
            _draw_borders(axes, cells[..., level], is_earth)
            fewest_first = np.argsort(partition.num_photos, kind="stable")
            latitude, longitude = partition.centroids_deg[fewest_first].T
            axes.scatter(
                longitude,
                latitude,
                c=partition.num_photos[fewest_first],
                s=np.clip(6000.0 / len(partition), 1.5, 25.0),
                cmap=COLOURS,
                norm=norm,
                linewidths=0,
                transform=DEGREES,
                zorder=3,
            )
            axes.set_title(f"{len(partition):,} cells")
            all_axes.append(axes)
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, COLOURS), ax=all_axes, shrink=0.7)
        bar.ax.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        bar.set_label("training photos of a cell")
    return figure


def _pixels() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Latitude and longitude `(ROWS, COLUMNS, 2)` of the pixels' centres, south first, and which lie on the Earth."""
    (west, east), (south, north) = PROJECTION.x_limits, PROJECTION.y_limits
    x = west + (np.arange(COLUMNS) + 0.5) / COLUMNS * (east - west)
    y = south + (np.arange(ROWS) + 0.5) / ROWS * (north - south)
    points = DEGREES.transform_points(PROJECTION, *np.meshgrid(x, y))
    latitude, longitude = points[..., 1], points[..., 0]
    back = PROJECTION.transform_points(DEGREES, longitude, latitude)
    # beside the map the projection's inverse answers with points on its other side
    returns = np.abs(back[..., 0] - x) < (east - west) / COLUMNS
    return np.stack([latitude, longitude], axis=-1), returns & ~find_off_earth(latitude, longitude)


def _draw_borders(axes: matplotlib.axes.Axes, cells: NDArray[np.int64], is_earth: NDArray[np.bool_]) -> None:
    """Darken the pixels whose neighbour to the right or above is in another cell."""
    is_border = np.zeros(cells.shape, dtype=bool)
    is_border[:, :-1] |= cells[:, 1:] != cells[:, :-1]
    is_border[:-1] |= cells[1:] != cells[:-1]
    drawn = np.zeros((*cells.shape, 4))
    drawn[..., 3] = np.where(is_border & is_earth, 0.75, 0.0)
    extent = (*PROJECTION.x_limits, *PROJECTION.y_limits)
    axes.imshow(drawn, extent=extent, origin="lower", interpolation="hanning", interpolation_stage="rgba", zorder=2)
