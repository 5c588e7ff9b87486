"""`pipeline("image-to-coordinates", model=..., trust_remote_code=True)`: photos -> where they were taken."""

import copy
import csv
import http.client
import io
import math
import os
import shutil
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import Pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import cached_file

from .configuration_geolocation_head import DECODINGS
from .geodesy import EARTH_RADIUS_KM
from .image_processing_geomae import GeoMAEImageProcessor

__all__ = ["CUSTOM_PIPELINES", "PLACES_FILE", "TASK", "HubAccess", "ImageToCoordinatesPipeline"]

TASK = "image-to-coordinates"
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "image_to_coordinates.ImageToCoordinatesPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}
"""What config.json of a geolocator says, for transformers to find the pipeline."""

PLACES_FILE = "populated_places.csv"
"""Beside the model: columns name, country, latitude and longitude; where it is missing, no place is named."""

MAX_DOWNLOAD_BYTES = 100_000_000
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "HEIF")
"""What is opened of a path or an address. Pillow knows more, and hands what strangers send to Ghostscript (EPS)."""


@dataclass(frozen=True)
class HubAccess:
    """How a checkpoint was fetched from the Hub; its token is shown nowhere, and pickled with no model."""

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"token": None}


@dataclass(frozen=True)
class Places:
    """The populated places of a model's folder, one row each."""

    names: list[str]
    countries: list[str]
    unit_vectors: np.ndarray  # (n, 3) float64


