"""Describe any ONNX model, quantized ones too: layers, weights, zeros, precision, multiplications."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx
from onnx import helper
from sparsify import Description, Layer, Model, TensorSpec

from sparsify_onnx.graph import WEIGHTED, WeightLayer, model_inputs, weight_layers
from sparsify_onnx.macs import count_macs
from sparsify_onnx.shapes import measure_shapes
from sparsify_onnx.weight_only import weight_only_layers
from sparsify_onnx.weights import Source, count_parameters, float_view, weight_sources


def describe(model: Model) -> Description:
    """Describe a model from its graph, and from the recorded shapes where `facts` has those of every layer.

    A layer's MACs are 0 where its shapes cannot be learned. Its precision is `int8 weights` where it multiplies floats
    by weights that are merely kept as integers.
    """
    value: onnx.ModelProto = model.value
    sources = weight_sources(value)
    view = float_view(value, sources)
    layers = weight_layers(view)
    shapes, batch = _shapes(model, layers), fixed_batch(value) or 1
    parameters, zeros = count_parameters(value, sources)
    stored = weight_only_layers(value)
    return Description(
        inputs=tuple(_spec(item) for item in model_inputs(value)),
        outputs=tuple(_spec(item) for item in value.graph.output),
        layers=tuple(
            _layer(layer, sources[layer.weight], count_macs(layer, shapes, batch), layer.name in stored)
            for layer in layers
        ),
        parameters=parameters,
        zeros=zeros,
        computing=sum(node.op_type in WEIGHTED for node in view.graph.node),
    )


def fixed_batch(model: onnx.ModelProto) -> int:
    """Return the batch size that the first input insists on, or 0."""
    inputs = model_inputs(model)
    dims = inputs[0].type.tensor_type.shape.dim if inputs else ()
    return int(dims[0].dim_value) if dims else 0


def _shapes(model: Model, layers: tuple[WeightLayer, ...]) -> Mapping[str, tuple[int, ...]]:
    known: Mapping[str, tuple[int, ...]] = model.facts.get("shapes", {})
    if all(layer.output in known and layer.input in known for layer in layers):
        return known
    return measure_shapes(model.value).tensors


def _layer(layer: WeightLayer, source: Source, macs: int, stored: bool) -> Layer:
    parameters = prod(layer.shape)
    return Layer(
        name=layer.name,
        op=layer.op,
        shape=layer.shape,
        parameters=parameters,
        macs=macs,
        sparsity=source.zeros() / parameters if parameters else 0.0,
        precision=f"{source.precision} weights" if stored else source.precision,
        eligible=layer.prunable,
        reason=layer.reason,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        return TensorSpec(value.name, "unknown", ())
    kind = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return TensorSpec(value.name, "string" if kind == "object" else kind, dims)
