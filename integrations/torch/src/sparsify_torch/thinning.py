"""Thin a module: choose channels, prove on a copy that the rest computes what it did, remove them in place."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from sparsify import RequestError, StageError
from torch import nn

from sparsify_torch.channels import Choice, Cost, choose, macs, widths
from sparsify_torch.coupling import Coupling, couple
from sparsify_torch.importance import Data, Loss, Score, score_groups
from sparsify_torch.labels import numbers
from sparsify_torch.layers import Block, drift
from sparsify_torch.removal import Removed, Structure, apply_step, describe_removal
from sparsify_torch.tracing import evaluating

SAME = 1e-3  # of the output's size: float32 sums in another order stay below it


@dataclass(frozen=True)
class Thinned:
    """Report what became of a module.

    widths: by layer, channels before and after. kept: layers that cannot be thinned, with the reason. structure: steps
    for `apply_structure`, plain JSON data. removed: for `remap_optimizer`. macs: of the example inputs' batch.
    """

    widths: Mapping[str, tuple[int, int]]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    blocks: tuple[str, ...]
    kept: Mapping[str, str]
    structure: Structure
    removed: tuple[Removed, ...]

    def __str__(self) -> str:
        lines = [f"{what}: {a:,} -> {b:,} ({a / max(b, 1):.2f} x fewer)" for what, (a, b) in self._totals()]
        lines += [f"{path}: taken out" for path in self.blocks]
        lines += [f"{name}: {a} -> {b} channels" for name, (a, b) in self.widths.items() if a != b]
        return "\n".join(lines + [f"{name}: stays, {reason}" for name, reason in self.kept.items()])

    def _totals(self) -> list[tuple[str, tuple[int, int]]]:
        return [("MACs", self.macs), ("parameters", self.parameters)]


def thin(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    target: float,
    score: Score = "l2",
    multiple: int = 16,
    ignore: Sequence[str] = (),
    blocks: Sequence[Block] = (),
    data: Data | None = None,
    loss: Loss | None = None,
    cost: Cost = macs,
) -> Thinned:
    """Remove channels and heads in place until the module needs at most `target` (0-1) of its MACs, or of `cost`.

    multiple: widths stay multiples of it, and at least one block stays (16 floats are ONNX Runtime's on x86). ignore:
    names or `re:` patterns of layers to leave as they are. blocks: of `find_blocks`, taken out first. data, loss: for
    score 'taylor'. The target is of the module as given. Call again between epochs; concatenate the structures.

    Raises RequestError for a pattern that matches nothing, or a target that cannot be reached; StageError where what is
    left does not compute what the same module with those channels silenced does. Then the module is unchanged.
    """
    _check(target, multiple)
    dense = couple(module, example_inputs)
    before = (cost_of(dense, cost), cost_of(dense, macs), _parameters(module), widths(dense))
    work = deepcopy(module)
    taken = [block.step() for block in blocks]
    for step in taken:
        apply_step(work, step)
    coupling = couple(work, example_inputs) if blocks else dense
    ignored = match_layers(dense, ignore)
    failing = failing_groups(work, coupling, example_inputs)
    skip = {place: "is ignored" for place, group in enumerate(coupling.groups) if _layers(group.makers) & ignored}
    worths = score_groups(work, coupling, score, data=data, loss=loss)
    rest = cost_of(coupling, cost)
    choice = choose(coupling, worths, target * before[0] / rest, multiple=multiple, cost=cost, skip={*skip, *failing})
    _check_reached(choice, rest / before[0], target, multiple)
    steps = taken + [describe_removal(work, coupling, choice.units)] * bool(choice.units)
    if choice.units:
        check_removal(work, coupling, choice.units, example_inputs)
    removed = tuple(apply_step(module, step) for step in steps)
    kept = dict(coupling.pinned)
    for place, reason in {**skip, **failing}.items():
        kept |= dict.fromkeys(sorted(_layers(coupling.groups[place].makers)), reason)
    after = widths(coupling, choice.units)
    return Thinned(
        {name: (width, after[name]) for name, width in before[3].items() if name in after},
        (int(before[1]), int(cost_of(coupling, macs, choice.units))),
        (before[2], _parameters(module)),
        tuple(block.path for block in blocks),
        kept,
        steps,
        removed,
    )


def _check(target: float, multiple: int) -> None:
    if not 0 < target <= 1:
        raise RequestError(f"target {target} is no share of MACs", fix="give a target above 0 and up to 1, e.g. 0.5")
    if multiple < 1:
        raise RequestError(f"multiple {multiple} is no width", fix="give 1 for any width, 16 for ONNX Runtime on x86")


def _check_reached(choice: Choice, rest: float, target: float, multiple: int) -> None:
    least = choice.least * rest
    if choice.cost * rest > target * (1 + 1e-6):
        raise RequestError(
            f"{target:.2%} cannot be reached: with widths in multiples of {multiple}, and at least one each, "
            f"{least:.2%} is the least",
            fix=f"ask for target={math.ceil(least * 1000) / 1000}, pass a smaller multiple, ignore fewer layers, or "
            "take out blocks (find_blocks)",
        )


def cost_of(coupling: Coupling, cost: Cost, gone: Collection[int] = ()) -> float:
    """Return what all operators cost without the units `gone`."""
    removed = torch.tensor(sorted(gone), dtype=torch.int64)
    return sum(
        cost(work, tuple(int((~torch.isin(factor, removed)).sum()) for factor in work.channels))
        for work in coupling.works
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layers(makers: Sequence[tuple[str, int]]) -> set[str]:
    return {name.rpartition(".")[0] or name for name, _ in makers}


def match_layers(coupling: Coupling, patterns: Sequence[str]) -> set[str]:
    """Return the layers that make channels and fit a name, a parent's name, or a `re:` pattern.

    Raises RequestError for a pattern that fits none, with the nearest names.
    """
    names = sorted(widths(coupling))
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            fits = {name for name in names if re.match(pattern[3:], name)}
        else:
            fits = {name for name in names if name == pattern or name.startswith(pattern + ".")}
        if not fits:
            near = get_close_matches(pattern.removeprefix("re:"), names, 3, 0.3) or names[:3]
            raise RequestError(f"ignore pattern '{pattern}' matches no layer", fix=f"did you mean {', '.join(near)}?")
        found |= fits
    return found


def failing_groups(module: nn.Module, coupling: Coupling, inputs: tuple[Any, ...]) -> dict[int, str]:
    """Return by position the groups that code with fixed sizes cannot follow, and why.

    Those that pass a reshape are tried, all at once, then one by one.
    """
    reshaped = {unit for site in coupling.sites for unit in numbers(site.label)}
    places = [place for place, group in enumerate(coupling.groups) if reshaped & set(group.units)]
    if not places or _fault(module, coupling, places, inputs) is None:
        return {}
    faults = {place: _fault(module, coupling, [place], inputs) for place in places}
    return {place: f"its forward does not follow: {fault}" for place, fault in faults.items() if fault}


def _fault(module: nn.Module, coupling: Coupling, places: Sequence[int], inputs: tuple[Any, ...]) -> str | None:
    units = {unit for place in places for unit in coupling.groups[place].units[1:]}
    try:
        check_removal(module, coupling, units, inputs)
    except StageError as error:
        return error.problem
    return None


def check_removal(module: nn.Module, coupling: Coupling, units: Collection[int], inputs: tuple[Any, ...]) -> None:
    """Remove units from a copy and compare it with a copy in which nothing reads them.

    Raises StageError where the two differ, or the thinner one does not run.
    """
    thinner = deepcopy(module)
    try:
        apply_step(thinner, describe_removal(module, coupling, units))
        with evaluating(thinner), torch.no_grad():
            got = thinner(*inputs)
    except (RuntimeError, ValueError, IndexError, AssertionError, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise StageError(
            first[0], fix="leave these layers out with ignore=…, or reshape by tensors' own sizes"
        ) from error
    silent = silenced(module, coupling, units)
    with evaluating(silent), torch.no_grad():
        off = drift(got, silent(*inputs))
    if not off < SAME:
        raise StageError(
            f"the thinner module's outputs are off by {off:.1%}",
            fix="leave the layers whose forward uses fixed sizes out with ignore=…",
        )


def silenced(module: nn.Module, coupling: Coupling, units: Collection[int]) -> nn.Module:
    """Return a copy in which every layer reads zero from these units; it computes what removing them leaves."""
    copy = deepcopy(module)
    removed = torch.tensor(sorted(units), dtype=torch.int64)
    state = dict(copy.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, dim), channels in coupling.axes.items():
            if coupling.roles[name, dim] == "in" and name in state:
                places = torch.isin(channels, removed).nonzero().flatten().to(state[name].device)
                state[name].index_fill_(dim, places, 0.0)
    return copy
