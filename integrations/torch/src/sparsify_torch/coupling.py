"""Which channels of which parameters can only be removed together, found by following every operator of a module.

The dependency groups of Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023 (arXiv:2301.12900), found
otherwise: every index of every parameter axis is a channel, operators merge channels, and what is merged goes at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsify_torch.labels import numbers, varying
from sparsify_torch.operators import follow
from sparsify_torch.tracing import trace
from sparsify_torch.walk import Axis, Site, Walk, Work, layer_of


@dataclass(frozen=True)
class Group:
    """Hold channels that take the same parameters; a unit is what one removal takes at least.

    share: by axis, how many of its indices one unit takes. makers: the axes whose width runtimes work on in blocks.
    """

    units: tuple[int, ...]
    share: Mapping[Axis, int]
    makers: tuple[Axis, ...]

    @property
    def name(self) -> str:
        """Return the layers that make these channels, joined by `+`."""
        return "+".join(dict.fromkeys(layer_of(axis[0]) for axis in self.makers))


@dataclass(frozen=True)
class Coupling:
    """Hold a module's channels by parameter axis, the groups they form, and why other layers cannot be thinned.

    roles: `out` where a layer makes its channels, `in` where it reads them, `along` where they pass through.
    """

    axes: Mapping[Axis, Tensor]
    roles: Mapping[Axis, str]
    groups: tuple[Group, ...]
    pinned: Mapping[str, str]
    works: tuple[Work, ...]
    sites: tuple[Site, ...]


def couple(module: nn.Module, example_inputs: tuple[Any, ...]) -> Coupling:
    """Find what must be removed together.

    Nothing of the module changes. Raises RequestError where it cannot be traced.
    """
    recorded = trace(module, example_inputs)
    walk = Walk(recorded)
    state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    walk.shapes.update({name: tuple(tensor.shape) for name, tensor in state.items()})
    for node in recorded.graph.nodes:
        follow(walk, node)
    _make_rectangular(walk)
    return _finish(walk)


def _make_rectangular(walk: Walk) -> None:
    """Couple channels so that what goes is whole rows along one axis of every reshaped tensor.

    Heads were coupled by their matrix product before; what is still free along two axes (a channel shuffle) goes at the
    same position of every group.
    """
    for site in walk.sites:
        label = walk.labels.find(site.label)
        walk.labels.collapse(label, *varying(label)[:-1])


def _finish(walk: Walk) -> Coupling:
    roots, staying = walk.labels.roots, walk.labels.staying()
    axes = {key: roots[channels] for key, channels in walk.axes.items()}
    works = tuple(
        Work(work.layer, work.op, work.macs, tuple(roots[c].reshape(-1) for c in work.channels), work.facts)
        for work in walk.works
    )
    sites = tuple(Site(site.path, site.sizes, roots[site.label]) for site in walk.sites)
    groups = tuple(_groups(axes, walk.roles, staying))
    return Coupling(axes, dict(walk.roles), groups, _reasons(axes, walk.roles, staying), works, sites)


def _groups(axes: Mapping[Axis, Tensor], roles: Mapping[Axis, str], staying: Mapping[int, str]) -> Iterable[Group]:
    """Gather the channels that take equally many indices of the same axes; in the order of their first layer."""
    takes: dict[int, dict[Axis, int]] = {}
    for axis, channels in axes.items():
        for number, count in Counter(channels.tolist()).items():
            if number not in staying:
                takes.setdefault(number, {})[axis] = count
    gathered: dict[tuple[tuple[Axis, int], ...], list[int]] = {}
    for number, taken in takes.items():
        gathered.setdefault(tuple(taken.items()), []).append(number)
    for share, units in gathered.items():
        makers = tuple(axis for axis, _ in share if roles[axis] == "out")
        if makers and len(units) > 1:
            yield Group(tuple(sorted(units)), dict(share), makers)


def _reasons(axes: Mapping[Axis, Tensor], roles: Mapping[Axis, str], staying: Mapping[int, str]) -> dict[str, str]:
    """Say of each layer none of whose output channels can go what holds them."""
    found = {}
    for key, channels in axes.items():
        units = numbers(channels)
        if roles[key] == "out" and all(number in staying for number in units):
            found[layer_of(key[0])] = staying[units[0]]
        elif roles[key] == "out" and len(units) == 1:
            found[layer_of(key[0])] = "all its channels can only go at once"
    return found
