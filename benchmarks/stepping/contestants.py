"""Who is compared with whom: groups of models that learn the same task at the same size, and how each trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)
from stepping import peers
from stepping.sizes import DECODERS, TINY, VIT_BASE, DecoderSize, NetworkSize, tiny_decoder
from stepping.thesis_model import ThesisMAE, ThesisResNet, ThesisViT, looped_great_circle_loss

__all__ = ["GROUP_KEYS", "Batch", "Contestant", "Group", "build_groups", "make_batch"]

GROUP_KEYS = ("pretrain_thesis", "pretrain_published", "vit", "resnet")


@dataclass(frozen=True)
class Batch:
    """The same photos for everybody, on the device."""

    pixel_values: Tensor  # (B, 3, H, W) uint8, what our collator hands over
    photos: Tensor  # (B, 3, H, W) float32, normalised beforehand, which costs a peer nothing here
    coordinates_deg: Tensor  # (B, 2) latitude and longitude


def make_batch(batch_size: int, image_size: int, device: torch.device) -> Batch:
    """Random pixels and places."""
    torch.manual_seed(0)
    pixel_values = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    coordinates_deg = (torch.rand(batch_size, 2) - 0.5) * torch.tensor([180.0, 360.0])
    photos = (pixel_values / 255 - 0.45) / 0.226
    return Batch(*(tensor.to(device) for tensor in (pixel_values, photos, coordinates_deg)))


@dataclass(frozen=True)
class Contestant:
    """One model and the habits of its training."""

    key: str
    title: str
    role: Literal["ours", "peer", "thesis"]
    build: Callable[[], nn.Module]
    loss: Callable[[Callable[..., Any], Batch], Tensor]
    """Of the model, compiled or not, on a batch."""

    attentions: tuple[str, ...] = ("",)
    """Which it can choose from."""

    choose_attention: Callable[[nn.Module, str], None] = lambda model, attention: None
    memory_formats: tuple[str, ...] = ("",)
    """`channels_last` for convolutions, or ``: as it is built."""

    compiles: bool = True
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"lr": 1e-4, "fused": True})
    """Arguments of AdamW."""

    max_grad_norm: float = 1.0
    missing: str = ""
    """Why it cannot run here."""


@dataclass(frozen=True)
class Group:
    """Contestants that learn the same."""

    key: str
    title: str
    image_size: int
    contestants: list[Contestant] = field(default_factory=list)


def build_groups(*, tiny: bool, facebook_mae: Path | None) -> list[Group]:
    """Every group with all its contestants.

    Args:
        tiny: networks for tests, which say nothing of speed.
        facebook_mae: a checkout of facebookresearch/mae.
    """
    size = TINY if tiny else VIT_BASE
    groups = []
    for name, decoder in DECODERS.items():
        decoder = tiny_decoder(decoder) if tiny else decoder
        sizes = f"decoder {decoder.depth} x {decoder.width}"
        groups.append(
            Group(
                f"pretrain_{name}",
                f"Pretraining, {sizes}, {'the thesis' if name == 'thesis' else 'as published'}",
                size.image_size,
                _pretraining(size, decoder, facebook_mae),
            )
        )
    vit = Group("vit", "Regression of coordinates, ViT-B/16", size.image_size, _vits(size))
    resnet = Group("resnet", "Regression of coordinates, ResNet-152", size.image_size, _resnets(size))
    return [*groups, vit, resnet]


_TIMM = {"attentions": ("plain", "fused"), "choose_attention": peers.choose_timm_attention}
_TRANSFORMERS = {"attentions": ("plain", "fused"), "choose_attention": peers.choose_transformers_attention}
_OURS = {"attentions": ("own",)}
_THESIS: dict[str, Any] = {"role": "thesis", "compiles": False, "max_grad_norm": 0.1}
_THESIS |= {"optimizer": {"lr": 1e-4, "weight_decay": 0.01}}
_CONVOLUTIONAL = {"memory_formats": ("", "channels_last")}


def _pretraining(size: NetworkSize, decoder: DecoderSize, facebook_mae: Path | None) -> list[Contestant]:
    authors = partial(peers.build_facebook_mae, facebook_mae, size, decoder) if facebook_mae else nn.Identity
    return [
        Contestant("geomae", "GeoMAE", "ours", partial(_build_geomae, size, decoder), _loss_of_pixels, **_OURS),
        Contestant(
            "vit_mae",
            "transformers' `ViTMAEForPreTraining`",
            "peer",
            partial(peers.build_transformers_mae, size, decoder),
            lambda model, batch: model(batch.photos).loss,
            **_TRANSFORMERS,
        ),
        Contestant(
            "facebook_mae",
            "facebookresearch/mae",
            "peer",
            authors,
            lambda model, batch: model(batch.photos)[0],
            missing="" if facebook_mae else "--facebook_mae names no checkout of it",
            **_TIMM,
        ),
        Contestant(
            "lightly",
            "lightly's MAE",
            "peer",
            partial(peers.LightlyMAE, size, decoder),
            _bare_loss,
            missing="" if peers.lightly_is_installed() else "lightly is not installed",
            **_TIMM,
        ),
        Contestant(
            "thesis_mae", "the thesis's MAE", build=partial(ThesisMAE, size, decoder), loss=_bare_loss, **_THESIS
        ),
    ]


def _vits(size: NetworkSize) -> list[Contestant]:
    return [
        Contestant(
            "geomae_vit",
            "GeoMAE's encoder, `GeoMAEForGeolocation`",
            "ours",
            partial(_build_geolocator, size),
            _loss_of_places,
            **_OURS,
        ),
        Contestant(
            "geobaseline_vit",
            "`GeoBaselineForGeolocation` on timm's ViT",
            "ours",
            partial(_build_vit_baseline, size),
            _loss_of_places,
            **_OURS,
        ),
        Contestant("timm_vit", "timm's ViT", "peer", partial(peers.build_timm_vit, size), _squared_error, **_TIMM),
        Contestant(
            "transformers_vit",
            "transformers' ViT",
            "peer",
            partial(peers.build_transformers_vit, size),
            _transformers_regression,
            **_TRANSFORMERS,
        ),
        Contestant("thesis_vit", "the thesis's ViT", build=partial(ThesisViT, size), loss=_looped_loss, **_THESIS),
    ]


def _resnets(size: NetworkSize) -> list[Contestant]:
    return [
        Contestant(
            "geobaseline_resnet",
            "`GeoBaselineForGeolocation` on timm's ResNet",
            "ours",
            partial(_build_resnet_baseline, size),
            _loss_of_places,
        ),
        Contestant(
            "timm_resnet",
            "timm's ResNet",
            "peer",
            partial(peers.build_timm_resnet, size),
            _squared_error,
            **_CONVOLUTIONAL,
        ),
        Contestant(
            "transformers_resnet",
            "transformers' ResNet",
            "peer",
            partial(peers.build_transformers_resnet, size),
            _transformers_regression,
            **_CONVOLUTIONAL,
        ),
        Contestant(
            "thesis_resnet", "the thesis's ResNet", build=partial(ThesisResNet, size), loss=_looped_loss, **_THESIS
        ),
    ]


def _loss_of_pixels(model: Callable[..., Any], batch: Batch) -> Tensor:
    return model(batch.pixel_values).loss


def _loss_of_places(model: Callable[..., Any], batch: Batch) -> Tensor:
    return model(batch.pixel_values, coordinates_deg=batch.coordinates_deg).loss


def _bare_loss(model: Callable[..., Any], batch: Batch) -> Tensor:
    return model(batch.photos)


def _squared_error(model: Callable[..., Any], batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch.photos).float(), batch.coordinates_deg / 180)


def _transformers_regression(model: Callable[..., Any], batch: Batch) -> Tensor:
    return model(batch.photos, labels=batch.coordinates_deg / 180).loss


def _looped_loss(model: Callable[..., Any], batch: Batch) -> Tensor:
    return looped_great_circle_loss(model(batch.photos), batch.coordinates_deg)


def _geomae_config(size: NetworkSize, **decoder: int) -> GeoMAEConfig:
    return GeoMAEConfig(
        image_size=size.image_size,
        patch_size=size.patch_size,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.width,
        **decoder,
    )


def _build_geomae(size: NetworkSize, decoder: DecoderSize) -> nn.Module:
    config = _geomae_config(
        size,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.width,
    )
    return GeoMAEForPreTraining(config)


def _build_geolocator(size: NetworkSize) -> nn.Module:
    return GeoMAEForGeolocation(_geomae_config(size))


def _build_vit_baseline(size: NetworkSize) -> nn.Module:
    sizes = peers.timm_vit_sizes(size)
    config = GeoBaselineConfig(backbone="vit_base_patch16_224", image_size=size.image_size, backbone_kwargs=sizes)
    return GeoBaselineForGeolocation(config)


def _build_resnet_baseline(size: NetworkSize) -> nn.Module:
    depths = {"layers": list(size.resnet_depths)}
    return GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet152", backbone_kwargs=depths))
