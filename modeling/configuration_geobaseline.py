"""The architecture of the baselines: any timm backbone under the same geolocation heads as GeoMAE."""

from dataclasses import field
from typing import Any

from .configuration_geolocation_head import GeolocationHeadConfig

__all__ = ["GeoBaselineConfig"]


class GeoBaselineConfig(GeolocationHeadConfig):
    """A timm backbone and a geolocation head. The defaults are the thesis's ResNet-152 regressor.

    Raises:
        ValueError: a choice is unknown; the message names the field and what it may be.
    """

    model_type = "geobaseline"

    backbone: str = "resnet152"
    """Name of a timm model, without pretrained weights: `resnet152`, `vit_base_patch16_224`, ..."""

    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to `timm.create_model` as they are, for example `{"global_pool": "avg"}`."""

    image_size: int = 224
    """Side of the square photos, pixels; backbones with a fixed input size are built for it."""

    num_channels: int = 3
    """Colour channels."""

    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Per channel, subtracted from uint8 photos scaled to 0..1."""

    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Per channel, divides what `image_mean` leaves."""

    drop_path_rate: float = 0.0
    """Stochastic depth of the backbone; must be 0 for networks that do not know it, such as VGG."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.auto_map = {
            "AutoConfig": "configuration_geobaseline.GeoBaselineConfig",
            "AutoModelForImageClassification": "modeling_geobaseline.GeoBaselineForGeolocation",
        } | kwargs.pop("auto_map", {})
        super().__post_init__(**kwargs)
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs one value for each of num_channels={self.num_channels}."
                )
