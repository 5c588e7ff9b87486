"""Tiny checkpoints whose heads answer with a posterior over cells that are evenly spread over the Earth."""

import torch

from modeling import GeoMAEConfig, GeoMAEForGeolocation

NUM_CELLS = 40


def save_cell_model(folder, sizes, **options):
    """A fresh model with larger weights in its last layer, so that its posteriors differ from photo to photo."""
    torch.manual_seed(0)
    config = GeoMAEConfig(**{**sizes, "head_type": "geocells", "num_geocells": [8, NUM_CELLS], **options})
    model = GeoMAEForGeolocation(config)
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(20)
    model.save_pretrained(folder)
    return folder
