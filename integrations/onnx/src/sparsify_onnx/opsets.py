"""Lower a model's opset for runtimes that read older ones only."""

from __future__ import annotations

import onnx
from onnx import defs, version_converter
from sparsify import RequestError

from sparsify_onnx.graph import walk
from sparsify_onnx.storage import as_inputs, give_back


def lower(model: onnx.ModelProto, highest: int) -> onnx.ModelProto:
    """Return a model in this opset or an older one: the same where it is, relabelled where no operator has changed.

    Raises RequestError naming the node that the older opset has not.
    """
    found = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found.version <= highest:
        return model
    if not changed_since(model, highest, found.version):
        found.version = highest
        return model
    try:
        lowered = version_converter.convert_version(as_inputs(model), highest)
        _tidy(lowered)
        onnx.checker.check_model(lowered)  # the converter leaves subgraphs as they were
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        name, operator = changed_since(model, highest, found.version)[0]
        raise RequestError(
            f"node '{name}' is a {operator} of opset {found.version}, which opset {highest} has not: {_line(error)}",
            fix="use --runtime onnxruntime or --runtime openvino, or export the model with "
            f"torch.onnx.export(…, opset_version={highest})",
        ) from error
    give_back(lowered, model)
    return lowered


def _tidy(model: onnx.ModelProto) -> None:
    """Drop what the converter leaves on ReduceX, whose axes it has turned into an attribute (onnx 1.23)."""
    for node in model.graph.node:
        named = {item.name: place for place, item in enumerate(node.attribute)}
        if node.op_type.startswith("Reduce") and {"axes", "noop_with_empty_axes"} <= named.keys():
            del node.attribute[named["noop_with_empty_axes"]]


def changed_since(model: onnx.ModelProto, old: int, new: int) -> list[tuple[str, str]]:
    """List nodes, by name and operator, that mean something else, or nothing, in the older opset."""
    nodes = [node for node in walk(model.graph) if node.domain in ("", "ai.onnx")]
    return [(node.name, node.op_type) for node in nodes if _since(node.op_type, new) > old]


def _since(operator: str, opset: int) -> int:
    return int(defs.get_schema(operator, opset).since_version)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
