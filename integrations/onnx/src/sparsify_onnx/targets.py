"""Find the layers that a modifier's `targets` and `ignore` mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import onnx
from sparsify import RequestError

from sparsify_onnx.affine import why_not
from sparsify_onnx.graph import WeightLayer, weight_layers

ALL, PRUNABLE = "__ALL__", "__ALL_PRUNABLE__"


def as_names(value: Any) -> Any:
    """Read one name, which recipes may write without a list, as a tuple of it."""
    return (value,) if isinstance(value, str) else value


def select_layers(model: onnx.ModelProto, targets: Sequence[str], ignore: Sequence[str]) -> tuple[WeightLayer, ...]:
    """Return the layers in topological order.

    Names and `re:` patterns are held against layer names and the names of their weights. Raises RequestError for one
    that matches nothing, and for a layer asked for by name that cannot be pruned.
    """
    layers = weight_layers(model)
    barriers = {layer.name: why_not(model, layer) for layer in layers}
    chosen: set[str] = set()
    for target in targets:
        if target in (ALL, PRUNABLE):
            able = (layer for layer in layers if not barriers[layer.name])
            chosen |= {layer.name for layer in able if target == ALL or layer.prunable}
            continue
        named = _matching(target, layers, "targets")
        barred = next((name for name in named if barriers[name]), "")
        if barred:
            raise RequestError(
                f"layer '{barred}' (targets: '{target}') cannot be pruned: {barriers[barred]}",
                fix="leave it out of `targets`, or name it in `ignore` after a pattern",
            )
        chosen |= named
    for target in ignore:
        chosen -= _matching(target, layers, "ignore")
    return tuple(layer for layer in layers if layer.name in chosen)


def _matching(target: str, layers: Sequence[WeightLayer], field: str) -> set[str]:
    if target.startswith("re:"):
        try:
            pattern = re.compile(target[3:])
        except re.error as error:
            raise RequestError(
                f"{field}: '{target}' is no regular expression: {error}",
                fix="mend the pattern, or write the layer's name",
            ) from error
        found = {layer.name for layer in layers if pattern.match(layer.name) or pattern.match(layer.weight)}
    else:
        found = {layer.name for layer in layers if target in (layer.name, layer.weight)}
    if found:
        return found
    names = [layer.name for layer in layers]
    near = get_close_matches(target.removeprefix("re:"), names, n=3, cutoff=0.3) or names[:3]
    raise RequestError(
        f"{field}: '{target}' matches none of the model's {len(names)} layers",
        fix=f"use a layer's name, such as {', '.join(near)} (`sparsify analyze` lists all)"
        if near
        else "remove the modifier",
    )
