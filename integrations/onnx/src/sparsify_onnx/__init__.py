"""ONNX models for Sparsify: one-shot pruning, INT8 quantization, ONNX Runtime, analysis."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_onnx.model_format import FORMAT as FORMAT
    from sparsify_onnx.runtime import open_session as open_session

_PUBLIC = {"model_format": "FORMAT", "runtime": "open_session"}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_onnx' has no attribute '{name}'")
    return getattr(import_module(f"sparsify_onnx.{_HOME[name]}"), name)
