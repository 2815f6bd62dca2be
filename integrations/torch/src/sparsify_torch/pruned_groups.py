"""What pruning modifiers share: groups of weights with their sparsities, and putting masks in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn

from sparsify_torch.loop import Loop
from sparsify_torch.structures import Structure, choose_masks, parse_mask_type
from sparsify_torch.weights import Weight, select_weights

FROM_PARAM = "__FROM_PARAM__"


@dataclass
class Group:
    """Hold weights that go to one final sparsity. measured: where `__FROM_PARAM__` began, by names of weights."""

    weights: tuple[Weight, ...]
    init: float | str
    final: float
    measured: dict[str, float] = field(default_factory=dict)

    def first(self, weights: Sequence[Weight]) -> float:
        """Return the sparsity that these weights begin at."""
        if not isinstance(self.init, str):
            return self.init
        key = " ".join(weight.name for weight in weights)
        if key not in self.measured:
            zeros = sum(int((weight.parameter.detach() == 0).sum()) for weight in weights)
            self.measured[key] = min(zeros / sum(weight.parameter.numel() for weight in weights), self.final)
        return self.measured[key]


def check_init(first: float | str, final: float | Mapping[float, Any]) -> None:
    """Raise ValueError where a sparsity would have to fall."""
    lowest = min(final, default=1.0) if isinstance(final, Mapping) else final
    if not isinstance(first, str) and first > lowest:
        raise ValueError(f"init_sparsity {first:g} is above final_sparsity {lowest:g}; give a lower one")


def check_final(final: float | Mapping[float, Any], params: Sequence[str], mask_type: str | tuple[int, int]) -> None:
    """Raise ValueError where final_sparsity contradicts `params` or an N:M mask."""
    if isinstance(final, Mapping) and params:
        raise ValueError("final_sparsity names the params already; write `params: []`")
    if not isinstance(final, Mapping) and not params:
        raise ValueError("params is empty; name some, or write final_sparsity as {sparsity: [params]}")
    share = parse_mask_type(mask_type).share
    for one in final if isinstance(final, Mapping) else [final]:
        if share is not None and abs(one - share) > 1e-6:
            raise ValueError(f"mask_type {mask_type} zeros {share:g} of the weights, final_sparsity asks for {one:g}")


def resolve_groups(module: nn.Module, options: Any, modifier: str) -> list[Group]:
    """Return the weights that options mean, by final sparsity; raises RequestError for names without match."""
    wanted = options.final_sparsity
    wanted = wanted if isinstance(wanted, Mapping) else {wanted: options.params}
    groups = [
        Group(select_weights(module, names, modifier), options.init_sparsity, final) for final, names in wanted.items()
    ]
    seen: set[str] = set()
    for weight in (weight for group in groups for weight in group.weights):
        if weight.name in seen:
            problem = f"{modifier}, field 'final_sparsity': '{weight.name}' is named under two sparsities"
            raise RequestError(problem, fix="name it under one")
        seen.add(weight.name)
    return groups


def prune(
    loop: Loop, owner: str, weights: Sequence[Weight], scores: Sequence[Tensor], sparsity: float, structure: Structure
) -> None:
    """Zero what has the lowest scores, laid out as matrices; what an active mask drops goes first."""
    if not weights:  # other modifiers have taken them out
        return
    lowest = []
    for weight, score in zip(weights, scores, strict=True):
        everything = torch.ones_like(weight.parameter, dtype=torch.bool)
        dropped = ~weight.to_matrix(loop.masks.kept(weight.name, everything))
        lowest.append(score.masked_fill(dropped, -torch.inf))
    kept = choose_masks(lowest, sparsity, structure)
    loop.masks.put(owner, [(weight, weight.from_matrix(one)) for weight, one in zip(weights, kept, strict=True)])


def follow_weights(groups: Sequence[Group], old: nn.Parameter, new: nn.Parameter | None) -> list[str]:
    """Replace a parameter in groups, or take it out; return the names of the weights that stay."""
    names = []
    for group in groups:
        followed = [
            replace(weight, parameter=new) if new is not None and weight.parameter is old else weight
            for weight in group.weights
            if new is not None or weight.parameter is not old
        ]
        names += [weight.name for weight in followed if weight.parameter is new]
        group.weights = tuple(followed)
    return names
