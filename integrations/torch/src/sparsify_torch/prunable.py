"""Say which layers pruning spares by default: the rule of one-shot pruning, on a PyTorch module.

Spared are the first layers (no weighted layer before them), the last ones (none after), depthwise convolutions, and
weights that two layers share. What stands before what is read from the graph that `torch.fx` traces; a module that it
cannot trace is taken in the order of its layers, and only the first and the last are spared there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch.fx
from torch import nn

CONV1D = "Conv1D"  # GPT's linear layer, with inputs first; transformers itself is never imported


def is_conv1d(layer: nn.Module) -> bool:
    """Say whether a layer is a GPT-style Conv1D."""
    return type(layer).__name__ == CONV1D and getattr(layer, "weight", None) is not None


def has_norms(module: nn.Module) -> bool:
    """Say whether anything in a module normalizes."""
    return any("Norm" in type(part).__name__ for part in module.modules())


def weighted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return every Linear and Conv by name, in the module's order."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds) or is_conv1d(layer)}


def prunable_names(module: nn.Module) -> list[str]:
    """Name the weights that `__ALL_PRUNABLE__` means."""
    layers = weighted_layers(module)
    counts = Counter(id(parameter) for layer in module.modules() for parameter in layer._parameters.values())
    spared = end_layers(module, layers)
    return [
        f"{name}.weight" if name else "weight"
        for name, layer in layers.items()
        if name not in spared and not _is_depthwise(layer) and counts[id(layer.weight)] == 1
    ]


def end_layers(module: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """Name the layers with no weighted layer before them, and those with none after them."""
    try:
        graph = _Tracer(layers.values()).trace(module)
    except Exception:  # noqa: BLE001 - tracing runs the user's own forward, which may raise anything
        names = list(layers)
        return {*names[:1], *names[-1:]}
    return _ends(list(graph.nodes), layers)


def _ends(nodes: list[torch.fx.Node], layers: Mapping[str, nn.Module]) -> set[str]:
    behind: set[torch.fx.Node] = set()  # nodes that a weighted layer precedes
    before: set[torch.fx.Node] = set()
    ends: set[str] = set()
    for order, reached, beside in ((nodes, behind, "all_input_nodes"), (nodes[::-1], before, "users")):
        for node in order:
            after = any(other in reached for other in getattr(node, beside))
            weighted = node.op == "call_module" and node.target in layers
            if weighted and not after:
                ends.add(str(node.target))
            if weighted or after:
                reached.add(node)
    return ends


class _Tracer(torch.fx.Tracer):
    """Trace into everything that holds a weighted layer."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.weighted = {id(layer) for layer in layers}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.weighted or not any(id(inner) in self.weighted for inner in m.modules())


def _is_depthwise(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.modules.conv._ConvNd) or layer.groups == 1:
        return False
    return layer.in_channels // layer.groups == 1
