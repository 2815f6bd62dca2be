"""Export a float module to ONNX in memory, free of what the exporting machine would leave in it."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from sparsify import Model, RequestError
from sparsify_onnx import load, weight_layers, write_atomic
from torch import Tensor, nn
from torch.utils import _pytree as pytree

OPSET = 18  # the first that torch's exporter writes
LOGGER = "torch.onnx"
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """Say how a graph is written: names of inputs and outputs, and whether its first axes take any batch size."""

    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    opset: int = OPSET
    free_batch: bool = True


PLAIN = Form()


def split_inputs(example: Any) -> Inputs:
    """Turn a tensor, a tuple of arguments, a mapping of keyword arguments, or a pair of the two, into such a pair."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple) and len(example) == 2 and [type(part) for part in example] == [tuple, dict]:
        return example
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def example_of(inputs: Inputs, samples: int = 2) -> Inputs:
    """Copy inputs to the CPU with this many samples: the exporter takes one sample for a fixed batch of one."""

    def take(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.dim() == 0:
            return item
        short = item.detach()[:samples].cpu().contiguous()
        return short if len(short) == samples else short.repeat(samples, *[1] * (item.dim() - 1))[:samples].clone()

    args, kwargs = pytree.tree_map(take, inputs)
    return args, kwargs


def export_float(module: nn.Module, inputs: Inputs, form: Form = PLAIN) -> Model:
    """Export a module in inference mode on the CPU, and load the result as one-shot loads a file.

    inputs: `example_of` real ones. Batch norms are folded, constants computed, and stack traces and paths dropped.
    Raises RequestError where torch cannot trace the module.
    """
    with _quiet():
        try:
            proto = _export(module, inputs, form)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
            raise RequestError(
                f"torch cannot export {type(module).__name__}: {_reason(error)}",
                fix="make forward() traceable by torch.export (no branch on a tensor's values, no fixed batch size), "
                "or export it yourself and give the .onnx file",
            ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_atomic(proto, path)
        model = load(path)
    name_layers(model.value)
    return Model("onnx", model.value, {key: value for key, value in model.facts.items() if key != "path"})


def name_layers(value: onnx.ModelProto) -> None:
    """Name each weighted node after its layer, in place: the exporter's numbers are others where a layer is gone."""
    taken = {node.name for node in value.graph.node}
    for layer in weight_layers(value):
        name = layer.weight.removesuffix(".weight")
        if name != layer.weight and name not in taken:
            next(node for node in value.graph.node if node.name == layer.name).name = name
            taken.add(name)


def _export(module: nn.Module, inputs: Inputs, form: Form) -> onnx.ModelProto:
    args, kwargs = inputs
    program: Any = torch.onnx.export(
        module,
        args,
        kwargs=kwargs or None,
        dynamo=True,
        opset_version=form.opset,
        input_names=list(form.input_names) or None,
        output_names=list(form.output_names) or None,
        dynamic_shapes=_by_name(module, args, pytree.tree_map(_free_first, inputs)) if form.free_batch else None,
        verbose=False,
        external_data=False,
    )
    proto: onnx.ModelProto = program.model_proto
    return proto


def _free_first(item: Any) -> dict[int, Any] | None:
    return {0: torch.export.Dim("batch")} if isinstance(item, Tensor) and item.dim() else None


def _by_name(module: nn.Module, args: Sequence[Any], shapes: tuple[Sequence[Any], Mapping[str, Any]]) -> Any:
    """Lay out dynamic shapes as torch.export wants them: a tuple, or by argument name where there are keywords."""
    positional, named = shapes
    if not named:
        return tuple(positional)
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **named}


def _reason(error: BaseException) -> str:
    """Give the innermost message in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch says to its own developers while it exports."""
    logger = logging.getLogger(LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def clean_copy(module: nn.Module, drop: str = "") -> nn.Module:
    """Copy a module to the CPU in inference mode, without the child named `drop` and the hooks that it put there."""
    clean = copy.deepcopy(module).cpu().float()
    for parameter in clean.parameters():  # channels-last ones put as_strided into the graph, which no call gives
        # a copy, because `contiguous` leaves a kernel of 1 x 1 as it is, which is either
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    child = dict(clean.named_children()).get(drop)
    if child is not None:
        for hooks in (clean._forward_pre_hooks, clean._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is child]:
                del hooks[key]
                clean._forward_hooks_always_called.pop(key, None)
        delattr(clean, drop)
    return clean.eval().requires_grad_(False)
