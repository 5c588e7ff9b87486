"""The thesis's models, written anew from its description, with the habits that cost it its speed.

What is kept: `nn.MultiheadAttention`, which takes fused attention on every device; dropout of 0.1 before and in every
block, in pretraining too; the convolution embeds every patch, and three quarters of the tokens are then thrown away;
the order is restored before the decoder; all patches are predicted, as a picture, by a transposed convolution, and cut
again for the loss, which multiplies both by the mask of every pixel; photos arrive as normalised floats; the
great-circle loss is a loop over the photos. A step takes as long as one of the thesis's own code did beside it (7.6 and
7.9 s of a busy core). Its mask tokens, one for each hidden patch, are one here.

What is not: its reshape of tokens to a picture without a transpose, by which a token did not land on its own patch.
Putting it right costs a copy of a few megabytes in a step of seconds.

Source: K. Yang (2024), "Self-supervised learning for image-based geolocation", DTU.
"""

import math

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from stepping.sizes import DecoderSize, NetworkSize

__all__ = ["ThesisMAE", "ThesisResNet", "ThesisViT", "looped_great_circle_loss"]

EARTH_RADIUS_KM = 6371.0
DROPOUT = 0.1  # the default of every model in its code
HEAD_WIDTHS = (512, 256)  # as in GeoMAE's head; the thesis does not state them


class ThesisBlock(nn.Module):
    """A transformer block, normalised first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * width, width),
            nn.Dropout(DROPOUT),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)`."""
        normalised = self.norm1(tokens)
        attended, _ = self.attention(normalised, normalised, normalised, need_weights=False)
        tokens = tokens + self.dropout(attended)
        return tokens + self.mlp(self.norm2(tokens))


class ThesisEncoder(nn.Module):
    """Photos -> tokens: every patch is embedded, whatever is kept of them."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, size.width, kernel_size=size.patch_size, stride=size.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + size.num_patches, size.width))
        self.blocks = nn.Sequential(*(ThesisBlock(size.width, size.num_heads) for _ in range(size.depth)))
        self.norm, self.dropout = nn.LayerNorm(size.width), nn.Dropout(DROPOUT)

    def forward(self, photos: Tensor, ids_visible: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` and `(B, V)` int64 or, for all patches, None -> `(B, 1 + V, D)`, the class token first."""
        tokens = self.embedding(photos).flatten(2).transpose(1, 2) + self.positions[:, 1:]  # -> (B, N, D)
        if ids_visible is not None:
            tokens = pick(tokens, ids_visible)  # (B, N, D) -> (B, V, D)
        class_token = (self.class_token + self.positions[:, :1]).expand(tokens.shape[0], -1, -1)
        return self.norm(self.blocks(self.dropout(torch.cat((class_token, tokens), dim=1))))


