"""Other people's masked autoencoders and regressors, as they publish them, at the sizes that a group compares."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import timm
import timm.models.vision_transformer as timm_vit
from timm.layers import Attention
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from geomae.errors import ConfigError
from modeling.patches import sincos_positions
from stepping.sizes import DecoderSize, NetworkSize

__all__ = [
    "LightlyMAE",
    "build_facebook_mae",
    "build_timm_resnet",
    "build_timm_vit",
    "build_transformers_mae",
    "build_transformers_resnet",
    "build_transformers_vit",
    "choose_timm_attention",
    "choose_transformers_attention",
    "lightly_is_installed",
]


def choose_transformers_attention(model: nn.Module, attention: str) -> None:
    """`plain` or `fused`, in every part of a transformers model; its MAE decoder has a configuration of its own."""
    implementation = {"plain": "eager", "fused": "sdpa"}[attention]
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), (ViTConfig, ViTMAEConfig)):
            config._attn_implementation = implementation


def choose_timm_attention(model: nn.Module, attention: str) -> None:
    """`plain` or `fused`, in every timm attention layer of a model."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = attention == "fused"


def _vit_sizes(size: NetworkSize) -> dict[str, int]:
    return {
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "intermediate_size": 4 * size.width,
    }


def build_transformers_mae(size: NetworkSize, decoder: DecoderSize) -> PreTrainedModel:
    """`ViTMAEForPreTraining` with the sin-cos positions of its paper: built from a configuration, it may have zeros."""
    config = ViTMAEConfig(
        **_vit_sizes(size),
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.width,
    )
    model = ViTMAEForPreTraining(config)
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        positions.data.copy_(sincos_positions(positions.shape[-1], size.image_size // size.patch_size))
    return model


def build_transformers_vit(size: NetworkSize) -> PreTrainedModel:
    """`ViTForImageClassification`, which regresses two numbers under a squared error."""
    return ViTForImageClassification(ViTConfig(**_vit_sizes(size), num_labels=2, problem_type="regression"))


def build_transformers_resnet(size: NetworkSize) -> PreTrainedModel:
    """`ResNetForImageClassification`, which regresses two numbers under a squared error."""
    config = ResNetConfig(depths=list(size.resnet_depths), num_labels=2, problem_type="regression")
    return ResNetForImageClassification(config)


def build_timm_vit(size: NetworkSize) -> nn.Module:
    """The ViT of timm, with two outputs."""
    return timm.create_model("vit_base_patch16_224", num_classes=2, **timm_vit_sizes(size), img_size=size.image_size)


def build_timm_resnet(size: NetworkSize) -> nn.Module:
    """The ResNet of timm, with two outputs."""
    return timm.create_model("resnet152", num_classes=2, layers=size.resnet_depths)


def timm_vit_sizes(size: NetworkSize) -> dict[str, int]:
    """What timm calls the sizes of a transformer, but for that of its photos."""
    return {
        "patch_size": size.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
    }


def build_facebook_mae(checkout: Path, size: NetworkSize, decoder: DecoderSize) -> nn.Module:
    """The authors' `MaskedAutoencoderViT` from a checkout of facebookresearch/mae, which stays as it is.

    Raises:
        ConfigError: there is no `models_mae.py` in the folder.
    """
    file = checkout / "models_mae.py"
    if not file.is_file():
        raise ConfigError(
            f"--facebook_mae {checkout}: there is no models_mae.py in it. "
            "Give the folder of a clone of https://github.com/facebookresearch/mae."
        )
    with _as_in_2021(checkout):
        return _load_module(file).MaskedAutoencoderViT(
            img_size=size.image_size,
            **timm_vit_sizes(size),
            decoder_embed_dim=decoder.width,
            decoder_depth=decoder.depth,
            decoder_num_heads=decoder.num_heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )


def _load_module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _BlockOf2021(timm_vit.Block):
    """timm's block, which took another scale of the queries then; MAE never gives one."""

    def __init__(self, *args: Any, qk_scale: None = None, **options: Any) -> None:
        super().__init__(*args, **options)


@contextmanager
def _as_in_2021(checkout: Path) -> Iterator[None]:
    """What the checkout's code was written for: timm 0.3's `Block`, `np.float`, its own `util` on the path."""
    block, known = timm_vit.Block, set(sys.modules)
    timm_vit.Block = _BlockOf2021
    np.float = float
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        timm_vit.Block = block
        del np.float
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - known:
            if name.partition(".")[0] == "util":
                del sys.modules[name]


def lightly_is_installed() -> bool:
    """Whether lightly's MAE can be built."""
    return importlib.util.find_spec("lightly") is not None


class LightlyMAE(nn.Module):
    """lightly's parts, put together as its example of MAE does; its answer is its loss."""

    def __init__(self, size: NetworkSize, decoder: DecoderSize, mask_ratio: float = 0.75) -> None:
        super().__init__()
        modules = importlib.import_module("lightly.models.modules")
        self.utils = importlib.import_module("lightly.models.utils")
        self.mask_ratio, self.patch_size = mask_ratio, size.patch_size
        vit = timm_vit.VisionTransformer(img_size=size.image_size, num_classes=0, **timm_vit_sizes(size))
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.to_decoder = nn.Linear(size.width, decoder.width)
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(
            num_patches=size.num_patches, embed_dim=decoder.width, depth=decoder.depth, num_heads=decoder.num_heads
        )
        self.to_pixels = nn.Linear(decoder.width, 3 * size.patch_size**2)

    def forward(self, photos: Tensor) -> Tensor:
        """Normalised photos `(B, 3, H, W)` -> loss `()`."""
        B, T = photos.shape[0], self.backbone.sequence_length
        ids_visible, ids_hidden = self.utils.random_token_mask((B, T), self.mask_ratio, device=photos.device)
        visible = self.to_decoder(self.backbone.encode(photos, idx_keep=ids_visible))  # -> (B, 1 + V, Dd)
        tokens = self.utils.set_at_index(visible.new_zeros(B, T, visible.shape[-1]), ids_visible, visible)
        decoded = self.decoder(tokens, idx_mask=ids_hidden)  # (B, 1 + N, Dd)
        predicted = self.to_pixels(self.utils.get_at_index(decoded, ids_hidden))  # -> (B, N - V, 3 p p)
        patches = self.utils.patchify(photos, self.patch_size)
        target = self.utils.get_at_index(patches, ids_hidden - 1)  # no class token among the patches
        return nn.functional.mse_loss(predicted.float(), target)
