"""Run ONNX models with ONNX Runtime (placeholder by the lead so that the pipeline can be tried; helper 5 replaces it)."""
from __future__ import annotations
from pathlib import Path
from typing import Any
import onnxruntime
class _S:
    def __init__(self, path: Path, threads: int) -> None:
        o = onnxruntime.SessionOptions(); o.intra_op_num_threads = threads; o.log_severity_level = 3
        self.s = onnxruntime.InferenceSession(str(path), o, providers=["CPUExecutionProvider"]); self.facts: dict[str, Any] = {"precision": "float32", "int8_executed": 0}
        self.n = [x.name for x in self.s.get_outputs()]
    def run(self, inputs: Any) -> Any: return dict(zip(self.n, self.s.run(self.n, dict(inputs))))
    def close(self) -> None: del self.s
def open_session(path: Path, threads: int = 0) -> Any: return _S(path, threads)