class ThesisMAE(nn.Module):
    """The masked autoencoder; its answer is its loss."""

    def __init__(self, size: NetworkSize, decoder: DecoderSize, mask_ratio: float = 0.75) -> None:
        super().__init__()
        self.patch_size, self.mask_ratio = size.patch_size, mask_ratio
        self.encoder = ThesisEncoder(size)
        self.to_decoder = nn.Linear(size.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + size.num_patches, decoder.width))
        self.blocks = nn.Sequential(*(ThesisBlock(decoder.width, decoder.num_heads) for _ in range(decoder.depth)))
        self.norm, self.dropout = nn.LayerNorm(decoder.width), nn.Dropout(DROPOUT)
        self.to_pixels = nn.ConvTranspose2d(
            decoder.width, 3, kernel_size=size.patch_size, stride=size.patch_size, bias=False
        )

    def forward(self, photos: Tensor, noise: Tensor | None = None) -> Tensor:
        """Loss `()` of normalised photos `(B, 3, H, W)`; `noise` `(B, N)` chooses the visible patches, the smallest."""
        B, N = photos.shape[0], self.positions.shape[1] - 1
        noise = torch.rand(B, N, device=photos.device) if noise is None else noise
        ids_shuffle = noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        num_visible = int(N * (1 - self.mask_ratio))
        encoded = self.encoder(photos, ids_shuffle[:, :num_visible])
        pictures = self.decode(encoded, ids_restore)
        hidden = ids_restore >= num_visible  # (B, N)
        return self.loss(pictures, photos, hidden)

    def decode(self, encoded: Tensor, ids_restore: Tensor) -> Tensor:
        """`(B, 1 + V, D)` and `(B, N)` -> pictures `(B, 3, H, W)`."""
        tokens = self.to_decoder(encoded)  # (B, 1 + V, D) -> (B, 1 + V, Dd)
        num_hidden = ids_restore.shape[1] + 1 - tokens.shape[1]
        mask_tokens = self.mask_token.repeat(tokens.shape[0], num_hidden, 1).to(tokens.dtype)
        restored = pick(torch.cat((tokens[:, 1:], mask_tokens), dim=1), ids_restore)  # -> (B, N, Dd)
        tokens = torch.cat((tokens[:, :1], restored), dim=1) + self.positions  # -> (B, 1 + N, Dd)
        tokens = self.norm(self.blocks(self.dropout(tokens)))[:, 1:]
        side = math.isqrt(tokens.shape[1])
        return self.to_pixels(tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side))

    def loss(self, pictures: Tensor, photos: Tensor, hidden: Tensor) -> Tensor:
        """Squared error, mean within a patch, summed over the patches that `hidden` `(B, N)` names."""
        of_pixels = hidden[..., None].expand(-1, -1, 3 * self.patch_size**2)  # (B, N) -> (B, N, 3 p p)
        difference = self.cut(pictures) * of_pixels - self.cut(photos) * of_pixels
        return difference.square().mean(dim=-1).sum()

    def cut(self, pictures: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> `(B, N, 3 * p * p)`."""
        p = self.patch_size
        patches = pictures.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5)
        return patches.reshape(pictures.shape[0], -1, 3 * p * p)


def pick(tokens: Tensor, ids: Tensor) -> Tensor:
    """`(B, N, D)` and `(B, K)` -> `(B, K, D)`, the index repeated in memory as the field's MAE code does."""
    return tokens.gather(1, ids.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))


class ThesisHead(nn.Module):
    """Features -> latitude and longitude in degrees, by tanh."""

    def __init__(self, width: int, hidden_widths: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for hidden in hidden_widths:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, width)` -> `(B, 2)` degrees."""
        return self.layers(features).tanh() * features.new_tensor([90.0, 180.0])


class ThesisViT(nn.Module):
    """The ViT regressor: class token -> two fully connected layers with dropout."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.encoder = ThesisEncoder(size)
        self.head = ThesisHead(size.width, HEAD_WIDTHS[:1], dropout=0.1)

    def forward(self, photos: Tensor) -> Tensor:
        """Normalised photos `(B, 3, H, W)` -> `(B, 2)` degrees."""
        return self.head(self.encoder(photos)[:, 0])


class ThesisResNet(nn.Module):
    """The ResNet regressor: average pool -> three fully connected layers."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.backbone = ResNet(Bottleneck, list(size.resnet_depths))
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.head = ThesisHead(width, HEAD_WIDTHS)

    def forward(self, photos: Tensor) -> Tensor:
        """Normalised photos `(B, 3, H, W)` -> `(B, 2)` degrees."""
        return self.head(self.backbone(photos))


def looped_great_circle_loss(predicted_deg: Tensor, coordinates_deg: Tensor) -> Tensor:
    """Mean great-circle distance `()` in km of `(B, 2)` degrees, photo by photo, each read back to the host."""
    distances_km: list[Tensor] = []
    running_km = 0.0
    for predicted, true in zip(predicted_deg.float(), coordinates_deg, strict=True):
        latitude, longitude = torch.deg2rad(predicted)
        true_latitude, true_longitude = torch.deg2rad(true)
        a = (
            torch.sin((true_latitude - latitude) / 2) ** 2
            + torch.cos(latitude) * torch.cos(true_latitude) * torch.sin((true_longitude - longitude) / 2) ** 2
        )
        distance_km = EARTH_RADIUS_KM * 2 * torch.atan2(torch.sqrt(a), torch.sqrt(1 - a))
        running_km += distance_km.item()
        distances_km.append(distance_km)
    return torch.stack(distances_km).mean()
