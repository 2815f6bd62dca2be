"""Remove what the exporting machine left in a model: paths and stack traces."""

from __future__ import annotations

import re
from typing import Any

import onnx

from sparsify_onnx.graph import walk

# an absolute path of two parts or more (POSIX, home, Windows, UNC, file:), but no URL and no name like a/b
PATH = re.compile(r"(?:^|[^\w./~])(?:~?/[^\s/:'\"]+/[^\s/]|~/|\\\\\w)|(?:^|\W)[A-Za-z]:[\\/]\w|file:/")
TRACES = ("pkg.torch", "namespace")  # the dynamo exporter's: stack traces, and sizes of the exported sample


def scrub(model: onnx.ModelProto) -> int:
    """Clear documentation and metadata that hold machine paths; returns how many entries went.

    A model's own metadata (class names, strides, licences) stays where it holds no path. Node names stay: they are
    the network's, not the machine's.
    """
    graph = model.graph
    owners: list[Any] = [model, graph, *walk(graph), *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    return sum(_scrub(owner) for owner in owners)


def _scrub(owner: Any) -> int:
    gone = 0
    if PATH.search(owner.doc_string):
        owner.ClearField("doc_string")
        gone += 1
    kept = [item for item in owner.metadata_props if not (item.key.startswith(TRACES) or PATH.search(item.value))]
    if len(kept) < len(owner.metadata_props):
        gone += len(owner.metadata_props) - len(kept)
        pairs = [(item.key, item.value) for item in kept]
        del owner.metadata_props[:]
        for key, value in pairs:
            owner.metadata_props.add(key=key, value=value)
    return gone
