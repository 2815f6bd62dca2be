"""Put a fresh last layer on a classifier that was trained for other classes."""

from __future__ import annotations

from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn


def put_head(name: str, module: nn.Module, example: Tensor, classes: int) -> str:
    """Replace the layer that gives the outputs by a fresh one of so many classes, and return its name.

    Raises RequestError where no linear layer or 1 x 1 convolution gives them.
    """
    found = find_head(module, example)
    if not found:
        problem = f"--model: {name} is made for other classes than the data's {classes}, and no layer gives its outputs"
        raise RequestError(problem, fix="name a factory that takes num_classes")
    torch.manual_seed(0)  # the same in every run and every process
    module.set_submodule(found, _fresh(module.get_submodule(found), classes))
    return found


def find_head(module: nn.Module, example: Tensor) -> str:
    """Return the name of the layer that gives a module's outputs: the last one with weights that runs, else ''."""
    ran: list[str] = []

    def note(name: str) -> Any:
        return lambda layer, inputs, output: ran.append(name)

    layers = {name: layer for name, layer in module.named_modules() if name and list(layer.parameters(recurse=False))}
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad():
        width = module(example).shape[1]
    for hook in hooks:
        hook.remove()
    return ran[-1] if ran and _width(layers[ran[-1]]) == width else ""


def _width(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and layer.groups == 1:
        return layer.out_channels
    return 0


def _fresh(layer: nn.Module, classes: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(layer.in_channels, classes, 1, layer.stride, layer.padding, bias=bias)  # type: ignore[arg-type]
    return nn.Linear(layer.in_features, classes, bias)  # type: ignore[arg-type]