class ImageToCoordinatesPipeline(Pipeline):
    """Photos -> coordinates, with how sure the model is and which town is nearest.

    Takes what `__call__` lists, one or many, and answers each photo with

    - `latitude`, `longitude`: degrees;
    - `radius_50_km`, `radius_90_km`: around them half and nine tenths of the posterior lie; None of a head that answers
      a point;
    - `top_places`: the likeliest places, `latitude`, `longitude`, `probability` and `nearest_place` of each; [] of a
      head that answers a point;
    - `nearest_place`: `name`, `country` and `distance_km` of the populated place that is nearest to the answer, however
      far that is; None where the model's folder has no `populated_places.csv`.

    Args:
        model: a geolocator of GeoMAE or of its baselines.
        image_processor: made for the model's image size where none is given or found; one of another size is refused.
        kwargs: `top_k`, `decoding` and `timeout` of every call; `device`, `batch_size`, `num_workers` and others of
            `transformers.Pipeline`.
    """

    _load_image_processor = None
    _load_tokenizer = False  # type: ignore[assignment]  # transformers declares None, and documents True and False
    _load_feature_extractor = False  # type: ignore[assignment]  # transformers declares None, and documents True and False
    _load_processor = False  # type: ignore[assignment]  # transformers declares None, and documents True and False

    def __init__(self, model: Any, image_processor: Any = None, **kwargs: Any) -> None:
        if image_processor is None:
            image_processor = GeoMAEImageProcessor.for_image_size(model.config.image_size)
        refuse_other_size(image_processor, model.config.image_size)
        if getattr(model.config, "custom_pipelines", None):
            # transformers has put classes into it, with which the configuration cannot be printed or saved any more
            model.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().__init__(model=model.eval(), image_processor=image_processor, **kwargs)
        self.image_processor: Any

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Locate photos.

        Args:
            inputs: a photo, a list or a 4-dimensional array of photos, or a stream of them: a generator, a
                `KeyDataset`, or a `datasets.Dataset` or `IterableDataset` with a column `image`. A photo is a path, an
                address that begins with http:// or https://, a PIL image, an array or tensor as
                `GeoMAEImageProcessor` takes them, the bytes of a file, or a row of `datasets.Image(decode=False)`.
            args: none are known.
            kwargs: `top_k`: number of likeliest places, 5 by default; `decoding`: `argmax`, `kernel`, `expected_km` or
                `mean_in_top_k` in place of the model's; `timeout`: seconds that an address may take, 20 by default;
                `batch_size`, 1 by default, and `num_workers`.

        Returns:
            A dictionary for one photo, a list for a list, an iterator over dictionaries for a stream.

        Raises:
            ValueError: an input is no photo, which the message names; `top_k` or `decoding` does not suit the model.
        """
        if hasattr(inputs, "column_names"):  # of the library datasets, which need not be installed
            columns = inputs.column_names
            if columns is not None and "image" not in columns:
                raise ValueError(f"the data set has the columns {', '.join(columns)}; wrap the photos' in KeyDataset.")
            is_sized = hasattr(inputs, "__len__")
            inputs = KeyDataset(inputs, "image") if is_sized else (row["image"] for row in inputs)
        elif isinstance(inputs, tuple) or (isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4):
            inputs = list(inputs)
        if isinstance(inputs, (list, KeyDataset)) and len(inputs) == 0:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(
        self, top_k: int | None = None, decoding: str | None = None, timeout: float | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: unknown; the options are top_k, decoding, timeout, batch_size.")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r}: expected a whole number of places, at least 1.")
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise ValueError(f"timeout={timeout!r}: expected a number of seconds above 0.")
        if decoding is not None and decoding not in DECODINGS:
            raise ValueError(f"decoding={decoding!r}: expected one of {', '.join(DECODINGS)}.")
        if decoding is not None and not self.model.head.has_posterior:
            raise ValueError(f"decoding={decoding!r}: the model's head answers a point, which is not decoded.")
        forward = {"top_k": top_k, "decoding": decoding}
        return (
            {} if timeout is None else {"timeout": timeout},
            {name: value for name, value in forward.items() if value is not None},
            {},
        )

    def preprocess(self, photo: Any, timeout: float = 20.0) -> dict[str, Any]:  # type: ignore[override]
        """Open, resize and crop one photo: `pixel_values` `(1, 3, S, S)` uint8."""
        try:
            source = photo_of_row(photo) if isinstance(photo, Mapping) else photo
            if isinstance(source, (str, Path, bytes)):
                with open_photo(source, self.image_processor.size["shortest_edge"], timeout) as image:
                    return dict(self.image_processor(image, return_tensors="pt"))
            crops = dict(self.image_processor(source, return_tensors="pt"))
            if len(crops["pixel_values"]) != 1:
                raise ValueError(f"it holds {len(crops['pixel_values'])} photos: give them as one list.")
            return crops
        except (ValueError, OSError, http.client.HTTPException, Image.DecompressionBombError) as error:
            raise ValueError(f"{describe(photo)} cannot be located: {error}") from error

    def _forward(  # type: ignore[override]
        self, model_inputs: Mapping[str, Tensor], top_k: int = 5, decoding: str | None = None
    ) -> dict[str, Tensor]:
        """`coordinates_deg` `(B, 2)`; of a posterior `radii_km` `(B, 2)`, `masses` `(B, k)`, `tops` `(B, k, 2)`."""
        answer, head = self.model(model_inputs["pixel_values"]), self.model.head
        if not head.has_posterior:
            return {"coordinates_deg": answer.coordinates_deg}
        answer_deg = answer.coordinates_deg
        if decoding is not None:
            answer_deg = head.decode(answer.logits, [decoding])[decoding]
        spread = head.spread_around(answer.logits, answer_deg)
        masses, tops = head.top_places(answer.logits, top_k)
        radii_km = torch.stack((spread.radius_50_km, spread.radius_90_km), dim=-1)
        return {"coordinates_deg": answer_deg, "radii_km": radii_km, "masses": masses, "tops": tops}

    def postprocess(self, model_outputs: Mapping[str, Tensor]) -> dict[str, Any]:  # type: ignore[override]
        """The answer to one photo, as the class describes it."""
        latitude, longitude = model_outputs["coordinates_deg"][0].tolist()
        if not (math.isfinite(latitude) and math.isfinite(longitude)):
            raise ValueError("the model's answer is no number: its weights are damaged, or overflow here.")
        radii_km, masses, tops = [None, None], [], np.zeros((0, 2))
        if "masses" in model_outputs:
            radii_km, masses = model_outputs["radii_km"][0].tolist(), model_outputs["masses"][0].tolist()
            tops = model_outputs["tops"][0].numpy()
        nearest_place, *places_near_tops = self.nearest_places(np.array([[latitude, longitude], *tops.tolist()]))
        return {
            "latitude": latitude,
            "longitude": longitude,
            "radius_50_km": radii_km[0],
            "radius_90_km": radii_km[1],
            "top_places": [
                {"latitude": top[0], "longitude": top[1], "probability": mass, "nearest_place": near}
                for top, mass, near in zip(tops.tolist(), masses, places_near_tops, strict=True)
            ],
            "nearest_place": nearest_place,
        }

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]  # of a str
        """Save the model, its code and its image processor, as transformers does, and the names of places too."""
        super().save_pretrained(save_directory, **kwargs)
        if (file := self._places_file()) is not None:
            shutil.copyfile(file, Path(save_directory) / PLACES_FILE)

    def nearest_places(self, coordinates_deg: np.ndarray) -> list[dict[str, Any] | None]:
        """The nearest populated place of each of `(n, 2)` points, degrees; None where the model comes with none."""
        if self.places is None:
            return [None] * len(coordinates_deg)
        points = unit_vectors(coordinates_deg)
        rows = (points @ self.places.unit_vectors.T).argmax(axis=1)
        # not the arc cosine, which rounds all that is nearer than 100 m to 0
        chords = np.linalg.norm(points - self.places.unit_vectors[rows], axis=1)
        distances_km = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chords / 2, 0, 1))
        return [
            {"name": self.places.names[row], "country": self.places.countries[row], "distance_km": float(km)}
            for row, km in zip(rows, distances_km, strict=True)
        ]

    @cached_property
    def places(self) -> Places | None:
        """What `populated_places.csv` beside the model says; None where there is no such file."""
        file = self._places_file()
        return read_places(file) if file is not None else None

    def _places_file(self) -> Path | None:
        source = self.model.config.name_or_path
        if not source:
            return None
        path: Any = Path(source) / PLACES_FILE
        if not Path(source).is_dir():
            path = cached_file(
                source,
                PLACES_FILE,
                **vars(getattr(self.model, "hub_access", None) or HubAccess()),
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
        return Path(path) if path is not None and Path(path).is_file() else None


def refuse_other_size(image_processor: Any, image_size: int) -> None:
    """Photos of a size that a model was not trained on are answered, but worse.

    Raises:
        ValueError: the processor makes photos of another size than `image_size`, pixels.
    """
    made = getattr(image_processor, "crop_size", None) or image_processor.size  # size: of those that do not crop
    sides = (made.get("height"), made.get("width"))
    if sides != (image_size, image_size):
        raise ValueError(
            f"the image processor makes photos of {sides[0]} x {sides[1]} pixels, and the model was made for "
            f"{image_size} x {image_size}: leave image_processor out, or give "
            f"GeoMAEImageProcessor.for_image_size({image_size})."
        )


def read_places(path: Path) -> Places:
    """Read a `populated_places.csv`.

    Raises:
        ValueError: a column is missing, a row has no coordinates or is not on Earth, or there is no row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                (r["name"], r["country"], float(r["latitude"]), float(r["longitude"])) for r in csv.DictReader(file)
            ]
        names, countries, latitudes, longitudes = zip(*rows, strict=True)
        if not (np.abs(latitudes).max() <= 90 and np.abs(longitudes).max() <= 180):  # false where one is NaN
            raise ValueError("a place is not on Earth")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path}: expected the columns name, country, latitude and longitude, and at least one row: {error!r}. "
            "Delete the file to go without the names of places."
        ) from error
    return Places(list(names), list(countries), unit_vectors(np.array([latitudes, longitudes]).T))


