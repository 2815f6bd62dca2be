"""Measure what each layer of a model takes in ONNX Runtime's optimised graph, from its own profile."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from sparsify import Context

from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.graph import WEIGHTED, consumers
from sparsify_onnx.runtime import FLOAT_OPERATORS, INT8_OPERATORS
from sparsify_onnx.sessions import open_profiled

KEPT = "layer-times"
RUNS = 12  # after as many to warm up
EVENT = re.compile(r"^(?:fused )?(?P<name>.+?)(?:_nchwc|_token_\d+|_quant|/MatMulAddFusion)*_kernel_time$")
MULTIPLYING = {*FLOAT_OPERATORS, *INT8_OPERATORS}
FUSED = ("Relu", "Clip", "Add", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "QuantizeLinear", "DequantizeLinear")


def layer_times(model: onnx.ModelProto, layers: Sequence[str], context: Context) -> dict[str, float]:
    """Return milliseconds by layer at batch 1, or the model's fixed batch; what the profile misses is left out.

    Measured once: the figures are kept in `context.kept`, and taken from there.
    """
    held = context.kept.load(KEPT)
    if held is None:
        found = _profile(model, layers, context)
        held = {"layers": np.array(list(found)), "ms": np.array(list(found.values()))}
        context.kept.save(KEPT, held)
    return dict(zip(held["layers"].tolist(), held["ms"].tolist(), strict=True))


def _profile(model: onnx.ModelProto, layers: Sequence[str], context: Context) -> dict[str, float]:
    size = fixed_batch(model)
    inputs = next(iter(context.calibration.batches(size or 1, pad=size > 0))).inputs
    with tempfile.TemporaryDirectory(prefix="sparsify-") as folder:
        session = open_profiled(model, Path(folder) / "profile", context.threads)
        for _ in range(2 * RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    took: dict[str, list[float]] = {}
    for event in events:
        found = EVENT.match(event.get("name", "")) if event.get("cat") == "Node" else None
        if found and event["args"].get("op_name") in MULTIPLYING:  # an Add that was not fused has its layer's alias too
            took.setdefault(found["name"], []).append(event["dur"] / 1000)
    names = aliases(model, layers)
    return {names[name]: median(runs[-RUNS:]) for name, runs in took.items() if name in names}


def aliases(model: onnx.ModelProto, layers: Collection[str]) -> Mapping[str, str]:
    """Map what ONNX Runtime calls a layer's kernel to the layer: its name, its output's, or that of what it fused."""
    readers = consumers(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.name not in layers:
            continue
        found[node.name] = node.name
        tensor, follower = node.output[0], [node]
        while len(follower) == 1:
            found.setdefault(tensor, node.name)
            follower = [one for one in readers.get(tensor, []) if one.op_type in FUSED]
            if len(follower) != 1 or len(readers[tensor]) != 1:
                break
            found.setdefault(follower[0].name, node.name)
            tensor = follower[0].output[0]
    return found
