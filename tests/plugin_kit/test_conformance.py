"""`check_plugin`: a plugin's layout, and every target against its catalogue's contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sparsify_plugin_kit
from sparsify.errors import RequestError
from sparsify.hooks import CATALOGUES
from sparsify.plugins import load_plugins
from sparsify_plugin_kit.command import app
from sparsify_plugin_kit.conformance import FUNCTIONS, RECORDS, Finding, check_plugin
from sparsify_plugin_kit.layout import check_package_init
from typer.testing import CliRunner

Add = Callable[..., None]
TOY = Path(__file__).parents[1] / "core/toy"


def problems(name: str = "mine") -> list[str]:
    return [finding.problem for finding in check_plugin(name)]


def offering(catalogue: str, rest: str = "") -> str:
    return f"@hookimpl\ndef {catalogue}():\n    return [Entry('it', 'mine.thing:IT', 'a thing'{rest})]\n"


@pytest.mark.parametrize("name", ["core", "npz", "onnx", "image-classification", "plugin-kit"])
def test_our_own_plugins_conform(name: str) -> None:
    # what needs torch is checked where that is installed: tests/torch/test_conformance.py
    assert [str(finding) for finding in check_plugin(name) if finding.fault] == []


def test_every_catalogue_has_a_contract() -> None:
    assert {*FUNCTIONS, *RECORDS, "modifiers", "commands"} == set(CATALOGUES)
    assert sparsify_plugin_kit.check_plugin is check_plugin


def test_an_unknown_plugin() -> None:
    with pytest.raises(RequestError, match="there is no plugin 'npzz'") as caught:
        check_plugin("npzz")
    assert caught.value.fix == "did you mean 'npz'?"


def test_a_broken_and_a_disabled_plugin(add_plugin: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add_plugin("mine", "raise ValueError('boom')")
    (finding,) = check_plugin("mine")
    assert finding == Finding("mine", "mine.plugin", "ValueError: boom", "mend the module, then run this check again")
    monkeypatch.setenv("SPARSIFY_DISABLE_PLUGINS", "mine")
    (finding,) = check_plugin("mine")
    assert (finding.problem, finding.fault) == ("is switched off", False)
    assert finding.fix == "take it out of SPARSIFY_DISABLE_PLUGINS"


def test_forgotten_hookimpl(add_plugin: Add) -> None:
    add_plugin("mine", "def use_cases(): return []")
    (finding,) = check_plugin("mine")
    assert (finding.problem, finding.fix) == ("offers nothing", "mark its functions with @hookimpl, return entries")


def test_an_observer_alone_is_a_plugin(add_plugin: Add) -> None:
    add_plugin("mine", "@hookimpl\ndef experiment_finished(folder): ...")
    assert problems() == []


def test_a_missing_library_is_no_fault(install: Callable[[Path], object]) -> None:
    install(TOY)
    (finding,) = check_plugin("toy")
    assert finding.problem == "needs no-such-library, not installed here, so it was not checked"
    assert (finding.fix, finding.fault) == ("pip install no-such-library", False)


def test_names_offered_twice_and_empty_summaries(add_plugin: Add) -> None:
    add_plugin("mine", "@hookimpl\ndef evaluators(): return [Entry('accuracy', 'sparsify.metrics:ACCURACY', '')]")
    assert problems() == [
        "has no summary",
        "evaluator 'accuracy' is offered twice, by sparsify-core (sparsify.plugin) and mine (mine.plugin)",
    ]


def test_a_target_that_does_not_import(add_plugin: Add) -> None:
    add_plugin("mine", offering("evaluators"), thing="1 / 0")
    (finding,) = check_plugin("mine")
    assert finding.problem == "mine.thing:IT: ZeroDivisionError: division by zero"
    assert finding.fix == "mend mine.thing:IT"
    assert str(finding).startswith("mine: evaluator 'it': mine.thing:IT: ZeroDivisionError")


CONTRACTS = {
    "use case of another type": ("use_cases", "", "IT = 7", ["is int, expected sparsify.UseCase"]),
    "use case with a wrong function": (
        "use_cases",
        ", accepts=('npz',), metric='accuracy'",
        "from sparsify import UseCase\nIT = UseCase(('accuracy',), lambda data: None, 7)",
        ["has a function check that takes (data), expected (data, description)",
         "has a function readme that is int, expected a function of (data, description)"],
    ),
    "use case of unknown names": (
        "use_cases",
        ", accepts=('no-loader',), metric='accuracy'",
        "from sparsify import UseCase\nIT = UseCase(('no-metric',), lambda data, description: None, lambda d, e: '')",
        ["measures the evaluator 'no-metric', which no installed plugin offers",
         "accepts the dataset loader 'no-loader', which no installed plugin offers",
         "decides by another metric than its entry, which names 'accuracy'"],
    ),
    "use case without names": (
        "use_cases",
        ", metric='accuracy'",
        "from sparsify import UseCase\nIT = UseCase('accuracy', lambda data, description: None, lambda d, e: '')",
        ["has 'accuracy', expected a tuple of names of evaluators",
         "has (), expected a tuple of names of dataset loaders",
         "decides by another metric than its entry, which names 'accuracy'"],
    ),
    "dataset loader": (
        "dataset_loaders", "", "from sparsify import DatasetLoader\nIT = DatasetLoader(print, lambda: 0)",
        ["has a function load that takes (), expected (request)"],
    ),
    "model loader": (
        "model_loaders", "", "from sparsify import ModelFormat\nf = lambda a: 0\nIT = ModelFormat(f, f, f, f)",
        ["has an entry without 'accepts'",
         "has a function save that takes (a), expected (model, path)",
         "has a function compare that takes (a), expected (reference, candidate, dataset, batch_size, score)"],
    ),
    "recipe generator": (
        "recipe_generators",
        "",
        "from sparsify import RecipeGenerator\nIT = RecipeGenerator(lambda experiment: ..., lambda search: ...)",
        ["has a function write that takes (experiment), expected (experiment, description)",
         "has a function rescue that takes (search), expected (search, recipe)"],
    ),
    "modifier that is no model": (
        "modifiers", ", phase='training'", "class IT: ...", ["is no pydantic model of the modifier's options"],
    ),
    "modifier that takes anything": (
        "modifiers",
        ", phase='post-training'",
        "from pydantic import BaseModel\nclass IT(BaseModel):\n    def apply(self, model): ...",
        ["is not frozen or takes unknown options; set model_config = ConfigDict(frozen=True, extra='forbid')",
         "has a function apply that takes (self, model), expected (self, model, context)"],
    ),
    "trainer": ("trainers", "", "def IT(model, *rest): ...", ["is function, expected sparsify.Trainer"]),
    "exporter": (
        "exporters", ", accepts=('torch',)", "def IT(): ...",
        ["has an entry without 'returns'", "takes (), expected (model)"],
    ),
    "runtime": ("runtimes", "", "IT = {}", ["is dict, expected a function of (path, threads)"]),
    "evaluator": (
        "evaluators", "", "from sparsify import Metric\nIT = Metric('it', lambda outputs: [], lambda: 0)",
        ["has a function observe that takes (outputs), expected (outputs, targets)",
         "has a function reduce that takes (), expected (records)"],
    ),
    "command": ("commands", "", "def IT(): ...", ["is function, expected typer.Typer"]),
}  # fmt: skip


@pytest.mark.parametrize(("catalogue", "rest", "source", "expected"), CONTRACTS.values(), ids=CONTRACTS)
def test_contracts(add_plugin: Add, catalogue: str, rest: str, source: str, expected: list[str]) -> None:
    add_plugin("mine", offering(catalogue, rest), thing=source)
    assert problems() == [f"mine.thing:IT {problem}" for problem in expected]
    assert {finding.fix for finding in check_plugin("mine")} <= {f"see {catalogue} in docs/reference/hooks.md"}


# Layout


def test_layout_of_a_plugin(add_plugin: Add) -> None:
    add_plugin(
        "mine",
        "import json\nfrom sparsify.errors import RequestError\n" + offering("evaluators"),
        __init__="import os\nfrom mine.thing import IT\n",
        thing="from sparsify import Metric\nIT = Metric('it', lambda outputs, targets: [])",
    )
    found = check_plugin("mine")
    only = "it may import only sparsify, targets are imported on first use"
    assert [(finding.where, finding.problem) for finding in found] == [
        ("mine.plugin:2", f"plugin.py imports json; {only}"),
        ("mine.plugin:3", f"plugin.py imports sparsify.errors; {only}"),
        ("mine:2", "__init__.py imports mine.thing at once; re-export it through __getattr__ (PEP 562)"),
    ]
    assert all(finding.fault and finding.fix for finding in found)


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n", []),
        ("def __getattr__(name):\n    import numpy\n", []),
        ("try:\n    import numpy\nexcept ImportError:\n    from . import a\n", ["numpy", "."]),
        ("class A:\n    import torch\n", ["torch"]),
        ("if True:\n    pass\nelse:\n    import onnx.checker, json\n", ["onnx.checker"]),
    ],
)
def test_what_an_init_imports_at_once(source: str, modules: list[str]) -> None:
    assert [text.split()[2] for _, text in check_package_init(source)] == modules


# The command


def test_check_exits_3_only_for_faults(add_plugin: Add, install: Callable[[Path], object]) -> None:
    install(TOY)
    result = CliRunner().invoke(app, ["check", "toy-plugin"])
    assert (result.exit_code, result.output.splitlines()[0]) == (0, "toy: ok")
    add_plugin("mine", offering("commands"), thing="IT = 1")
    result = CliRunner().invoke(app, ["check", "mine"])
    assert (result.exit_code, result.output) == (
        3,
        "mine: command 'it': mine.thing:IT is int, expected typer.Typer "
        "(fix: see commands in docs/reference/hooks.md)\n",
    )


def test_check_without_a_name_checks_all(add_plugin: Add) -> None:
    add_plugin("mine", "raise ValueError('boom')")
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 3
    assert "mine: mine.plugin: ValueError: boom" in result.output
    assert all(f"{plugin.name}: " in result.output for plugin in load_plugins().found)
