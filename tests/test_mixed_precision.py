"""bfloat16 autocast over fifty steps: the same photos and noise give nearly the loss curve of float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

NUM_STEPS = 50


def loss_curve(task: type, *, bf16: bool, learning_rate: float, **architecture: Any) -> Tensor:
    """`(NUM_STEPS,)` losses of a fresh model on eight photos, with the same masks in both precisions."""
    torch.manual_seed(0)
    model = task(GeoMAEConfig(**architecture)).train()
    colours = torch.randint(0, 256, (8, 3, 4, 4)).float()
    photos = torch.nn.functional.interpolate(colours, size=(32, 32), mode="bilinear").to(torch.uint8)
    truth = torch.rand(8, 2) * torch.tensor([100.0, 300.0]) - torch.tensor([50.0, 150.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(NUM_STEPS):
        second = torch.rand(8, 16) if task is GeoMAEForPreTraining else truth
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(photos, second).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


# Tolerances are what a step that must stay in float32 would exceed. Measured: the reconstruction loss differs by at
# most 0.00013 of itself, by 0.0038 where its mean over patches is taken of bfloat16, by 0.0039 where all of it is
# computed so; the cells' loss by 0.0009, and by 0.0040 with the head under autocast. Point heads are no good for it:
# the gradient of a distance keeps its length near the goal, so that any rounding soon leads elsewhere; what they
# compute in is held by `test_head_stays_float32_through_casts_and_autocast`.
@pytest.mark.parametrize(
    ("task", "learning_rate", "architecture", "tolerance"),
    [
        (GeoMAEForPreTraining, 3e-4, {}, 0.001),
        (GeoMAEForGeolocation, 5e-5, {"head_type": "geocells", "num_geocells": [20]}, 0.002),
    ],
    ids=["pretraining", "geolocation"],
)
def test_loss_curve_in_bfloat16_stays_beside_that_in_float32(
    tiny_sizes: dict, task: type, learning_rate: float, architecture: dict[str, Any], tolerance: float
) -> None:
    exact, rounded = (
        loss_curve(task, bf16=bf16, learning_rate=learning_rate, **tiny_sizes, **architecture) for bf16 in (False, True)
    )
    assert exact[-1] < 0.9 * exact[0], "the model learns, so that there is a curve to stay beside"
    assert not torch.equal(rounded, exact)
    assert (rounded / exact - 1).abs().max().item() < tolerance
