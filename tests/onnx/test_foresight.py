"""What is said before the work: zeros that bring nothing, and a speed that is out of reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sparsify import Recipe, Step
from sparsify.cli.app import main
from sparsify_onnx.foresight import rehearsal, scatters

from tests.onnx import models


def step(name: str, **options: object) -> Step:
    return Step(name, "post-training", options, "post_training_modifiers")


def test_a_rehearsal_has_the_same_zeros_and_layers_and_no_solver() -> None:
    full = Recipe(
        (
            step("EqualizationModifier"),
            step("SparseGPTModifier", sparsity=0.6, mask_structure="1x4", ignore=["a"], round_weights=True),
            step("SmoothQuantModifier"),
            step("QuantizationModifier", ignore=["b"], learned_rounding=True),
        )
    )
    rough = rehearsal(full)
    assert [one.name for one in rough.steps] == ["MagnitudePruningModifier", "QuantizationModifier"]
    assert rough.steps[0].options == {"sparsity": 0.6, "mask_structure": "1x4", "ignore": ["a"]}
    assert rough.steps[1].options["ignore"] == ["b"]
    assert rough.steps[1].options["feedback"] is False


@pytest.mark.parametrize(
    ("structure", "wanted"), [(None, True), ("unstructured", True), ("1x4", False), ("2:4", False)]
)
def test_unstructured_zeros_are_recognised(structure: str | None, wanted: bool) -> None:
    options = {"sparsity": 0.5} | ({} if structure is None else {"mask_structure": structure})
    assert scatters(Recipe((step("SparseGPTModifier", **options), step("QuantizationModifier")))) is wanted
    assert not scatters(Recipe((step("QuantizationModifier"),)))


@pytest.fixture
def request_(tmp_path: Path) -> list[str]:
    model = models.mlp()
    path, data = models.save(model, tmp_path), tmp_path / "data"
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", **{name: array[0] for name, array in models.samples(model, 1, index).items()})
    fixed = ["run", "one-shot", "--use-case", "custom", "--model", str(path), "--data", str(data)]
    return [*fixed, "--max-drop", "none", "--threads", "1", "--output", str(tmp_path / "run")]


def ends(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_speed_out_of_reach_is_refused_before_the_work(
    request_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends([*request_, "--target-speedup", "1000"]) == 2
    told = capsys.readouterr().err
    assert "error: --target-speedup 1000: on onnxruntime this recipe reaches" in told
    assert "--target-speedup" in told.split("fix: ")[1]
    assert "SparseGPTModifier" not in told
    assert not Path(request_[-1]).exists()  # the mended command may name the same folder


def test_zeros_that_bring_no_speed_are_told_and_the_run_goes_on(
    request_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends([*request_, "--json"]) in (0, 6)
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("onnxruntime computes with unstructured zeros as with any other weight" in note for note in notes)


@pytest.mark.parametrize(
    ("option", "reason"),
    [("1", "greater than 1"), ("0.5", "greater than 1"), ("nan", "finite"), ("fast", "valid number")],
)
def test_a_target_that_is_none_is_refused(
    option: str, reason: str, request_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends([*request_, "--target-speedup", option]) == 2
    assert reason in capsys.readouterr().err


def test_a_target_without_a_recipe_is_refused(request_: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ends([*request_, "--target-speedup", "2", "--optim-level", "0"]) == 2
    assert "--target-speedup has no effect at --optim-level 0" in capsys.readouterr().err


def test_structured_pruning_needs_training(request_: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ends([*request_, "--sparsity", "structured"]) == 2
    told = capsys.readouterr().err
    assert "removes channels while training, which one-shot does not do" in told
    assert "sparsify run training-aware" in told
