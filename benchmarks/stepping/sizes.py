"""How large the networks are that a group compares: the same for everybody in it."""

from dataclasses import dataclass, replace

__all__ = ["DECODERS", "TINY", "VIT_BASE", "DecoderSize", "NetworkSize", "tiny_decoder"]


@dataclass(frozen=True)
class NetworkSize:
    """A vision transformer or a ResNet of bottlenecks, and its photos. An MLP is four times as wide as its tokens."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    resnet_depths: tuple[int, int, int, int]

    @property
    def num_patches(self) -> int:
        """Patches of a photo."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DecoderSize:
    """Of a masked autoencoder. An MLP is four times as wide as its tokens."""

    width: int
    depth: int
    num_heads: int


VIT_BASE = NetworkSize(224, 16, 768, 12, 12, resnet_depths=(3, 8, 36, 3))
TINY = NetworkSize(32, 8, 32, 2, 4, resnet_depths=(1, 1, 1, 1))
DECODERS = {
    "thesis": DecoderSize(384, 4, 12),
    "published": DecoderSize(512, 8, 16),  # He et al. (2022), "Masked Autoencoders Are Scalable Vision Learners"
}


def tiny_decoder(decoder: DecoderSize) -> DecoderSize:
    """One of a 32nd of the width and a quarter of the depth; for the tests."""
    return replace(decoder, width=decoder.width // 32, depth=decoder.depth // 4, num_heads=decoder.num_heads // 4)
