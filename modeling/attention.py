"""timm's attention and transformer block, computed the way that is fastest for what is asked and where it runs."""

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

__all__ = ["DeviceAwareAttention", "SelectiveBlock"]


class DeviceAwareAttention(Attention):
    """Fused attention on accelerators, two plain matrix products on the CPU.

    On the CPU in bfloat16 `scaled_dot_product_attention` takes 1.2-1.4 times as long as the plain products (measured at
    this model's shapes, torch 2.13-2.15). `TIMM_FUSED_ATTN=0` still turns the fused kernel off everywhere.
    """

    @property  # type: ignore[misc]  # Final for TorchScript's sake, which nothing here uses
    def fused_attn(self) -> bool:
        """Whether the next forward pass takes the fused kernel."""
        return self._fused_attention_allowed and self.qkv.weight.device.type != "cpu"

    @fused_attn.setter
    def fused_attn(self, allowed: bool) -> None:
        self._fused_attention_allowed = allowed

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)`, as in timm, which also computes what is masked."""
        if self.fused_attn or attn_mask is not None or is_causal:
            masks = {"is_causal": True} if is_causal else {}  # older versions of timm do not know it
            return super().forward(x, attn_mask, **masks)
        return self.attend_from(x, slice(None))

    def attend_from(self, tokens: Tensor, wanted: slice) -> Tensor:
        """What `forward` gives for some of the tokens, `(B, T, D)` -> `(B, K, D)`; they look at all of them.

        Queries are projected for every token: cutting the weight of `qkv` would save a little more, and pass by whoever
        has put another layer in its place, as LoRA does.
        """
        B, T, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query = query[:, :, wanted]  # (B, heads, T, D / heads) -> (B, heads, K, D / heads)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        else:
            query, key, value = (each.flatten(0, 1) for each in (query, key, value))
            nothing = query.new_empty(1, 1, 1)  # only so that the product scales while it multiplies
            scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=self.scale)
            mixed = (self.attn_drop(scores.softmax(dim=-1)) @ value).unflatten(0, (B, self.num_heads))
        mixed = mixed.transpose(1, 2).reshape(B, -1, self.attn_dim)
        return self.proj_drop(self.proj(mixed))


class SelectiveBlock(Block):
    """timm's block, which can leave out the tokens that nobody reads after it.

    A model's last block takes three quarters of its arithmetic after the projection of queries, keys and values: where
    only the class token is read, as in fine-tuning, or only the hidden patches, as in a masked autoencoder's decoder,
    that is done for these alone. The answers are the same.
    """

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, wanted: slice | None = None
    ) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)` as in timm, or `(B, K, D)`: only the tokens that are `wanted`, without a mask."""
        if wanted is None:
            masks = {"is_causal": True} if is_causal else {}  # older versions of timm do not know it
            return super().forward(x, attn_mask=attn_mask, **masks)
        attended = self.attn.attend_from(self.norm1(x), wanted)
        tokens = x[:, wanted] + self.drop_path1(self.ls1(attended))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))
