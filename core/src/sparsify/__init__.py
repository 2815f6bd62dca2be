"""Sparsify: from a trained model and a dataset to a smaller, faster, verified ONNX model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.agreement import observe_agreement as observe_agreement
    from sparsify.api import one_shot as one_shot
    from sparsify.api import sparse_transfer as sparse_transfer
    from sparsify.api import training_aware as training_aware
    from sparsify.cli.run import show_result as show_result
    from sparsify.conformance import check_plugin as check_plugin
    from sparsify.contracts import *  # noqa: F403
    from sparsify.data import Batch as Batch
    from sparsify.data import Dataset as Dataset
    from sparsify.data import Sample as Sample
    from sparsify.errors import *  # noqa: F403
    from sparsify.experiment import Experiment as Experiment
    from sparsify.hooks import Entry as Entry
    from sparsify.hooks import hookimpl as hookimpl
    from sparsify.levels import target_sparsity as target_sparsity
    from sparsify.metrics import class_ids as class_ids
    from sparsify.metrics import class_scores as class_scores
    from sparsify.pipeline import Result as Result
    from sparsify.plugins import Plugins as Plugins
    from sparsify.plugins import install_command as install_command
    from sparsify.plugins import load_plugins as load_plugins
    from sparsify.plugins import missing as missing
    from sparsify.recipe import Recipe as Recipe
    from sparsify.recipe import Step as Step
    from sparsify.report_figures import speed_words as speed_words
    from sparsify.report_pages import figures as figures
    from sparsify.talk import Talk as Talk
    from sparsify.timing import Candidate as Candidate
    from sparsify.timing import time_interleaved as time_interleaved
    from sparsify.timing import time_ratio as time_ratio

_PUBLIC = {
    "agreement": "observe_agreement",
    "api": "one_shot sparse_transfer training_aware",
    "cli.run": "show_result",
    "conformance": "check_plugin",
    "contracts": "Checkpoint Context Data DataRequest DatasetLoader Description Layer Metric Model ModelFormat "
    "NoCheckpoint Session TensorSpec UseCase",
    "data": "Batch Dataset Sample",
    "errors": "ExitCode MissingLibraryError PluginError RequestError SparsifyError StageError UnreadableSample",
    "experiment": "Experiment",
    "hooks": "Entry hookimpl",
    "levels": "target_sparsity",
    "metrics": "class_ids class_scores",
    "pipeline": "Result",
    "plugins": "Plugins install_command load_plugins missing",
    "recipe": "Recipe Step",
    "report_figures": "speed_words",
    "report_pages": "figures",
    "talk": "Talk",
    "timing": "Candidate time_interleaved time_ratio",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import sparsify` stays free of heavy libraries."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    return getattr(import_module(f"sparsify.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
