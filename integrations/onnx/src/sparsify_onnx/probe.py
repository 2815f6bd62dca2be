"""Write a small model in float and in INT8, to see what a runtime makes of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sparsify import Context, Dataset, Model, Sample

from sparsify_onnx.loader import load
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.storage import write_atomic

CHANNELS, SIDE, SAMPLES = 16, 8, 8


def write_probes(folder: Path) -> tuple[Path, Path]:
    """Write a convolution, a Relu and a convolution with random weights; returns the paths, float first."""
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w0"], ["x"], "first"),
            helper.make_node("Relu", ["x"], ["y"], "relu"),
            helper.make_node("Conv", ["y", "w1"], ["output"], "second"),
        ],
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
        [
            numpy_helper.from_array(generator.normal(size=(CHANNELS, CHANNELS, 1, 1)).astype(np.float32), name)
            for name in ("w0", "w1")
        ],
    )
    paths = folder / "float.onnx", folder / "int8.onnx"
    write_atomic(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), paths[0])
    arrays = generator.normal(size=(SAMPLES, CHANNELS, SIDE, SIDE)).astype(np.float32)
    samples = Dataset(tuple(map(str, range(SAMPLES))), lambda key: Sample({"input": arrays[int(key)]}))
    model: Model = load(paths[0])
    write_atomic(QuantizationModifier().apply(model, Context(samples, threads=1)).value, paths[1])
    return paths
