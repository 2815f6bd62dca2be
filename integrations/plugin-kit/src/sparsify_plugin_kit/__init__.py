"""What writing a Sparsify plugin takes: list, explain, check and scaffold plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_plugin_kit.conformance import Finding, check_plugin
    from sparsify_plugin_kit.scaffold import write_plugin

_HOME = {"Finding": "conformance", "check_plugin": "conformance", "write_plugin": "scaffold"}
__all__ = ["Finding", "check_plugin", "write_plugin"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_plugin_kit' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"sparsify_plugin_kit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
