"""Labels: which channel each element of a tensor belongs to, and which channels can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Labels:
    """Number channels and merge those that go together; the number of a merged set is its smallest one.

    A label is an integer tensor of the rank of the activation it describes, of size 1 along every axis on which the
    channel does not change. Reshapes, transposes and concatenations act on labels as they do on the activation, so no
    operator needs index arithmetic of its own.
    """

    roots: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    reasons: dict[int, str] = field(default_factory=dict)  # of channels that must stay, by the number they had then

    def fresh(self, count: int) -> Tensor:
        """Return `count` channels that nothing is coupled to yet."""
        start = len(self.roots)
        new = torch.arange(start, start + count)
        self.roots = torch.cat([self.roots, new])
        return new

    def find(self, label: Tensor) -> Tensor:
        """Return the label with every channel replaced by the number of its merged set, in the fewest elements."""
        found = self.roots[label]
        for dim in range(found.ndim):
            first = found.narrow(dim, 0, 1)
            if found.shape[dim] > 1 and bool((found == first).all()):
                found = first
        return found

    def merge(self, one: Tensor, other: Tensor) -> None:
        """Couple two labels element by element, broadcasting."""
        sizes = common_sizes(one, other)
        left, right = one.expand(sizes).reshape(-1), other.expand(sizes).reshape(-1)
        while not torch.equal(self.roots[left], self.roots[right]):
            low = torch.minimum(self.roots[left], self.roots[right])
            for side in (left, right):
                self.roots.scatter_reduce_(0, self.roots[side], low, "amin")
            while not torch.equal(self.roots, self.roots[self.roots]):
                self.roots = self.roots[self.roots]

    def collapse(self, label: Tensor, *dims: int) -> Tensor:
        """Couple all channels along the axes `dims`, and return the label that is left."""
        for dim in dims:
            if label.shape[dim] > 1:
                self.merge(label, label.narrow(dim, 0, 1))
                label = label.narrow(dim, 0, 1)
        return self.find(label)

    def pin(self, label: Tensor, reason: str) -> Tensor:
        """Mark channels that must stay, and why; return the label."""
        for number in numbers(self.roots[label]):
            self.reasons.setdefault(number, reason)
        return label

    def pinned(self, rank: int, reason: str) -> Tensor:
        """Return the label of an activation of this rank, none of whose elements may go."""
        return self.pin(self.fresh(1).reshape((1,) * rank), reason)

    def staying(self) -> dict[int, str]:
        """Return the final numbers of the channels that must stay, each with the first reason given."""
        found: dict[int, str] = {}
        for number, reason in self.reasons.items():
            found.setdefault(int(self.roots[number]), reason)
        return found


def common_sizes(*labels: Tensor) -> tuple[int, ...]:
    """Return the sizes that labels broadcast to."""
    rank = max(label.ndim for label in labels)
    return tuple(max(sizes) for sizes in zip(*(align(label, rank).shape for label in labels), strict=True))


def numbers(label: Tensor) -> list[int]:
    """Return the different channels of a label, in order."""
    return sorted(set(label.reshape(-1).tolist()))


def varying(label: Tensor) -> list[int]:
    """Return the axes along which the channel changes."""
    return [dim for dim, size in enumerate(label.shape) if size > 1]


def align(label: Tensor, rank: int) -> Tensor:
    """Prepend axes of size 1, as broadcasting does."""
    return label.reshape((1,) * (rank - label.ndim) + tuple(label.shape))
