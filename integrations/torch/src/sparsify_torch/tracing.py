"""One run of a module recorded as a graph of ATen operators, its parameters named as in the state dict."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sparsify import RequestError
from torch import nn


@dataclass(frozen=True)
class Trace:
    """Hold a module's graph in evaluation mode; `held` maps placeholders to the names of parameters and buffers."""

    graph: torch.fx.Graph
    held: Mapping[str, str]


def trace(module: nn.Module, example_inputs: tuple[Any, ...]) -> Trace:
    """Record what the module does with these inputs (torch.export, so that functional code is seen as well).

    Raises RequestError where its control flow depends on the data.
    """
    with evaluating(module), _plain_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        try:
            program = torch.export.export(module, example_inputs, strict=False)
        except Exception as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise RequestError(
                f"{type(module).__name__} cannot be traced with the example inputs: {first[0]}",
                fix="pass example inputs that its forward takes, and replace branches that depend on tensors' values",
            ) from error
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Trace(program.graph, {str(node): str(name) for node, name in held.items()})


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and give every submodule back its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace attention as its matrix products; the fused inference path hides them in one operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def scope(node: torch.fx.Node) -> str:
    """Return the path of the module whose forward called this operator."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def operator(node: torch.fx.Node) -> str:
    """Return an operator's name without namespace, overload or the underscore of its in-place form."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema else getattr(node.target, "__name__", str(node.target))
    return str(name) if name.startswith("_") else str(name).rstrip("_")


def shape(node: Any) -> tuple[int, ...]:
    """Return the shape of what a node yields; a number has none."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
