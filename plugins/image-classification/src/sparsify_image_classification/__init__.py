"""Image classification for Sparsify."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_image_classification.demo import write_demo
    from sparsify_image_classification.pixels import preprocess
    from sparsify_image_classification.preprocessing import Preprocess

_HOME = {"Preprocess": "preprocessing", "preprocess": "pixels", "write_demo": "demo"}
__all__ = ["Preprocess", "preprocess", "write_demo"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_image_classification' has no attribute '{name}'")
    return getattr(import_module(f"sparsify_image_classification.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
