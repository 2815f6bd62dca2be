"""NPZ datasets and custom use cases for Sparsify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_npz.archive import read_archive, write_archive
    from sparsify_npz.capturing import capture

_HOME = {"capture": "capturing", "read_archive": "archive", "write_archive": "archive"}
__all__ = ["capture", "read_archive", "write_archive"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_npz' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"sparsify_npz.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
