"""Write a QDQ model through ONNX Runtime's quantization library, and prove that it wrote what was computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from sparsify import StageError

from sparsify_onnx.graph import WeightLayer, attributes, initializers, producers, write_initializer
from sparsify_onnx.placement import JOINING, MOVING, Placement
from sparsify_onnx.ranges import LEVELS, Grid, grid
from sparsify_onnx.rounding import Floats, Integers
from sparsify_onnx.weight_only import WEIGHT_ONLY

KEPT = "_keeps_float"
INPUT_SUFFIX = "_QuantizeLinear_Input"  # what the writer appends where it renames a graph output's maker
INT32 = np.iinfo(np.int32)
INFERRED = ("onnx.infer", "onnxruntime.quant")  # tells the writer not to infer shapes by way of a file
OPTIONS = {
    "QDQDisableWeightAdjustForInt32Bias": True,  # scales are chosen so that biases fit
    "ForceQuantizeNoInputCheck": True,  # which nodes are quantized is decided in `placement`
    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
}


@dataclass(frozen=True)
class Weight:
    """Hold a layer's int8 weight as it is stored, with the scale of each output channel."""

    integers: Integers
    scales: Floats
    axis: int

    @property
    def floats(self) -> Floats:
        """Return the rounded weight as floats."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.integers.astype(np.float32) * self.scales.reshape(shape)


def write_qdq(
    model: onnx.ModelProto, placement: Placement, grids: Mapping[str, Grid], weights: Mapping[str, Weight]
) -> onnx.ModelProto:
    """Turn a float model into its QDQ form, in place; `weights` are by initializer, `grids` by activation.

    Raises StageError where a bias does not fit int32, or where the library wrote other integers, scales or zero points
    than these.
    """
    producer = model.producer_name, model.producer_version
    constants = _joined_constants(model, placement)
    for name, weight in weights.items():
        write_initializer(model, name, weight.floats)
    _refuse_biases(model, placement, grids, weights)
    expected = {layer.name: _bias_integers(model, layer, placement, grids, weights) for layer in placement.layers}
    written = _quantizer(model, placement, grids, constants, weights)
    written.producer_name, written.producer_version = producer
    _spare_floats(written, placement)
    _keep_float(written, placement)
    _verify(written, placement, grids, weights, expected)
    return written


def _quantizer(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, Grid],
    constants: Mapping[str, Grid],
    weights: Mapping[str, Weight],
) -> onnx.ModelProto:
    rounded = [*placement.tensors, *placement.same]
    names = [*rounded, *placement.absorbed]
    untyped = set(names) - {value.name for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    before = len(model.graph.value_info)
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(untyped)
    )
    model.metadata_props.add(key=INFERRED[0], value=INFERRED[1])
    overrides: dict[str, list[dict[str, Any]]] = {name: [_as_override(cell)] for name, cell in constants.items()}
    overrides |= {name: [_as_override(grids[placement.grid_of(name)])] for name in rounded}
    for name, weight in weights.items():
        overrides[name] = [{"axis": weight.axis, "scale": scale, "zero_point": 0} for scale in weight.scales]
    unused = TensorData(lowest=np.float32(0), highest=np.float32(1))  # the overrides decide
    quantizer = QDQQuantizer(
        model,
        True,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        dict.fromkeys(names, unused),
        list(placement.nodes),
        [],
        sorted({node.op_type for node in model.graph.node if node.name in set(placement.nodes)}),
        {**OPTIONS, "TensorQuantOverrides": overrides},
    )
    for name in placement.exact:  # what is no float, the writer leaves alone
        quantizer.value_infos[name] = onnx.helper.make_tensor_value_info(name, TensorProto.BOOL, None)
    for name in placement.forced:
        quantizer.quantize_activation_tensor(name)
    written: onnx.ModelProto = quantizer.quantize_model()
    quantizer.model.topological_sort()
    del written.graph.value_info[before:]
    kept = [(item.key, item.value) for item in written.metadata_props if item.key != INFERRED[0]]
    del written.metadata_props[:]
    for key, value in kept:
        written.metadata_props.add(key=key, value=value)
    return written


def _spare_floats(model: onnx.ModelProto, placement: Placement) -> None:
    """Give nodes left in float what a float node put out, not what INT8 nodes beside them see of it.

    The library rounds a tensor for all that read it, the residual of a transformer included.
    """
    makers, integer = producers(model), set(placement.nodes)
    for node in model.graph.node:
        if node.name in integer or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            restore = makers.get(name)
            if restore is None or restore.op_type != "DequantizeLinear":
                continue
            rounding = makers.get(restore.input[0])
            if rounding is not None:  # else it is a weight
                maker = makers.get(rounding.input[0])
                if maker is None or maker.name not in integer:
                    node.input[place] = rounding.input[0]


def _keep_float(model: onnx.ModelProto, placement: Placement) -> None:
    """Part layers left in float from the DequantizeLinear before them by a Clip that changes nothing.

    ONNX Runtime rounds the weight of a Conv, ConvTranspose or Gemm that reads one, with one scale for all channels
    (core/optimizer/qdq_transformer/weight_bias_quantization.cc), and moves DequantizeLinear past moving nodes.
    """
    held, makers = initializers(model), producers(model)
    for index, node in reversed(list(enumerate(model.graph.node))):
        if placement.reasons.get(node.name, "int8") in ("int8", WEIGHT_ONLY) or node.op_type == "MatMul":
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in MOVING:
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        scale, zero_point = (numpy_helper.to_array(held[name]) for name in maker.input[1:])
        clip = onnx.helper.make_node("Clip", [node.input[0]], [f"{node.name}{KEPT}"], f"{node.name}{KEPT}")
        for end, integer in (("low", 0), ("high", LEVELS)):
            bound = np.asarray((np.float32(integer) - np.float32(zero_point)) * scale, dtype=np.float32)
            clip.input.append(f"{node.name}{KEPT}_{end}")
            model.graph.initializer.append(numpy_helper.from_array(bound, clip.input[-1]))
        node.input[0] = clip.output[0]
        model.graph.node.insert(index, clip)


def _as_override(cell: Grid) -> dict[str, Any]:
    return {"scale": np.array(cell.scale), "zero_point": np.array(cell.zero_point)}


def _joined_constants(model: onnx.ModelProto, placement: Placement) -> dict[str, Grid]:
    """Span the constants that quantized Add, Mul and Concat nodes read by grids of their own."""
    held, chosen = initializers(model), set(placement.nodes)
    found: dict[str, Grid] = {}
    for node in model.graph.node:
        if node.op_type in JOINING and node.name in chosen:
            for name in node.input:
                if name in held:
                    values = numpy_helper.to_array(held[name])
                    found[name] = grid((float(values.min(initial=0.0)), float(values.max(initial=0.0))))
    return found


def _bias_scales(layer: WeightLayer, placement: Placement, grids: Mapping[str, Grid], weight: Weight) -> Floats:
    return np.asarray(grids[placement.grid_of(layer.input)].scale * weight.scales, dtype=np.float32)


def _bias_integers(
    model: onnx.ModelProto,
    layer: WeightLayer,
    placement: Placement,
    grids: Mapping[str, Grid],
    weights: Mapping[str, Weight],
) -> NDArray[np.float64] | None:
    if layer.bias is None:
        return None
    bias = numpy_helper.to_array(initializers(model)[layer.bias]).astype(np.float64)
    scales = _bias_scales(layer, placement, grids, weights[layer.weight]).astype(np.float64)
    return np.asarray(np.rint(bias / scales))


def _refuse_biases(
    model: onnx.ModelProto, placement: Placement, grids: Mapping[str, Grid], weights: Mapping[str, Weight]
) -> None:
    for layer in placement.layers:
        integers = _bias_integers(model, layer, placement, grids, weights)
        if integers is not None and (not np.isfinite(integers).all() or np.abs(integers).max(initial=0) > INT32.max):
            channel = int(np.argmax(np.abs(integers)))
            raise StageError(
                f"bias of layer '{layer.name}' does not fit int32: channel {channel} needs {integers[channel]:.3g} "
                f"steps of its scale",
                fix=f"leave the layer in float: add `ignore: ['{layer.name}']` to QuantizationModifier",
            )


def _verify(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, Grid],
    weights: Mapping[str, Weight],
    biases: Mapping[str, NDArray[np.float64] | None],
) -> None:
    """Read every integer, scale and zero point back from the written model."""
    held, makers = initializers(model), producers(model)
    nodes = {node.name: node for node in model.graph.node}
    rounded = {
        node.input[0].removesuffix(INPUT_SUFFIX): [numpy_helper.to_array(held[name]) for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    odd = rounded.keys() ^ {*placement.tensors, *placement.same}
    if odd:
        raise _differs("the rounding of tensor", min(odd))
    for name, (scale, zero_point) in rounded.items():
        cell = grids[placement.grid_of(name)]
        if scale != cell.scale or zero_point != cell.zero_point:
            raise _differs("the grid of tensor", name)
    for layer in placement.layers:
        node, weight, bias = nodes[layer.name], weights[layer.weight], biases[layer.name]
        if not _same_weight(makers.get(node.input[1]), weight, held):
            raise _differs("the weight of layer", layer.name)
        if bias is not None and not np.array_equal(
            numpy_helper.to_array(held[makers[node.input[2]].input[0]]).astype(np.float64), bias
        ):
            raise _differs("the bias of layer", layer.name)


def _same_weight(node: onnx.NodeProto | None, weight: Weight, held: Mapping[str, TensorProto]) -> bool:
    if node is None or node.op_type != "DequantizeLinear":
        return False
    values, scales, zero_points = (numpy_helper.to_array(held[name]) for name in node.input)
    return bool(
        np.array_equal(values, weight.integers)
        and np.array_equal(scales, weight.scales)
        and not zero_points.any()
        and attributes(node).get("axis", 1) == weight.axis
    )


def _differs(what: str, which: str) -> StageError:
    return StageError(
        f"ONNX Runtime's quantization library changed {what} '{which}' while writing",
        fix="pip install 'onnxruntime>=1.22', and report the version and the model",
    )
