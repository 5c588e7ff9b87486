"""Photos as patches: cutting, putting back, choosing which ones the encoder sees, and where each one stands."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

__all__ = ["PixelNormalizer", "gather_patches", "patchify", "shuffle_patches", "sincos_positions", "unpatchify"]


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Cut photos into patches, row by row; within a patch the order is channel, row, column.

    That order is the one of a convolution's weights, so a patch embedding is one matrix product.

    Args:
        pixel_values: `(B, C, H, W)` of any dtype, H and W multiples of `patch_size`.
        patch_size: side of a patch, pixels.

    Returns:
        `(B, N, C * patch_size ** 2)` of the same dtype, N = H / patch_size * W / patch_size.
    """
    B, C, H, W = pixel_values.shape
    p = patch_size
    patches = pixel_values.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, (H // p) * (W // p), C * p * p)  # (B, C, H, W) -> (B, N, C p p)


def unpatchify(patches: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Put patches back where `patchify` took them from.

    Args:
        patches: `(B, N, C * patch_size ** 2)`.
        patch_size: side of a patch, pixels.
        height: of the photo, pixels.
        width: of the photo, pixels.

    Returns:
        `(B, C, height, width)`.
    """
    B, p = patches.shape[0], patch_size
    grid = patches.reshape(B, height // p, width // p, -1, p, p).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(B, -1, height, width)  # (B, N, C p p) -> (B, C, H, W)


def shuffle_patches(noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Choose for every photo the patches that the encoder sees: those of the smallest noise.

    Args:
        noise: `(B, N)` random numbers.
        num_visible: how many patches stay visible, a Python int so that shapes are static.

    Returns:
        `(B, num_visible)` indices of the visible patches and `(B, N - num_visible)` of the hidden ones, int64, both in
        the order of their noise, as in transformers' and facebookresearch's MAE.
    """
    ids_shuffle = torch.argsort(noise, dim=1)
    return ids_shuffle[:, :num_visible], ids_shuffle[:, num_visible:]


def gather_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """Pick patches by index: `(B, N, D)` or `(1, N, D)` and `(B, K)` -> `(B, K, D)`."""
    patches = patches.expand(ids.shape[0], -1, -1)
    return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def sincos_positions(dim: int, grid_size: int) -> Tensor:
    """Fixed two-dimensional position embedding: half the features encode the column, half the row.

    Args:
        dim: width of a token, a multiple of 4.
        grid_size: patches along each side.

    Returns:
        `(1, 1 + grid_size ** 2, dim)` float32; the class token's row is 0.

    Source: He et al. (2022), "Masked Autoencoders Are Scalable Vision Learners", `get_2d_sincos_pos_embed`.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies  # (grid_size, D / 4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)  # (grid_size, D / 2)
    columns = axis[None].expand(grid_size, -1, -1)
    rows = axis[:, None].expand(-1, grid_size, -1)
    patches = torch.cat((columns, rows), dim=-1).reshape(1, grid_size**2, dim)
    return torch.cat((torch.zeros(1, 1, dim), patches.float()), dim=1)  # (1, 1 + N, D)


class PixelNormalizer(nn.Module):
    """uint8 -> normalised float on the device; floats are taken as normalised already, as everywhere in transformers.

    The constants are persistent buffers: transformers 5 leaves non-persistent ones uninitialised in `from_pretrained`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.constants = (mean, std)
        self.register_buffer("mean", torch.tensor(mean)[:, None])  # (C, 1)
        self.register_buffer("std", torch.tensor(std)[:, None])  # (C, 1)

    def reset_buffers(self) -> None:
        """Fill what a checkpoint without these buffers has left empty."""
        for buffer, values in zip((self.mean, self.std), self.constants, strict=True):
            init.copy_(buffer, torch.tensor(values)[:, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise photos `(B, C, H, W)` or patches `(B, N, C * p * p)`; the shape stays."""
        if pixels.is_floating_point():
            return pixels
        mean, std = (
            self.mean.float(),
            self.std.float(),
        )  # in bfloat16 the difference below would lose most of its digits
        scaled = self._by_channel(pixels) * (1 / (255 * std))  # one pass over the pixels, and one more
        return scaled.sub_(mean / std).view(pixels.shape)

    def to_uint8(self, pixels: Tensor) -> Tensor:
        """Undo `forward`: normalised floats of the same shapes to uint8, clipped to 0..255."""
        scaled = (self._by_channel(pixels.float()) * self.std + self.mean) * 255
        return scaled.round().clamp(0, 255).to(torch.uint8).view(pixels.shape)

    def _by_channel(self, pixels: Tensor) -> Tensor:
        channels = self.mean.shape[0]
        return pixels.reshape(*pixels.shape[: -3 if pixels.dim() == 4 else -1], channels, -1)
