"""What a geolocator's configuration says of its head: features of a photo -> a point, or a posterior over the Earth."""

import math
from dataclasses import field
from typing import Any

from transformers import PretrainedConfig

__all__ = ["DECODINGS", "HEAD_TYPES", "GeolocationHeadConfig"]

HEAD_TYPES = ("tanh", "sphere", "geocells", "hybrid", "vmf_mixture")
"""What `head_type` may be: two heads that answer a point, three that answer a posterior."""

DECODINGS = ("argmax", "kernel", "expected_km", "mean_in_top_k")
"""What `decoding` may be: the ways to read one answer off a posterior."""


class GeolocationHeadConfig(PretrainedConfig):
    """The head of a geolocator, whatever its backbone. The defaults are the thesis's.

    Raises:
        ValueError: a choice is unknown, or two do not fit each other; the message names the fields.
    """

    head_type: str = "tanh"
    """`tanh` (the thesis) and `sphere` answer a point; `geocells`, `hybrid` and `vmf_mixture` a posterior."""

    head_hidden_sizes: list[int] = field(default_factory=lambda: [512, 256])
    """Widths of the head's hidden layers; the thesis has two and does not state their widths."""

    head_dropout_prob: float = 0.0
    """Dropout of the head's hidden units."""

    num_geocells: list[int] = field(default_factory=list)
    """Cells of each partition of the Earth, coarse to fine, each nested in the one before; their places are weights."""

    label_smoothing: float = 0.0
    """geocells, hybrid: share of the target that is spread evenly over all cells, 0 to 1."""

    haversine_smoothing_km: float = 0.0
    """geocells, hybrid: targets fall off as `exp(-km / this)` beyond the nearest cell; 0: one cell only."""

    regression_weight_per_km: float = 0.005
    """hybrid: nats of the loss for a km of error within the true cell; 0.005: 200 km count like one nat."""

    num_mixture_components: int = 0
    """vmf_mixture: components whose places are predicted; 0: one is anchored at each of the finest geocells."""

    num_scenes: int = 0
    """Kinds of scenes that are learned beside the place, 3 for Places365's S3 and 16 for its S16; 0: none."""

    scene_experts: bool = False
    """geocells: a classifier for each scene, weighed by the photo's own scene probabilities."""

    scene_loss_weight: float = 0.5
    """Weight of the scene's cross-entropy in nats; point heads, whose loss is in km, count 1000 km for a nat."""

    decoding: str = "kernel"
    """How a posterior becomes the answer: `argmax`, `kernel`, `expected_km` or `mean_in_top_k`."""

    kernel_km: float = 200.0
    """kernel: the answer is the place with most mass around it, which counts as `exp(-km / kernel_km)`."""

    top_k: int = 5
    """mean_in_top_k: so many of the likeliest places are averaged, by their mass."""

    temperature: float = 1.0
    """Divides the logits of a posterior; fitted on validation photos, 1 in training."""

    spread_scale: float = 1.0
    """Multiplies how far a place's mass is spread around it; fitted with the temperature, 1 in training."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_head_choices()
        self._check_head_numbers()

    @property
    def has_posterior(self) -> bool:
        """Whether the head answers a distribution over the Earth."""
        return self.head_type not in ("tanh", "sphere")

    @property
    def needs_geocells(self) -> bool:
        """Whether the head is made of cells, which `num_geocells` counts."""
        return self.head_type in ("geocells", "hybrid") or (
            self.head_type == "vmf_mixture" and self.num_mixture_components == 0
        )

    def _check_head_choices(self) -> None:
        for name, allowed in (("head_type", HEAD_TYPES), ("decoding", DECODINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: choose one of {', '.join(allowed)}.")
        counts = self.num_geocells
        if self.needs_geocells and (not counts or min(counts) < 2 or sorted(set(counts)) != list(counts)):
            raise ValueError(
                f"head_type={self.head_type} needs num_geocells, rising counts of at least 2 such as [50, 400]; it is "
                f"{counts}. In training, `geocells: PATH` sets it from a file of `python -m geomae.geocells build`."
            )
        if self.scene_experts and (self.head_type != "geocells" or self.num_scenes < 2):
            raise ValueError(
                f"scene_experts needs head_type=geocells and num_scenes of at least 2; they are {self.head_type} and "
                f"{self.num_scenes}."
            )
        for name in ("label_smoothing", "haversine_smoothing_km"):
            if getattr(self, name) and self.head_type not in ("geocells", "hybrid"):
                raise ValueError(
                    f"{name}={getattr(self, name)} spreads the target of a classifier, and head_type={self.head_type} "
                    "is none: leave it at 0, or choose geocells or hybrid."
                )
        if self.num_mixture_components and self.head_type != "vmf_mixture":
            raise ValueError(
                f"num_mixture_components={self.num_mixture_components} is of head_type=vmf_mixture, not of "
                f"{self.head_type}: leave it at 0."
            )
        if self.label_smoothing and self.haversine_smoothing_km:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} and haversine_smoothing_km={self.haversine_smoothing_km} are "
                "two ways of spreading the target: keep one of them."
            )

    def _check_head_numbers(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1.")
        for name in ("haversine_smoothing_km", "regression_weight_per_km", "scene_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number of at least 0.")
        for name in ("num_mixture_components", "num_scenes"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or at least 2.")
        for name in ("kernel_km", "temperature", "spread_scale", "top_k"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number above 0.")
        for name in ("num_geocells", "head_hidden_sizes", "top_k"):
            value = getattr(self, name)
            if any(count != int(count) or count < 1 for count in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name}={value} must be whole and at least 1.")
