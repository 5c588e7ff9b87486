"""GeoMAE: a masked autoencoder over photos, and the geolocator that its encoder becomes.

Read in this order: `GeoMAEModel` (photos -> tokens of the visible patches), `GeoMAEDecoder` (-> pixels of the hidden
ones), `GeoMAEForPreTraining` (the loss between them), `GeoMAEForGeolocation` (photos -> coordinates).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .attention import DeviceAwareAttention, SelectiveBlock
from .configuration_geomae import GeoMAEConfig
from .geocell_tensors import GeocellTensors
from .geolocation_head import GeolocationOutput
from .heads import build_head
from .patches import PixelNormalizer, gather_patches, patchify, shuffle_patches, sincos_positions, unpatchify
from .pretrained_model import GeoPreTrainedModel
from .vmf_mixture_head import VMFMixtureHead

__all__ = [
    "GeoMAEForGeolocation",
    "GeoMAEForPreTraining",
    "GeoMAEForPreTrainingOutput",
    "GeoMAEModel",
    "GeoMAEModelOutput",
    "GeoMAEPreTrainedModel",
    "GeoMAEReconstruction",
]


@dataclass
class GeoMAEModelOutput(ModelOutput):
    """What the encoder says of a batch of photos. V is the number of visible patches: all N without masking."""

    last_hidden_state: Tensor | None = None
    """`(B, 1 + V, hidden_size)`: class token, then visible patches in the order of `ids_visible`; normalised."""

    pooler_output: Tensor | None = None
    """`(B, hidden_size)`: the class token or the mean of the patch tokens, as `config.pooling` says."""

    ids_visible: Tensor | None = None
    """`(B, V)` int64: which patches were seen; None without masking."""

    ids_masked: Tensor | None = None
    """`(B, N - V)` int64: which patches were hidden; None without masking."""


@dataclass
class GeoMAEForPreTrainingOutput(ModelOutput):
    """In training only `loss` is filled: accelerate would copy everything else to float32 at every step."""

    loss: Tensor | None = None
    """`()`: squared error of the hidden patches' pixels, reduced as `config.loss_reduction` says."""

    logits: Tensor | None = None
    """`(B, N, C * patch_size ** 2)`: predicted pixels of every patch, in the order of `patchify`."""

    mask: Tensor | None = None
    """`(B, N)` bool: True where the patch was hidden from the encoder."""

    ids_restore: Tensor | None = None
    """`(B, N)` int64: position of each patch in the order visible, hidden."""


@dataclass
class GeoMAEReconstruction(ModelOutput):
    """Pictures of what the model sees and makes of it, for looking at."""

    original: Tensor | None = None
    """`(B, C, H, W)` uint8: the photos."""

    masked: Tensor | None = None
    """`(B, C, H, W)` uint8: the photos with the hidden patches in grey."""

    restored: Tensor | None = None
    """`(B, C, H, W)` uint8: the visible patches as they are, the hidden ones as predicted."""

    mask: Tensor | None = None
    """`(B, N)` bool: True where the patch was hidden."""


