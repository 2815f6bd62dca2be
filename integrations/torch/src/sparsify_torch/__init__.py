"""Training-aware sparsification in PyTorch. Nothing is imported here, so that listing plugins stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_torch.export_onnx import export as export

_PUBLIC = {"export_onnx": "export"}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_torch' has no attribute '{name}'")
    return getattr(import_module(f"sparsify_torch.{_HOME[name]}"), name)
