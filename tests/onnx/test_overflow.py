"""`reduce_range`: INT8 weights whose products no x86 CPU can overflow, and what that costs.

The reference is the arithmetic itself in NumPy: `vpmaddubsw` multiplies uint8 by int8 and adds two neighbouring
products into a saturating int16, `vpmaddwd` adds two of those into int32. CPUs without VNNI compute INT8 layers so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import BaseModel
from sparsify import Context, Description, Layer, Model, make_experiment
from sparsify_onnx.columns import column_order
from sparsify_onnx.cpu import accuracy_note, saturates
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.graph import WeightLayer, initializers, producers, to_matrix, weight_layers
from sparsify_onnx.layerwise import in_blocks
from sparsify_onnx.loader import load
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.recipe import write
from sparsify_onnx.rounding import LARGEST, REDUCED
from sparsify_onnx.smoothing import SmoothQuantModifier

from tests.onnx import models

INT16 = np.iinfo(np.int16)
Integers = NDArray[np.int64]
RECIPES: dict[str, tuple[BaseModel, ...]] = {
    "feedback": (QuantizationModifier(reduce_range=True),),
    "nearest": (QuantizationModifier(reduce_range=True, feedback=False, equalize=False),),
    "least squares": (QuantizationModifier(reduce_range=True, weight_scale="mse", learned_rounding=True),),
    "pruned onto the grid": (
        SparseGPTModifier(sparsity=0.5, round_weights=True, reduce_range=True),
        QuantizationModifier(reduce_range=True),
    ),
    "pruned onto the wide grid": (
        SparseGPTModifier(sparsity=0.5, round_weights=True),
        QuantizationModifier(reduce_range=True),
    ),
}


def pairs_in_int16(activations: Integers, weights: Integers) -> Integers:
    """Multiply rows × inputs by outputs × inputs as AVX2 does: int16 saturates, int32 holds."""
    odd = activations.shape[1] % 2
    x, w = (np.pad(values, ((0, 0), (0, odd))) for values in (activations, weights))
    products = x[:, None, :] * w[None]
    sums = np.clip(products[..., ::2] + products[..., 1::2], INT16.min, INT16.max)
    return np.asarray(sums.sum(axis=-1))


def worst_activations(weights: Integers) -> Iterator[Integers]:
    """Yield for each output the activations that drive its sum highest and lowest."""
    yield 255 * (weights > 0)
    yield 255 * (weights < 0)


def overflows(weights: Integers) -> bool:
    """Say whether any two weights of an output, in whatever order a kernel packs them, can leave int16."""
    one, other = np.triu_indices(weights.shape[1], 1)
    highest, lowest = 255 * weights.clip(0), 255 * weights.clip(None, 0)
    sums = np.concatenate([side[:, one] + side[:, other] for side in (highest, lowest)])
    return bool((sums > INT16.max).any() or (sums < INT16.min).any())


@cache
def network(name: str) -> Model:
    with TemporaryDirectory() as folder:
        return load(models.save(models.FAMILY[name](), Path(folder)))


def context(model: onnx.ModelProto, **more: Any) -> Context:
    return Context(models.dataset(model, 24), batch_size=8, threads=1, **more)


def apply(model: Model, recipe: tuple[Any, ...], **more: Any) -> Model:
    for modifier in recipe:
        model = modifier.apply(model, context(model.value, **more))
    return model


def integers(before: Model, after: Model) -> dict[str, tuple[WeightLayer, Integers]]:
    """Read outputs × inputs of every layer that computes with integers, in the file's order of columns."""
    held, makers = initializers(after.value), producers(after.value)
    nodes = {node.name: node for node in after.value.graph.node}
    found = {}
    for layer in weight_layers(before.value):
        node = nodes[layer.name]
        maker = makers.get(node.input[1])
        if after.facts["quantized"][layer.name] == "int8" and maker is not None:
            weight = numpy_helper.to_array(held[maker.input[0]])
            stored = weight.T if layer.weight_input == 0 else weight  # a weight on the left was turned around
            found[layer.name] = (layer, to_matrix(layer, stored.astype(np.float32)).astype(np.int64))
    assert found
    return found


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", models.FAMILY)
def test_no_two_weights_overflow_whatever_the_activations(name: str, recipe: tuple[Any, ...]) -> None:
    before = network(name)
    for layer, weights in integers(before, apply(before, recipe)).values():
        assert np.abs(weights).max() <= REDUCED
        assert not overflows(weights)
        for order in (slice(None), column_order(layer)):  # kernels pack a window channel first or position first
            packed = weights[:, order]
            for worst in worst_activations(packed):
                for x, row in zip(worst, packed, strict=True):
                    exact = x @ row
                    assert pairs_in_int16(x[None], row[None]).item() == exact


