"""Run models with ONNX Runtime on the CPU, and read back from its own optimised graph what it executes in INT8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from sparsify import StageError, TensorSpec

from sparsify_onnx.graph import walk
from sparsify_onnx.sessions import ORT_ERRORS

INT8 = frozenset(
    {
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)
FLOAT = frozenset(
    {
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "ConvTranspose",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "TransposeMatMul",
    }
)
TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
OPTIMIZED = "optimized.onnx"


class OnnxRuntimeSession:
    """Hold an open session; `facts` are read from the graph that this session optimised for itself."""

    def __init__(self, path: Path, session: onnxruntime.InferenceSession, scratch: tempfile.TemporaryDirectory[str]):
        self._path = path
        self._session = session
        self._scratch = scratch
        self._outputs = [value.name for value in session.get_outputs()]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Return runtime, version, precision, how many nodes run in INT8, and the model's inputs."""
        operators = list(_operators(Path(self._scratch.name) / OPTIMIZED))
        integer = sum(name in INT8 for name in operators)
        floating = sum(name in FLOAT for name in operators)
        return {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "precision": "float32" if not integer else "mixed" if floating else "int8",
            "int8_executed": integer,
            "inputs": tuple(
                TensorSpec(item.name, _dtype(item.type), tuple(item.shape)) for item in self._session.get_inputs()
            ),
        }

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; raises StageError with ONNX Runtime's reason."""
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except ORT_ERRORS as error:
            raise StageError(
                f"ONNX Runtime cannot run {self._path}: {_reason(error)}",
                fix="check that the samples have the shapes and types that `sparsify analyze` shows for the inputs",
            ) from error
        return {name: np.asarray(array) for name, array in zip(self._outputs, found, strict=True)}

    def close(self) -> None:
        """Free threads and memory."""
        del self._session
        self._scratch.cleanup()


def open_session(path: Path, threads: int = 0) -> OnnxRuntimeSession:
    """Open a model in the fastest float configuration of ONNX Runtime on the CPU; threads 0 = every usable core.

    All graph optimisations, sequential execution, CPU provider. Raises StageError where ONNX Runtime refuses the model.
    """
    scratch = tempfile.TemporaryDirectory(prefix="sparsify-")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4
    options.optimized_model_filepath = os.path.join(scratch.name, OPTIMIZED)
    # weights go to a file of their own, so that reading the graph back does not read them, and 2 GB are no limit
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        scratch.cleanup()
        raise StageError(
            f"ONNX Runtime cannot load {path}: {_reason(error)}",
            fix="export the model with operators and an opset that this ONNX Runtime has, or upgrade onnxruntime",
        ) from error
    return OnnxRuntimeSession(path, session, scratch)


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _operators(path: Path) -> Iterator[str]:
    for node in walk(onnx.load(path, load_external_data=False).graph):
        yield node.op_type


def _dtype(name: str) -> str:
    return TYPES.get(name, name.removeprefix("tensor(").removesuffix(")"))


def _reason(error: Exception) -> str:
    """Take the first line of ONNX Runtime's message without its code and file."""
    return str(error).partition("\n")[0].rpartition(" : ")[2][:300]
