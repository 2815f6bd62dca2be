"""Where sparsity goes: the knapsack against brute force, and the spread on models with one delicate layer."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from sparsify import Context, Model, RequestError
from sparsify_onnx import allocation
from sparsify_onnx.allocation import BINS, KNOTS, OPTIONS, knapsack
from sparsify_onnx.graph import initializers, weight_layers, write_initializer
from sparsify_onnx.loader import load
from sparsify_onnx.masks import Structure
from sparsify_onnx.pruning import SparseGPTModifier

from tests.onnx import models
from tests.onnx.test_pruning import Memory


def curve(random: np.random.Generator) -> np.ndarray:
    return np.sort(random.exponential(size=len(OPTIONS)) * random.exponential())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.floats(0.2, 5.0))
def test_the_knapsack_is_the_best_of_all_spreads(seed: int, sparsity: float, weight: float) -> None:
    random = np.random.default_rng(seed)
    curves, costs = [curve(random), curve(random)], [1.0, weight]
    chosen = knapsack(curves, costs, sparsity)
    found = sum(float(one[pick]) for one, pick in zip(curves, chosen, strict=True))
    removed = sum(OPTIONS[pick] * cost for pick, cost in zip(chosen, costs, strict=True)) / sum(costs)
    assert removed >= sparsity - 2 / BINS
    pairs = product(range(len(OPTIONS)), repeat=2)
    fits = [p for p in pairs if (OPTIONS[p[0]] + weight * OPTIONS[p[1]]) / (1 + weight) >= sparsity + 2 / BINS]
    best = min((curves[0][one] + curves[1][other] for one, other in fits), default=np.inf)
    assert found <= best * (1 + 1e-9)


def test_equal_layers_share_alike_and_a_steep_one_is_spared() -> None:
    flat, steep = OPTIONS**2, 100 * OPTIONS**2
    even = knapsack([flat, flat, flat], [1.0, 1.0, 1.0], 0.5)
    assert {OPTIONS[pick] for pick in even} <= {0.49, 0.5, 0.51}
    first, second = (OPTIONS[pick] for pick in knapsack([steep, flat], [1.0, 1.0], 0.45))
    assert first < 0.1 < 0.8 < second


def test_a_spread_beyond_what_layers_can_give_takes_all_they_have() -> None:
    assert [OPTIONS[pick] for pick in knapsack([OPTIONS, OPTIONS], [1.0, 2.0], 0.999)] == [OPTIONS[-1]] * 2


def delicate(tmp_path: Any) -> Model:
    """Build a net whose layer `middle` feeds a head that is a hundred times as sensitive to some of its outputs."""
    model = models.conv_net()
    tensor = initializers(model)["deep.weight"]
    weights = numpy_helper.to_array(tensor).copy()
    weights[:, 4:] *= 0.01  # deep hardly reads what comes from most of middle's channels
    write_initializer(model, "deep.weight", weights)
    return load(models.save(model, tmp_path))


def spread_of(model: Model, tmp_path: Any, **options: Any) -> tuple[dict[str, float], list[str], Memory]:
    told: list[str] = []
    memory = Memory()
    context = Context(models.dataset(model.value, 64), threads=1, note=told.append, checkpoint=memory)
    modifier = SparseGPTModifier(sparsity=0.5, allocation="parameters", **options)
    result = modifier.apply(model, context)
    return {name: facts["sparsity"] for name, facts in result.facts["pruned"].items()}, told, memory


def test_the_overall_sparsity_holds_and_is_told(tmp_path: Any) -> None:
    model = delicate(tmp_path)
    shares, told, _ = spread_of(model, tmp_path)
    sizes = {layer.name: int(np.prod(layer.shape)) for layer in weight_layers(model.value)}
    overall = sum(shares[name] * sizes[name] for name in shares) / sum(sizes[name] for name in shares)
    assert overall == pytest.approx(0.5, abs=0.01)
    if len(set(shares.values())) > 1:
        assert any("sparsity spread over 2 layers by measured sensitivity" in line for line in told)


def test_a_resumed_run_takes_the_spread_as_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = delicate(tmp_path)
    shares, _, memory = spread_of(model, tmp_path)
    monkeypatch.setattr(allocation, "output_curves", pytest.fail)
    context = Context(models.dataset(model.value, 64), threads=1, checkpoint=memory)
    again = SparseGPTModifier(sparsity=0.5, allocation="parameters").apply(model, context)
    assert {name: facts["sparsity"] for name, facts in again.facts["pruned"].items()} == shares


def test_single_layers_can_be_set_and_unknown_ones_are_refused(tmp_path: Any) -> None:
    model = delicate(tmp_path)
    shares, _, _ = spread_of(model, tmp_path, layer_sparsity={"deep": 0.125})
    assert shares["deep"] == pytest.approx(0.125, abs=1e-3)
    with pytest.raises(RequestError, match="layer_sparsity: 'dep' is none of the 2 layers that are pruned") as caught:
        spread_of(model, tmp_path, layer_sparsity={"dep": 0.5})
    assert caught.value.fix == "use a layer's name, such as deep, middle"


def test_n_of_m_leaves_nothing_to_spread(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "output_curves", pytest.fail)
    shares, _, _ = spread_of(delicate(tmp_path), tmp_path, mask_structure="2:4")
    assert set(shares.values()) == {0.5}


@pytest.mark.parametrize("cost", ["macs", "time"])
def test_other_costs_spread_too(tmp_path: Any, cost: str) -> None:
    model = load(models.save(models.fire_net(), tmp_path))
    kept = Memory()
    context = Context(models.dataset(model.value, 32), threads=1, kept=kept)
    result = SparseGPTModifier(sparsity=0.5, allocation=cost).apply(model, context)
    assert 0.2 < np.mean([facts["sparsity"] for facts in result.facts["pruned"].values()]) < 0.8
    assert ("layer-times" in kept.held) == (cost == "time")


def test_curves_rise_from_zero_and_pass_through_what_was_measured() -> None:
    errors = np.array([0.1, 0.2, 0.5, 1.0, 3.0, 8.0, 20.0])
    found = allocation._interpolate(errors)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    places = [round(100 * knot) for knot in KNOTS]
    np.testing.assert_allclose(found[places], errors, rtol=1e-9)
    assert not allocation._interpolate(np.zeros(7)).any()


def test_a_model_is_left_as_it_was(tmp_path: Any) -> None:
    model = delicate(tmp_path)
    before = model.value.SerializeToString(deterministic=True)
    spread_of(model, tmp_path)
    assert model.value.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model.value)


def test_sweeping_few_copies_at_once_gives_the_same_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """All knots are swept at once where memory allows, each alone where it does not."""
    model = models.residual_net()
    layers = [layer for layer in weight_layers(model) if layer.prunable]
    given = Context(models.dataset(model, 40), threads=1)

    def curves(most: int) -> list[tuple[np.ndarray, np.ndarray]]:
        monkeypatch.setattr(allocation, "SWEPT_BYTES", most)
        found = allocation.layer_errors(model, layers, Structure(), given, {}, 3)
        return [(errors, weights) for _, errors, weights in found]

    copies = 2 * 8 * int(np.prod(layers[0].shape))
    whole, alone, some = curves(1 << 30), curves(0), curves(3 * copies)
    for others in (alone, some):
        for (errors, weights), (expected, kept) in zip(others, whole, strict=True):
            np.testing.assert_allclose(errors, expected, rtol=1e-9)
            np.testing.assert_allclose(weights, kept, atol=1e-6)
