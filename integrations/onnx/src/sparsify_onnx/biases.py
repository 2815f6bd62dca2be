"""Lay out biases of batched products so that ONNX Runtime keeps the products in integers.

Where all sizes are known, its MatMulAddFusion turns MatMul and Add into Reshape and Gemm before it looks for integers,
and such a Gemm it computes in float: 2 of an encoder's 20 layers ran in INT8. It leaves a bias of three axes alone
(core/optimizer/matmul_add_fusion.cc, ONNX Runtime 1.32).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from sparsify_onnx.graph import consumers, initializers, weight_layers

GEMM_AXES = 2


def spread_biases(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Give the bias added to a batched product as many axes as the product has, in place; count them.

    Each constant must have one reader (`preparation.own_constants`).
    """
    held, readers = initializers(model), consumers(model)
    done = 0
    for layer in weight_layers(model):
        axes = len(shapes.get(layer.output, ()))
        adders = readers[layer.output] if layer.op == "MatMul" and axes > GEMM_AXES else []
        for name in [name for node in adders if node.op_type == "Add" for name in node.input]:
            bias = held.get(name)
            if bias is not None and len(readers[name]) == 1 and 0 < len(bias.dims) <= GEMM_AXES:
                bias.dims[:] = [1] * (axes - len(bias.dims)) + list(bias.dims)
                done += 1
    return done
