"""Bring every Gemm into the form y = x W + b with one bias an output: runtimes have INT8 kernels for that alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto

from sparsify_onnx.folding import read_constant, store_constant
from sparsify_onnx.graph import attributes

FACTORS = (("alpha", 1), ("beta", 2))  # and the input each multiplies


def fold_gemm_factors(model: onnx.ModelProto) -> int:
    """Multiply alpha into a constant weight and beta into a constant bias, and lay out one bias an output."""
    done = 0
    for node in model.graph.node:
        if node.op_type == "Gemm":
            done += sum(_fold(model, node, factor, place) for factor, place in FACTORS)
            done += _lay_out_bias(model, node)
    return done


def _fold(model: onnx.ModelProto, node: NodeProto, factor: str, place: int) -> bool:
    value = attributes(node).get(factor, 1.0)
    if value == 1.0:
        return False
    if place < len(node.input) and node.input[place]:
        held = read_constant(model, node.input[place])
        if held is None:
            return False
        store_constant(model, node, place, held * value)
    kept = [item for item in node.attribute if item.name != factor]
    del node.attribute[:]
    node.attribute.extend(kept)
    return True


def _lay_out_bias(model: onnx.ModelProto, node: NodeProto) -> bool:
    weight = read_constant(model, node.input[1])
    bias = read_constant(model, node.input[2]) if len(node.input) > 2 else None
    if weight is None or bias is None:
        return False
    outputs = weight.shape[0 if attributes(node).get("transB", 0) else 1]
    if bias.shape == (outputs,) or bias.size not in (1, outputs) or (bias.size > 1 and bias.shape[-1] != outputs):
        return False
    store_constant(model, node, 2, np.broadcast_to(bias.reshape(-1), (outputs,)))
    return True
