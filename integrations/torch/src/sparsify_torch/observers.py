"""Follow the ranges of activations while a model trains, and choose ranges from samples as one-shot does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from sparsify_onnx import Histogram, choose_range, count, merge
from torch import Tensor

MOMENTUM = 0.01  # of a step in the moving average, as torch's own observers have it
Ranges = tuple[Tensor, Tensor]  # lowest and highest value by grid


def extremes(values: Tensor) -> Ranges:
    """Return the lowest and highest value of a tensor, widened to hold zero, without gradients."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.float32), values.new_zeros((), dtype=torch.float32)
    low, high = torch.aminmax(values.detach())
    return low.float().clamp(max=0), high.float().clamp(min=0)


def widest(seen: Sequence[Ranges]) -> Ranges:
    """Join the ranges of what shares a grid."""
    return reduce(lambda a, b: (torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])), seen)


def follow(low: Tensor, high: Tensor, seen: Mapping[int, Sequence[Ranges]], *, first: bool) -> None:
    """Move ranges towards those of one step, in place; the first step's are taken as they are.

    The moving average is that of Jacob et al. (2018, §3.1). A grid that the step did not reach stays. Of several
    processes all take the widest range that any has seen, so that their grids stay the same.
    """
    places = torch.tensor(list(seen), device=low.device)
    pairs = [widest(ranges) for ranges in seen.values()]
    ends = torch.stack([torch.stack([-lowest, highest]) for lowest, highest in pairs])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    lows, highs = -ends[:, 0], ends[:, 1]
    share = 1.0 if first else MOMENTUM
    low.index_copy_(0, places, low[places] + share * (lows - low[places]))
    high.index_copy_(0, places, high[places] + share * (highs - high[places]))


def add_counts(held: Histogram | None, values: Tensor) -> Histogram:
    """Count a tensor's values beside those counted before."""
    fresh = count(values.detach().float().cpu().numpy())
    return fresh if held is None else merge(held, fresh)


def chosen_shares(counted: Mapping[int, Histogram], low: Tensor, high: Tensor) -> Ranges:
    """Say by how much the range of least rounding error differs from the extremes of a step, at both ends.

    Moving averages of extremes, times these shares, follow training and keep one-shot's choice.
    """
    shares = torch.ones_like(low), torch.ones_like(high)
    for index, histogram in counted.items():
        bounds = choose_range(histogram, "mse", 100.0)
        for share, bound, end in zip(shares, bounds, (float(low[index]), float(high[index])), strict=True):
            share[index] = bound / end if end else 1.0
    return shares
