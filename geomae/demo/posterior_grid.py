"""A posterior as a picture: how much of it lies in each cell of a grid of latitudes and longitudes."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from geomae.geography import EARTH_RADIUS_KM, unit_vectors

__all__ = ["HeatGrid", "HeatWindow", "draw_heat", "posterior_grid"]

MAX_KERNELS = 300  # likeliest places that are drawn with their spread; the others fill the cell that they lie in
BLUR_CELLS = 0.6  # of a cell's side, added to every spread: sampled at the cells' centres, a normal keeps 99.9 % of it
DARKEST_SHARE = 1e-4  # of the highest density: what is less is not drawn

# Least to most: the steps differ in lightness, so that they survive without colour, on land and on sea.
_RAMP_RGB = np.array([(255, 226, 138), (254, 178, 76), (252, 116, 48), (220, 30, 55), (128, 0, 58)], dtype=np.float64)
_RAMP_ALPHA = np.array([0, 120, 175, 215, 235], dtype=np.float64)


@dataclass(frozen=True)
class HeatWindow:
    """Part of the Earth, cut into square cells. Longitudes may leave -180 to 180, where it crosses the date line."""

    south: float
    north: float
    west: float
    east: float
    step_deg: float

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitudes from north to south, and longitudes from west to east, of the cells' edges."""
        rows, columns = (
            max(1, round(extent / self.step_deg)) for extent in (self.north - self.south, self.east - self.west)
        )
        return np.linspace(self.north, self.south, rows + 1), np.linspace(self.west, self.east, columns + 1)


@dataclass(frozen=True)
class HeatGrid:
    """How much of a posterior lies in each cell."""

    window: HeatWindow
    probability: NDArray[np.float64]  # (rows, columns), the northernmost row first
    area_km2: NDArray[np.float64]  # (rows, 1) of a cell


def posterior_grid(mass: ArrayLike, places_deg: ArrayLike, spread_km: ArrayLike, window: HeatWindow) -> HeatGrid:
    """Mass on places, each normal around its place, in the cells of a window.

    Args:
        mass: `(K,)` probabilities.
        places_deg: `(K, 2)` latitude and longitude in degrees.
        spread_km: `(K,)` root mean square distance of a place's mass from it, as the heads of `modeling` have it.
        window: what is drawn. Over the whole Earth the cells' probabilities sum to that of the mass.

    Source: Mardia and Jupp (2000), "Directional Statistics", section 9.3, for the normal distribution on a sphere.
    """
    mass, spread_km = np.asarray(mass, dtype=np.float64), np.asarray(spread_km, dtype=np.float64)
    places_deg = np.asarray(places_deg, dtype=np.float64)
    latitudes, longitudes = window.edges()
    sines, width = np.sin(np.radians(latitudes)), np.radians(longitudes[1] - longitudes[0])
    steradians = (sines[:-1] - sines[1:])[:, None] * width  # (rows, 1)
    likeliest = np.argsort(-mass, kind="stable")
    drawn, rest = likeliest[:MAX_KERNELS], likeliest[MAX_KERNELS:]
    centers = np.stack(
        np.meshgrid((latitudes[:-1] + latitudes[1:]) / 2, (longitudes[:-1] + longitudes[1:]) / 2, indexing="ij"), -1
    )
    points = unit_vectors(centers).reshape(-1, 3).astype(np.float32)
    blur = BLUR_CELLS * np.radians(window.step_deg)
    concentration = 1 / ((spread_km[drawn] / EARTH_RADIUS_KM) ** 2 / 2 + blur**2)
    height = mass[drawn] * concentration / (2 * np.pi * -np.expm1(-2 * concentration))
    density = _sum_kernels(points, unit_vectors(places_deg[drawn]).astype(np.float32), concentration, height)
    probability = density.reshape(centers.shape[:2]) * steradians
    _add_points(probability, mass[rest], places_deg[rest], window)
    return HeatGrid(window, probability, steradians * EARTH_RADIUS_KM**2)


def _sum_kernels(
    points: NDArray[np.float32],
    places: NDArray[np.float32],
    concentration: NDArray[np.float64],
    height: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`(n,)` density per steradian at `(n, 3)` points; kernel by kernel, and each only where it is not 0 already."""
    density = np.zeros(len(points))
    for place, sharpness, peak in zip(places, concentration, height, strict=True):
        exponent = sharpness * (points @ place - 1)
        reached = np.flatnonzero(exponent > -20)
        density[reached] += peak * np.exp(exponent[reached])
    return density


def _add_points(
    probability: NDArray[np.float64], mass: NDArray[np.float64], places_deg: NDArray[np.float64], window: HeatWindow
) -> None:
    rows, columns = probability.shape
    row = np.floor((window.north - places_deg[:, 0]) / (window.north - window.south) * rows).astype(int)
    east_of_edge = np.mod(places_deg[:, 1] - window.west, 360.0)
    column = np.floor(east_of_edge / (window.east - window.west) * columns).astype(int)
    row = np.where(places_deg[:, 0] == window.south, rows - 1, row)  # the South Pole belongs to the last row
    inside = (row >= 0) & (row < rows) & (column < columns)
    np.add.at(probability, (row[inside], column[inside]), mass[inside])


def draw_heat(grid: HeatGrid, *, peak_density: float, hole: HeatWindow | None = None) -> bytes:
    """A PNG with transparency, one pixel a cell, coloured by the logarithm of the probability per square kilometre.

    Args:
        grid: what to draw.
        peak_density: per square kilometre; has the darkest colour, and a ten thousandth of it none.
        hole: cells within it are left out, where a finer grid is drawn.
    """
    density = np.maximum(grid.probability / grid.area_km2, 1e-300)
    level = np.clip(1 - np.log(density / peak_density) / np.log(DARKEST_SHARE), 0, 1)
    at = level * (len(_RAMP_ALPHA) - 1)
    steps = np.arange(len(_RAMP_ALPHA))
    channels = [np.interp(at, steps, channel) for channel in (*_RAMP_RGB.T, _RAMP_ALPHA)]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    if hole is not None:
        pixels[_cells_within(grid.window, hole)] = 0
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", optimize=False)
    return png.getvalue()


def _cells_within(window: HeatWindow, hole: HeatWindow) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    latitudes, longitudes = window.edges()
    latitude, longitude = (latitudes[:-1] + latitudes[1:]) / 2, (longitudes[:-1] + longitudes[1:]) / 2
    rows = np.flatnonzero((latitude < hole.north) & (latitude > hole.south))
    columns = np.flatnonzero(np.mod(longitude - hole.west, 360.0) < hole.east - hole.west)
    row, column = np.ix_(rows, columns)
    return np.broadcast_arrays(row, column)[0], np.broadcast_arrays(row, column)[1]
