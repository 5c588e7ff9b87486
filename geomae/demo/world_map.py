"""A world map as SVG that needs no other address: land, a posterior as heat, circles and marks. `map.js` zooms it."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomae.demo.circles import circle_line, circle_outlines
from geomae.demo.posterior_grid import HeatGrid, draw_heat

__all__ = ["Circle", "Mark", "draw_map", "map_script", "world_symbols"]

LAND_ID, PINS = "geomae-land", {"answer": "answer", "truth": "truth", "guess": "guess"}
_HERE = Path(__file__).parent
_BUTTONS = (("in", "+", "Zoom in"), ("out", "−", "Zoom out"), ("world", "World", "Show the whole world"))


@dataclass(frozen=True)
class Mark:
    """A place on the map; the kind decides its colour and shape."""

    kind: str  # of `PINS`
    label: str  # shown beside it; any text, it is escaped
    latitude: float
    longitude: float


@dataclass(frozen=True)
class Circle:
    """All within a distance of a point."""

    latitude: float
    longitude: float
    radius_km: float
    label: str


@lru_cache(maxsize=1)
def world_symbols() -> str:
    """The outlines of land and borders, once for all maps of a page, which refer to it."""
    world = json.loads((_HERE / "world.json").read_text(encoding="utf-8"))
    return (
        '<svg class="geo-symbols" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
        f'<g id="{LAND_ID}" transform="scale(0.01)"><path class="geo-land" d="{world["land"]}"/>'
        f'<path class="geo-borders" d="{world["borders"]}"/></g></defs></svg>'
    )


@lru_cache(maxsize=1)
def map_script() -> str:
    """What makes maps move: run once for each component that holds one."""
    return (_HERE / "map.js").read_text(encoding="utf-8")


def draw_map(
    name: str,
    description: str,
    *,
    grids: Sequence[HeatGrid] = (),
    circles: Sequence[Circle] = (),
    marks: Sequence[Mark] = (),
    takes_guess: bool = False,
) -> str:
    """HTML of a map that shows the whole world at first.

    Args:
        name: of the map on the page, letters and hyphens.
        description: what a person hears who does not see it.
        grids: a posterior over the whole Earth, and the same in smaller cells of a part of it.
        circles: drawn as outlines.
        marks: the first is what the map zooms to.
        takes_guess: a click places a mark, which the page is told of.
    """
    content = _draw_grids(grids) + "".join(map(_draw_circle, circles)) + "".join(map(_draw_mark, marks))
    copies = "".join(f'<use href="#{name}-content" x="{shift}"/>' for shift in (-360, 360))
    focus = f' data-latitude="{marks[0].latitude:.5f}" data-longitude="{marks[0].longitude:.5f}"' if marks else ""
    focus += f' data-extent="{_focus_extent(circles):.3f}"' if marks else ""
    keys = "Arrow keys move the map, plus and minus zoom, 0 shows the whole world."
    keys += " Enter places your guess in the middle." if takes_guess else ""
    buttons = (*_BUTTONS, ("focus", "Answer", "Zoom to the answer")) if marks else _BUTTONS
    return (
        f'<figure class="geo-map{" geo-guessing" if takes_guess else ""}">'
        f'<svg viewBox="-180.0 -90.0 360.0 180.0" preserveAspectRatio="xMidYMid slice" tabindex="0" role="application" '
        f'aria-roledescription="map" aria-label="{html.escape(description)} {keys}"{focus}>'
        f'<rect class="geo-sea" x="-720" y="-90" width="1440" height="180"/>'
        f'<g id="{name}-content"><use href="#{LAND_ID}"/>{content}</g>{copies}'
        f'<g class="geo-own"></g></svg>'
        f'<span class="geo-crosshair" aria-hidden="true"></span>'
        f'<div class="geo-buttons">'
        + "".join(
            f'<button type="button" data-zoom="{what}" aria-label="{label}">{text}</button>'
            for what, text, label in buttons
        )
        + "</div></figure>"
    )


def _focus_extent(circles: Sequence[Circle]) -> float:
    """Degrees of latitude that are shown around the answer."""
    return float(np.clip(max((circle.radius_km for circle in circles[:1]), default=400.0) / 111.2 * 5, 2.0, 90.0))


def _draw_grids(grids: Sequence[HeatGrid]) -> str:
    if not grids:
        return ""
    peak = max(float((grid.probability / grid.area_km2).max()) for grid in grids)
    holes = [*(grid.window for grid in grids[1:]), None]
    return "".join(
        _place_picture(grid, draw_heat(grid, peak_density=peak, hole=hole))
        for grid, hole in zip(grids, holes, strict=True)
    )


def _place_picture(grid: HeatGrid, png: bytes) -> str:
    window = grid.window
    return (
        f'<image class="geo-heat" x="{window.west:.4f}" y="{-window.north:.4f}" '
        f'width="{window.east - window.west:.4f}" height="{window.north - window.south:.4f}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"/>'
    )


def _draw_circle(circle: Circle) -> str:
    where = circle.latitude, circle.longitude, circle.radius_km
    area = "".join(_path(outline) + "z" for outline in circle_outlines(*where))
    return (
        f'<g><title>{html.escape(circle.label)}</title><path class="geo-within" d="{area}"/>'
        f'<path class="geo-circle" d="{_path(circle_line(*where))}"/></g>'
    )


def _path(outline: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{longitude:.3f} {-latitude:.3f}" for latitude, longitude in outline)


def _draw_mark(mark: Mark) -> str:
    """A pin of constant size: the style sheet scales it by the degrees that a pixel shows."""
    return (
        f'<g class="geo-pin geo-{PINS[mark.kind]}" '
        f'style="--x:{mark.longitude:.5f}px;--y:{-mark.latitude:.5f}px">'
        f'<circle r="7"/><circle class="geo-dot" r="2.5"/><text y="-12">{html.escape(mark.label)}</text></g>'
    )
