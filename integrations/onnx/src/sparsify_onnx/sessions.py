"""Open models held in memory in ONNX Runtime: the one place that knows its exceptions and the 2 GB limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from sparsify_onnx.graph import reads
from sparsify_onnx.storage import is_heavy, stub, tensor_bytes, weight_bytes, without_initializers

# ONNX Runtime's exceptions share no base below Exception, and each version adds some
ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
PACKED_BYTES = 512 << 20  # of weights, above which ONNX Runtime keeps no second copy of them in its own order
# what NumPy and ONNX Runtime both have
SHARED = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
)


def open_model(
    model: onnx.ModelProto, expose: Sequence[str] = (), threads: int = 0, *, optimise: bool = False
) -> ort.InferenceSession:
    """Open a model as it is written, or with the optimiser, with the tensors in `expose` as further outputs."""
    options = _options(threads)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weight_bytes(model) > PACKED_BYTES:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # solvers run between batches: idle threads that spin would take the cores from BLAS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return _open(model, options, expose)


def open_profiled(model: onnx.ModelProto, prefix: Path, threads: int = 0) -> ort.InferenceSession:
    """Open a model with every optimisation and ONNX Runtime's profiler, which writes a file named after `prefix`."""
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return _open(model, options, ())


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what matters is raised
    return options


def _open(model: onnx.ModelProto, options: ort.SessionOptions, expose: Sequence[str]) -> ort.InferenceSession:
    """Hand the weights over beside the graph, one copy of them: as one message they would be held four times."""
    light, names, values = without_initializers(model), list[str](), list[ort.OrtValue]()
    used = {name for node in model.graph.node for name in reads(node)}  # ONNX Runtime drops others before it looks
    for tensor in model.graph.initializer:
        if is_heavy(tensor) and tensor.data_type in SHARED and tensor.name in used:
            light.graph.initializer.append(stub(tensor, "memory", 0, tensor_bytes(tensor)))
            names.append(tensor.name)
            values.append(ort.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(tensor)))
        else:
            light.graph.initializer.append(tensor)
    present = {value.name for value in light.graph.output}
    light.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(expose) if name not in present)
    options.add_external_initializers(names, values)
    return ort.InferenceSession(light.SerializeToString(), options, providers=["CPUExecutionProvider"])
