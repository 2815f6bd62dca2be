"""The training recipe's sparsity by layer: one-shot's spread, which holds over all prunable weights together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify import Context, Dataset, Recipe, Sample, Step, dump_recipe, load_recipe, make_experiment
from sparsify.cli.app import main
from sparsify_onnx import FORMAT, layer_shares
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_torch.recipe import write
from sparsify_torch.spreading import by_layer

from tests.onnx import models

OPTIONS = {"params": ["__ALL_PRUNABLE__"], "init_sparsity": 0.05, "final_sparsity": 0.7, "start_epoch": 0.0}


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 0.98), min_size=1))
def test_every_layer_gets_its_share_and_those_that_were_not_measured_the_overall_one(shares: dict[str, float]) -> None:
    names = list("abcdefgh")
    written = by_layer(OPTIONS, shares, names)
    found = {name: share for share, group in written["final_sparsity"].items() for name in group}
    for name in names:
        wanted = round(shares.get(name, 0.7), 4)
        assert found.get(name, 0.0) == wanted  # a layer without zeros is not pruned at all
    assert written["params"] == []
    assert written["init_sparsity"] <= min(written["final_sparsity"])


def test_a_recipe_by_layer_reads_back_as_it_was_written(tmp_path: Path) -> None:
    options = by_layer(
        {**OPTIONS, "end_epoch": 9.0, "update_frequency": 0.3}, {"a.weight": 0.61}, ["a.weight", "b.weight"]
    )
    recipe = Recipe((Step("MagnitudePruningModifier", "training", options, "pruning_modifiers"),))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (step,) = load_recipe(tmp_path / "recipe.yaml").steps
    assert step.options["final_sparsity"] == {0.61: ["a.weight"], 0.7: ["b.weight"]}


@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_shares_are_those_that_one_shot_prunes_to(tmp_path: Path, cost: str) -> None:
    model = FORMAT.load(models.save(models.residual_net(), tmp_path))
    inputs = models.samples(model.value, 32)
    rows = [Sample({name: array[row] for name, array in inputs.items()}) for row in range(32)]
    context = Context(Dataset(tuple(map(str, range(32))), lambda key: rows[int(key)]), threads=1)
    shares = layer_shares(model, 0.6, cost, context, "unstructured")
    pruned = SparseGPTModifier(sparsity=0.6, allocation=cost).apply(model, context)
    zeros = {layer.name: layer.sparsity for layer in FORMAT.describe(pruned).layers}
    weights = {node.name: node.input[1] for node in model.value.graph.node if len(node.input) > 1}
    assert shares
    for name, zero in zeros.items():
        if weights[name] in shares:
            assert zero == pytest.approx(shares[weights[name]], abs=0.02)
    assert np.ptp(list(shares.values())) > 0


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    kept: dict[str, dict[str, object]] = {}

    class Kept:
        def load(self, name: str) -> dict[str, object] | None:
            return kept.get(name)

        def save(self, name: str, arrays: dict[str, object]) -> None:
            kept[name] = arrays

    model = FORMAT.load(models.save(models.mlp(), tmp_path))
    inputs = models.samples(model.value, 16)
    rows = [Sample({name: array[row] for name, array in inputs.items()}) for row in range(16)]
    context = Context(Dataset(tuple(map(str, range(16))), lambda key: rows[int(key)]), threads=1)
    first = layer_shares(model, 0.6, "parameters", replace(context, checkpoint=Kept()), "unstructured")  # type: ignore[arg-type]
    none = replace(context, calibration=Dataset((), rows.__getitem__), checkpoint=Kept())  # type: ignore[arg-type]
    assert layer_shares(model, 0.6, "parameters", none, "unstructured") == first


def test_a_block_structure_is_written_with_one_share_for_all_until_it_is_measured(tmp_path: Path) -> None:
    model = FORMAT.load(models.save(models.residual_net(), tmp_path))
    asked = {"kind": "training-aware", "use_case": "image-classification", "model": "m", "data": "d"}
    for structure, share in (("unstructured", 0.7), ("1x4", 0.7), ("2:4", 0.5)):
        experiment = make_experiment({**asked, "sparsity": structure})
        (step,) = [step for step in write(experiment, FORMAT.describe(model)).steps if "Pruning" in step.name]
        assert step.name == "MagnitudePruningModifier"
        assert step.options["final_sparsity"] == share


def test_the_training_recipe_is_written_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(models.save(models.residual_net(), tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["recipe", "write", "--kind", "training-aware", "--model", path, "--optim-level", "0.5"])
    assert ended.value.code == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    names = [step.name for step in load_recipe(tmp_path / "recipe.yaml").steps]
    assert names == ["EpochRangeModifier", "MagnitudePruningModifier", "QuantizationModifier", "DistillationModifier"]
