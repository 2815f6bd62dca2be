"""What is known of a module's channels while its graph is followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsify_torch.labels import Labels, align, varying
from sparsify_torch.tracing import Trace, operator, scope, shape

Axis = tuple[str, int]  # a parameter or buffer, and one of its axes


@dataclass(frozen=True)
class Held:
    """Name a parameter or buffer that an operator reads."""

    name: str


@dataclass(frozen=True)
class Work:
    """Hold one operator that multiplies: its MACs, and the channels each factor of them stands for.

    facts: what a micro-model of it needs (input shape, stride, padding, dilation, groups).
    """

    layer: str
    op: str
    macs: int
    channels: tuple[Tensor, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Site:
    """Hold one reshape: the module whose forward wrote its sizes, the sizes, and the channels of its output."""

    path: str
    sizes: tuple[int, ...]
    label: Tensor


@dataclass
class Walk:
    """Hold what is known half-way through a graph."""

    trace: Trace
    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    roles: dict[Axis, str] = field(default_factory=dict)
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)

    def axis(self, held: Held, dim: int, role: str) -> Tensor:
        """Return the channels of a parameter's axis; an axis that some layer makes or reads keeps that role."""
        key = (held.name, dim)
        if key not in self.axes:
            self.axes[key] = self.labels.fresh(self.shapes[held.name][dim])
        if self.roles.get(key, "along") == "along":
            self.roles[key] = role
        return self.axes[key]

    def label(self, node: Any) -> Tensor:
        """Return the label of an activation; a parameter with one axis longer than 1 counts as one."""
        value = self.values[node]
        if isinstance(value, Tensor):
            return self.labels.find(value)
        if not isinstance(value, Held):
            return self.labels.pinned(len(shape(node)), "values that are no tensors")
        long = [dim for dim, size in enumerate(shape(node)) if size > 1]
        if len(long) == 1:
            return along(self.axis(value, long[0], "along"), len(shape(node)), long[0])
        return self.pin_all(node, f"{value.name} is used as a whole")

    def pin_all(self, node: Any, reason: str) -> Tensor:
        """Pin all channels of an activation, or all axes of a parameter; return a label that stays."""
        value = self.values.get(node)
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Tensor):
                self.labels.pin(self.labels.find(part), reason)
            elif isinstance(part, Held):
                for dim in range(len(self.shapes[part.name])):
                    self.labels.pin(self.axis(part, dim, "along"), reason)
        return self.labels.pinned(len(shape(node)), reason)

    def work(self, node: torch.fx.Node, layer: str, macs: int, *channels: Tensor, **facts: Any) -> None:
        """Note an operator's cost."""
        self.works.append(Work(layer, operator(node), macs, channels, facts))

    def site(self, node: torch.fx.Node, sizes: tuple[int, ...], label: Tensor) -> None:
        """Note sizes that stand in the module's code, where channels change along them."""
        if varying(label):
            self.sites.append(Site(scope(node), sizes, align(label, len(sizes))))


def along(channels: Tensor, rank: int, dim: int) -> Tensor:
    """Return the label of an activation whose channels lie along one axis."""
    sizes = [1] * rank
    sizes[dim] = len(channels)
    return channels.reshape(sizes)


def layer_of(name: str) -> str:
    """Return the module that a parameter's name belongs to."""
    return name.rpartition(".")[0] or name
