"""Training-aware sparsification in PyTorch: modifiers, and the manager that runs them in a training loop.

Nothing is imported here, so that listing plugins stays fast; what type checkers see stands in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module

_PUBLIC = {
    "creating": "create",
    "export_onnx": "export",
    "loop": "Forward Loop Part TrainingModifier",
    "manager": "ScheduledModifierManager",
    "mixing": "thin_to_speed",
    "prunable": "has_norms",
    "ranks": "agreed failing_as_one gathered heed_signals_while_waiting meet part share wait_for_the_end",
    "removal": "apply_structure remap_optimizer",
    "stepping": "RecipeOptimizer RecipeScaler",
    "thinning": "thin",
    "weights": "Weight select_parameters select_weights",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_torch' has no attribute '{name}'")
    return getattr(import_module(f"sparsify_torch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
