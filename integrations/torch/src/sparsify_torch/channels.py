"""Which channels go: ranked over all layers, in blocks of the width that a runtime's vectors have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsify_torch.coupling import Coupling, Group
from sparsify_torch.importance import Worth
from sparsify_torch.walk import Work

Cost = Callable[[Work, tuple[int, ...]], float]  # of an operator that keeps so many of each factor's channels


@dataclass(frozen=True)
class Choice:
    """Hold the units to remove, the cost of what is left as a share of all, and that of the least possible."""

    units: frozenset[int]
    cost: float
    least: float


def macs(work: Work, kept: tuple[int, ...]) -> float:
    """Return the multiplications an operator is left with."""
    return work.macs * math.prod(left / len(all_) for left, all_ in zip(kept, work.channels, strict=True))


def steps(group: Group, coupling: Coupling, worth: Worth, multiple: int) -> list[tuple[int, ...]]:
    """Cut a group's units, the least worth first, into the removals that leave widths a multiple of `multiple`.

    At least one block stays. The first removal may be smaller, where the width is no multiple yet.
    """
    block, count = together(group, multiple), len(group.units)
    order = sorted(group.units, key=lambda unit: (worth.shares[unit], unit))
    found, start, size = [], 0, first_removal(group, multiple)
    while count - start - size >= block:
        found.append(tuple(order[start : start + size]))
        start, size = start + size, block
    return found


def first_removal(group: Group, multiple: int) -> int:
    """Return how many units leave first: what is beyond a multiple, else a whole block."""
    block = together(group, multiple)
    return len(group.units) % block or block


def together(group: Group, multiple: int) -> int:
    """Return how many of a group's units go at once, for widths to stay multiples."""
    return max(multiple // math.gcd(multiple, group.share[axis]) for axis in group.makers)


def choose(
    coupling: Coupling,
    worths: Sequence[Worth],
    target: float,
    *,
    multiple: int = 16,
    cost: Cost = macs,
    skip: Collection[int] = (),
) -> Choice:
    """Choose removals until the cost is at most `target` of the whole.

    The next removal is that with the least worth lost per cost saved. Worth is lost as minus the logarithm of what its
    group keeps, so that no group is emptied because its neighbours are dearer. Removals that a later, larger one made
    needless are given back. skip: positions of groups to leave.
    """
    ladders = {
        place: steps(group, coupling, worth, multiple)
        for place, (group, worth) in enumerate(zip(coupling.groups, worths, strict=True))
        if place not in skip
    }
    bill = _Bill(coupling, cost)
    whole = bill.total()
    least = bill.total({unit for ladder in ladders.values() for step in ladder for unit in step})
    gone: set[int] = set()
    taken: dict[int, list[tuple[int, ...]]] = {place: [] for place in ladders}
    kept = dict.fromkeys(ladders, 1.0)
    offers = {place: bill.saving(gone, ladder[0]) for place, ladder in ladders.items() if ladder}
    now = whole
    while offers and now > target * whole * (1 + 1e-9):
        place = min(offers, key=lambda place: _price(worths[place], kept[place], ladders[place][0], offers[place]))
        step = ladders[place].pop(0)
        taken[place].append(step)
        now -= offers.pop(place)
        gone |= set(step)
        kept[place] -= _lost(worths[place], step)
        touched = bill.touched(step)
        for other, ladder in ladders.items():
            if ladder and (other == place or touched & bill.touched(ladder[0])):
                offers[other] = bill.saving(gone, ladder[0])
    gone, now = _give_back(bill, worths, taken, gone, target * whole)
    return Choice(frozenset(gone), now / whole, least / whole)


def _give_back(
    bill: _Bill, worths: Sequence[Worth], taken: Mapping[int, list[tuple[int, ...]]], gone: set[int], most: float
) -> tuple[set[int], float]:
    """Keep the cost below `most` with as few removals as that takes: the dearest come back first."""
    now = bill.total(gone)
    for place in sorted(taken, key=lambda place: -worths[place].group * _lost(worths[place], sum(taken[place], ()))):
        while taken[place]:
            without = gone - set(taken[place][-1])
            cost = bill.total(without)
            if cost > most * (1 + 1e-9):
                break
            gone, now = without, cost
            taken[place].pop()
    return gone, now


def _lost(worth: Worth, step: Sequence[int]) -> float:
    return sum(worth.shares[unit] for unit in step)


def _price(worth: Worth, kept: float, step: Sequence[int], saving: float) -> float:
    """Return the worth lost per cost saved; without a saving, the least lost comes last."""
    left = max(kept - _lost(worth, step), 1e-12)
    return worth.group * math.log(max(kept, 1e-12) / left) / max(saving, 1e-12)


class _Bill:
    """Know the cost of every operator, and which operators a removal touches."""

    def __init__(self, coupling: Coupling, cost: Cost) -> None:
        self.works, self.cost = coupling.works, cost
        self.counts: list[tuple[Mapping[int, int], ...]] = []
        self.readers: dict[int, set[int]] = {}
        for place, work in enumerate(self.works):
            counted = [Counter(channels.tolist()) for channels in work.channels]
            self.counts.append(tuple(counted))
            for unit in {unit for factor in counted for unit in factor}:
                self.readers.setdefault(unit, set()).add(place)

    def of(self, place: int, gone: Collection[int]) -> float:
        counted = self.counts[place]
        kept = tuple(sum(counts.values()) - sum(counts[unit] for unit in counts.keys() & gone) for counts in counted)
        return self.cost(self.works[place], kept)

    def touched(self, step: Sequence[int]) -> set[int]:
        return {place for unit in step for place in self.readers.get(unit, ())}

    def total(self, gone: Collection[int] = ()) -> float:
        return sum(self.of(place, gone) for place in range(len(self.works)))

    def saving(self, gone: set[int], step: Sequence[int]) -> float:
        after = gone | set(step)
        return sum(self.of(place, gone) - self.of(place, after) for place in sorted(self.touched(step)))


def widths(coupling: Coupling, gone: Collection[int] = ()) -> dict[str, int]:
    """Return by layer how many channels it makes when `gone` are removed."""
    numbers = torch.tensor(sorted(gone), dtype=torch.int64)
    return {
        name.rpartition(".")[0] or name: int((~torch.isin(channels, numbers)).sum())
        for (name, dim), channels in coupling.axes.items()
        if coupling.roles[name, dim] == "out"
    }
