"""Scores of channels: what each unit of a coupling is worth to the module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sparsify import RequestError
from torch import Tensor, nn

from sparsify_torch.coupling import Coupling, Group
from sparsify_torch.tracing import evaluating
from sparsify_torch.walk import layer_of

Score = Literal["l2", "l1", "bn", "taylor"]
Data = Iterable[tuple[Any, Any]]  # inputs (one tensor or a tuple) and targets
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Worth:
    """Hold the share of its group that each unit is worth, summing to 1, and what the whole group is worth."""

    shares: Mapping[int, float]
    group: float


def score_groups(
    module: nn.Module,
    coupling: Coupling,
    score: Score = "l2",
    *,
    data: Data | None = None,
    loss: Loss | None = None,
    batches: int = 8,
) -> list[Worth]:
    """Score every group of a coupling, in its order.

    l2, l1: norm of all weights a unit takes, each layer's share of them counting alike (Li et al. 2017,
    arXiv:1608.08710; over the group as in DepGraph, arXiv:2301.12900), a group counting as often as layers make it.
    bn: size of the batch norm's scales (Liu et al. 2017, arXiv:1708.06519); l2 where a group has none. taylor: squared
    sum of gradient x weight over a unit, averaged over the first `batches` of data (Molchanov et al. 2019,
    arXiv:1906.10771). Raises RequestError for taylor without data and loss.
    """
    if score == "taylor":
        return _by_taylor(module, coupling, data, loss, batches)
    state = _state(module)
    return [_by_size(state, module, coupling, group, score) for group in coupling.groups]


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=False)}


def _by_size(state: Mapping[str, Tensor], module: nn.Module, coupling: Coupling, group: Group, score: Score) -> Worth:
    scales = [axis for axis in group.share if axis[0] in state and _is_scale(module, axis[0])]
    weights = [axis for axis in group.share if axis[0] in state and state[axis[0]].ndim > 1]
    chosen = scales if score == "bn" and scales else weights
    total = torch.zeros(len(group.units), dtype=torch.float64)
    for name, dim in chosen:
        power = 2 if score == "l2" else 1
        values = _per_index(state[name].abs().double().pow(power), dim)
        sums = _per_unit(values, coupling.axes[name, dim], group)
        total += sums / sums.sum().clamp_min(1e-30) / len(chosen)
    return _worth(group, total, float(len(group.makers)))


def _is_scale(module: nn.Module, name: str) -> bool:
    return name.endswith("weight") and isinstance(module.get_submodule(layer_of(name)), nn.modules.batchnorm._NormBase)


def _per_index(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, 0).flatten(1).sum(1) if values.ndim > 1 else values


def _per_unit(values: Tensor, channels: Tensor, group: Group) -> Tensor:
    """Sum what lies on one axis by unit."""
    units = torch.tensor(group.units)
    place = torch.searchsorted(units, channels).clamp_max(len(units) - 1)
    ours = units[place] == channels
    return torch.zeros(len(units), dtype=torch.float64).index_add_(0, place[ours], values.double().cpu()[ours])


def _worth(group: Group, total: Tensor, whole: float) -> Worth:
    shares = total / total.sum() if float(total.sum()) > 0 else torch.full_like(total, 1 / len(total))
    return Worth(dict(zip(group.units, shares.tolist(), strict=True)), whole)


def _by_taylor(
    module: nn.Module, coupling: Coupling, data: Data | None, loss: Loss | None, batches: int
) -> list[Worth]:
    if data is None or loss is None:
        raise RequestError("score 'taylor' needs gradients", fix="pass data=… and loss=…, or take score='l2'")
    totals = [torch.zeros(len(group.units), dtype=torch.float64) for group in coupling.groups]
    named = dict(module.named_parameters(remove_duplicate=False))
    seen = 0
    with evaluating(module), torch.enable_grad():
        for inputs, targets in data:
            made = loss(module(*inputs) if isinstance(inputs, tuple) else module(inputs), targets)
            used = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
            slopes = torch.autograd.grad(made, list(used.values()), allow_unused=True)
            felt = {n: (p.detach() * g) for (n, p), g in zip(used.items(), slopes, strict=True) if g is not None}
            for total, group in zip(totals, coupling.groups, strict=True):
                total += _felt(felt, coupling, group) ** 2
            seen += 1
            if seen == batches:
                break
    if not seen:
        raise RequestError("score 'taylor' got no batch of data", fix="pass data that yields (inputs, targets)")
    everything = sum(float(total.sum()) for total in totals) or 1.0
    return [
        _worth(group, total, len(totals) * float(total.sum()) / everything)
        for group, total in zip(coupling.groups, totals, strict=True)
    ]


def _felt(felt: Mapping[str, Tensor], coupling: Coupling, group: Group) -> Tensor:
    """Sum gradient x weight over what makes a unit's channels; what reads them would count the same change twice."""
    total = torch.zeros(len(group.units), dtype=torch.float64)
    for name, dim in group.share:
        if name in felt and coupling.roles[name, dim] != "in":
            total += _per_unit(_per_index(felt[name].double(), dim), coupling.axes[name, dim], group)
    return total
