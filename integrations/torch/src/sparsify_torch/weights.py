"""Find the parameters that a recipe's patterns mean, and lay weights out as outputs × kernel positions × inputs.

`__ALL__` means every parameter, of pruning modifiers every weight of two dimensions and more. `__ALL_PRUNABLE__` means
the weights of Linear and Conv layers but the first and last layers, depthwise convolutions and shared weights
(`prunable.py`). `re:` patterns are anchored at the start of the full dotted name. Anything else is a parameter's name,
or a layer's, which means its `weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from sparsify import RequestError, StageError
from torch import Tensor, nn

from sparsify_torch.prunable import is_conv1d, prunable_names

ALL, PRUNABLE = "__all__", "__all_prunable__"


@dataclass(frozen=True)
class Weight:
    """Name one weight; `kind` is how it is stored: "conv" (outputs first, inputs second), "transposed" or "conv1d"."""

    name: str
    parameter: nn.Parameter
    kind: str = "conv"
    groups: int = 1

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """Lay a tensor of the weight's shape out as outputs × kernel positions × inputs."""
        if self.kind == "conv1d":
            return tensor.t().unsqueeze(1)
        if self.kind == "transposed":
            inputs, outputs = tensor.shape[:2]
            grouped = tensor.reshape(self.groups, inputs // self.groups, outputs, -1)
            return grouped.permute(0, 2, 3, 1).reshape(self.groups * outputs, -1, inputs // self.groups)
        return tensor.reshape(tensor.shape[0], tensor.shape[1], -1).transpose(1, 2)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Undo `to_matrix`."""
        if self.kind == "conv1d":
            return matrix.squeeze(1).t().contiguous()
        if self.kind == "transposed":
            inputs, outputs = self.parameter.shape[:2]
            grouped = matrix.reshape(self.groups, outputs, -1, inputs // self.groups)
            return grouped.permute(0, 3, 1, 2).reshape(self.parameter.shape).contiguous()
        return matrix.transpose(1, 2).reshape(self.parameter.shape).contiguous()

    def magnitudes(self) -> Tensor:
        """Return the absolute values, laid out."""
        return self.to_matrix(self.parameter.detach().abs())


def bare(module: nn.Module) -> nn.Module:
    """Take a module out of DistributedDataParallel, DataParallel and torch.compile, whose names differ by a prefix."""
    while True:
        wrapped = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = module.module if wrapped else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def select_parameters(
    module: nn.Module, patterns: Sequence[str], modifier: str, *, strict: bool = True
) -> dict[str, nn.Parameter]:
    """Return the parameters that patterns match, in the module's order; raises RequestError for one without match."""
    parameters = dict(module.named_parameters())
    gone = removed_names(module)
    chosen = _chosen(patterns, parameters, prunable_names(module), modifier, gone if strict else None)
    return {name: parameter for name, parameter in parameters.items() if name in chosen}


def select_weights(
    module: nn.Module, patterns: Sequence[str], modifier: str, *, every: bool = False
) -> tuple[Weight, ...]:
    """Return the weights that patterns match; with `every`, `__ALL_PRUNABLE__` spares no layer, embeddings included.

    Raises RequestError for a pattern that matches no weight of two dimensions.
    """
    owners = _owners(module)
    able = {name: parameter for name, parameter in module.named_parameters() if _is_weight(parameter)}
    prunable = [name for name in owners if name in able] if every else prunable_names(module)
    chosen = _chosen(patterns, able, prunable, modifier, removed_names(module))
    return tuple(_weight(name, able[name], owners.get(name)) for name in able if name in chosen)


def no_match(field: str, pattern: str, names: Iterable[str], modifier: str) -> RequestError:
    """Explain that a pattern matches nothing, with the nearest names."""
    known = list(names)
    near = get_close_matches(pattern.removeprefix("re:"), known, n=3, cutoff=0.3) or known[:3]
    fix = f"use a name such as {', '.join(near)}" if near else f"remove {modifier}, there is nothing for it here"
    return RequestError(f"{modifier}, field '{field}': '{pattern}' matches none of {len(known)} names", fix=fix)


def matching(pattern: str, names: Iterable[str], modifier: str, field: str) -> set[str]:
    """Return the names that one name or `re:` pattern means, none where nothing matches."""
    if not pattern.startswith("re:"):
        return {name for name in names if name in (pattern, f"{pattern}.weight")}
    try:
        compiled = re.compile(pattern[3:])
    except re.error as error:
        problem = f"{modifier}, field '{field}': '{pattern}' is no regular expression: {error}"
        raise RequestError(problem, fix="mend the pattern, or write the name") from error
    return {name for name in names if compiled.match(name)}


def removed_names(module: nn.Module) -> list[str]:
    """Name the parameters of blocks that were taken out: in a resumed run, a recipe's names may mean them."""
    return [f"{path}.{name}" for path, part in module.named_modules() for name in getattr(part, "gone", ())]


def _chosen(
    patterns: Sequence[str],
    able: Mapping[str, nn.Parameter],
    prunable: Sequence[str],
    modifier: str,
    gone: Sequence[str] | None,
) -> set[str]:
    """Return what patterns match; gone: names that a pattern may match instead, None where it need not match."""
    chosen: set[str] = set()
    for pattern in patterns:
        special = {ALL: able, PRUNABLE: prunable}.get(pattern.lower())
        found = set(special) & able.keys() if special is not None else matching(pattern, able, modifier, "params")
        if not found and gone is not None and (special is not None or not matching(pattern, gone, modifier, "params")):
            raise no_match("params", pattern, able, modifier)
        chosen |= found
    return chosen


def _is_weight(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and parameter.is_floating_point()


def _owners(module: nn.Module) -> dict[str, nn.Module]:
    """Map the weight of every Linear, Conv, Embedding and GPT-style Conv1D to its layer."""
    return {
        f"{name}.weight" if name else "weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.Embedding) or is_conv1d(layer)
    }


def _weight(name: str, parameter: nn.Parameter, owner: nn.Module | None) -> Weight:
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return Weight(name, parameter, "transposed", owner.groups)
    return Weight(name, parameter, "conv1d" if owner is not None and is_conv1d(owner) else "conv")


def check_finite(weight: Weight, modifier: str, epoch: float) -> None:
    """Raise StageError for a weight that is no longer finite."""
    if not torch.isfinite(weight.parameter.detach()).all():
        problem = f"{modifier}: weight '{weight.name}' holds NaN or infinity at epoch {epoch:g}"
        fix = "lower the learning rate or clip gradients, and go on from the last good checkpoint"
        raise StageError(problem, fix=fix)
