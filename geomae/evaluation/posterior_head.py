"""What an evaluation asks of a geolocation head that answers with a posterior. Needs torch.

It has `has_posterior`; `decoding` and the `OPTIONS` from its configuration, `spread_scale` or not; and `decode`,
`log_density`, `spread_around` and `mass_within` of its logits. `modeling` has such heads; any other one will do too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from geomae.errors import ConfigError
from geomae.evaluation.posterior import DECODINGS
from geomae.geography import EARTH_RADIUS_KM

__all__ = ["describe_decoding", "measure_posterior", "other_decodings", "override_decoding", "posterior_head"]

OPTIONS = ("kernel_km", "top_k", "temperature", "spread_scale")


def posterior_head(model: PreTrainedModel) -> Any | None:
    """The model's head where it has a posterior to decode and to measure, else None."""
    head = getattr(model, "head", None)
    return head if getattr(head, "has_posterior", False) else None


def override_decoding(model: PreTrainedModel, **options: str | float | None) -> None:
    """Read answers off the posterior in another way than the checkpoint's configuration says.

    Args:
        model: is changed.
        options: `decoding`, and some of `OPTIONS`; those that are None stay as they are.

    Raises:
        ConfigError: an option is given and the head has no posterior.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return
    head = posterior_head(model)
    if head is None:
        raise _no_posterior(model, *given)
    for name, value in given.items():
        setattr(head, name, value)


def describe_decoding(model: PreTrainedModel) -> dict[str, Any]:
    """The name of the `decoding` and the `OPTIONS` that answers are read off with; empty without a posterior."""
    head = posterior_head(model)
    return {} if head is None else {name: getattr(head, name) for name in ("decoding", *OPTIONS) if hasattr(head, name)}


def other_decodings(model: PreTrainedModel, decodings: Sequence[str] | None) -> list[str]:
    """What to decode beside the head's own decoding: all of `DECODINGS` where None, nothing without a posterior.

    Raises:
        ConfigError: decodings are asked for and the head has no posterior.
    """
    head = posterior_head(model)
    if head is None and decodings:
        raise _no_posterior(model, "decodings")
    asked = DECODINGS if decodings is None else decodings
    return [] if head is None else [name for name in asked if name != head.decoding]


def measure_posterior(head: Any, logits: Tensor, answer_deg: Tensor, truth_deg: Tensor) -> dict[str, Tensor]:
    """How much a posterior expected the truth, and how far from the answer it expected it.

    Args:
        head: has a posterior.
        logits: `(B, num_outputs)` of its last layer.
        answer_deg: `(B, 2)` what was read off the posterior, degrees.
        truth_deg: `(B, 2)` degrees.

    Returns:
        `(B,)` each: `nll`, the negative logarithm of the density at the truth, nats per steradian; `radius_50_km` and
        `radius_90_km`, of the circles around the answer that hold 50 % and 90 % of the mass; `expected_km`, the mean
        distance of the mass from the answer; `mass_within_error`, the mass within the circle on which the truth lies.
        Of a calibrated posterior the last is uniform from 0 to 1, and below q where the truth lies within the radius
        that holds q.

    Source: Dawid (1984), "Statistical theory: the prequential approach", for the probability integral transform.
    """
    spread = head.spread_around(logits, answer_deg)
    return {
        "nll": -head.log_density(logits, truth_deg),
        "radius_50_km": spread.radius_50_km,
        "radius_90_km": spread.radius_90_km,
        "expected_km": spread.expected_km,
        "mass_within_error": head.mass_within(logits, answer_deg, _great_circle_km(answer_deg, truth_deg)),
    }


def _great_circle_km(first_deg: Tensor, second_deg: Tensor) -> Tensor:
    """The haversine formula, in float32: exact enough to ask for the mass within it."""
    first, second = torch.deg2rad(first_deg.float()), torch.deg2rad(second_deg.float())
    latitude, longitude = torch.sin((second - first) / 2).square().unbind(-1)
    haversine = latitude + torch.cos(first[..., 0]) * torch.cos(second[..., 0]) * longitude
    return 2.0 * EARTH_RADIUS_KM * torch.asin(haversine.clamp(0.0, 1.0).sqrt())


def _no_posterior(model: PreTrainedModel, *keys: str) -> ConfigError:
    return ConfigError(
        f"{', '.join(keys)} need a posterior, and a head of the type {model.config.head_type} answers with a point: "
        "leave them out, or take a checkpoint with the head_type geocells, hybrid or vmf_mixture"
    )
