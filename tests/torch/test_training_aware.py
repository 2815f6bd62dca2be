"""`sparsify run training-aware` from the command line: trained, exported, verified, and as small as was asked."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import onnx
import pytest
from sparsify import Step, load_recipe
from sparsify.cli.app import main
from sparsify_image_classification.demo import write_demo

NETWORK = """
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "tiny_network.py").write_text(dedent(NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    _, data = write_demo(tmp_path / "demo")
    fixed = ["run", "training-aware", "--use-case", "image-classification", "--model", "tiny_network:net"]
    return [*fixed, "--data", str(data), "--threads", "1", "--output", str(tmp_path / "run")]


def ends(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_model_is_trained_to_the_sparsity_and_the_precision_that_the_level_asks_for(
    request_: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--train-kwargs", '{"epochs": 4, "image_size": 8, "batch_size": 32, "lr": 0.1}']
    options += ["--max-drop", "none", "--json"]
    code = ends([*request_, *options])
    metrics = json.loads(capsys.readouterr().out)
    assert code in (0, 6)  # so small a model may be no faster
    assert metrics["kind"] == "training-aware"
    assert metrics["optimized"]["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert metrics["optimized"]["quantized"] == {"int8": 4, "of": 4}
    accuracy = {side: metrics[side]["metrics"]["accuracy"] for side in ("baseline", "optimized")}
    assert accuracy["baseline"] > 60  # random weights are trained dense first
    assert accuracy["optimized"] > accuracy["baseline"] - 5
    run = tmp_path / "run"
    assert (run / "training_artifacts" / "dense.onnx").is_file()
    assert (run / "training_artifacts" / "last.pt").is_file()
    recipe = (run / "recipe.yaml").read_text()
    for name in ("MagnitudePruningModifier", "QuantizationModifier", "DistillationModifier"):
        assert f"!{name}" in recipe
    _, shares = spread_of(run)
    assert shares.keys() == {"3.weight", "6.weight"}  # neither the first layer nor the last
    zeros = {layer["shape"][1]: layer["sparsity"] for layer in metrics["layers"][1:3]}  # by their inputs, 16 and 32
    assert zeros == pytest.approx({16: shares["3.weight"], 32: shares["6.weight"]}, abs=1e-3)
    (taught,) = [step for step in load_recipe(run / "recipe.yaml").steps if step.name.startswith("PerLayer")]
    assert (taught.options["student_layer_names"], taught.options["gain"]) == (["3", "6"], 7.5)
    graph = onnx.load(run / "deployment" / "model.onnx").graph
    assert not any("fake" in node.op_type.lower() for node in graph.node)


def spread_of(run: Path) -> tuple[Step, dict[str, float]]:
    """Read the pruning of a run's recipe, and the sparsity of each weight in it."""
    (step,) = [step for step in load_recipe(run / "recipe.yaml").steps if step.name == "MagnitudePruningModifier"]
    final = step.options["final_sparsity"]
    return step, {name: share for share, names in final.items() for name in names}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--train-kwargs", '{"epochs": 0}'], "epochs"),
        (["--train-kwargs", '{"learning_rate": 1}'], "learning_rate"),
        (["--use-case", "custom:mine"], "custom use case"),
    ],
)
def test_requests_that_cannot_be_are_refused(
    options: list[str], error: str, request_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends([*request_, *options]) == 2
    told = capsys.readouterr().err
    assert error in told
    assert "\nfix: " in told


@pytest.mark.parametrize(
    ("fields", "epochs", "error"),
    [
        ("params: [3.wight]", 4, "'3.wight' matches none"),
        ("params: [3.weight]", 2, "2 epochs, the recipe runs to epoch 3"),
        ("params: [3.weight], mask_type: '2:4'", 4, "2:4 zeros 0.5 of the weights"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_the_dense_model_is_trained(
    fields: str, epochs: int, error: str, request_: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The weights are random, so hours of training could come first; the mended command may name the same folder."""
    rest = "init_sparsity: 0.05, final_sparsity: 0.7, start_epoch: 0, end_epoch: 3, update_frequency: 1"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"modifiers:\n- !GMPruningModifier {{{fields}, {rest}}}\n")
    kwargs = json.dumps({"epochs": epochs, "image_size": 8})
    assert ends([*request_, "--recipe", str(recipe), "--train-kwargs", kwargs]) == 2
    told = capsys.readouterr()
    assert error in told.err
    assert "epoch 1/" not in told.out + told.err
    assert not (tmp_path / "run").exists()
