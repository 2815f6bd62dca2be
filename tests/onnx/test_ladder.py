"""The rescue ladder: its order, what it keeps, where it stops, and real models that need all or nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import sparsify as api
from onnx import numpy_helper
from sparsify import Model, Recipe, Step
from sparsify_onnx import ladder
from sparsify_onnx.attempts import Attempt
from sparsify_onnx.graph import initializers, write_initializer

from tests.onnx import models

GROUP = "post_training_modifiers"
PRUNED = Recipe(
    (
        Step("SparseGPTModifier", "post-training", {"sparsity": 0.6}, GROUP),
        Step("QuantizationModifier", "post-training", {}, GROUP),
    )
)
INT8 = Recipe(PRUNED.steps[1:])
Judge = Callable[[Recipe], Mapping[str, float]]


class Talk:
    """Say nothing."""

    def say(self, line: str) -> None: ...
    def event(self, kind: str, **facts: Any) -> None: ...


@dataclass
class Loaded:
    model: Model


@dataclass
class Fake:
    """Stand for core's Search: a recipe's figures come from a function, a model is its recipe."""

    judge: Judge
    allowed: int = 1000
    loaded: Loaded = field(default_factory=lambda: Loaded(Model("onnx", models.mlp())))
    talk: Talk = field(default_factory=Talk)
    context: Any = None
    rungs: list[dict[str, Any]] = field(default_factory=list)
    stored: list[Model] = field(default_factory=list)
    tried: list[Recipe] = field(default_factory=list)

    def expired(self, seconds: float) -> bool:
        return len(self.tried) >= self.allowed

    def apply(self, recipe: Recipe) -> Model:
        self.tried.append(recipe)
        facts = {
            "pruned": {"first": {"sparsity": 0.6}, "second": {"sparsity": 0.6}},
            "quantized": {"first": "int8", "second": "int8", "third": "no constant weight"},
        }
        return Model(
            "onnx", recipe, facts if option(recipe, "SparseGPTModifier", "sparsity") else {**facts, "pruned": {}}
        )

    def measure(self, recipe: Recipe, model: Model) -> dict[str, float]:
        base = {"noise": 0.0, "budget": 1.0, "kl": -1.0, "ms": 1.0, "compressed_bytes": 9, "sparsity": 0.5}
        return {**base, **self.judge(recipe)}

    def store(self, model: Model) -> Path:
        self.stored.append(model)
        return Path("model.onnx")


def option(recipe: Recipe, name: str, key: str, default: Any = None) -> Any:
    return next((step.options.get(key, default) for step in recipe.steps if step.name == name), default)


def harms(reference: Model, candidate: Model, context: Any) -> dict[str, float]:
    return {"first": 0.1, "second": 0.9}


def climb(judge: Judge, recipe: Recipe = PRUNED, **options: Any) -> tuple[Fake, Recipe]:
    search = Fake(judge, **options)
    with mock.patch.object(ladder, "drifts_alone", harms):
        found, model = ladder.rescue(search, recipe)  # type: ignore[arg-type]
    assert search.stored[-1] is model
    assert model.value == found
    return search, found


def test_what_meets_the_budget_is_left_as_asked() -> None:
    search, found = climb(lambda recipe: {"points": 0.4})
    assert found == PRUNED
    assert [(rung["name"], rung["kept"], rung["meets"]) for rung in search.rungs] == [("as asked", True, True)]


def test_rungs_come_in_their_order_and_what_brings_nothing_is_dropped() -> None:
    search, found = climb(lambda recipe: {"points": 5.0})
    names = list(dict.fromkeys(rung["name"] for rung in search.rungs))
    assert names == ["as asked", "ranges", "learned rounding", "denser", "in float", "lower level"]
    assert [rung["kept"] for rung in search.rungs] == [True] + [False] * (len(search.rungs) - 1)
    assert found == PRUNED


def test_the_ladder_stops_at_the_first_rung_within_budget() -> None:
    search, found = climb(lambda recipe: {"points": 0.5 if option(recipe, ladder.INT8, "ranges") == "entropy" else 5.0})
    assert option(found, ladder.INT8, "ranges") == "entropy"
    assert [rung["what"] for rung in search.rungs][1:] == [
        "activation ranges by percentile 99.99", "activation ranges by entropy",
    ]  # fmt: skip
    assert search.rungs[-1]["kept"]


def test_every_rung_keeps_weights_in_the_range_that_the_recipe_asks_for() -> None:
    steps = tuple(replace(step, options={**step.options, "reduce_range": True}) for step in PRUNED.steps)
    search, _ = climb(lambda recipe: {"points": 5.0 - len(recipe.steps)}, Recipe(steps))
    assert len({rung["name"] for rung in search.rungs}) == 6
    for recipe in search.tried:
        assert all(step.options["reduce_range"] for step in recipe.steps)


def test_rungs_add_up() -> None:
    def judge(recipe: Recipe) -> dict[str, float]:
        points = 3.0
        points -= 1.2 * (option(recipe, ladder.INT8, "ranges") == "minmax")
        points -= 1.2 * bool(option(recipe, ladder.INT8, "learned_rounding"))
        return {"points": points}

    _, found = climb(judge)
    assert option(found, ladder.INT8, "ranges") == "minmax"
    assert option(found, ladder.INT8, "learned_rounding") is True


def test_the_most_harmful_layer_is_the_one_kept_denser() -> None:
    search, found = climb(lambda recipe: {"points": 0.9 if option(recipe, ladder.PRUNING, "layer_sparsity") else 5.0})
    assert option(found, ladder.PRUNING, "layer_sparsity") == {"second": 0.3}
    assert search.rungs[-1]["what"] == "half the sparsity in second"


def test_a_layer_in_float_must_be_worth_its_time() -> None:
    def judge(ms: float) -> Judge:
        def figures(recipe: Recipe) -> dict[str, float]:
            return {"points": 4.0, "ms": ms} if option(recipe, ladder.INT8, "ignore") else {"points": 5.0, "ms": 1.0}

        return figures

    cheap, _ = climb(judge(1.05), INT8)
    dear, found = climb(judge(1.5), INT8)
    assert next(rung["kept"] for rung in cheap.rungs if rung["name"] == "in float")
    dropped = [rung for rung in dear.rungs if rung["name"] == "in float"]
    assert dropped
    assert not any(rung["kept"] for rung in dropped)
    assert dropped[0]["why"] == "it costs 50 % of the time for 20 % of the loss"
    assert found == INT8


def test_the_highest_sparsity_within_budget_is_found_by_halving() -> None:
    def judge(recipe: Recipe) -> dict[str, float]:
        return {"points": 5 * option(recipe, ladder.PRUNING, "sparsity", 0.0)}  # 1.0 at 20 %

    search, found = climb(judge)
    assert 0.15 < option(found, ladder.PRUNING, "sparsity") <= 0.2
    assert search.rungs[-1]["name"] == "lower level"
    best = [rung for rung in search.rungs if rung["kept"]][-1]
    assert best["meets"]


def test_where_int8_alone_misses_too_the_better_one_is_kept() -> None:
    _, found = climb(lambda recipe: {"points": 5.0 if option(recipe, ladder.PRUNING, "sparsity") else 3.0})
    assert found == INT8


def test_time_cuts_the_ladder_and_the_best_so_far_stays() -> None:
    search, found = climb(lambda recipe: {"points": 5.0 - bool(option(recipe, ladder.INT8, "ranges"))}, allowed=2)
    assert len(search.tried) == 2
    assert option(found, ladder.INT8, "ranges") == "percentile"


def test_divergence_tells_where_hits_cannot() -> None:
    _, found = climb(
        lambda recipe: {
            "points": 5.0,
            "noise": 1.0,
            "kl": 0.4 if option(recipe, ladder.INT8, "ranges") == "minmax" else 0.5,
        }
    )
    assert option(found, ladder.INT8, "ranges") == "minmax"


@pytest.mark.parametrize(("points", "noise", "meets"), [(0.4, 5.0, True), (0.6, 5.0, False), (0.9, 0.05, True)])
def test_a_loss_must_fit_with_its_standard_error_or_half_the_budget(points: float, noise: float, meets: bool) -> None:
    figures = {"points": points, "noise": noise, "budget": 1.0}
    assert Attempt("", "", PRUNED, Model("onnx", None), figures, 0.0).meets is meets


def labelled(model: Any, folder: Path, count: int = 240) -> Path:
    """Write NPZ samples whose labels are what the model says."""
    feed = models.samples(model, count, seed=5)
    scores = models.run(model, feed)[0]
    (folder / "data").mkdir()
    for index in range(count):
        inputs = {name: array[index] for name, array in feed.items()}
        np.savez(folder / "data" / f"{index:04d}.npz", **inputs, label=np.int64(scores[index].argmax()))
    return folder / "data"


def run(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    data = labelled(model, folder)
    path = models.save(model, folder)
    result = api.one_shot(
        model=path, data=data, use_case="custom:x", output=folder / "run", quiet=True, threads=1, **options
    )
    return dict(result.metrics)


def test_a_model_that_needs_nothing_gets_nothing(tmp_path: Path) -> None:
    metrics = run(models.conv_net(), tmp_path, optim_level=0.2, max_drop="30")
    assert [rung["name"] for rung in metrics["rungs"]] == ["as asked"]


def saturated() -> Any:
    """Blow one channel up by 3,000 where equalizing cannot follow it: behind a Sigmoid-gated product."""
    b = models.Builder(0)
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    gate = np.ones((1, 8, 1, 1), np.float32)
    gate[0, 0] = 3000.0
    x = b.op("Mul", x, b.constant("gate", gate))
    x = b.op("Relu", b.conv(x, 8, 16, name="middle"))
    x = b.op("Relu", b.conv(x, 16, 16, name="deep"))
    model = b.model(b.head(x, 16, 10))
    weights = numpy_helper.to_array(initializers(model)["middle.weight"]).copy()
    weights[:, 0] /= 3000.0
    write_initializer(model, "middle.weight", weights)
    return model


def test_a_model_built_to_break_is_rescued_or_says_so(tmp_path: Path) -> None:
    metrics = run(saturated(), tmp_path, optim_level=0.2, max_drop="3")
    first, *others = metrics["rungs"]
    assert not first["meets"]
    assert others
    kept = [rung for rung in metrics["rungs"] if rung["kept"]]
    assert kept[-1]["meets"]
    assert kept[-1]["points"] < first["points"]
    assert kept[-1]["kl"] < first["kl"]
    # whatever the verdict, the file on disk is that of the last rung kept
    assert metrics["optimized"]["compressed_bytes"] == kept[-1]["compressed_bytes"]
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "ignore" in recipe
    assert "middle" in recipe  # the layer that reads the saturated tensor, found by measuring
