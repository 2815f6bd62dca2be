"""Count the multiplications of one sample from recorded tensor shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from sparsify_onnx.graph import WeightLayer


def count_macs(layer: WeightLayer, shapes: Mapping[str, tuple[int, ...]], batch: int = 1) -> int:
    """Return the multiply-accumulates of a layer per sample, or 0 where its shapes are unknown.

    batch: how many samples the recorded shapes are for. Zeros in the weight are counted: they are what a dense
    runtime computes.
    """
    output, source = shapes.get(layer.output), shapes.get(layer.input)
    if not output or not source or not all(layer.shape):
        return 0
    if layer.op == "Conv":
        places = prod(output[2:])
    elif layer.op == "ConvTranspose":
        places = prod(source[2:])
    else:
        inputs = layer.shape[_contracted_axis(layer)]
        return prod(output) * inputs // batch
    return prod(layer.shape) * places * output[0] // batch


def _contracted_axis(layer: WeightLayer) -> int:
    if layer.op == "Gemm":
        return 1 if layer.attributes.get("transB", 0) else 0
    return -1 if layer.weight_input == 0 else -2
