"""Where a pruned module can learn a dense one's features: parts that change inside, and whose outputs do not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from sparsify_torch.tracing import evaluating

Shapes = dict[str, tuple[int, ...]]


def find_stages(dense: nn.Module, thinner: nn.Module, example_inputs: tuple[Any, ...]) -> list[str]:
    """Return the names of parts that lost something inside and give outputs of the same shape, in the module's order.

    They lie beside one another, inside the innermost part that holds everything that changed, or are that part. Where
    such a part's own outputs are narrower, those inside it stand for it.
    """
    left = dict(thinner.named_modules())
    names = [name for name, _ in dense.named_modules() if name and name in left]
    before, after = _shapes(dense, names, example_inputs), _shapes(thinner, names, example_inputs)
    kept = {name for name in before if before[name] == after.get(name)}
    return [found for name in _beside(dense, thinner, "") for found in _alike(dense, thinner, name, kept)]


def _alike(dense: nn.Module, thinner: nn.Module, name: str, kept: Collection[str]) -> list[str]:
    """Return a part whose outputs keep their shape, else the outermost such parts inside it that lost something."""
    if name in kept:
        return [name]
    others = dict(thinner.get_submodule(name).named_children())
    inner = [
        f"{name}.{child}"
        for child, part in dense.get_submodule(name).named_children()
        if child in others and _held(part) != _held(others[child]) and _children(part) <= _children(others[child])
    ]
    return [found for path in inner for found in _alike(dense, thinner, path, kept)]


def find_holders(module: nn.Module, weights: Collection[str], example_inputs: tuple[Any, ...]) -> list[str]:
    """Return the names of parts that hold these weights and give one tensor, in the module's order.

    They lie beside one another, inside the innermost part that holds all of them, or are that part.
    """
    names = _holding(module, weights, "")
    given = _shapes(module, names, example_inputs)
    return [name for name in names if name in given]


def _holding(module: nn.Module, weights: Collection[str], path: str) -> list[str]:
    held = {
        f"{path}.{name}".lstrip("."): (part, inside)
        for name, part in module.named_children()
        if (inside := [weight.removeprefix(f"{name}.") for weight in weights if weight.startswith(f"{name}.")])
    }
    if len(held) != 1:
        return list(held) or [path] * bool(path)
    ((name, (part, inside)),) = held.items()
    return _holding(part, inside, name) or [name]


def _beside(dense: nn.Module, thinner: nn.Module, path: str) -> list[str]:
    others = dict(thinner.named_children())
    changed = {name: part for name, part in dense.named_children() if _held(part) != _held(others[name])}
    # what went as a whole has nothing to learn: what holds it has to make up for it
    left = {name: part for name, part in changed.items() if _children(part) <= _children(others[name])}
    names = [f"{path}.{name}".lstrip(".") for name in left]
    if len(changed) == len(left) == 1:
        ((name, part),) = left.items()
        return _beside(part, others[name], names[0]) or names
    return names or [path] * bool(path)


def _children(module: nn.Module) -> set[str]:
    return set(dict(module.named_children()))


def _held(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _shapes(module: nn.Module, names: list[str], inputs: tuple[Any, ...]) -> Shapes:
    """Return by name the shapes of the outputs of parts that run and give one tensor."""
    found: Shapes = {}

    def note(name: str) -> Any:
        def hook(part: nn.Module, given: Any, made: Any) -> None:
            if isinstance(made, Tensor):
                found[name] = tuple(made.shape)

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with evaluating(module), torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found
