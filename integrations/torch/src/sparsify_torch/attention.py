"""Multi-head attention whose heads are narrower in sum than its model, as it is left when heads are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ThinnedAttention(nn.Module):
    """Stand in for nn.MultiheadAttention, with its parameters under their own names.

    nn.MultiheadAttention insists that heads x head width = model width, so it cannot lose a head. Inputs and outputs
    are its own, without `bias_k`, `add_zero_attn` and differing key and value widths.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = whole.embed_dim, whole.num_heads, whole.head_dim
        self.batch_first, self.dropout = whole.batch_first, whole.dropout
        self._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer off its fused path
        self.in_proj_weight, self.in_proj_bias, self.out_proj = whole.in_proj_weight, whole.in_proj_bias, whole.out_proj
        self.training = whole.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as nn.MultiheadAttention does; shapes (batch, length, width), or (length, batch, width)."""
        turned = not self.batch_first and query.ndim == 3
        reads: Any = [query] if query is key and key is value else [query, key, value]
        reads = [read.transpose(0, 1) if turned else read for read in reads]
        split = [part.reshape(*part.shape[:-1], -1, self.head_dim).transpose(-2, -3) for part in self._project(reads)]
        mask = _mask(split[0], attn_mask, key_padding_mask)
        drop = self.dropout if self.training else 0.0
        if need_weights:
            made, seen = _attend(split, mask, drop, average_attn_weights)
        else:
            query, key, value = split
            made, seen = functional.scaled_dot_product_attention(query, key, value, mask, drop), None
        made = self.out_proj(made.transpose(-2, -3).flatten(-2))
        return (made.transpose(0, 1) if turned else made), seen

    def _project(self, reads: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(reads) == 1:
            return functional.linear(reads[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        return [functional.linear(*three) for three in zip(reads, weights, biases, strict=True)]


def _mask(query: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Return the sum of both masks as numbers to add, of shape (batch, heads or 1, length, length)."""
    parts = []
    for mask in (attn_mask, None if padding is None else padding[..., None, None, :]):
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
            heads = mask.ndim == 3 and query.ndim == 4  # (batch x heads, length, length)
            parts.append(mask.reshape(*query.shape[:2], *mask.shape[1:]) if heads else mask)
    return sum(parts[1:], parts[0]) if parts else None


def _attend(split: list[Tensor], mask: Tensor | None, dropout: float, average: bool) -> tuple[Tensor, Tensor]:
    query, key, value = split
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    seen = (scores if mask is None else scores + mask).softmax(-1)
    seen = functional.dropout(seen, dropout) if dropout else seen
    return seen @ value, seen.mean(-3) if average else seen
