"""One photo: bytes -> upright RGB pixels -> crop. All decoding of the project happens here."""

import io
import math
import random
import re
import warnings
from typing import BinaryIO, cast

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from geomae.errors import DamagedPhotoError

__all__ = [
    "MAX_PHOTO_BYTES",
    "MAX_PIXELS",
    "PHOTO_FORMATS",
    "can_keep_jpeg",
    "center_crop",
    "decode_photo",
    "encode_jpeg",
    "evaluation_short_side",
    "explain_format",
    "open_image",
    "random_resized_crop",
    "read_orientation",
    "resize_short_side",
    "strip_metadata",
    "ten_crops",
]

MAX_PIXELS = 100_000_000  # a decompression bomb of more is refused from its header, before any memory is taken
MAX_PHOTO_BYTES = 2**28  # a file of more is refused before it is read

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "HEIF")
"""What is opened: formats of photos. Pillow knows more, and hands what strangers send to Ghostscript (EPS)."""

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
_MAX_JPEG_SIDE = 65_500  # libjpeg's own limit
_ORIENTATION_TAG = 0x0112
_PIXELS_AT_ONCE = 2**22  # of a photo that Pillow decodes and converts
_CROP_ATTEMPTS = 10
_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKER_BEHIND_PIXELS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MAX_ASPECT = 32  # of what is resized whole before a square is cut; a panorama of more loses its ends
_RESIZE_PER_CROP = 256 / 224  # the thesis resizes to 256 and cuts the central 224


def decode_photo(data: bytes, *, min_short_side: int) -> np.ndarray:
    """Decode any photo to upright RGB.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that still leaves `min_short_side` pixels.

    Args:
        data: an encoded photo in one of `PHOTO_FORMATS`.
        min_short_side: pixels that the short side keeps, where the photo has them; 0 decodes at full size.

    Returns:
        `(H, W, 3)` uint8, EXIF orientation applied, transparency laid on white, first frame of an animation.

    Raises:
        DamagedPhotoError: the bytes are no photo, break off, or hold more than `MAX_PIXELS`.
    """
    if not data:
        raise DamagedPhotoError("the file is empty")
    if data[:2] == b"\xff\xd8":
        photo = _decode_jpeg(data, min_short_side)
        if photo is not None:
            return photo
    return _decode_other(data)


def _decode_jpeg(data: bytes, min_short_side: int) -> np.ndarray | None:
    """The fast path; None sends CMYK, and whatever libjpeg complains about, to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_bomb(height, width)
        if colorspace in ("CMYK", "YCCK"):
            return None
        photo = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            fastdct=True,
            fastupsample=True,
            **_scale_to(height, width, min_short_side),
        )
    except DamagedPhotoError:
        raise
    except ValueError:
        return None
    return _turn_upright(photo, read_orientation(data))


def _scale_to(height: int, width: int, min_short_side: int) -> dict[str, int]:
    """What simplejpeg is asked for: a half, a quarter or an eighth, if that is large enough, else the whole.

    libjpeg also scales by 3/8, 5/8, 6/8 and 7/8, but these take longer than the whole: 1.2 against 0.9 ms at 500x375.
    """
    for divisor in (8, 4, 2):
        scaled = -(-height // divisor), -(-width // divisor)
        if min_short_side > 0 and min(scaled) >= min_short_side:
            return {"min_height": scaled[0], "min_width": scaled[1]}
    return {"min_height": height, "min_width": width}


def _decode_other(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of bombs; bombs are refused below
            with open_image(io.BytesIO(data)) as image:
                _refuse_bomb(image.height, image.width)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except DamagedPhotoError:
        raise
    except UnidentifiedImageError as error:
        raise DamagedPhotoError(f"cannot be decoded: {explain_format(data)}") from error
    except Image.DecompressionBombError as error:
        raise DamagedPhotoError(f"more than {MAX_PIXELS:,} pixels: {error}") from error
    except Exception as error:  # Pillow's plugins raise many types on broken bytes (struct.error, SyntaxError, ...)
        raise DamagedPhotoError(f"cannot be decoded: {error}" if str(error) else "cannot be decoded") from error


def open_image(file: BinaryIO) -> Image.Image:
    """`Image.open` of a file in one of `PHOTO_FORMATS`; Pillow's errors are not wrapped.

    Raises:
        UnidentifiedImageError: it is in none of them.
    """
    Image.init()
    return Image.open(file, formats=[name for name in PHOTO_FORMATS if name in Image.OPEN])


def explain_format(head: bytes) -> str:
    """What to say of a file that Pillow does not know, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "it is HEIC, which Pillow does not read: save it as JPEG first"
    return "it is no photo in a format that is read here"


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DamagedPhotoError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")
    if height < 1 or width < 1:
        raise DamagedPhotoError(f"{width} x {height} holds no pixel")