@cache
def in_integers(name: str) -> dict[str, tuple[WeightLayer, Integers]]:
    return integers(network(name), apply(network(name), RECIPES["feedback"]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_layers_sums_are_exact(seed: int) -> None:
    random = np.random.default_rng(seed)
    for layer, weights in in_integers("conv_net").values():
        x = random.choice([0, 1, 127, 254, 255], size=(4, weights.shape[1]))
        for order in (slice(None), column_order(layer), random.permutation(weights.shape[1])):
            assert np.array_equal(pairs_in_int16(x, weights[:, order]), x @ weights[:, order].T)


def test_without_the_option_pairs_do_overflow() -> None:
    """The emulation sees it: 255 · (127 + 127) is more than int16 holds, and a layer's sum comes out wrong."""
    before = network("conv_net")
    wrong = 0
    for _, weights in integers(before, apply(before, (QuantizationModifier(),))).values():
        assert np.abs(weights).max() == LARGEST
        for worst in worst_activations(weights):
            wrong += sum(
                pairs_in_int16(x[None], row[None]).item() != x @ row for x, row in zip(worst, weights, strict=True)
            )
    assert wrong > 0


def test_the_bound_is_the_largest_that_is_safe() -> None:
    rows = np.array([[REDUCED, REDUCED], [-REDUCED, -REDUCED]])
    assert not overflows(rows)
    assert overflows(rows + 1)
    assert overflows(rows - 1)
    for pair in permutations((REDUCED + 1, REDUCED)):
        assert overflows(np.array([pair]))


@pytest.mark.parametrize("name", models.FAMILY)
def test_one_bit_less_costs_little(name: str) -> None:
    """On this CPU, whatever it is, ONNX Runtime's output stays near the float model's."""
    before = network(name)
    inputs = models.samples(before.value, 200, seed=1)
    dense = models.run(before.value, inputs)[0]

    def error(**options: Any) -> float:
        found = models.run(apply(before, (QuantizationModifier(**options),)).value, inputs)[0]
        return float(np.sqrt(np.mean((found - dense) ** 2) / np.mean(dense**2)))

    narrow = error(reduce_range=True)
    assert narrow < 0.05
    assert narrow < 2.5 * error()  # steps are twice as large for weights, and as they were for activations


def test_pruned_weights_stay_zero_and_on_their_grid() -> None:
    before = EqualizationModifier().apply(network("conv_net"), context(network("conv_net").value))
    pruned = apply(before, (SparseGPTModifier(sparsity=0.5, round_weights=True, reduce_range=True),))
    result = apply(pruned, (QuantizationModifier(reduce_range=True),))
    held = initializers(pruned.value)
    for name, (layer, weights) in integers(pruned, result).items():
        floats = to_matrix(layer, numpy_helper.to_array(held[layer.weight]))
        assert not weights[floats == 0].any()
        if name in pruned.facts["weight_scales"]:  # taken as pruning left them
            scales = pruned.facts["weight_scales"][name]
            assert np.allclose(weights * scales[:, None], floats, atol=1e-6)


def test_layers_solved_in_blocks_keep_the_bound() -> None:
    model = network("mlp")
    pruning = SparseGPTModifier(sparsity=0.5, round_weights=True, reduce_range=True)
    given = context(model.value, memory=4000)
    assert any(in_blocks(layer, given) for layer in weight_layers(model.value) if layer.prunable)
    pruned = pruning.apply(model, given)
    for name, scales in pruned.facts["weight_scales"].items():
        layer = next(layer for layer in weight_layers(pruned.value) if layer.name == name)
        steps = to_matrix(layer, numpy_helper.to_array(initializers(pruned.value)[layer.weight])) / scales[:, None]
        assert np.abs(steps).max() <= REDUCED + 1e-3


def test_smoothed_transformers_keep_the_bound() -> None:
    before = network("attention")
    after = apply(before, (SmoothQuantModifier(), QuantizationModifier(reduce_range=True)))
    for _, weights in integers(before, after).values():
        assert np.abs(weights).max() <= REDUCED


class Disk:
    """Keep arrays in memory, as the run folder keeps them on disk."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        return self.held.get(name)

    def save(self, name: str, arrays: Any) -> None:
        self.held[name] = {key: np.copy(array) for key, array in arrays.items()}


def test_a_resumed_run_writes_the_same_bytes_and_the_option_is_part_of_what_is_resumed() -> None:
    before, disk = network("residual_net"), Disk()
    first = apply(before, RECIPES["feedback"], checkpoint=disk)
    again = apply(before, RECIPES["feedback"], checkpoint=disk)
    assert first.value.SerializeToString(deterministic=True) == again.value.SerializeToString(deterministic=True)
    wide = apply(before, (QuantizationModifier(),), checkpoint=disk)
    assert max(np.abs(weights).max() for _, weights in integers(before, wide).values()) == LARGEST


# What is told, and which CPUs get it


@pytest.mark.parametrize(
    ("features", "unsafe"),
    [
        (("avx2",), True),
        (("avx2", "avx512f"), True),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512f", "avx512_vnni"), False),
        (("asimddp", "i8mm"), False),
        ((), False),
    ],
)
@pytest.mark.parametrize("level", [0.2, 0.5])
def test_a_generated_recipe_has_it_where_this_cpu_saturates(
    features: tuple[str, ...], unsafe: bool, level: float
) -> None:
    layer = Layer("conv", "Conv", (8, 8, 3, 3), 576, 1, 0.0, "float32", True)
    experiment = make_experiment(
        {"kind": "one-shot", "use_case": "ic", "model": "m.onnx", "data": "d", "optim_level": level}
    )
    recipe = write(experiment, Description((), (), (layer,), 576, 0, 1), features)
    asked = {step.name: step.options.get("reduce_range") for step in recipe.steps}
    rounding = asked.keys() & {"SparseGPTModifier", "QuantizationModifier"}
    assert {asked[name] for name in rounding} == {True if unsafe else None}
    assert saturates(features) == unsafe


def test_the_report_says_for_which_cpus_the_accuracy_holds() -> None:
    old, new = ("avx2",), ("avx2", "avx512_vnni")
    assert accuracy_note(REDUCED, old) == (
        "weights in -64..64: this CPU has no VNNI, where pairs of larger ones would saturate; "
        "the accuracy holds on x86 CPUs with and without VNNI"
    )
    assert accuracy_note(REDUCED, new) == (
        "weights in -64..64: no pair saturates; the accuracy holds on x86 CPUs with and without VNNI"
    )
    assert "set QuantizationModifier's `reduce_range`" in accuracy_note(LARGEST, old)
    assert "(avx2, avx512_vnni); for x86 CPUs without VNNI use `reduce_range`" in accuracy_note(LARGEST, new)
    notes = apply(network("mlp"), RECIPES["feedback"]).facts["notes"]
    assert sum(line.startswith("weights in -64..64: ") for line in notes) == 1
