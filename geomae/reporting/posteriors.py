"""What a checkpoint thinks of a few photos, for `posterior_map`. Needs torch."""

from typing import Any

import numpy as np
import torch

from geomae.checkpoints import load_geolocator
from geomae.data import PhotoCollator, find_absent, load_photos
from geomae.errors import ConfigError
from geomae.evaluation.posterior import DECODINGS
from geomae.evaluation.posterior_head import posterior_head
from geomae.reporting.posterior_maps import PhotoPosterior

__all__ = ["compute_posteriors"]


@torch.inference_mode()
def compute_posteriors(
    checkpoint: str, photos: str, split: str, *, num_photos: int = 12, seed: int = 0
) -> list[PhotoPosterior]:
    """The posterior and every decoding of it, of photos drawn at random.

    Args:
        checkpoint: folder of a fine-tuned model whose head has a posterior.
        photos: packed folder, or any other source of photos with coordinates; what only its table names is left out.
        split: of a packed folder.
        num_photos: 1 or more; fewer where the source has fewer.
        seed: 0 or more, of the draw; equal seeds draw the same photos of a source, whatever the checkpoint.

    Raises:
        ConfigError: there is no such model, its head answers with a point, or a number is too small.
        SourceError: there are no such photos.
    """
    for option, given, least in (("num_photos", num_photos, 1), ("seed", seed, 0)):
        if given < least:
            raise ConfigError(f"--{option} {given} is too small: give {least} or more")
    model = load_geolocator(checkpoint)
    head = posterior_head(model)
    if head is None:
        raise ConfigError(
            f"{checkpoint} has a head of the type {model.config.head_type}, which answers with a point: take a "
            "checkpoint with the head_type geocells, hybrid or vmf_mixture"
        )
    dataset = load_photos(photos, split)
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(~find_absent(dataset)))[:num_photos]
    batch = PhotoCollator(model.config.image_size, augment=False)([dataset[int(row)] for row in drawn])
    output = model(pixel_values=batch["pixel_values"])
    log_mass, places_deg = head.place_log_probabilities(output.logits)  # (B, K), (B, K, 2)
    answers = {name: degrees.numpy() for name, degrees in head.decode(output.logits, DECODINGS).items()}
    columns: dict[str, Any] = {
        "photo": batch["pixel_values"].permute(0, 2, 3, 1).numpy(),
        "mass": log_mass.exp().double().numpy(),
        "places_deg": places_deg.double().numpy(),
        "true_deg": batch["coordinates_deg"].double().numpy(),
    }
    return [
        PhotoPosterior(
            name=name,
            answers_deg={decoding: degrees[row] for decoding, degrees in answers.items()},
            **{key: column[row] for key, column in columns.items()},
        )
        for row, name in enumerate(batch["ids"])
    ]
