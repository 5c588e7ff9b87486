"""The architecture of GeoMAE. How a run made the weights stands in its YAML, not here."""

from dataclasses import field
from typing import Any

from .configuration_geolocation_head import GeolocationHeadConfig

__all__ = ["GeoMAEConfig"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class GeoMAEConfig(GeolocationHeadConfig):
    """Encoder and decoder of GeoMAE; `GeolocationHeadConfig` has its head. The defaults are the thesis's architecture.

    Raises:
        ValueError: the sizes do not fit each other; the message names the fields.
    """

    model_type = "geomae"

    hidden_size: int = 768
    """Width of the encoder's tokens; a multiple of `num_attention_heads`, and of 4 for sin-cos positions."""

    num_hidden_layers: int = 12
    """Transformer blocks of the encoder."""

    num_attention_heads: int = 12
    """Attention heads of each encoder block."""

    intermediate_size: int = 3072
    """Width of the hidden layer of each encoder block's MLP."""

    qkv_bias: bool = True
    """Whether queries, keys and values have a bias, in encoder and decoder."""

    layer_norm_eps: float = 1e-6
    """Added to the variance in every LayerNorm."""

    initializer_range: float = 0.02
    """Standard deviation of fresh tokens and learned positions; linear layers start Xavier-uniform, as in MAE."""

    image_size: int = 224
    """Side of the square photos, pixels; a multiple of `patch_size`. Other sizes work: positions are interpolated."""

    patch_size: int = 16
    """Side of a patch, pixels."""

    num_channels: int = 3
    """Colour channels."""

    image_mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Per channel, subtracted from uint8 photos scaled to 0..1; one value a channel."""

    image_std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Per channel, divides what `image_mean` leaves; one value a channel."""

    position_embedding: str = "learned"
    """`learned`, or `sincos`: fixed two-dimensional sines and cosines, in encoder and decoder."""

    hidden_dropout_prob: float = 0.0
    """Dropout after the position embedding, the attention projection and the MLP layers of the encoder."""

    attention_probs_dropout_prob: float = 0.0
    """Dropout of the encoder's attention weights."""

    drop_path_rate: float = 0.0
    """Stochastic depth of the encoder: the last block's drop rate; earlier blocks drop linearly less."""

    pooling: str = "cls"
    """What stands for the photo: `cls`, the class token, or `mean`, the mean of the patch tokens."""

    mask_ratio: float = 0.75
    """Share of the patches hidden from the encoder in pretraining, 0 < mask_ratio < 1."""

    norm_pix_loss: bool = False
    """Whether the decoder predicts pixels normalised within each patch: sharper features, no absolute colour."""

    loss_reduction: str = "mean"
    """`mean` over masked patches and batch, or `sum` over both (the thesis); within a patch always the mean.

    In training a sum is one device's, of one batch: accumulated batches and processes are averaged.
    """

    decoder_hidden_size: int = 384
    """Width of the decoder's tokens; a multiple of `decoder_num_attention_heads`."""

    decoder_num_hidden_layers: int = 4
    """Transformer blocks of the decoder."""

    decoder_num_attention_heads: int = 12
    """Attention heads of each decoder block."""

    decoder_intermediate_size: int = 1536
    """Width of the hidden layer of each decoder block's MLP."""

    def __post_init__(self, **kwargs: Any) -> None:
        # Every head is reachable from any checkpoint: save_pretrained alone would register only the saved class.
        self.auto_map = {
            "AutoConfig": "configuration_geomae.GeoMAEConfig",
            "AutoModel": "modeling_geomae.GeoMAEModel",
            "AutoModelForPreTraining": "modeling_geomae.GeoMAEForPreTraining",
            "AutoModelForImageClassification": "modeling_geomae.GeoMAEForGeolocation",
        } | kwargs.pop("auto_map", {})
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_choices()

    @property
    def num_patches(self) -> int:
        """Patches of a photo of `image_size`."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_visible_patches(self) -> int:
        """Patches of such a photo that the encoder sees in pretraining."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def _check_sizes(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: "
                "choose sizes that divide, such as 224 and 16."
            )
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} is not a multiple of {heads}={getattr(self, heads)}: "
                    "every head needs the same whole number of features."
                )
            if self.position_embedding == "sincos" and getattr(self, width) % 4:
                raise ValueError(
                    f"position_embedding=sincos needs {width} to be a multiple of 4, not {getattr(self, width)}."
                )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs one value for each of num_channels={self.num_channels}."
                )

    def _check_choices(self) -> None:
        choices = {
            "position_embedding": ("learned", "sincos"),
            "pooling": ("cls", "mean"),
            "loss_reduction": ("mean", "sum"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: choose one of {', '.join(allowed)}.")
        if not 0 < self.mask_ratio < 1 or not 0 < self.num_visible_patches < self.num_patches:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} leaves {self.num_visible_patches} of {self.num_patches} patches "
                "visible: at least one must be visible and one hidden."
            )
