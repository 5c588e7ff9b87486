"""What training may do to the pixels of a crop: colours, greyness, a hidden part. Fast enough for every photo."""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np

from geomae.errors import ConfigError

__all__ = ["PixelAugmentation"]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: what cv2, Pillow and torchvision call grey
_ERASED_SHARES = (0.02, 1 / 3)
_LOG_ERASED_ASPECTS = (math.log(0.3), math.log(1 / 0.3))
_ERASE_ATTEMPTS = 10


@dataclass(frozen=True)
class PixelAugmentation:
    """Colours and a hidden part of a crop, drawn anew for each; nothing is drawn for what is off.

    Hues stay: the colour of soil, plants, plates and paint says where a photo was taken.

    Raises:
        ConfigError: a strength or a probability is out of its range.

    Source: colours as torchvision's ColorJitter and RandomGrayscale, but in one step, and clipped once; the hidden part
    as Zhong et al. (2020), "Random erasing data augmentation".
    """

    color_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation: each x is a factor drawn from max(0, 1 - x) to 1 + x; 0: unchanged."""
    grey_probability: float = 0.0
    """Of a crop without colours."""
    erase_probability: float = 0.0
    """Of a crop of which a rectangle, 2 to 33 % of it, is noise."""

    def __post_init__(self) -> None:
        if len(self.color_jitter) != 3 or not all(0 <= strength < math.inf for strength in self.color_jitter):
            raise ConfigError(
                f"color_jitter is {list(self.color_jitter)}; it must be three numbers from 0, for brightness, contrast "
                "and saturation, such as [0.4, 0.4, 0.4]"
            )
        for name in ("grey_probability", "erase_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")

    def apply(self, crop: np.ndarray, rng: random.Random) -> None:
        """Change a crop, `(H, W, 3)` uint8 and contiguous, in its place; `rng` is the only source of chance."""
        if any(self.color_jitter) or self.grey_probability:
            self._change_colours(crop, rng)
        if self.erase_probability and rng.random() < self.erase_probability:
            _erase(crop, rng)

    def _change_colours(self, crop: np.ndarray, rng: random.Random) -> None:
        factors = [rng.uniform(max(0.0, 1 - strength), 1 + strength) for strength in self.color_jitter]
        brightness, contrast, saturation = factors
        if rng.random() < self.grey_probability:
            saturation = 0.0
        if brightness == contrast == saturation == 1.0:
            return
        cv2.transform(crop, _colour_matrix(crop, brightness, contrast, saturation), dst=crop)


def _colour_matrix(crop: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """`(3, 4)` float64: all three are affine, and commute where nothing is clipped between them.

    b (c (s x + (1 - s) grey(x)) + (1 - c) mean_grey), for each pixel x.
    """
    mean_grey = float(_LUMA @ cv2.mean(crop)[:3])
    linear = saturation * np.eye(3) + (1 - saturation) * _LUMA  # each row of the second part is grey(x)
    offset = np.full((3, 1), (1 - contrast) * mean_grey)
    return brightness * np.hstack([contrast * linear, offset])


def _erase(crop: np.ndarray, rng: random.Random) -> None:
    height, width = crop.shape[:2]
    for _ in range(_ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*_ERASED_SHARES)
        aspect = math.exp(rng.uniform(*_LOG_ERASED_ASPECTS))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(rng.random() * (height - rows + 1)), int(rng.random() * (width - columns + 1))
            noise = np.frombuffer(rng.randbytes(rows * columns * 3), np.uint8)
            crop[top : top + rows, left : left + columns] = noise.reshape(rows, columns, 3)
            return
