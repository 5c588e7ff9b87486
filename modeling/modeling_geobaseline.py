"""The baselines: any timm backbone under a geolocation head, plugged into transformers."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_geobaseline import GeoBaselineConfig
from .geocell_tensors import GeocellTensors
from .geolocation_head import GeolocationHead, GeolocationOutput
from .heads import build_head
from .patches import PixelNormalizer
from .pretrained_model import GeoPreTrainedModel
from .vmf_mixture_head import VMFMixtureHead

__all__ = ["GeoBaselineForGeolocation"]


def build_backbone(config: GeoBaselineConfig) -> nn.Module:
    """The timm model that the configuration names, without classifier.

    Raises:
        ValueError: timm does not know the name, or the network does not take an option; the message says which.
    """
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('_')[0]}*")[:5]
        raise ValueError(
            f"backbone={config.backbone!r} is not a model of timm {timm.__version__}. Near names: {', '.join(near)}."
        )
    arguments: dict[str, Any] = {"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}
    if timm.get_pretrained_cfg(config.backbone, allow_unregistered=True).fixed_input_size:
        arguments["img_size"] = config.image_size
    arguments |= config.backbone_kwargs
    try:
        return timm.create_model(config.backbone, num_classes=0, in_chans=config.num_channels, **arguments)
    except TypeError as error:
        raise ValueError(
            f"backbone={config.backbone} does not take every one of {arguments}: {error}. "
            "Leave out what it does not know (drop_path_rate: 0, backbone_kwargs)."
        ) from error


class GeoBaselineForGeolocation(GeoPreTrainedModel):
    """Photos -> coordinates: a timm backbone, its own pooling, and a head."""

    config_class = GeoBaselineConfig

    def __init__(self, config: GeoBaselineConfig) -> None:
        super().__init__(config)
        self.pixel_normalizer = PixelNormalizer(config.image_mean, config.image_std)
        self.backbone = build_backbone(config)
        # Convolutions pass on how photos lie in memory: with channels last ResNet-152 trains in 0.7 of the time (CPU,
        # bfloat16; weights in that order make it no faster). A Swin, which convolves once, loses 5 %.
        is_convolutional = any(isinstance(module, nn.BatchNorm2d) for module in self.backbone.modules())
        self.memory_format = torch.channels_last if is_convolutional else torch.contiguous_format
        # num_features is the width before timm's own last layers, which some models keep without a classifier
        self.head = build_head(self.backbone.head_hidden_size, config)
        self._keep_timm_initialization()
        self.post_init()

    def forward(
        self, pixel_values: Tensor, coordinates_deg: Tensor | None = None, scene_labels: Tensor | None = None
    ) -> GeolocationOutput:
        """Locate photos.

        Args:
            pixel_values: `(B, C, H, W)`, uint8 0..255 or normalised floats.
            coordinates_deg: `(B, 2)` true latitude and longitude, degrees; gives `loss` and `error_km`.
            scene_labels: `(B,)` int64, -1 where the scene is not known; only where `config.num_scenes` is above 0.
        """
        return self.head(self.embed(pixel_values), coordinates_deg, scene_labels)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Features of photos, before the head: `(B, C, H, W)` -> `(B, head_hidden_size)` float32."""
        pixels = self.pixel_normalizer(pixel_values).to(next(self.backbone.parameters()).dtype)
        return self.backbone(pixels.contiguous(memory_format=self.memory_format)).float()

    def combine_crops(self, outputs: Sequence[GeolocationOutput]) -> GeolocationOutput:
        """One answer from those to several crops of the same photos, as the head combines them."""
        return self.head.combine_crops(outputs)

    def _keep_timm_initialization(self) -> None:
        """Mark what timm has initialised: transformers would redraw every convolution from N(0, 0.02)."""
        for tensor in (*self.backbone.parameters(), *self.backbone.buffers()):
            tensor._is_hf_initialized = not tensor.is_meta  # type: ignore[attr-defined]  # transformers' own flag

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no checkpoint and no timm constructor has filled; `init` leaves everything marked alone."""
        if isinstance(module, (PixelNormalizer, GeocellTensors)):
            module.reset_buffers()
        elif isinstance(module, GeolocationHead):
            for layer in module.layers:
                if isinstance(layer, nn.Linear):
                    init.xavier_uniform_(layer.weight)
                    init.zeros_(layer.bias)
            if isinstance(module, VMFMixtureHead):
                module.reset_starts()
        elif hasattr(module, "init_non_persistent_buffers"):  # timm: transformers 5 leaves such buffers uninitialised
            module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Let timm recompute its own stages; ValueError where the network cannot."""
        try:
            self.backbone.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ValueError(
                    f"backbone={self.config.backbone} cannot recompute its activations in timm {timm.__version__}: "
                    "write gradient_checkpointing: false and take a smaller batch."
                ) from error


GeoBaselineForGeolocation.register_for_auto_class("AutoModelForImageClassification")
