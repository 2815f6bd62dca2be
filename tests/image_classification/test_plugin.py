"""What the plugin offers, and that offering it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import sparsify_image_classification
from sparsify import DatasetLoader, UseCase
from sparsify_image_classification import plugin


def test_entries_resolve_to_their_contracts() -> None:
    (use_case,), loaders, (command,) = plugin.use_cases(), plugin.dataset_loaders(), plugin.commands()
    found = {}
    for entry in (use_case, *loaders, command):
        module, attribute = entry.target.split(":")
        found[entry.name] = getattr(import_module(module), attribute)
    assert isinstance(found["image-classification"], UseCase)
    assert all(isinstance(found[loader.name], DatasetLoader) for loader in loaders)
    assert callable(found["demo"])
    assert use_case.accepts == (*(loader.name for loader in loaders), "npz")
    assert loaders[0].name == "imagefolder"  # its errors are the ones for a path that holds nothing known
    assert found["image-classification"].metrics[0] == use_case.metric == "accuracy"


def test_offering_imports_nothing_heavy() -> None:
    code = (
        "import sys, sparsify_image_classification.plugin as plugin\n"
        "plugin.use_cases(), plugin.dataset_loaders(), plugin.commands()\n"
        "print(sorted({'PIL', 'numpy', 'pydantic', 'typer', 'onnxruntime', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_are_there() -> None:
    for name in sparsify_image_classification.__all__:
        assert getattr(sparsify_image_classification, name).__name__ == name
    assert dir(sparsify_image_classification) == sparsify_image_classification.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sparsify_image_classification.nothing  # noqa: B018
