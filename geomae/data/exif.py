"""The position that a camera wrote into a photo."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import BinaryIO

from PIL import UnidentifiedImageError

from geomae.data.photos import explain_format, open_image
from geomae.errors import CoordinateError

__all__ = ["read_gps"]

_GPS_BLOCK = 0x8825


def read_gps(photo: bytes | BinaryIO) -> tuple[float, float]:
    """Latitude and longitude, in degrees, of a photo's EXIF block; of an open file only the head is read.

    Raises:
        CoordinateError: there is no position, or it names no hemisphere, is (0, 0), not finite, or not on Earth.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(io.BytesIO(photo) if isinstance(photo, bytes) else photo) as image:
                gps = image.getexif().get_ifd(_GPS_BLOCK)
    except UnidentifiedImageError as error:
        raise CoordinateError(f"no GPS position: {explain_format(_head(photo))}") from error
    except Exception as error:  # broken EXIF raises struct.error, SyntaxError, KeyError, ... in Pillow
        raise CoordinateError(f"its EXIF block cannot be read: {error}") from error
    try:
        latitude = _degrees(gps[2]) * _sign(gps.get(1), "NS")
        longitude = _degrees(gps[4]) * _sign(gps.get(3), "EW")
    except CoordinateError:
        raise
    except Exception as error:  # a block that lies about its types raises whatever these do to float()
        raise CoordinateError("no GPS position in its EXIF block") from error
    if not (math.isfinite(latitude) and math.isfinite(longitude)):
        raise CoordinateError(f"its GPS position is not finite: {latitude}, {longitude}")
    if latitude == 0 and longitude == 0:
        raise CoordinateError("its GPS position is (0, 0), which cameras write when they have none")
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise CoordinateError(f"its GPS position is not on Earth: latitude={latitude}, longitude={longitude}")
    return latitude, longitude


def _head(photo: bytes | BinaryIO) -> bytes:
    if isinstance(photo, bytes):
        return photo[:12]
    photo.seek(0)
    return photo.read(12)


def _degrees(parts: Sequence[float]) -> float:
    if isinstance(parts, (str, bytes)):
        raise TypeError("a text, whose letters would be taken for degrees, minutes and seconds")
    degrees, minutes, seconds = (float(part) for part in (*parts, 0.0, 0.0)[:3])
    return degrees + minutes / 60 + seconds / 3600


def _sign(reference: object, letters: str) -> int:
    """1 or -1 for the first or the second letter; without one Sydney would lie in the northern hemisphere."""
    text = reference.decode("ascii", "replace") if isinstance(reference, bytes) else str(reference or "")
    letter = text.strip(" \0").upper()[:1]
    if not letter or letter not in letters:
        raise CoordinateError(
            f"its GPS position names no hemisphere: expected {letters[0]} or {letters[1]}, found {text[:20]!r}"
        )
    return 1 if letter == letters[0] else -1