def unit_vectors(coordinates_deg: np.ndarray) -> np.ndarray:
    """`(n, 2)` degrees -> `(n, 3)` unit vectors, float64."""
    latitude, longitude = np.radians(coordinates_deg.T)
    return np.stack((np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), -1)


def photo_of_row(row: Mapping[str, Any]) -> Any:
    """What stands in a row of `datasets.Image(decode=False)`: the bytes of a photo, or where it lies."""
    photo = row.get("bytes") or row.get("path")
    if not photo:
        raise ValueError("it has neither bytes nor a path. Give a row of datasets.Image(decode=False), or an image.")
    return photo


def open_photo(source: str | Path | bytes, short_side: int, timeout: float) -> Image.Image:
    """Open a file, its bytes or an address; a JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves `short_side`."""
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    if not isinstance(source, bytes):
        if str(source).startswith(("http://", "https://")):
            file = io.BytesIO(download(str(source), timeout))
        elif not Path(source).is_file():
            raise ValueError("there is no such file. Give a path, an http(s) address, an image, an array or a tensor.")
    Image.init()
    known = [name for name in PHOTO_FORMATS if name in Image.OPEN]
    try:
        image = Image.open(file, formats=known)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no photo in a format that is read here: {', '.join(known)}.") from error
    if image.format in ("JPEG", "MPO"):
        for divisor in (8, 4, 2):  # Pillow would round a side down, where evaluations and libjpeg round it up
            if -(-min(image.size) // divisor) >= short_side:
                image.draft(None, (max(1, image.width // divisor), max(1, image.height // divisor)))
                break
    return image


def download(address: str, timeout: float) -> bytes:
    """What stands at an address, if that is not more than `MAX_DOWNLOAD_BYTES`."""
    request = urllib.request.Request(address, headers={"User-Agent": "image-to-coordinates"})  # some refuse Python's
    deadline, content = time.monotonic() + timeout, b""
    # not httpx: which one comes varies with the Hub's
    with urllib.request.urlopen(request, timeout=timeout) as response:
        while piece := response.read1(2**20):
            content += piece
            if len(content) > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"it has more than {MAX_DOWNLOAD_BYTES:,} bytes.")
            if time.monotonic() > deadline:
                raise ValueError(f"it did not arrive within {timeout:g} s; timeout=... waits longer.")
    return content


def describe(photo: Any) -> str:
    """How an error names a photo."""
    if isinstance(photo, Mapping):
        return describe(photo["path"]) if photo.get("path") else f"the row of {', '.join(map(str, photo))}"
    if isinstance(photo, bytes):
        return f"the photo of {len(photo):,} bytes"
    if isinstance(photo, (str, Path)):
        text = str(photo)
        return repr(text if len(text) <= 200 else text[:200] + "...")
    if isinstance(photo, Image.Image):
        name = getattr(photo, "filename", "")
        return f"the {photo.mode} image of {photo.width} x {photo.height} pixels{f' {str(name)!r}' if name else ''}"
    shape = getattr(photo, "shape", None)
    return f"the {type(photo).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}"
