"""What a stranger sends: let in as bytes, refused with a sentence, shown again without what else was in the file."""

import base64
import contextlib
import io
import re
import warnings

import numpy as np
from numpy.typing import NDArray

from geomae.data.photos import decode_photo, encode_jpeg, open_image, resize_short_side
from geomae.errors import CoordinateError, DamagedPhotoError

__all__ = ["MAX_UPLOAD_BYTES", "jpeg_uri", "parse_place", "preview_uri", "refuse_oversized"]

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000  # a PNG of so many takes seconds, in which all others wait
PREVIEW_SIDE = 640  # pixels of the longer side
PREVIEW_QUALITY = 82
_LONGEST_PLACE = 80  # letters of what is typed as a place
_NUMBER = r"[+-]?\d+(?:\.\d*)?|[+-]?\.\d+"
_PLACE = re.compile(rf"({_NUMBER})°?(?:\s*[,;]\s*|\s+)({_NUMBER})°?")


def refuse_oversized(data: bytes) -> None:
    """Refuse what cannot be a photo, or is too large a one, from its size and its header alone.

    Raises:
        DamagedPhotoError: it is empty, or has more than `MAX_UPLOAD_BYTES` or `MAX_UPLOAD_PIXELS`.
    """
    oversized = ""
    if not data:
        raise DamagedPhotoError("the file is empty. Choose a photo.")
    if len(data) > MAX_UPLOAD_BYTES:
        raise DamagedPhotoError(
            f"it has {len(data) / 2**20:.0f} MB, and this page takes {MAX_UPLOAD_BYTES // 2**20} MB at most. "
            "Save the photo smaller, for example 2,000 pixels wide."
        )
    with contextlib.suppress(Exception), warnings.catch_warnings():  # what cannot be opened is told by the decoder
        warnings.simplefilter("ignore")
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
        if width * height > MAX_UPLOAD_PIXELS:
            oversized = f"{width} x {height} is more than the {MAX_UPLOAD_PIXELS:,} pixels that this page takes."
    if oversized:
        raise DamagedPhotoError(oversized)


def preview_uri(data: bytes) -> str:
    """The photo as a `data:` address of a new, small JPEG: pixels alone, no EXIF, no name, no position.

    Raises:
        DamagedPhotoError: it cannot be decoded.
    """
    photo = decode_photo(data, min_short_side=PREVIEW_SIDE)
    height, width = photo.shape[:2]
    scale = PREVIEW_SIDE / max(height, width)
    if scale < 1:
        photo = resize_short_side(photo, max(1, round(min(height, width) * scale)))
    return jpeg_uri(photo)


def jpeg_uri(photo: NDArray[np.uint8]) -> str:
    """A `data:` address of an `(H, W, 3)` uint8 picture."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(photo, PREVIEW_QUALITY)).decode("ascii")


def parse_place(text: str | None) -> tuple[float, float] | None:
    """Latitude and longitude that a person typed, such as `48.8584, 2.2945`; None where nothing was typed.

    Raises:
        CoordinateError: it is not two numbers, or they are not on Earth.
    """
    text = (text or "").strip()
    if not text:
        return None
    match = _PLACE.fullmatch(text) if len(text) <= _LONGEST_PLACE else None
    if match is None:
        raise CoordinateError(
            "That is not a place: write the latitude, a comma and the longitude in decimal degrees, such as "
            "48.8584, 2.2945; south and west have a minus sign."
        )
    latitude, longitude = float(match[1]), float(match[2])
    if abs(latitude) > 90 or abs(longitude) > 180:
        swapped = " Are the two swapped?" if abs(longitude) <= 90 and abs(latitude) <= 180 else ""
        raise CoordinateError(
            f"{latitude:g}, {longitude:g} is not on Earth: the latitude, which comes first, runs from -90 to 90, and "
            f"the longitude from -180 to 180.{swapped}"
        )
    return latitude, longitude