class GeoMAEPreTrainedModel(GeoPreTrainedModel):
    """What every GeoMAE model shares: configuration class, initialisation, fixed positions."""

    config_class = GeoMAEConfig
    base_model_prefix = "geomae"
    _supports_sdpa = True
    _no_split_modules = ["SelectiveBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as MAE does. The `init` functions leave loaded weights alone, so this also fills missing ones."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # Both are linear maps between tokens and patches: Xavier's fans are those of the flattened weight.
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (VisionTransformer, GeoMAEDecoder)):
            token = module.cls_token if isinstance(module, VisionTransformer) else module.mask_token
            init.normal_(token, std=std)
            positions = module.pos_embed
            if self.config.position_embedding == "sincos":
                grid_size = self.config.image_size // self.config.patch_size
                init.copy_(positions, sincos_positions(positions.shape[-1], grid_size))
            else:
                init.trunc_normal_(positions, std=std)
        elif isinstance(module, (PixelNormalizer, GeocellTensors)):
            module.reset_buffers()
        elif isinstance(module, VMFMixtureHead):
            module.reset_starts()

    def fixed_parameters(self) -> list[nn.Parameter]:
        """Sin-cos positions are constants."""
        if self.config.position_embedding == "learned":
            return []
        owners = (m for m in self.modules() if isinstance(m, (VisionTransformer, GeoMAEDecoder)))
        return [owner.pos_embed for owner in owners if owner.pos_embed is not None]

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Pooled features of whole photos, before any head: `(B, C, H, W)` -> `(B, hidden_size)` float32."""
        return self.base_model(pixel_values, pooled_only=True).pooler_output.float()

    @property
    def backbone(self) -> VisionTransformer:
        """The encoder as a timm model."""
        return self.base_model.encoder  # type: ignore[return-value]  # torch: Tensor | Module


def transformer_sizes(hidden_size: int, intermediate_size: int, num_heads: int, config: GeoMAEConfig) -> dict[str, Any]:
    """Arguments that timm's `VisionTransformer` and the decoder's blocks share."""
    return {
        "num_heads": num_heads,
        "mlp_ratio": (intermediate_size + 0.5) / hidden_size,  # timm rounds ratio * width down
        "qkv_bias": config.qkv_bias,
        "norm_layer": partial(LayerNorm, eps=config.layer_norm_eps),
        "attn_layer": DeviceAwareAttention,
    }


def resize_positions(pos_embed: Tensor, native_size: int, height: int, width: int) -> Tensor:
    """Positions `(1, 1 + native_size ** 2, D)` for a grid of `height` x `width` patches, interpolated if need be."""
    if (height, width) == (native_size, native_size):
        return pos_embed
    return resample_abs_pos_embed(pos_embed, new_size=[height, width], old_size=[native_size, native_size])


class CheckpointedBlocks(nn.Module):
    """Runs transformer blocks; where gradient checkpointing is on, recomputes them in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor]  # set by gradient_checkpointing_enable()

    def forward(self, tokens: Tensor, blocks: Sequence[SelectiveBlock], wanted: slice) -> Tensor:
        """`(B, T, D)` -> `(B, K, D)` through every block in turn: the tokens that are `wanted` of the last one."""
        for block in blocks:
            selected = {"wanted": wanted} if block is blocks[-1] and wanted != slice(None) else {}
            if self.gradient_checkpointing and self.training:
                tokens = self._gradient_checkpointing_func(block, tokens, **selected)
            else:
                tokens = block(tokens, **selected)
        return tokens if len(blocks) else tokens[:, wanted]


