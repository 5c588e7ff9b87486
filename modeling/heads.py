"""Every head by its name."""

from .configuration_geolocation_head import GeolocationHeadConfig
from .geolocation_head import GeolocationHead, SphereHead, TanhHead
from .posterior_heads import GeocellsHead, HybridHead
from .vmf_mixture_head import VMFMixtureHead

__all__ = ["HEADS", "build_head"]

HEADS = {
    "tanh": TanhHead,
    "sphere": SphereHead,
    "geocells": GeocellsHead,
    "hybrid": HybridHead,
    "vmf_mixture": VMFMixtureHead,
}
"""Every head by the name that `head_type` knows it by."""


def build_head(in_features: int, config: GeolocationHeadConfig) -> GeolocationHead:
    """The head that a configuration describes, for features of width `in_features`."""
    head: GeolocationHead = HEADS[config.head_type](in_features, config)
    return head
