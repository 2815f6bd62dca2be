"""Run ONNX models in ONNX Runtime on the CPU, and read back what it really executes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from sparsify import Session, StageError

from sparsify_onnx.graph import WEIGHTED, walk
from sparsify_onnx.sessions import ORT_ERRORS

INT8_OPERATORS = (
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QLinearConvTranspose",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QAttention",
)
FLOAT_OPERATORS = (*WEIGHTED, "FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "Attention")
RUN_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError)  # a missing input is a ValueError
INLINE_BYTES = "1024"  # initializers above it go beside the optimised graph, which is read for its nodes alone
Arrays = Mapping[str, NDArray[Any]]


def open_session(path: Path, threads: int = 0, *, spin: bool = True) -> Session:
    """Open a model with every graph optimisation; `threads` 0 takes the physical cores this process may use.

    spin: whether idle threads may keep their cores busy for a while: runs that follow at once gain 3 to 13 %, others on
    these cores lose a third. Raises StageError with ONNX Runtime's reason.
    """
    threads = threads or usable_cores()
    options = _options(threads)
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return _Session(path, _open(path, options), _Facts(path, threads))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised
    return options


def _open(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise StageError(
            f"ONNX Runtime {ort.__version__} cannot open {path}: {_reason(error)}",
            fix="export the model again, upgrade with `pip install -U onnxruntime`, or try --runtime openvino",
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _Facts(Mapping[str, Any]):
    """Say what runs where, read on first use: it costs optimising the model once more, which timing must not pay.

    runtime, version, threads, providers, uses_zeros, static_shapes; then what is read: precision, int8_executed,
    float_executed.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.known: dict[str, Any] = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "threads": threads,
            "providers": ("CPUExecutionProvider",),
            "uses_zeros": False,
            "static_shapes": False,
        }

    @cached_property
    def _read(self) -> dict[str, Any]:
        integer, floating = executed(self.path, self.threads)
        return {
            "precision": "float32" if not integer else "mixed" if floating else "int8",
            "int8_executed": integer,
            "float_executed": floating,
        }

    def __getitem__(self, key: str) -> Any:
        return self.known[key] if key in self.known else self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.known, **self._read})

    def __len__(self) -> int:
        return len(self.known) + len(self._read)


class _Session:
    """Adapt ONNX Runtime's session."""

    def __init__(self, path: Path, session: ort.InferenceSession, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.session: ort.InferenceSession | None = session
        self.names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch."""
        if self.session is None:
            raise StageError(f"the session of {self.path} is closed", fix="open it again")
        try:
            results = self.session.run(self.names, dict(inputs))
        except RUN_ERRORS as error:
            raise StageError(
                f"ONNX Runtime {ort.__version__} cannot run {self.path}: {_reason(error)}",
                fix="check that the samples fit the model's inputs (`sparsify analyze MODEL` lists them)",
            ) from error
        return dict(zip(self.names, results, strict=True))

    def close(self) -> None:
        """Free threads and memory."""
        self.session = None


def executed(path: Path, threads: int) -> tuple[int, int]:
    """Count the multiplying nodes that ONNX Runtime's optimised graph executes in INT8, and in float."""
    with tempfile.TemporaryDirectory(prefix="sparsify-") as folder:
        written = Path(folder) / "optimized.onnx"
        options = _options(threads)
        options.optimized_model_filepath = str(written)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", INLINE_BYTES
        )
        _open(path, options)
        kinds = [node.op_type for node in walk(onnx.load(written, load_external_data=False).graph)]
    return sum(kind in INT8_OPERATORS for kind in kinds), sum(kind in FLOAT_OPERATORS for kind in kinds)


def usable_cores() -> int:
    """Count the physical cores this process may use: two threads on one core share its arithmetic units."""
    return len(physical_cores())


def physical_cores() -> tuple[int, ...]:
    """List a logical CPU of each physical core that this process may use."""
    logical = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(number): number for number in reversed(logical)}
    return tuple(sorted(cores.values())) or (0,)


def _siblings(number: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)  # no Linux, or a container without /sys: every logical CPU counts