def _to_rgb(image: Image.Image) -> np.ndarray:
    """`(H, W, 3)` uint8 of an image in any mode; in strips, because Pillow takes copies of the whole on the way."""
    # Pillow's own conversion of 16-bit grey clips all above 255 to white
    is_deep = image.mode.startswith("I") and (image.mode != "I" or cast(tuple[int, int], image.getextrema())[1] > 255)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        is_whole = bottom - top == image.height
        strip = image if is_whole else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = _strip_to_rgb(strip, is_deep=is_deep)
    return pixels


def _strip_to_rgb(image: Image.Image, *, is_deep: bool) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        grey = grey >> 8 if is_deep else grey
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    return np.asarray(image.convert("RGB"))


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 where it is absent, unreadable or out of range."""
    if not _has_exif(data):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(io.BytesIO(data)) as image:
                orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the pixels are good even where the EXIF block is not: the photo is kept as it lies
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_exif(data: bytes) -> bool:
    """Whether an EXIF segment stands among those in front of the pixels; 1 us, where searching the bytes takes 15."""
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _START_OF_SCAN:
            return False
        if marker == 0xE1 and data.startswith(b"Exif\0\0", position + 4):
            return True
        # a fill byte stands alone; every other marker that may come here has a length
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"Exif\0\0", position, position + 65536) >= 0  # segments that cannot be followed


def _turn_upright(photo: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        photo = photo.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        photo = photo[:, ::-1]
    if orientation in (3, 4, 7, 8):
        photo = photo[::-1]
    return np.ascontiguousarray(photo)


def encode_jpeg(photo: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of an `(H, W, 3)` uint8 RGB photo, chroma at half resolution.

    Raises:
        DamagedPhotoError: a side is longer than a JPEG's can be.
    """
    if max(photo.shape[:2]) > _MAX_JPEG_SIDE:
        raise DamagedPhotoError(
            f"{photo.shape[1]} x {photo.shape[0]} has a side of more than the {_MAX_JPEG_SIDE:,} pixels of any JPEG"
        )
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(photo), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def can_keep_jpeg(data: bytes, short_side: int) -> bool:
    """Whether the bytes are a colour JPEG that any reader shows upright, its short side no longer than `short_side`."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return min(height, width) <= short_side and colorspace in ("YCbCr", "RGB") and read_orientation(data) == 1


def strip_metadata(jpeg: bytes) -> bytes | None:
    """The JPEG without EXIF, comments, previews and profiles: pixels untouched, no coordinates left in the file.

    It ends where the first image does: phones append trailers, and second frames with a position of their own.

    Returns:
        None where the segments cannot be followed to the end of the image: what is metadata cannot be known.

    Source: ITU-T T.81 (1992), annex B: segments are 0xFF, a marker, and a two-byte length that counts itself; the
    pixels behind a start of scan run to the next marker that is neither stuffed (0x00) nor a restart.
    """
    kept = [jpeg[:2]]
    position = 2
    while position + 2 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _END_OF_IMAGE:
            return b"".join([*kept, jpeg[position : position + 2]])
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:  # has no length, and no place between segments
            return None
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            found = _MARKER_BEHIND_PIXELS.search(jpeg, end)
            if found is None:
                return None
            end = found.start()
        is_preview = marker == 0xE0 and jpeg.startswith(b"JFXX", position + 4)
        # JFIF's APP0 and Adobe's APP14 say how to read the colours
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE) or is_preview):
            kept.append(jpeg[position:end])
        position = end
    return None


def resize_short_side(photo: np.ndarray, short_side: int) -> np.ndarray:
    """`(H, W, 3)` -> the same picture with `min(H, W) == short_side`, aspect kept to the nearest pixel."""
    height, width = photo.shape[:2]
    scale = short_side / min(height, width)
    return _resize(photo, max(round(height * scale), short_side), max(round(width * scale), short_side))


def _resize(photo: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    if photo.shape[:2] == (height, width) and out is None:
        return photo
    shrinks_twice = photo.shape[0] >= 2 * height and photo.shape[1] >= 2 * width
    # bilinear reads 4 pixels whatever the scale: it aliases beyond a factor of two, and is 1.5/255 off below it
    how = cv2.INTER_AREA if shrinks_twice else cv2.INTER_LINEAR
    return cv2.resize(photo, (width, height), dst=out, interpolation=how)


def evaluation_short_side(image_size: int) -> int:
    """Pixels of the short side before the central `image_size` is cut: 256 for 224."""
    return round(image_size * _RESIZE_PER_CROP)


def _without_far_ends(photo: np.ndarray) -> np.ndarray:
    """The middle of a photo that is longer than `_MAX_ASPECT` times its short side, else the photo.

    A square of 1 x 60,000 pixels would be cut from 256 x 15,360,000.
    """
    longest = _MAX_ASPECT * min(photo.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in photo.shape[:2])
    return photo[top : top + longest, left : left + longest]


def center_crop(photo: np.ndarray, image_size: int) -> np.ndarray:
    """The thesis's evaluation crop: short side to `image_size * 256 / 224`, then the central square.

    Args:
        photo: `(H, W, 3)` uint8.
        image_size: pixels of a side.

    Returns:
        `(image_size, image_size, 3)` uint8.
    """
    resized = resize_short_side(_without_far_ends(photo), evaluation_short_side(image_size))
    return _central_square(resized, image_size)


def _central_square(photo: np.ndarray, size: int) -> np.ndarray:
    top, left = (photo.shape[0] - size) // 2, (photo.shape[1] - size) // 2
    return photo[top : top + size, left : left + size]


def ten_crops(photo: np.ndarray, image_size: int) -> list[np.ndarray]:
    """The crops of the field's second evaluation protocol: the central square, those in the corners, and their mirrors.

    Args:
        photo: `(H, W, 3)` uint8.
        image_size: pixels of a side.

    Returns:
        10 views `(image_size, image_size, 3)` uint8 of the photo as `center_crop` resizes it: the one of `center_crop`,
        top left, top right, bottom left, bottom right, then these five mirrored left to right.

    Source: Krizhevsky, Sutskever and Hinton (2012), "ImageNet classification with deep convolutional neural networks",
    section 4.1; torchvision's `TenCrop` makes the same ten in another order, up to one pixel of the place of the two
    central ones where the margin is odd: it rounds half of it to the even number, and mirrors before it cuts.
    """
    resized = resize_short_side(_without_far_ends(photo), evaluation_short_side(image_size))
    top, bottom = slice(None, image_size), slice(-image_size, None)
    corners = [resized[rows, columns] for rows in (top, bottom) for columns in (top, bottom)]
    crops = [_central_square(resized, image_size), *corners]
    return [*crops, *(crop[:, ::-1] for crop in crops)]


def random_resized_crop(
    photo: np.ndarray,
    image_size: int,
    scale: tuple[float, float],
    rng: random.Random,
    *,
    flip_probability: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A random part of the photo, stretched to a square, and mirrored now and then.

    Args:
        photo: `(H, W, 3)` uint8.
        image_size: pixels of a side of the result.
        scale: smallest and largest share of the photo's area; the aspect is log-uniform in 3/4 to 4/3.
        rng: the only source of chance. Python's own: numpy's takes three times as long for single numbers.
        flip_probability: of a crop mirrored left to right.
        out: where to write the result, `(image_size, image_size, 3)` uint8.

    Returns:
        `(image_size, image_size, 3)` uint8; `out` where it was given.

    Source: Szegedy et al. (2015), "Going deeper with convolutions", section 6, as torchvision's RandomResizedCrop.
    """
    top, left, height, width = _draw_box(photo.shape[0], photo.shape[1], scale, rng)
    is_mirrored = rng.random() < flip_probability
    part = photo[top : top + height, left : left + width]
    if is_mirrored:  # behind the resizing, where the fewest pixels are left; numpy would take 20 times as long
        return cv2.flip(_resize(part, image_size, image_size), 1, dst=out)
    return _resize(part, image_size, image_size, out)


def _draw_box(
    photo_height: int, photo_width: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Top, left, height, width. A photo too elongated for any draw gives its central square-ish part."""
    for _ in range(_CROP_ATTEMPTS):
        area = photo_height * photo_width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*_LOG_ASPECTS))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= photo_width and 0 < height <= photo_height:
            top = int(rng.random() * (photo_height - height + 1))
            return top, int(rng.random() * (photo_width - width + 1)), height, width
    width = min(photo_width, round(photo_height * 4 / 3))
    height = min(photo_height, round(photo_width * 4 / 3))
    return (photo_height - height) // 2, (photo_width - width) // 2, height, width
