"""Sparsify: from a trained model and a dataset to a smaller, faster, verified ONNX model.

What type checkers see stands in `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module

_PUBLIC = {
    "agreement": "observe_agreement",
    "api": "one_shot sparse_transfer training_aware",
    "cli.run": "show_result",
    "contracts": "Checkpoint Context Data DataRequest DatasetLoader Description Layer Metric Model ModelFormat "
    "NoCheckpoint RecipeGenerator Score Session TensorSpec Trainer Training UseCase fixed_batch",
    "data": "Batch Dataset Sample",
    "deployment": "Deployment read_deployment",
    "errors": "ExitCode MissingLibraryError PluginError RequestError SparsifyError StageError Stopped UnreadableSample",
    "evaluation": "evaluate",
    "experiment": "Experiment make_experiment",
    "formats": "find_format find_runtime fit installed_runtimes load_runtime",
    "hooks": "Entry hookimpl",
    "inference": "Pipeline check_inputs",
    "levels": "parse_duration parse_memory target_sparsity",
    "metrics": "class_ids class_scores",
    "modifiers": "check_recipe resolve_modifiers",
    "outcome": "environment",
    "pipeline": "BATCH Result",
    "plugins": "DISABLE Offer Plugin Plugins install_command load_plugins load_target missing singular",
    "recipe": "Recipe Step dump_recipe load_recipe",
    "report_figures": "speed_words",
    "report_pages": "figures",
    "resolve": "existing find_loader find_metrics is_there",
    "search": "Search",
    "splits": "draw_splits held_out_split",
    "talk": "Talk",
    "timing": "Candidate Ratio Timing gzip_size time_interleaved time_ratio",
    "use_cases": "known_use_cases resolve_use_case",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), so that `import sparsify` stays free of heavy libraries."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    return getattr(import_module(f"sparsify.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
