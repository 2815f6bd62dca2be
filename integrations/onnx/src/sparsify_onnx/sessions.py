"""Open models held in memory in ONNX Runtime: the one place that knows its exceptions and the 2 GB limit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from sparsify_onnx.storage import PROTOBUF_BYTES, weight_bytes, write_files

# ONNX Runtime's exceptions share no base below Exception, and each version adds some
ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


def open_model(
    model: onnx.ModelProto, expose: Sequence[str] = (), threads: int = 0, *, optimise: bool = False
) -> ort.InferenceSession:
    """Open a model as it is written, or with the optimiser, with the tensors in `expose` as further outputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what matters is raised
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # solvers run between batches: idle threads that spin would take the cores from BLAS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _exposed(model, expose):
        if weight_bytes(model) < PROTOBUF_BYTES:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(prefix="sparsify-") as folder:
            path = Path(folder) / "model.onnx"
            write_files(model, path, external=True)
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_profiled(model: onnx.ModelProto, prefix: Path, threads: int = 0) -> ort.InferenceSession:
    """Open a model with every optimisation and ONNX Runtime's profiler, which writes a file named after `prefix`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    if weight_bytes(model) < PROTOBUF_BYTES:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    path = prefix.with_suffix(".onnx")
    write_files(model, path, external=True)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _exposed(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[None]:
    """Add outputs for the time of one serialization: a copy would double the memory of a large model."""
    count = len(model.graph.output)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    try:
        yield
    finally:
        del model.graph.output[count:]
