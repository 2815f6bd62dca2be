"""Ready a float model for INT8: find the nodes to leave out, and give each constant one meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import onnx
from sparsify import RequestError

from sparsify_onnx.graph import channel_axis, drop_unread, initializers, reads, weight_layers
from sparsify_onnx.placement import JOINING

PER_CHANNEL_OPSET = 13


def refuse_opset(model: onnx.ModelProto) -> None:
    """Raise RequestError where scales per channel cannot be written."""
    version = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if version < PER_CHANNEL_OPSET:
        raise RequestError(
            f"the model has opset {version}, expected {PER_CHANNEL_OPSET} or higher for scales per channel",
            fix="load it with Sparsify's onnx loader, which raises the opset, or export it with opset 17",
        )


def ignored_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> set[str]:
    """Find nodes by name or `re:` pattern; raises RequestError for one that matches nothing."""
    names = [node.name for node in model.graph.node]
    found: set[str] = set()
    for pattern in patterns:
        try:
            matches = re.compile(pattern[3:]).match if pattern.startswith("re:") else None
        except re.error as error:
            raise RequestError(
                f"ignore: '{pattern}' is no regular expression: {error}",
                fix="mend the pattern, or write the node's name",
            ) from error
        hits = {name for name in names if (matches(name) if matches else name == pattern)}
        if not hits:
            near = get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3) or names[:3]
            raise RequestError(
                f"ignore: '{pattern}' matches none of the model's {len(names)} nodes",
                fix=f"use a node's name, such as {', '.join(near)} (`sparsify analyze` lists the layers)",
            )
        found |= hits
    return found


def own_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model so that each constant has one meaning: one layer's weight, one layer's bias, one node's operand.

    Layers that use the same weight in the same way keep sharing it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    held = initializers(copy)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in copy.graph.node:
        for name in reads(node) & held.keys():
            readers.setdefault(name, []).append(node)
    roles = {layer.name: (layer.weight, layer.op, channel_axis(layer)) for layer in weight_layers(copy)}
    for name, nodes in readers.items():
        alike = {roles.get(node.name, ("",)) for node in nodes}
        if len(nodes) == 1 or (len(alike) == 1 and next(iter(alike))[0] == name):
            continue
        for number, node in enumerate(nodes):
            if node.name in roles or node.op_type in JOINING:
                _rename(copy, node, name, f"{name}.{number}", held)
    drop_unread(copy, readers)
    return copy


def _rename(
    model: onnx.ModelProto, node: onnx.NodeProto, name: str, fresh: str, held: Mapping[str, onnx.TensorProto]
) -> None:
    taken = {tensor.name for tensor in model.graph.initializer}
    while fresh in taken:
        fresh += "_"
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(held[name])
    tensor.name = fresh
    for place_, source in enumerate(node.input):
        if source == name:
            node.input[place_] = fresh
