"""Let the inputs that stay make up for those that go: each layer's least squares on samples, before the removal.

As ThiNet (Luo et al. 2017, arXiv:1707.06342) and He et al. 2017 (arXiv:1707.06168) refit layers after channels have
gone; here all layers of one removal are refitted at once, to the outputs that they have before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from sparsify_torch.gradients import sample_batches
from sparsify_torch.loop import Loop
from sparsify_torch.masks import from_rank_0
from sparsify_torch.tracing import evaluating

BATCHES = 8
ROWS = 2048  # of a layer's inputs in a batch: every position of an image is one, and neighbours are alike
DAMPING = 0.01  # of the mean variance, as SparseGPT damps (arXiv:2301.00774)


class Moments:
    """Sum what least squares needs of a layer's inputs: their count, their sum, and their products."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.rows = layer, 0
        self.sum: Tensor = torch.zeros(())
        self.products: Tensor = torch.zeros(())

    def see(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        """Take in the inputs of one call; those given by name are not seen."""
        if not given:
            return
        rows = _rows(layer, given[0].detach().float())
        self.rows += len(rows)
        self.sum = self.sum.to(rows.device) + rows.double().sum(0)
        self.products = self.products.to(rows.device) + (rows.T @ rows).double()


def make_up(loop: Loop, step: Mapping[str, Any], modifier: str) -> None:
    """Refit the layers that `step` takes inputs from, in place, so that without these they give what they give now.

    step: of `describe_removal`, not applied yet. Linear layers and plain 2-d convolutions are refitted, bias included;
    others stay. Nothing is done where the loop has no grad_sampler.
    """
    sampler = loop.grad_sampler or {}
    losing = _losing(loop.module, step)
    if not losing or not callable(sampler.get("data_loader_builder")):
        return
    moments = {name: Moments(loop.module.get_submodule(name)) for name in losing}
    hooks = [one.layer.register_forward_pre_hook(one.see) for one in moments.values()]
    try:
        batches = sample_batches(sampler["data_loader_builder"], {}, BATCHES, modifier)
        with evaluating(loop.module), torch.no_grad():
            for arguments, named, _ in batches:
                loop.module(*arguments, **named)
    finally:
        for hook in hooks:
            hook.remove()
    for name, kept in losing.items():
        if moments[name].rows:
            refit(moments[name], kept)


def _losing(module: nn.Module, step: Mapping[str, Any]) -> dict[str, list[int]]:
    """Find the layers that lose inputs and can be refitted, with the inputs that they keep."""
    found = {}
    for name, axes in step["cuts"].items():
        path, _, short = name.rpartition(".")
        layer = module.get_submodule(path)
        if short == "weight" and "1" in axes and _is_plain(layer):
            found[path] = step["kept"][axes["1"]]
    return found


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _rows(layer: Any, given: Tensor) -> Tensor:
    """Return what a layer multiplies its weights with, a row an output position; of many positions some."""
    if isinstance(layer, nn.Linear):
        rows = given.flatten(0, -2)
    else:
        sides = layer.kernel_size, layer.dilation, layer.padding, layer.stride
        rows = unfold(given, *sides).transpose(1, 2).flatten(0, 1)
    if len(rows) <= ROWS:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ROWS]
    return rows[chosen.to(rows.device)]


@torch.no_grad()
def refit(moments: Moments, kept: Iterable[int]) -> None:
    """Change the weights of the inputs kept, and the bias, so that the others are missed least: rank 0's way."""
    layer: Any = moments.layer
    weight = layer.weight.flatten(1).double()
    area = layer.weight[0, 0].numel()
    stays = torch.zeros(layer.weight.shape[1], dtype=torch.bool, device=weight.device)
    stays[list(kept)] = True
    stays = stays.repeat_interleave(area)
    mean, spread = moments.sum / moments.rows, moments.products / moments.rows
    if layer.bias is not None:  # which takes the mean over; without one the weights have to
        spread = spread - torch.outer(mean, mean)
    inner = spread[stays][:, stays]
    inner.diagonal().add_(DAMPING * inner.diagonal().mean() + 1e-12)
    # rank 0's before anything is asked of it: a rank that went back alone would leave the others waiting
    more = from_rank_0(torch.linalg.solve(inner, spread[stays][:, ~stays] @ weight[:, ~stays].T).T.contiguous())
    more = more * (weight[:, stays] != 0)  # what is pruned stays zero, also before a modifier holds it
    shift = from_rank_0(weight[:, ~stays] @ mean[~stays] - more @ mean[stays])
    if not bool(more.isfinite().all()):  # inputs were not: the loss will tell, with its step and layer
        return
    weight[:, stays] += more
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
