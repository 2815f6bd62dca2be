"""Choose which weights stay: single weights, N:M along inputs, or blocks of outputs × inputs.

Tensors here are laid out as outputs × kernel positions × inputs (`Weight.to_matrix`), so that no block and no group of
M reaches over two kernel positions. The same counts and the same edges as in one-shot pruning (`sparsify_onnx.masks`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Structure:
    """Zero blocks of `rows` outputs × `columns` inputs; with `keep`, leave that many of every `columns` inputs."""

    rows: int = 1
    columns: int = 1
    keep: int = 0

    @property
    def share(self) -> float | None:
        """Return the sparsity that N:M prescribes, None where any is possible."""
        return 1 - self.keep / self.columns if self.keep else None


def parse_mask_type(value: str | Sequence[int]) -> Structure:
    """Read `unstructured`, `block4`, `tensorrt`, `N:M`, `RxC` or [r, c]; raises ValueError."""
    if not isinstance(value, str):
        value = "x".join(str(size) for size in value)
    text = {"unstructured": "1x1", "block4": "1x4", "tensorrt": "2:4"}.get(value, value)
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    if found is None:
        hint = "; whole filters and channels are removed by StructuredPruningModifier" * (text in ("filter", "channel"))
        raise ValueError(f"'{value}' is none of unstructured, block4, tensorrt, N:M (such as 2:4) and [r, c]{hint}")
    first, second = int(found[1]), int(found[3])
    if found[2] == "x" and min(first, second) > 0:
        return Structure(first, second)
    if found[2] == ":" and 0 < first < second:
        return Structure(1, second, first)
    raise ValueError(f"'{value}' needs 0 < N < M, or r and c of at least 1")


def choose_masks(scores: Sequence[Tensor], sparsity: float, structure: Structure) -> list[Tensor]:
    """Keep the highest scores of all these matrices taken together; give for each which of its weights stay.

    Exactly round(sparsity × weights) go, give or take half a block; N:M lets go only what its pattern zeros, the
    lowest first, and all of that once its own share is reached. Equal scores go in the order of the weights.
    """
    units = [_units(one, structure) for one in scores]
    values = torch.cat([value.flatten() for value, _ in units])
    sizes = torch.cat([size.flatten() for _, size in units])
    zeros = round(sparsity * sum(one.numel() for one in scores))
    if structure.share is not None:
        able = int((values < torch.inf).sum())
        zeros = able if sparsity > structure.share - 1e-9 else min(zeros, able)
    kept = _keep(values, sizes, zeros, single=structure.rows * structure.columns == 1 or bool(structure.keep))
    parts = torch.split(kept, [value.numel() for value, _ in units])
    return [
        expand_units(part.view(value.shape), one, structure)
        for part, (value, _), one in zip(parts, units, scores, strict=True)
    ]


def unit_scores(scores: Tensor, structure: Structure) -> Tensor:
    """Return the mean score of each block."""
    return _units(scores, structure)[0]


def expand_units(kept: Tensor, scores: Tensor, structure: Structure) -> Tensor:
    """Say of each weight what was said of its block; `scores` gives the matrix's shape."""
    if structure.keep or structure.rows * structure.columns == 1:
        return kept
    whole = kept.repeat_interleave(structure.rows, 0).repeat_interleave(structure.columns, 2)
    return whole[: scores.shape[0], :, : scores.shape[2]]


def _units(scores: Tensor, structure: Structure) -> tuple[Tensor, Tensor]:
    """Return the score and the count of weights of everything that goes as one."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if structure.keep:
        return _protected(scores, structure), torch.ones_like(scores)
    if structure.rows * structure.columns == 1:
        return scores, torch.ones_like(scores)
    scores = scores if scores.device.type == "mps" else scores.double()  # Apple's GPUs have no doubles
    sums, sizes = _blocks(scores, structure), _blocks(torch.ones_like(scores), structure)
    return sums / sizes, sizes


def _blocks(matrix: Tensor, structure: Structure) -> Tensor:
    outputs, positions, inputs = matrix.shape
    rows, columns = structure.rows, structure.columns
    padded = pad(matrix, (0, -inputs % columns, 0, 0, 0, -outputs % rows))
    shape = (padded.shape[0] // rows, rows, positions, padded.shape[2] // columns, columns)
    return padded.reshape(shape).sum((1, 4))


def _protected(scores: Tensor, structure: Structure) -> Tensor:
    """Raise the N highest of every M to infinity; a group at the edge counts as filled up with zeros."""
    outputs, positions, inputs = scores.shape
    padded = pad(scores, (0, -inputs % structure.columns), value=-torch.inf)
    groups = padded.reshape(outputs, positions, -1, structure.columns)
    best = groups.argsort(dim=-1, stable=True)[..., structure.columns - structure.keep :]
    return groups.scatter(-1, best, torch.inf).reshape(padded.shape)[..., :inputs]


def _keep(values: Tensor, sizes: Tensor, zeros: int, *, single: bool) -> Tensor:
    if not single:
        order = values.argsort(stable=True)
        whole = sizes[order].long()  # CUDA's cumsum of floats is not deterministic
        kept = torch.ones_like(values, dtype=torch.bool)
        kept[order[2 * whole.cumsum(0) - whole < 2 * zeros]] = False
        return kept
    if zeros <= 0:
        return torch.ones_like(values, dtype=torch.bool)
    place = min(zeros, values.numel())
    # a sort of all would take ten times as long on the CPU; CUDA's kthvalue is no deterministic algorithm
    cut = values.kthvalue(place).values if values.is_cpu else values.sort().values[place - 1]
    kept = values >= cut
    due = zeros - int((~kept).sum())
    kept[(values == cut).nonzero().flatten()[:due]] = False
    return kept
