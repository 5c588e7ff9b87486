"""Photos of any kind -> the uint8 square that the models see: `AutoImageProcessor` of every checkpoint."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

__all__ = ["MAX_PIXELS", "GeoMAEImageProcessor"]

MAX_PIXELS = 100_000_000
"""A photo of more is refused from its header, before its pixels take any memory."""

MAX_ASPECT = 32
"""Of what is resized whole before the square is cut; a longer panorama loses its ends, as in evaluations."""

MODES_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
RESIZE_PER_CROP = 256 / 224
"""Evaluations resize the short side to 256 and cut the central 224, as the thesis does."""

Photo = Image.Image | np.ndarray | Tensor


class GeoMAEImageProcessor(BaseImageProcessor):
    """Short side to `size`, then the central square of `crop_size`, as evaluations do it; the model normalises.

    EXIF orientation is applied, transparency is laid on white, of an animation the current frame is taken, which is the
    first one of an image that was just opened.

    Evaluations decode with simplejpeg and resize with OpenCV. Of 118 photos at `image_size` 64, pixels differ from
    theirs by 0.2 of 255 in the mean where the pipeline opens the file, at a fraction of its size as they do, and by 0.6
    where an image or an array of full size is given. Answers of a tanh head, trained on crops of Earth pictures, move
    by 8 km in the median and 23 in the mean, and by 26 and 73; those of a classifier stay as they are for 116 of 118.

    Args:
        size: `{"shortest_edge": pixels}` before the square is cut.
        crop_size: `{"height": pixels, "width": pixels}`, both the same.

    Raises:
        ValueError: the square is no square, or larger than the resized photo.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self, size: dict[str, int] | None = None, crop_size: dict[str, int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.size = dict(size or {"shortest_edge": 256})
        self.crop_size = dict(crop_size or {"height": 224, "width": 224})
        side = self.crop_size.get("height")
        if self.size.keys() != {"shortest_edge"} or self.crop_size != {"height": side, "width": side}:
            raise ValueError(
                f"size={self.size}, crop_size={self.crop_size}: expected a shortest_edge, and height and width of a "
                "square."
            )
        if not 0 < self.crop_size["height"] <= self.size["shortest_edge"]:
            raise ValueError(f"crop_size={self.crop_size} does not lie within a short side of {self.size} pixels.")

    @classmethod
    def for_image_size(cls, image_size: int) -> "GeoMAEImageProcessor":
        """The one for a model of this `image_size`, pixels."""
        return cls({"shortest_edge": round(image_size * RESIZE_PER_CROP)}, {"height": image_size, "width": image_size})

    def preprocess(
        self, images: Photo | Sequence[Photo], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Make a batch.

        Args:
            images: one photo or several: PIL images in any mode; arrays or tensors `(H, W)`, `(H, W, C)` or
                `(C, H, W)` with 1, 3 or 4 channels, uint8 or floats from 0 to 1, or a batch of such.
            return_tensors: `pt` or `np`; None for `pt`.
            kwargs: none are known; what the model does itself, such as normalising, cannot be asked for.

        Returns:
            `pixel_values` `(B, 3, height, width)` uint8, 0 to 255.

        Raises:
            ValueError: no photo, or none of these shapes and types, or one of more than `MAX_PIXELS`; the message says
                which one of several.
        """
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: not an option of {type(self).__name__}, which resizes and crops.")
        photos = _as_list(images)
        if not photos:
            raise ValueError("no photo was given.")
        crops = []
        for number, photo in enumerate(photos):
            try:
                crops.append(self._crop(_to_rgb(photo), is_whole_jpeg=_is_whole_jpeg(photo)))
            except ValueError as error:
                raise ValueError(f"photo {number} of {len(photos)}: {error}" if len(photos) > 1 else error) from error
        return BatchFeature({"pixel_values": torch.stack(crops)}, tensor_type=return_tensors or "pt")

    def _crop(self, rgb: np.ndarray, *, is_whole_jpeg: bool) -> Tensor:
        """`(H, W, 3)` uint8 -> `(3, S, S)` uint8."""
        short, side = self.size["shortest_edge"], self.crop_size["height"]
        if is_whole_jpeg:
            rgb = _reduce(rgb, short)
        longest = MAX_ASPECT * min(rgb.shape[:2])
        top, left = (max(0, side - longest) // 2 for side in rgb.shape[:2])
        rgb = rgb[top : top + longest, left : left + longest]
        height, width = rgb.shape[:2]
        scale = short / min(height, width)
        resized = _resize(rgb, max(round(height * scale), short), max(round(width * scale), short))
        top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
        return resized[top : top + side, left : left + side].permute(2, 0, 1).contiguous()  # (S, S, 3) -> (3, S, S)


GeoMAEImageProcessor.register_for_auto_class("AutoImageProcessor")


def _as_list(images: Any) -> list[Any]:
    """One photo or several as a list of single ones."""
    if isinstance(images, (list, tuple)):
        return [photo for image in images for photo in _as_list(image)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _to_rgb(photo: Any) -> np.ndarray:
    """`(H, W, 3)` uint8, upright, of a photo in any form."""
    if isinstance(photo, Image.Image):
        _refuse_bomb(photo.height, photo.width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF
            try:
                photo.load()
                return _image_to_rgb(ImageOps.exif_transpose(photo))
            except Exception as error:  # Pillow's plugins raise many types on broken bytes (struct.error, ...)
                raise ValueError(f"it cannot be decoded: {error}") from error
    if isinstance(photo, (np.ndarray, Tensor)):
        return _array_to_rgb(photo)
    raise ValueError(f"a photo is a PIL image, an array or a tensor, not {type(photo).__name__}: {str(photo)[:80]!r}")


def _is_whole_jpeg(photo: Any) -> bool:
    """Whether a photo was a JPEG, as nearly every array's was, and was not decoded at a fraction of its size."""
    was_drafted = bool(getattr(photo, "decoderconfig", ()))  # Pillow's note of `Image.draft`
    return not was_drafted and getattr(photo, "format", None) in (None, "JPEG", "MPO")


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels.")
    if height < 1 or width < 1:
        raise ValueError(f"{width} x {height} holds no pixel.")


def _image_to_rgb(image: Image.Image) -> np.ndarray:
    """`(H, W, 3)` uint8 of an image in any of Pillow's modes."""
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit grey clips all above 255 to white
        grey = np.asarray(image).astype(np.int64)
        grey = grey >> 8 if image.mode != "I" or grey.max() > 255 else grey
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        return _array_to_rgb(np.asarray(image))
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.mode in MODES_WITH_ALPHA or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    return np.asarray(image.convert("RGB"))


def _array_to_rgb(photo: np.ndarray | Tensor) -> np.ndarray:
    """The same of an array or tensor; where three channels may stand first or last, last for arrays, first else."""
    shape = f"{type(photo).__name__} of shape {tuple(photo.shape)} and type {photo.dtype}"
    if isinstance(photo, Tensor):
        photo = photo.detach().cpu()
        pixels = (photo.float() if photo.is_floating_point() else photo).numpy()  # numpy knows no bfloat16
    else:
        pixels = photo
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim == 3:
        order = (0, 2) if isinstance(photo, Tensor) else (2, 0)
        axis = next((axis for axis in order if pixels.shape[axis] in (1, 3, 4)), None)
        if axis is not None:
            pixels = np.moveaxis(pixels, axis, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"a {shape} is no photo; expected (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.")
    _refuse_bomb(pixels.shape[0], pixels.shape[1])
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"a {shape} runs from {pixels.min():g} to {pixels.max():g}; expected floats in 0 to 1.")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"a {shape} is no photo; expected uint8 of 0 to 255, or floats from 0 to 1.")
    if pixels.shape[2] == 4:
        return _image_to_rgb(Image.fromarray(np.ascontiguousarray(pixels), "RGBA"))
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _reduce(rgb: np.ndarray, short_side: int) -> np.ndarray:
    """The mean of 8 x 8, 4 x 4 or 2 x 2 pixels where that leaves `short_side`.

    Training and evaluations decode a JPEG at such a fraction of its size, which gives nearly the same. What is left and
    then resized bilinearly is not as smooth as if it were resized at once, and models are used to that.
    """
    for factor in (8, 4, 2):
        if -(-min(rgb.shape[:2]) // factor) >= short_side:
            return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).reduce(factor))
    return rgb


