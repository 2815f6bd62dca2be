"""The second-order arithmetic of oBERT (Kurtic et al. 2022, equations 3–6) on blocks of weights.

Everything has the shape blocks × size, the inverse Fisher matrix blocks × size × size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Blocks = Tensor


def inverse_fisher(gradients: Iterable[Sequence[Blocks]], count: int, damp: float) -> list[Tensor]:
    """Return for each weight the inverse of damp·I + Σ ggᵀ/count, by the formula of Woodbury, Sherman and Morrison."""
    inverses: list[Tensor] = []
    for one in gradients:
        if not inverses:
            inverses = [_start(blocks, damp) for blocks in one]
        for inverse, blocks in zip(inverses, one, strict=True):
            g = blocks.to(inverse.dtype).unsqueeze(2)
            if g.shape[1] == 1:  # the default of old recipes; products of 1 × 1 matrices would take far longer
                inverse.div_(1 + inverse * g.square() / count)
                continue
            moved = inverse @ g
            scale = count + g.transpose(1, 2) @ moved
            inverse.baddbmm_(moved, moved.transpose(1, 2) / scale, alpha=-1)
    return inverses


def single_scores(values: Blocks, inverse: Tensor) -> Blocks:
    """Return the loss that pruning each weight alone costs, w²/2[F⁻¹]ᵢᵢ."""
    return values**2 / (2 * inverse.diagonal(dim1=1, dim2=2))


def block_scores(values: Blocks, inverse: Tensor, size: int) -> Blocks:
    """Return of each weight the loss that pruning its group of `size` costs, ½ wᵀ([F⁻¹] of the group)⁻¹ w."""
    groups = values.view(values.shape[0], -1, size, 1)
    parts = inverse.view(values.shape[0], groups.shape[1], size, groups.shape[1], size)
    own = torch.stack([parts[:, i, :, i] for i in range(groups.shape[1])], dim=1)
    costs: Tensor = (groups * torch.linalg.solve(own, groups.to(own.dtype))).sum((2, 3)) / 2
    return costs.repeat_interleave(size, 1)


def correction(values: Blocks, dropped: Blocks, inverse: Tensor) -> Blocks:
    """Return what changes all weights so that the dropped ones are zero: −F⁻¹[:, P] (F⁻¹[P, P])⁻¹ w[P]."""
    if values.shape[1] == 1:
        return -values * dropped
    changed = torch.zeros_like(values)
    some = dropped.any(1)
    part = dropped[some].to(inverse.dtype)
    own = part.unsqueeze(2) * inverse[some] * part.unsqueeze(1) + torch.diag_embed(1 - part)
    solved = torch.linalg.solve(own, (part * values[some]).unsqueeze(2))
    changed[some] = -(inverse[some] @ (part.unsqueeze(2) * solved)).squeeze(2).to(values.dtype)
    return changed


def _start(blocks: Blocks, damp: float) -> Tensor:
    dtype = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    eye = torch.eye(blocks.shape[1], dtype=dtype, device=blocks.device)
    return (eye / damp).repeat(blocks.shape[0], 1, 1)
