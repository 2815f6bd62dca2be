"""Bring every exporter's graph into one form, so that what follows sees weights as initializers of plain layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from sparsify_onnx.folding import fold_affine, fold_constants
from sparsify_onnx.gelu import order_gelu
from sparsify_onnx.gemms import fold_gemm_factors
from sparsify_onnx.graph import initializers, reads, subgraphs
from sparsify_onnx.metadata import scrub

SCALARS = ("value", "value_float", "value_floats", "value_int", "value_ints")


def normalize(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Normalize a model and say what was done; the computed function, its inputs and its outputs stay the same.

    Works in place except where local functions are inlined.
    """
    model, inlined = _inline(model)
    steps: tuple[tuple[Callable[[onnx.ModelProto], int], str], ...] = (
        (settle, "constants turned into initializers"),
        (bypass, "Identity and Dropout nodes removed"),
        (fold_constants, "nodes of constants computed"),
        (fold_gemm_factors, "Gemm factors and biases folded"),
        (fold_affine, "batch norms and constant scales or shifts folded into the layer before them"),
        (order_gelu, "GELUs written as ONNX Runtime fuses them"),
        (drop_dead, "nodes without effect removed"),
        (name_nodes, "nodes without a name of their own named"),
        (scrub, "metadata entries with paths or traces removed"),
    )
    counts = [(step(model), what) for step, what in steps]
    return model, tuple(
        f"{number} {what}" for number, what in [(inlined, "local functions inlined"), *counts] if number
    )


def _inline(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    if not model.functions:
        return model, 0
    from onnx import inliner

    return inliner.inline_local_functions(model), len(model.functions)


def settle(model: onnx.ModelProto) -> int:
    """Turn Constant nodes into initializers, and initializers that are listed as inputs into constants."""
    outputs = {value.name for value in model.graph.output}
    kept, found = [], 0
    for node in model.graph.node:
        value = None if node.output[0] in outputs else _constant(node)
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            model.graph.initializer.append(value)
            found += 1
    constants = initializers(model)
    inputs = [value for value in model.graph.input if value.name not in constants]
    if found:
        _replace(model.graph.node, kept)
    if len(inputs) < len(model.graph.input):
        _replace(model.graph.input, inputs)
    return found


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name not in SCALARS:
        return None
    item = node.attribute[0]
    if item.type == AttributeProto.TENSOR:
        tensor = TensorProto()
        tensor.CopyFrom(item.t)
        return tensor
    value = onnx.helper.get_attribute_value(item)
    kind = np.float32 if item.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else np.int64
    return numpy_helper.from_array(np.array(value, dtype=kind))


def bypass(model: onnx.ModelProto) -> int:
    """Remove Identity, and Dropout as it is in inference, by joining the tensors before and after."""
    constants = initializers(model)
    fixed = {value.name for value in model.graph.output}
    used = Counter(name for node in model.graph.node for name in reads(node))
    made = {name for node in model.graph.node for name in node.output}
    alias: dict[str, str] = {}  # output of a removed node → what stands for it
    renamed: dict[str, str] = {}  # tensor that takes over the name of a graph output
    kept: list[NodeProto] = []
    for node in model.graph.node:
        rename_reads(node, alias)
        source = node.input[0] if node.input else ""
        if not _passes(node, constants, used, fixed):
            kept.append(node)
        elif node.output[0] not in fixed:
            alias[node.output[0]] = source
        elif source in made and source not in fixed and source not in renamed:
            renamed[source] = node.output[0]
        else:
            kept.append(node)
    gone = len(model.graph.node) - len(kept)
    for node in kept:
        rename_reads(node, renamed)
        for index, name in enumerate(node.output):
            node.output[index] = renamed.get(name, name)
    if gone:
        _replace(model.graph.node, kept)
    return gone


def _passes(
    node: NodeProto, constants: Mapping[str, TensorProto], used: Mapping[str, int], fixed: Iterable[str]
) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(used.get(name, 0) or name in fixed for name in node.output[1:] if name):
        return False
    training = node.input[2] if len(node.input) > 2 else ""
    return not training or (training in constants and not numpy_helper.to_array(constants[training]).any())


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node and its subgraphs read."""
    if not names:
        return
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    for graph in subgraphs(node):
        for inner in graph.node:
            rename_reads(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def drop_dead(model: onnx.ModelProto) -> int:
    """Remove nodes, initializers and type records that no output depends on."""
    needed = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed |= reads(node)
    gone = len(model.graph.node) - len(kept)
    if gone:
        _replace(model.graph.node, kept[::-1])
    made = {name for node in kept for name in node.output}
    _replace(model.graph.value_info, [value for value in model.graph.value_info if value.name in made])
    unused = [index for index, tensor in enumerate(model.graph.initializer) if tensor.name not in needed]
    for index in reversed(unused):
        del model.graph.initializer[index]
    return gone


def name_nodes(model: onnx.ModelProto) -> int:
    """Give a name to every node that has none, or one that another node has already."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = {""}
    given = 0
    for index, node in enumerate(model.graph.node):
        if node.name in seen:
            base = node.name or f"{node.op_type}_{index}"
            names = (base if number == 0 else f"{base}_{number}" for number in count())
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)
            given += 1
        seen.add(node.name)
    return given


def _replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)
