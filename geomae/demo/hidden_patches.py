"""What a masked autoencoder sees of a photo, and what it makes of it."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from geomae.checkpoints import load_autoencoder
from geomae.data import PhotoCollator
from geomae.demo.photo_gate import refuse_oversized

__all__ = ["Reconstructor", "RestoredPhoto"]


@dataclass(frozen=True)
class RestoredPhoto:
    """Three pictures `(H, W, 3)` uint8 of one photo."""

    original: NDArray[np.uint8]
    masked: NDArray[np.uint8]  # hidden patches in grey
    restored: NDArray[np.uint8]  # hidden patches as predicted
    num_hidden: int
    num_patches: int


class Reconstructor:
    """A checkpoint of pretraining, ready to be asked."""

    def __init__(self, checkpoint: str | Path) -> None:
        """Load the model.

        Raises:
            ConfigError: there is none, or it has no decoder.
        """
        model = load_autoencoder(checkpoint)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.lock = Lock()  # the share of hidden patches is the model's setting, and visitors share the model
        self.mask_ratio = float(model.config.mask_ratio)
        self.collator = PhotoCollator(model.config.image_size, augment=False, labelled=False)

    def crop(self, photo: bytes) -> torch.Tensor:
        """What the model is shown of an encoded photo: `(1, 3, H, W)` uint8.

        Raises:
            DamagedPhotoError: it is empty, too large, or cannot be decoded.
        """
        refuse_oversized(photo)
        sample = {"id": "upload", "image": {"bytes": photo, "path": None}}
        return self.collator(self.collator.prepare(sample))["pixel_values"]

    @torch.inference_mode()
    def restore(self, crop: torch.Tensor, *, mask_ratio: float, seed: int) -> RestoredPhoto:
        """Hide patches at random and let the model fill them in.

        Args:
            crop: of `crop`.
            mask_ratio: share of the patches that are hidden, 0 to 1; at least one is shown and one hidden.
            seed: of the mask; equal seeds hide more of the same patches as the share grows.
        """
        num_patches = self.model.config.num_patches
        noise = torch.rand(1, num_patches, generator=torch.Generator().manual_seed(seed)).to(self.device)
        num_hidden = int(np.clip(round(mask_ratio * num_patches), 1, num_patches - 1))
        with self.lock:
            self.model.config.mask_ratio = (num_hidden - 0.5) / num_patches  # half a patch: safe from rounding
            pictures = self.model.reconstruct(crop.to(self.device), noise)
        original, masked, restored = (
            picture[0].permute(1, 2, 0).cpu().numpy()
            for picture in (pictures.original, pictures.masked, pictures.restored)
        )
        return RestoredPhoto(original, masked, restored, int(pictures.mask.sum()), num_patches)
