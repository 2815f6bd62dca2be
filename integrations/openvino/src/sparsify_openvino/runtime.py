"""Run ONNX models in OpenVINO on the CPU, and read back what it really executes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray
from sparsify import RequestError, Session, StageError

MULTIPLYING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # layer types of the executed graph
INTEGER = ("i8", "u8", "i4", "u4")
NAMES = {"f32": "float32", "f16": "float16"}
PRECISIONS = {"float32": "f32", "bf16": "bf16", "float16": "f16"}  # of floats
Arrays = Mapping[str, NDArray[Any]]


def open_session(path: Path, threads: int = 0, precision: str = "") -> Session:
    """Open a model for the lowest latency of one request; `threads` 0 leaves the count to OpenVINO.

    Without a precision, floats run in what OpenVINO takes for itself, bf16 where the CPU multiplies it: the fastest
    float it has. Raises RequestError for an unknown precision, StageError with OpenVINO's reason.
    """
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision:
        if precision not in PRECISIONS:
            known = ", ".join(f"openvino:{name}" for name in PRECISIONS)
            raise RequestError(f"openvino has no precision '{precision}'", fix=f"use --runtime openvino, {known}")
        options["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
    except RuntimeError as error:
        raise StageError(
            f"OpenVINO {_version()} cannot open {path}: {_reason(error)}",
            fix="use --runtime onnxruntime, or upgrade with `pip install -U openvino`",
        ) from error
    return _Session(path, compiled)


class _Session:
    """Adapt OpenVINO's compiled model.

    facts: runtime, version, precision, int8_executed and float_executed (nodes that multiply, of the executed graph),
    precisions (of all of those, counted), uses_zeros,
    threads.
    """

    def __init__(self, path: Path, compiled: openvino.CompiledModel) -> None:
        self.path = path
        self.request: openvino.InferRequest | None = compiled.create_infer_request()
        self.names = [port.get_any_name() for port in compiled.outputs]
        self.types = {port.get_any_name(): port.get_element_type().to_dtype() for port in compiled.inputs}
        counts = precisions(compiled)
        integer = sum(count for name, count in counts.items() if name in INTEGER)
        floating = Counter({name: count for name, count in counts.items() if name not in INTEGER})
        main = floating.most_common(1)[0][0] if floating else "f32"
        self.facts: Mapping[str, Any] = {
            "runtime": "openvino",
            "version": _version(),
            "precision": "int8" if integer and not floating else "mixed" if integer else NAMES.get(main, main),
            "int8_executed": integer,
            "float_executed": floating.total(),
            "precisions": dict(counts),
            "uses_zeros": False,  # it has sparse weights for AMX's MatMul alone, switched off by default
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
        }

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch."""
        if self.request is None:
            raise StageError(f"the session of {self.path} is closed", fix="open it again")
        found = {name: array.dtype for name, array in inputs.items()}
        if found != self.types:  # OpenVINO itself would cast, and take what is missing from the run before
            raise self._refusal(f"it takes {_listed(self.types)}, not {_listed(found)}")
        try:
            results = self.request.infer(dict(inputs), share_inputs=True)
        except RuntimeError as error:
            raise self._refusal(_reason(error)) from error
        return dict(zip(self.names, results.values(), strict=True))

    def _refusal(self, why: str) -> StageError:
        return StageError(
            f"OpenVINO {_version()} cannot run {self.path}: {why}",
            fix="check that the samples fit the model's inputs (`sparsify analyze MODEL` lists them)",
        )

    def close(self) -> None:
        """Free threads and memory."""
        self.request = None


def precisions(compiled: openvino.CompiledModel) -> Counter[str]:
    """Count the multiplying nodes of the graph that is executed, by the precision they run in."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and facts["layerType"].astype(str) in MULTIPLYING:
            found[facts["runtimePrecision"].astype(str)] += 1
    return found


def _listed(types: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}' {kind}" for name, kind in types.items()) or "nothing"


def _version() -> str:
    return str(openvino.__version__).partition("-")[0]


def _reason(error: Exception) -> str:
    """Take the sentences out of OpenVINO's trace of checks."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '")) and not line.endswith(":")]
    return " ".join(told or lines) or type(error).__name__
