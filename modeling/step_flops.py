"""How many floating point operations a training step takes, counted by torch on a model without storage."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

__all__ = ["count_step_flops"]


def count_step_flops(model: PreTrainedModel) -> float:
    """Forward and backward of one photo of the model's own size, in training mode.

    A multiplication and an addition count as two. Only matrix products, convolutions and attention count, as in every
    published figure of model FLOP/s utilisation; what gradient checkpointing computes twice counts once.

    Args:
        model: a model whose class builds from its `config` and whose output has a `loss` to differentiate.
    """
    config = model.config
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin = type(model)(config).train()
        photo = torch.zeros(2, config.num_channels, config.image_size, config.image_size)  # batch norm needs two
        inputs = {"coordinates_deg": torch.zeros(2, 2)} if hasattr(model, "head") else {}
        twin(photo, **inputs).loss.backward()
    return counter.get_total_flops() / 2
