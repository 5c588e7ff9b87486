"""One photo -> one answer: where, how sure, what else, near what. The same decoding and crop as an evaluation's."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomae.checkpoints import load_geolocator
from geomae.data import PhotoCollator
from geomae.demo.photo_gate import refuse_oversized
from geomae.demo.posterior_grid import HeatGrid, HeatWindow, posterior_grid
from geomae.evaluation.posterior_head import posterior_head
from geomae.populated_places import NearestPlace, nearest_places

__all__ = ["Geolocator", "PhotoAnswer", "TopPlace"]

WORLD = HeatWindow(-90.0, 90.0, -180.0, 180.0, step_deg=1.0)
NUM_TOP_PLACES = 5
WINDOW_CELLS = 180  # of a side of the finer grid around the answer
WINDOW_DEG = (3.0, 24.0)  # smallest and largest height of that grid
WINDOW_PER_RADIUS = 6.0  # its height, in radii that hold 50 %
KM_PER_DEGREE = 111.2


@dataclass(frozen=True)
class TopPlace:
    """One of the places that the model thinks likeliest."""

    latitude: float
    longitude: float
    probability: float
    nearest_place: NearestPlace


@dataclass(frozen=True)
class PhotoAnswer:
    """Where a model says that a photo was taken. Of a model that answers with a point, radii and grids are None."""

    latitude: float
    longitude: float
    radius_50_km: float | None  # of the circle around the answer that holds half of the posterior
    radius_90_km: float | None
    top_places: list[TopPlace]  # the likeliest first
    nearest_place: NearestPlace
    world_grid: HeatGrid | None  # the posterior over the whole Earth
    near_grid: HeatGrid | None  # and around the answer, in smaller cells
    milliseconds: float  # from the photo's bytes to the coordinates


class Geolocator:
    """A checkpoint, ready to be asked; one photo at a time, from whatever thread."""

    def __init__(self, checkpoint: str | Path) -> None:
        """Load the model.

        Raises:
            ConfigError: there is none, or it was not fine-tuned to coordinates.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_geolocator(checkpoint).to(self.device)
        self.head = posterior_head(self.model)
        self.collator = PhotoCollator(self.model.config.image_size, augment=False, labelled=False)
        nearest_places((0.0, 0.0))  # reads the names, which the first visitor would wait seconds for

    @torch.inference_mode()
    def answer(self, photo: bytes) -> PhotoAnswer:
        """Ask the model about one encoded photo.

        Raises:
            DamagedPhotoError: it is empty, too large, or cannot be decoded; the message says what to do.
        """
        refuse_oversized(photo)
        begin = time.perf_counter()
        sample = {"id": "upload", "image": {"bytes": photo, "path": None}}
        batch = self.collator(self.collator.prepare(sample))
        output = self.model(pixel_values=batch["pixel_values"].to(self.device))
        answer_deg = output.coordinates_deg.double().cpu().numpy()[0]
        milliseconds = 1000 * (time.perf_counter() - begin)
        (nearest,) = nearest_places(answer_deg)
        latitude, longitude = map(float, answer_deg)
        posterior = self._describe_posterior(output.logits, output.coordinates_deg)
        return PhotoAnswer(latitude, longitude, nearest_place=nearest, milliseconds=milliseconds, **posterior)

    def _describe_posterior(self, logits: torch.Tensor, answer_deg: torch.Tensor) -> dict[str, Any]:
        if self.head is None:
            return dict.fromkeys(("radius_50_km", "radius_90_km", "world_grid", "near_grid")) | {"top_places": []}
        spread = self.head.spread_around(logits, answer_deg)
        radius_50_km, radius_90_km = float(spread.radius_50_km[0]), float(spread.radius_90_km[0])
        probability, places = (each[0].double().cpu().numpy() for each in self.head.top_places(logits, NUM_TOP_PLACES))
        log_mass, all_places = (each[0].double().cpu().numpy() for each in self.head.place_log_probabilities(logits))
        spread_km = self.head.spread_km(logits.float()).double().cpu().numpy()
        components = np.exp(log_mass), all_places, np.broadcast_to(spread_km, log_mass.shape).reshape(-1)
        latitude, longitude = (float(degrees) for degrees in answer_deg[0])
        return {
            "radius_50_km": radius_50_km,
            "radius_90_km": radius_90_km,
            "top_places": [
                TopPlace(float(point[0]), float(point[1]), float(share), nearest)
                for point, share, nearest in zip(places, probability, nearest_places(places), strict=True)
            ],
            "world_grid": posterior_grid(*components, WORLD),
            "near_grid": posterior_grid(*components, window_around(latitude, longitude, radius_50_km)),
        }


def window_around(latitude: float, longitude: float, radius_km: float) -> HeatWindow:
    """A window around a point, some radii high, as wide as it is high on the ground as far as there is width."""
    height = float(np.clip(WINDOW_PER_RADIUS * radius_km / KM_PER_DEGREE, *WINDOW_DEG))
    south, north = max(-90.0, latitude - height / 2), min(90.0, latitude + height / 2)
    width = min(height / max(np.cos(np.radians(latitude)), 0.2), 90.0)
    return HeatWindow(south, north, longitude - width / 2, longitude + width / 2, height / WINDOW_CELLS)
