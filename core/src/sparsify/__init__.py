"""Sparsify: from a trained model and a dataset to a smaller, faster, verified ONNX model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.api import one_shot, sparse_transfer, training_aware
    from sparsify.cli.run import show_result
    from sparsify.conformance import check_plugin
    from sparsify.contracts import (
        Checkpoint,
        Context,
        Data,
        DataRequest,
        DatasetLoader,
        Description,
        Layer,
        Metric,
        Model,
        ModelFormat,
        Session,
        TensorSpec,
        UseCase,
    )
    from sparsify.data import Batch, Dataset, Sample
    from sparsify.errors import (
        MissingLibraryError,
        PluginError,
        RequestError,
        SparsifyError,
        StageError,
        UnreadableSample,
    )
    from sparsify.experiment import Experiment
    from sparsify.hooks import Entry, hookimpl
    from sparsify.levels import target_sparsity
    from sparsify.pipeline import Result
    from sparsify.recipe import Recipe, Step

_HOME = {
    "one_shot": "api",
    "sparse_transfer": "api",
    "training_aware": "api",
    "check_plugin": "conformance",
    "Checkpoint": "contracts",
    "Context": "contracts",
    "Data": "contracts",
    "DataRequest": "contracts",
    "DatasetLoader": "contracts",
    "Description": "contracts",
    "Layer": "contracts",
    "Metric": "contracts",
    "Model": "contracts",
    "ModelFormat": "contracts",
    "Session": "contracts",
    "TensorSpec": "contracts",
    "UseCase": "contracts",
    "Batch": "data",
    "Dataset": "data",
    "Sample": "data",
    "MissingLibraryError": "errors",
    "PluginError": "errors",
    "RequestError": "errors",
    "SparsifyError": "errors",
    "StageError": "errors",
    "UnreadableSample": "errors",
    "show_result": "cli.run",
    "Experiment": "experiment",
    "Entry": "hooks",
    "hookimpl": "hooks",
    "target_sparsity": "levels",
    "Result": "pipeline",
    "Recipe": "recipe",
    "Step": "recipe",
}
__all__ = [
    "Batch",
    "Checkpoint",
    "Context",
    "Data",
    "DataRequest",
    "Dataset",
    "DatasetLoader",
    "Description",
    "Entry",
    "Experiment",
    "Layer",
    "Metric",
    "MissingLibraryError",
    "Model",
    "ModelFormat",
    "PluginError",
    "Recipe",
    "RequestError",
    "Result",
    "Sample",
    "Session",
    "SparsifyError",
    "StageError",
    "Step",
    "TensorSpec",
    "UnreadableSample",
    "UseCase",
    "check_plugin",
    "hookimpl",
    "one_shot",
    "show_result",
    "sparse_transfer",
    "target_sparsity",
    "training_aware",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that `import sparsify` stays free of heavy libraries."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    return getattr(import_module(f"sparsify.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
