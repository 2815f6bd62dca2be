"""`sparsify recipe`: stdout is the recipe or the findings, stderr the notes."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pluggy
import pytest
from sparsify.contracts import Description, Layer, Model, ModelFormat, RecipeGenerator
from sparsify.errors import RequestError
from sparsify.hooks import Entry
from sparsify.plugins import Plugin, Plugins
from sparsify.recipe import Recipe, Step, parse_recipe
from sparsify_onnx.recipe_command import app
from typer.testing import CliRunner

RECIPE = """
    num_epochs: 4
    modifiers:
      - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(num_epochs), log_types: __ALL__}
      - !TrainableParamsModifier {params: __ALL__, trainable: False}
    """


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dedent(RECIPE))
    return str(path)


def call(*words):
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_show_prints_a_recipe_that_reads_back(recipe):
    result = call("show", recipe, "--recipe-args", '{"num_epochs": 9}')
    assert result.exit_code == 0
    assert [step.options for step in parse_recipe(result.stdout).steps] == [
        {"start_epoch": 0, "end_epoch": 9},
        {"params": "__ALL__", "trainable": False},
    ]
    assert result.stderr == "note: EpochRangeModifier: dropped 'log_types': logging is not a matter of the recipe\n"


def test_check_exits_0_and_says_each_step_in_words(recipe):
    result = call("check", recipe)
    assert result.exit_code == 0
    assert "1. EpochRangeModifier (modifiers): trains, from epoch 0 to epoch 4.\n" in result.stdout
    assert "2. TrainableParamsModifier (modifiers): switches training of every parameter to False" in result.stdout
    assert "2 steps, all known" in result.stdout


@pytest.mark.parametrize("text", ["{num_epochs: 3}", "[3]", "3"])
def test_recipe_args_are_a_json_object(recipe, text):
    with pytest.raises(RequestError) as caught:
        call("check", recipe, "--recipe-args", text)
    assert caught.value.problem == f"--recipe-args is no JSON object: {text}"
    assert caught.value.fix == """write --recipe-args '{"num_epochs": 5}'"""


def read_layers(path):
    return Model("toy", Path(path).read_text().split())


def describe(model):
    layers = tuple(Layer(name, "Conv", (1,), 1, 1, 0.0, "float32", eligible=True) for name in model.value)
    return Description((), (), layers, len(layers), 0, len(layers))


def generate(experiment, description):
    options = {"level": experiment.optim_level, "targets": [layer.name for layer in description.layers]}
    steps = (Step("ToyModifier", "post-training", options, "post_training_modifiers"),)
    return Recipe(steps, notes=(f"structure {experiment.sparsity}",))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    module = ModuleType("toy_format")
    module.FORMAT = ModelFormat(read_layers, print, describe, print)
    module.generator = RecipeGenerator(generate)
    monkeypatch.setitem(sys.modules, "toy_format", module)
    entries = {
        "model_loaders": (Entry("toy", "toy_format:FORMAT", "toy models", accepts=(".toy",)),),
        "recipe_generators": (Entry("one-shot", "toy_format:generator", "toy recipes"),),
    }
    plugins = Plugins((Plugin("toy", "toy", "1", "toy", entries=entries),), pluggy.PluginManager("sparsify"))
    monkeypatch.setattr("sparsify_onnx.recipe_command.load_plugins", lambda: plugins)
    path = tmp_path / "model.toy"
    path.write_text("conv1 conv2")
    return path


def test_write_prints_what_a_run_would_apply_or_writes_a_new_file(toy, tmp_path):
    result = call("write", "--model", str(toy), "--optim-level", "40", "--sparsity", "2:4")
    assert result.stdout.startswith("# one-shot, model.toy, optim-level 0.4\nversion: 1.1.0\n")
    assert result.stderr == "note: structure 2:4\n"
    options = {"level": 0.4, "targets": ["conv1", "conv2"]}
    assert parse_recipe(result.stdout).steps == (
        Step("ToyModifier", "post-training", options, "post_training_modifiers"),
    )
    file = tmp_path / "recipe.yaml"
    assert call("write", "--model", str(toy), "--output", str(file)).stdout == ""
    assert parse_recipe(file.read_text()).steps[0].options["level"] == 0.5
    with pytest.raises(RequestError, match="File exists") as caught:
        call("write", "--model", str(toy), "--output", str(file))
    assert caught.value.fix == "give a new file in an existing folder"