class GeoMAEModel(GeoMAEPreTrainedModel):
    """The encoder: a timm `VisionTransformer` that embeds and encodes only the patches it may see."""

    def __init__(self, config: GeoMAEConfig) -> None:
        super().__init__(config)
        self.pixel_normalizer = PixelNormalizer(config.image_mean, config.image_std)
        self.encoder = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            num_classes=0,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            pos_drop_rate=config.hidden_dropout_prob,
            proj_drop_rate=config.hidden_dropout_prob,
            attn_drop_rate=config.attention_probs_dropout_prob,
            drop_path_rate=config.drop_path_rate,
            weight_init="skip",
            block_fn=SelectiveBlock,
            **transformer_sizes(config.hidden_size, config.intermediate_size, config.num_attention_heads, config),
        )
        self.run_blocks = CheckpointedBlocks()
        self.post_init()

    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, pooled_only: bool = False
    ) -> GeoMAEModelOutput:
        """Encode photos, all patches or, where `noise` is given, the share that `config.mask_ratio` leaves visible.

        Args:
            pixel_values: `(B, C, H, W)`, uint8 0..255 or normalised floats; H and W multiples of `patch_size`.
            noise: `(B, N)` random numbers; the patches of the smallest ones stay visible.
            pooled_only: leave out what `pooler_output` does not need: `last_hidden_state` is None then.

        Raises:
            ValueError: `pixel_values` or `noise` has another shape; the message says which was expected.
        """
        height, width = self.patch_grid(pixel_values)
        patches = patchify(pixel_values, self.config.patch_size)  # (B, C, H, W) -> (B, N, C p p)
        positions = resize_positions(
            self.encoder.pos_embed, self.config.image_size // self.config.patch_size, height, width
        )
        patch_positions, ids_visible, ids_masked = positions[:, 1:], None, None
        if noise is not None:
            check_noise(noise, patches)
            ids_visible, ids_masked = shuffle_patches(noise, int(patches.shape[1] * (1 - self.config.mask_ratio)))
            patches = gather_patches(patches, ids_visible)  # (B, N, C p p) -> (B, V, C p p)
            patch_positions = gather_patches(patch_positions, ids_visible)  # (1, N, D) -> (B, V, D)
        tokens = self.embed_patches(patches) + patch_positions  # (B, V, C p p) -> (B, V, D)
        class_token = (self.encoder.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1)
        tokens = self.encoder.pos_drop(torch.cat((class_token, tokens), dim=1))  # (B, V, D) -> (B, 1 + V, D)
        wanted = slice(0, 1) if pooled_only and self.config.pooling == "cls" else slice(None)
        tokens = self.encoder.norm(self.run_blocks(tokens, self.encoder.blocks, wanted))
        pooled = tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1)
        return GeoMAEModelOutput(None if pooled_only else tokens, pooled, ids_visible, ids_masked)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """`(B, V, C * p * p)` pixels -> `(B, V, hidden_size)`: the patch convolution as a matrix product."""
        projection = self.encoder.patch_embed.proj
        pixels = self.pixel_normalizer(patches).to(projection.weight.dtype)
        return nn.functional.linear(pixels, projection.weight.flatten(1), projection.bias)

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Patches along the height and the width of the photos; ValueError where that is not a whole number."""
        p, channels = self.config.patch_size, self.config.num_channels
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected (B, {channels}, H, W).")
        height, width = pixel_values.shape[2:]
        if height % p or width % p:
            raise ValueError(
                f"photos of {height}x{width} pixels do not divide into patches of {p}x{p}; resize them first."
            )
        return height // p, width // p


def check_noise(noise: Tensor, patches: Tensor) -> None:
    """ValueError where there is not one number for each patch."""
    if noise.shape != patches.shape[:2]:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected (B, N) = {tuple(patches.shape[:2])}.")


class GeoMAEDecoder(nn.Module):
    """Tokens of the visible patches -> pixels of the hidden ones.

    The tokens stay in the order class, visible, hidden: attention does not care about order, each token carries its
    position, so nothing is ever shuffled back for the loss.
    """

    def __init__(self, config: GeoMAEConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        sizes = transformer_sizes(width, config.decoder_intermediate_size, config.decoder_num_attention_heads, config)
        self.native_size = config.image_size // config.patch_size
        self.embedding = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width))
        self.blocks = nn.ModuleList(SelectiveBlock(dim=width, **sizes) for _ in range(config.decoder_num_hidden_layers))
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.prediction = nn.ConvTranspose2d(
            width, config.num_channels, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.run_blocks = CheckpointedBlocks()

    def forward(self, encoded: GeoMAEModelOutput, height: int, width: int, *, hidden_only: bool) -> Tensor:
        """Predict pixels.

        Args:
            encoded: the encoder's answer for masked photos.
            height: patches along the photo's height.
            width: patches along the photo's width.
            hidden_only: predict only the hidden patches, all that the loss needs.

        Returns:
            `(B, N - V, C * p * p)` where `hidden_only`, else `(B, N, C * p * p)`: the visible patches first.
        """
        positions = resize_positions(self.pos_embed, self.native_size, height, width)
        num_visible = encoded.ids_visible.shape[1]
        order = torch.cat((encoded.ids_visible, encoded.ids_masked), dim=1)
        visible = self.embedding(encoded.last_hidden_state)  # (B, 1 + V, D) -> (B, 1 + V, Dd)
        hidden = self.mask_token.expand(visible.shape[0], order.shape[1] - num_visible, -1)
        ordered_positions = torch.cat(
            (positions[:, :1].expand(visible.shape[0], -1, -1), gather_patches(positions[:, 1:], order)), dim=1
        )
        tokens = torch.cat((visible, hidden.to(visible.dtype)), dim=1) + ordered_positions  # -> (B, 1 + N, Dd)
        tokens = self.run_blocks(tokens, self.blocks, slice(1 + num_visible if hidden_only else 1, None))
        return self.norm(tokens) @ self.prediction.weight.flatten(1)  # (B, K, Dd) -> (B, K, C p p)


class GeoMAEForPreTraining(GeoMAEPreTrainedModel):
    """Masked autoencoder: hide most patches of a photo, predict their pixels from the rest."""

    def __init__(self, config: GeoMAEConfig) -> None:
        super().__init__(config)
        self.geomae = GeoMAEModel(config)
        self.decoder = GeoMAEDecoder(config)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, return_logits: bool | None = None
    ) -> GeoMAEForPreTrainingOutput:
        """Loss of the hidden patches and, outside training, the prediction of every patch.

        Args:
            pixel_values: `(B, C, H, W)`, uint8 0..255 or normalised floats.
            noise: `(B, N)` random numbers that choose the hidden patches; drawn afresh where not given.
            return_logits: fill `logits`, `mask` and `ids_restore`; by default outside training only.
        """
        return_logits = not self.training if return_logits is None else return_logits
        height, width = self.geomae.patch_grid(pixel_values)
        if noise is None:
            noise = torch.rand(pixel_values.shape[0], height * width, device=pixel_values.device)
        encoded = self.geomae(pixel_values, noise)
        predicted = self.decoder(encoded, height, width, hidden_only=not return_logits)
        target = gather_patches(patchify(pixel_values, self.config.patch_size), encoded.ids_masked)
        loss = self.reconstruction_loss(predicted[:, -target.shape[1] :], self.geomae.pixel_normalizer(target))
        if not return_logits:
            return GeoMAEForPreTrainingOutput(loss=loss)
        ids_restore = torch.argsort(torch.cat((encoded.ids_visible, encoded.ids_masked), dim=1), dim=1)
        mask = ids_restore >= encoded.ids_visible.shape[1]
        return GeoMAEForPreTrainingOutput(loss, gather_patches(predicted, ids_restore), mask, ids_restore)

    def reconstruction_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Squared error of `(B, K, C * p * p)` hidden patches, mean within each, then mean or sum over all."""
        precision = torch.promote_types(predicted.dtype, torch.float32)
        predicted, target = predicted.to(precision), target.to(precision)
        if self.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / patch_scale(target)
        if self.config.loss_reduction == "mean":
            return nn.functional.mse_loss(predicted, target)
        return nn.functional.mse_loss(predicted, target, reduction="sum") / target.shape[-1]

    @torch.no_grad()
    def reconstruct(self, pixel_values: Tensor, noise: Tensor | None = None) -> GeoMAEReconstruction:
        """Pictures of photos, of what the encoder saw of them, and of what the decoder made of it.

        With `norm_pix_loss` the predicted patches get the true patches' mean and contrast back, as MAE's authors show
        theirs: without it they look like noise.

        Args:
            pixel_values: `(B, C, H, W)`, uint8 0..255 or normalised floats.
            noise: `(B, N)`; drawn afresh where not given.
        """
        answer = self(pixel_values, noise, return_logits=True)
        normalizer, p = self.geomae.pixel_normalizer, self.config.patch_size
        patches = normalizer(patchify(pixel_values, p)).float()  # (B, C, H, W) -> (B, N, C p p)
        predicted = answer.logits.float()
        if self.config.norm_pix_loss:
            predicted = predicted * patch_scale(patches) + patches.mean(-1, keepdim=True)
        hidden = answer.mask[..., None]  # (B, N, 1)
        original = normalizer.to_uint8(patches)
        pictures = (
            original,
            torch.where(hidden, torch.full_like(original, 128), original),
            torch.where(hidden, normalizer.to_uint8(predicted), original),
        )
        height, width = pixel_values.shape[2:]
        original, masked, restored = (unpatchify(picture, p, height, width) for picture in pictures)
        return GeoMAEReconstruction(original, masked, restored, answer.mask)


def patch_scale(patches: Tensor) -> Tensor:
    """`(B, K, C * p * p)` -> `(B, K, 1)`: standard deviation within each patch, with MAE's floor for flat ones."""
    return (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


class GeoMAEForGeolocation(GeoMAEPreTrainedModel):
    """Photos -> coordinates: the GeoMAE encoder on all patches, and a head of `HEADS`."""

    def __init__(self, config: GeoMAEConfig) -> None:
        super().__init__(config)
        self.geomae = GeoMAEModel(config)
        self.head = build_head(config.hidden_size, config)
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
        features = self.geomae(pixel_values, pooled_only=True).pooler_output
        return self.head(features, coordinates_deg, scene_labels)

    def combine_crops(self, outputs: Sequence[GeolocationOutput]) -> GeolocationOutput:
        """One answer from those to several crops of the same photos, as the head combines them."""
        return self.head.combine_crops(outputs)


GeoMAEModel.register_for_auto_class("AutoModel")
GeoMAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
GeoMAEForGeolocation.register_for_auto_class("AutoModelForImageClassification")
