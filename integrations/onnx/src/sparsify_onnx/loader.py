"""Load an ONNX model: refuse what cannot be handled, naming it, and normalize the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter
from sparsify import Model, RequestError, StageError

from sparsify_onnx.graph import WEIGHTED, initializers, walk, weight_layers
from sparsify_onnx.normalize import name_nodes, normalize, settle
from sparsify_onnx.shapes import Shapes, measure_shapes
from sparsify_onnx.storage import as_inputs, give_back, is_cut, read_proto, tensor_bytes, tensors, weight_bytes

LARGE_BYTES = 256 << 20  # of weights: above, they are checked one by one, for the checker holds three copies
OLDEST_OPSET = 11
QDQ_OPSET = 13  # the first whose QuantizeLinear has an axis
COMMON_IR = 10  # what ONNX Runtime 1.22 and older servers read
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QMoE", "MatMulNBits"),
    *("QEmbedLayerNormalization", "MatMulBnb4", "GatherBlockQuantized"),
)
TRAINED = (
    *WEIGHTED,
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "PRelu",
)
WRONG_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def load(path: Path) -> Model:
    """Read, check and normalize a float model; raises RequestError for whatever cannot be handled, StageError for NaN.

    facts: `path`, `notes` (lines for the report), `opset` (found and used), `ir_version`, `shapes` (of every tensor,
    for one sample) and `sample` (the input shapes they hold for).
    """
    value = read(path)
    found, ir_version = opset_of(value, path), value.ir_version
    _refuse_operators(value, path)
    _refuse_types(value, path)
    value = _raise_opset(value, path, found)
    used = opset_of(value, path)
    settle(value)
    name_nodes(value)
    _refuse_not_finite(value, path)
    value, notes = normalize(value)
    value.ir_version = common_ir(value)
    if not weight_layers(value):
        raise RequestError(
            f"{path} has no Conv, ConvTranspose, Gemm or MatMul with a constant float32 weight",
            fix="give a trained model whose weights are stored in the file",
        )
    shapes = _run(value, path)
    raised = (f"opset {found} raised to {used}, which per-channel INT8 needs",) if used > found else ()
    normalized = (f"normalized: {', '.join(notes)}",) if notes else ()
    facts = {
        "path": str(path),
        "notes": (*raised, *normalized),
        "opset": {"found": found, "used": used},
        "ir_version": ir_version,
        "shapes": shapes.tensors,
        "sample": shapes.inputs,
    }
    return Model("onnx", value, facts)


def read(path: Path) -> onnx.ModelProto:
    """Read any valid ONNX model, quantized ones too, with weights as initializers and a name for every node."""
    model = read_proto(path)
    _check(model, path)
    settle(model)
    name_nodes(model)
    return model


def _check(model: onnx.ModelProto, path: Path) -> None:
    try:
        if weight_bytes(model) < LARGE_BYTES:
            onnx.checker.check_model(model)
        else:
            onnx.checker.check_model(as_inputs(model))
            for tensor in model.graph.initializer:
                onnx.checker.check_tensor(tensor)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path} is not a valid ONNX model: {error}", fix="export the model again, or upgrade onnx if it is newer"
        ) from error
    damaged = next((tensor for tensor in tensors(model) if is_cut(tensor)), None)  # the checker does not look
    if damaged is not None:
        raise RequestError(
            f"{path} is damaged: tensor '{damaged.name}' holds {len(damaged.raw_data):,} bytes, expected "
            f"{tensor_bytes(damaged):,} for its shape {list(damaged.dims)}",
            fix="export or copy the model again",
        )


def opset_of(model: onnx.ModelProto, path: Path) -> int:
    """Return the version of the default operator set; raises RequestError where it is too old."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise RequestError(f"{path} imports no ONNX operator set", fix="export the model with standard operators")
    if versions[0] < OLDEST_OPSET:
        raise RequestError(
            f"{path} has opset {versions[0]}, expected {OLDEST_OPSET} or higher",
            fix="export the model again with opset 17 (torch.onnx.export(…, opset_version=17))",
        )
    return int(versions[0])


def common_ir(model: onnx.ModelProto) -> int:
    """Return the lowest IR version that is widely read and holds the model's operator sets."""
    needed = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return max(needed, min(max(model.ir_version, 4), COMMON_IR))  # 4: constants need not be inputs


def _every_node(model: onnx.ModelProto) -> Iterator[NodeProto]:
    yield from walk(model.graph)
    for function in model.functions:
        yield from function.node


def _refuse_operators(model: onnx.ModelProto, path: Path) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for node in _every_node(model):
        name = node.name or node.output[0]
        if node.op_type in QUANTIZED or node.op_type.startswith(("QLinear", "QOrdered")):
            raise RequestError(
                f"{path} is already quantized: node '{name}' is a {node.op_type}", fix="give the float model"
            )
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            raise RequestError(
                f"{path}: node '{name}' is the custom operator {node.op_type} of domain '{node.domain}', "
                "which onnxruntime cannot run",
                fix=f"export the model without operators of '{node.domain}'",
            )


def _refuse_types(model: onnx.ModelProto, path: Path) -> None:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        held = [constants[name] for name in node.input if name in constants] if node.op_type in WEIGHTED else []
        wrong = next((tensor for tensor in held if tensor.data_type in WRONG_TYPES), None)
        if wrong is not None:
            kind = TensorProto.DataType.Name(wrong.data_type).lower()
            raise RequestError(
                f"{path}: weight '{wrong.name}' of layer '{node.name}' is {kind}, expected float32",
                fix="export the model in float32 (in PyTorch: model.float() before torch.onnx.export)",
            )


def _refuse_not_finite(model: onnx.ModelProto, path: Path) -> None:
    constants = initializers(model)
    for node in model.graph.node:
        for name in node.input if node.op_type in TRAINED else ():
            tensor = constants.get(name)
            if tensor is None or tensor.data_type != TensorProto.FLOAT:
                continue
            finite = np.isfinite(numpy_helper.to_array(tensor))
            if not finite.all():
                raise StageError(
                    f"{path}: layer '{node.name}' has {finite.size - int(finite.sum())} NaN or infinite values "
                    f"in '{name}' (of {finite.size})",
                    fix="train again or take an earlier checkpoint: these weights cannot work",
                )


def _raise_opset(model: onnx.ModelProto, path: Path, found: int) -> onnx.ModelProto:
    if found >= QDQ_OPSET:
        return model
    try:
        raised = version_converter.convert_version(as_inputs(model), QDQ_OPSET)
        onnx.checker.check_model(raised)  # the converter leaves subgraphs as they were
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise RequestError(
            f"{path}: opset {found} cannot be raised to {QDQ_OPSET}: {_culprit(str(error))}",
            fix=f"export the model again with opset {QDQ_OPSET} or higher",
        ) from error
    give_back(raised, model)
    return raised


def _culprit(message: str) -> str:
    """Shorten the converter's message to the operator it names."""
    named = re.search(r"(?:for|op_type:|Op:?) +(\w+)", message)
    short = message.strip().splitlines()[-1] if message.strip() else "no reason given"
    return f"operator {named.group(1)} ({short})" if named else short


def _run(model: onnx.ModelProto, path: Path) -> Shapes:
    shapes = measure_shapes(model)
    if shapes.problem:
        raise RequestError(
            f"onnxruntime cannot open {path}: {shapes.problem}",
            fix="upgrade onnxruntime, or export with an older opset",
        )
    return shapes