def _resize(rgb: np.ndarray, height: int, width: int) -> Tensor:
    """`(H, W, 3)` -> `(height, width, 3)` uint8: the mean of areas where it shrinks twice or more, else bilinear.

    These are OpenCV's INTER_AREA and INTER_LINEAR, which training and evaluations use.
    """
    if rgb.shape[:2] == (height, width):
        return torch.from_numpy(np.array(rgb))
    make_weights = _area_weights if min(rgb.shape[0] / height, rgb.shape[1] / width) >= 2 else _bilinear_weights
    pixels = torch.from_numpy(np.asarray(rgb, np.float32))
    pixels = make_weights(rgb.shape[0], height) @ pixels.flatten(1)  # (H, W, 3) -> (height, W 3)
    pixels = pixels.unflatten(1, (-1, 3)).transpose(0, 1)  # -> (W, height, 3)
    pixels = make_weights(rgb.shape[1], width) @ pixels.flatten(1)  # -> (width, height 3)
    return pixels.unflatten(1, (-1, 3)).transpose(0, 1).round().clamp(0, 255).to(torch.uint8)


def _area_weights(old: int, new: int) -> Tensor:
    """`(new, old)` sparse: the share of each new pixel that each old one covers."""
    edges = np.unique(np.concatenate((np.arange(old + 1) * new, np.arange(new + 1) * old)))  # in 1 / (old new)
    begin = edges[:-1]
    return _sparse(begin // old, begin // new, np.diff(edges) / old, (new, old))


def _bilinear_weights(old: int, new: int) -> Tensor:
    """`(new, old)` sparse: the two old pixels around the centre of each new one, the nearer the heavier."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(centre.astype(np.int64), max(old - 2, 0))
    rows, right = np.arange(new), np.minimum(left + 1, old - 1)
    weights = np.concatenate((1 - (centre - left), centre - left))
    return _sparse(np.concatenate((rows, rows)), np.concatenate((left, right)), weights, (new, old))


def _sparse(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> Tensor:
    with torch.sparse.check_sparse_tensor_invariants(False):  # torch 2.11 warns of what an argument says
        return torch.sparse_coo_tensor(np.stack((rows, columns)), weights, shape, dtype=torch.float32)
