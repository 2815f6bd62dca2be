"""Operators beyond Conv and Gemm: transposed convolutions, embedding tables, weights on the left, Gemm's factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from sparsify_onnx.biases import spread_biases
from sparsify_onnx.compare import compare, matching_outputs
from sparsify_onnx.describe import describe
from sparsify_onnx.graph import initializers, producers, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.normalize import normalize
from sparsify_onnx.placement import place
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import executed
from sparsify_onnx.shapes import measure_shapes
from sparsify_onnx.tables import LARGE, round_tables, scale_tables
from sparsify_onnx.turning import turn_products
from sparsify_onnx.weight_only import WEIGHT_ONLY, round_weights

from tests.onnx import models
from tests.onnx.models import Builder
from tests.onnx.test_exclusions import error, feed, quantized
from tests.onnx.test_pruning import context, prune, stored

WORDS, WIDTH = 1200, 64


def embedder(tied: bool = False, width: int = WIDTH) -> onnx.ModelProto:
    """Look words and kinds up, add them, and give logits; `tied` reads the word table as a weight too."""
    b = Builder(0)
    x = b.op("Gather", b.weight("words", WORDS, width, scale=1.0), "input", name="look_up")
    few = b.op("Mod", "input", b.constant("two", np.array([2], dtype=np.int64)))
    x = b.op("Add", x, b.op("Gather", b.weight("kinds", 2, width, scale=1.0), few, name="look_up_kind"))
    x = b.op("ReduceMean", b.op("Relu", b.matmul(x, width, width, name="mix")), axes=[1], keepdims=0)
    if tied:
        x = b.op("Gemm", x, "words", name="again", transB=1)
    return b.model(b.gemm(x, WORDS if tied else width, 5, name="last"), ("batch", 7), kind=TensorProto.INT64)


def spread_rows(model: onnx.ModelProto) -> None:
    """Give the rows of a table sizes that differ by a factor of 100."""
    tensor = initializers(model)["words"]
    rows = numpy_helper.to_array(tensor) * np.geomspace(0.05, 5, WORDS)[:, None].astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(rows.astype(np.float32), "words"))


def test_a_large_table_is_int8_with_a_scale_a_row_and_looked_up_before_it_is_floats(tmp_path: Path) -> None:
    model = embedder()
    spread_rows(model)
    loaded, result = quantized(model, tmp_path)
    held, makers = initializers(result.value), producers(result.value)
    assert held["words"].data_type == TensorProto.INT8
    node = next(node for node in result.value.graph.node if node.name == "look_up")
    assert list(node.input) == ["words", "input"]
    assert not [name for name in node.input if name in makers]
    table = numpy_helper.to_array(initializers(loaded.value)["words"])
    restored = numpy_helper.to_array(held["words"]) * numpy_helper.to_array(held["words_row_scales"])
    assert (np.abs(restored - table).max(axis=1) <= np.abs(table).max(axis=1) / 254 * 1.001).all()
    inputs = feed(loaded.value, 60, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.05
    assert result.facts["quantized"]["look_up"] == "int8"
    assert result.facts["quantized"]["look_up_kind"] == "small table"
    wrong = np.sqrt(np.sum((restored - table) ** 2) / np.sum(table**2))
    (line,) = [line for line in result.facts["notes"] if "embeddings" in line]
    assert (
        line
        == f"embeddings: 1 looked up in INT8, a scale a row, with an error of {100 * wrong:.2g} % of its values' size"
    )


def test_the_file_and_the_parameters_follow(tmp_path: Path) -> None:
    loaded, result = quantized(embedder(), tmp_path)
    assert len(result.value.SerializeToString()) < 0.3 * len(loaded.value.SerializeToString())
    assert scale_tables(result.value) == {"words_row_scales"}
    assert describe(result).parameters == describe(loaded).parameters


def test_a_table_that_is_a_weight_too_is_rounded_for_each(tmp_path: Path) -> None:
    loaded, result = quantized(embedder(tied=True), tmp_path)
    assert result.facts["quantized"]["again"] == result.facts["quantized"]["look_up"] == "int8"
    floats = [item for item in result.value.graph.initializer if item.data_type == TensorProto.FLOAT]
    assert max(int(np.prod(item.dims)) for item in floats) == WORDS  # scales
    inputs = feed(loaded.value, 60, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.05


def test_tables_are_left_where_asked_where_small_and_where_others_read_them() -> None:
    b = Builder(0)
    x = b.op("Gather", b.weight("words", WORDS, WIDTH), "input", name="one")
    y = b.op("Gather", "words", "input", name="two")
    z = b.op("Gather", b.weight("other", WORDS, WIDTH), "input", name="three")
    w = b.op("Gather", b.weight("turned", WIDTH, WORDS), "input", name="across", axis=1)
    x = b.op("Add", b.op("Add", x, y), b.op("Add", z, b.op("ReduceSum", "other", keepdims=1)))
    x = b.op("Add", x, b.op("ReduceSum", w, keepdims=1))
    model = b.model(x, ("batch", 3), rank=3, kind=TensorProto.INT64)
    found = round_tables(model, {"two": "ignored"})
    assert found.reasons == {
        "one": "its table is read by other nodes too",
        "two": "ignored",
        "three": "its table is read by other nodes too",
    }
    assert found.notes() == ()
    assert WORDS * WIDTH >= LARGE
    again = round_tables(model, {})
    assert again.reasons["one"] == again.reasons["two"] == "int8"
    assert sum(item.name == "words_row_scales" for item in model.graph.initializer) == 1
    models.run(model, {"input": np.zeros((2, 3), np.int64)})


def test_a_row_of_zeros_stays_one() -> None:
    b = Builder(0)
    table = np.random.default_rng(0).standard_normal((WORDS, WIDTH)).astype(np.float32)
    table[3] = 0
    x = b.op("Gather", b.constant("words", table), "input", name="look_up")
    model = b.model(x, ("batch",), kind=TensorProto.INT64)
    round_tables(model, {})
    (found,) = models.run(model, {"input": np.array([3, 4])})
    assert not found[0].any()
    assert np.abs(found[1] - table[4]).max() < 0.02


def test_transposed_convolutions_keep_int8_weights_and_compute_in_floats(tmp_path: Path) -> None:
    loaded, result = quantized(models.upsampler(), tmp_path)
    names = {node.name for node in loaded.value.graph.node if node.op_type == "ConvTranspose"}
    facts = result.facts["quantized"]
    assert {name for name, reason in facts.items() if reason == WEIGHT_ONLY} == names
    held, makers = initializers(result.value), producers(result.value)
    for node in result.value.graph.node:
        if node.name in names:
            maker = makers[node.input[1]]
            integers, scales, _ = (held[name] for name in maker.input)
            assert integers.data_type == TensorProto.INT8
            assert {item.name: item.i for item in maker.attribute} == {"axis": 1}
            weight = numpy_helper.to_array(initializers(loaded.value)[f"{node.name}.weight"])
            steps = numpy_helper.to_array(scales).reshape(1, -1, 1, 1)
            assert np.abs(numpy_helper.to_array(integers) * steps - weight).max() <= steps.max() * 0.501
    floats = [item for item in result.value.graph.initializer if item.data_type == TensorProto.FLOAT]
    assert max(int(np.prod(item.dims)) for item in floats) <= 16
    described = {layer.name: layer.precision for layer in describe(result).layers}
    assert {name for name, precision in described.items() if precision == "int8 weights"} == names
    path = models.save(result.value, tmp_path, "int8.onnx")
    assert executed(path, 1) == (len(described) - len(names), len(names))
    errors = compare(loaded, result, models.dataset(loaded.value, 8), 8)
    assert min(errors.values()) > 20


def test_layers_that_share_a_kept_weight_go_on_sharing_it() -> None:
    b = Builder(0)
    x = b.op("ConvTranspose", "input", b.weight("w", 4, 4, 2, 2), name="one")
    x = b.op("ConvTranspose", x, "w", name="two")
    model = b.model(x, ("batch", 4, 3, 3), rank=4)
    before = models.run(model, models.samples(model, 2))[0]
    assert round_weights(model, ["one", "two"]) == 2
    assert {item.name for item in model.graph.initializer} == {"w_quantized", "w_scale", "w_zero_point"}
    assert error(models.run(model, models.samples(model, 2))[0], before) < 0.05


@pytest.mark.parametrize("layer", ["widen", "grow", "deepen"])
def test_transposed_convolutions_are_pruned(layer: str) -> None:
    dense = models.upsampler()
    pruned = prune(dense, context(dense), targets=layer, sparsity=0.5)
    assert np.mean(stored(pruned, f"{layer}.weight") == 0) == pytest.approx(0.5, abs=0.01)


def test_repair_helps_a_transposed_convolution() -> None:
    dense = models.upsampler()
    inputs = models.samples(dense, 40, seed=1)
    wanted = models.run(dense, inputs)[0]
    found = {}
    for refit in (False, True):
        pruned = prune(dense, context(dense), targets=("widen", "grow"), sparsity=0.6, refit=refit)
        found[refit] = error(models.run(pruned, inputs)[0], wanted)
    assert found[True] < found[False]


def test_a_transposed_convolution_keeps_the_zeros_and_the_grid_that_pruning_gave_it(tmp_path: Path) -> None:
    loaded = load(models.save(models.upsampler(), tmp_path))
    given = context(loaded.value)
    pruned = SparseGPTModifier(sparsity=0.5, round_weights=True).apply(loaded, given)
    result = QuantizationModifier(equalize=False).apply(pruned, given)
    makers, held = producers(result.value), initializers(result.value)
    nodes = {node.name: node for node in result.value.graph.node}
    for name in ("widen", "grow"):
        weight = numpy_helper.to_array(initializers(pruned.value)[f"{name}.weight"])
        integers, scales, _ = (numpy_helper.to_array(held[each]) for each in makers[nodes[name].input[1]].input)
        assert np.mean(weight == 0) == pytest.approx(0.5, abs=0.1)  # sparsity goes where it costs least
        assert not integers[weight == 0].any()
        if name == "widen":  # a group's outputs share scales with those of the others
            assert np.array_equal(scales, pruned.facts["weight_scales"][name])
            assert np.allclose(integers * scales.reshape(1, -1, 1, 1), weight, atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_a_weight_on_the_left_is_turned_around_and_runs_in_int8(axes: int, tmp_path: Path) -> None:
    b = Builder(0)
    x = b.matmul("input", 12, 16, name="first")
    x = b.matmul(x, 6, 9, left=True, name="left")
    model = b.model(b.matmul(x, 16, 5, name="last"), (*(6, 2, 3, 6)[4 - axes + 2 : 4], 6, 12)[-axes:], rank=axes)
    loaded, result = quantized(model, tmp_path, rows=60)
    assert result.facts["quantized"]["left"] == "int8"
    inputs = feed(loaded.value, loaded.value.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.05
    assert executed(models.save(result.value, tmp_path, "int8.onnx"), 1) == (3, 0)


def test_a_turned_layer_is_compared_as_it_was(tmp_path: Path) -> None:
    loaded, result = quantized(models.left_matmul(), tmp_path)
    pairs = matching_outputs(loaded.value, result.value)
    assert pairs["left"][0] == pairs["left"][1]
    assert compare(loaded, result, models.dataset(loaded.value, 8), 8)["left"] > 25
    assert {layer.name for layer in describe(result).layers} == {"first", "left", "last"}


def test_turning_needs_to_know_the_axes_and_changes_no_value() -> None:
    model = models.left_matmul()
    assert turn_products(model, {}) == 0
    assert place(model).reasons["left"] == "weight on the left"
    inputs = models.samples(model, 3)
    before = models.run(model, inputs)[0]
    assert turn_products(model, measure_shapes(model).tensors) == 1
    onnx.checker.check_model(model)
    assert np.allclose(models.run(model, inputs)[0], before, rtol=1e-5)
    assert place(model).reasons["left"] == "int8"
    assert "left.weight" not in initializers(model)


def test_a_weight_that_two_products_read_on_the_left_is_turned_once() -> None:
    b = Builder(0)
    x = b.op("MatMul", b.weight("w", 6, 6), "input", name="one")
    x = b.op("MatMul", "w", x, name="two")
    model = b.model(x, ("batch", 6, 4), rank=3)
    inputs = models.samples(model, 3)
    before = models.run(model, inputs)[0]
    assert turn_products(model, measure_shapes(model).tensors) == 2
    assert len(model.graph.initializer) == 1
    assert np.allclose(models.run(model, inputs)[0], before, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.25, 3.0]),
    turned=st.booleans(),
    shape=st.sampled_from([None, (), (1,), (5,), (1, 1), (1, 5)]),
)
def test_gemm_has_no_factors_and_one_bias_an_output(
    alpha: float, beta: float, turned: bool, shape: tuple[int, ...] | None
) -> None:
    b = Builder(0)
    held = [b.weight("w", *((5, 6) if turned else (6, 5)))]
    held += [] if shape is None else [b.constant("b", np.full(shape, 2, np.float32))]
    facts: dict[str, Any] = {"alpha": alpha, "beta": beta, "transB": int(turned)}
    model = b.model(b.op("Gemm", "input", *held, name="only", **facts), ("batch", 6))
    inputs = models.samples(model, 4)
    before = models.run(model, inputs)[0]
    after, _ = normalize(model)
    onnx.checker.check_model(after)
    assert np.allclose(models.run(after, inputs)[0], before, rtol=1e-4, atol=1e-5)
    assert place(after).reasons == {"only": "int8"}
    (layer,) = weight_layers(after)
    assert layer.bias is None or list(initializers(after)[layer.bias].dims) == [5]
    assert {layer.attributes.get(factor, 1.0) for factor in ("alpha", "beta")} == {1.0}


def test_a_gemm_whose_second_term_is_an_activation_says_why_it_stays() -> None:
    b = Builder(0)
    x = b.op("Gemm", "input", b.weight("w", 6, 6), "input", name="odd", beta=0.5)
    model, _ = normalize(b.model(x, ("batch", 6)))
    assert place(model).reasons == {"odd": "Gemm with factors"}


@pytest.mark.parametrize("group", [2, 4, 8])
def test_grouped_convolutions_run_in_int8_and_are_pruned(group: int, tmp_path: Path) -> None:
    b = Builder(0)
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    x = b.op("Relu", b.conv(x, 8, 16, group=group, name="grouped"))
    model = b.model(b.head(x, 16, 4))
    loaded, result = quantized(model, tmp_path)
    assert executed(models.save(result.value, tmp_path, "int8.onnx"), 1) == (3, 0)
    (reason,) = [layer.reason for layer in weight_layers(loaded.value) if layer.name == "grouped"]
    assert reason == ("depthwise convolution" if group == 8 else "")
    pruned = prune(model, context(model), sparsity=0.5)
    assert np.mean(stored(pruned, "grouped.weight") == 0) == pytest.approx(0.0 if group == 8 else 0.5, abs=0.01)


def fixed(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Give a model a batch size that nothing can change, so that every shape is known."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def test_products_run_in_int8_where_all_sizes_are_known_too(tmp_path: Path) -> None:
    counts = []
    for model in (models.attention(), fixed(models.attention(), 2)):
        loaded, result = quantized(model, tmp_path)
        counts.append(executed(models.save(result.value, tmp_path, "int8.onnx"), 1))
        inputs = feed(loaded.value, 2, seed=1)
        assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.08
    assert counts == [(8, 2), (8, 2)]  # products of activations stay float


def test_a_bias_gets_the_axes_of_its_product_alone() -> None:
    model = models.attention()
    inputs = models.samples(model, 2)
    before = models.run(model, inputs)[0]
    assert spread_biases(model, {}) == 0
    assert spread_biases(model, measure_shapes(model).tensors) == 7
    assert list(initializers(model)["up.bias"].dims) == [1, 1, 32]
    assert list(initializers(model)["head.bias"].dims) == [5]
    assert np.array_equal(models.run(model, inputs)[0], before)
    assert spread_biases(model, measure_shapes(model).tensors) == 0


def test_products_of_batched_weights_are_listed_with_the_reason() -> None:
    b = Builder(0)
    x = b.op("MatMul", "input", b.weight("w", 3, 6, 5), name="batched")
    assert place(b.model(x, (3, 4, 6), rank=3)).reasons == {"batched": "batched weight"}


def test_one_dimensional_convolutions_are_covered(tmp_path: Path) -> None:
    b = Builder(0)
    held = [b.weight("w", 8, 4, 3), b.weight("b", 8, scale=0.1)]
    x = b.op("Relu", b.op("Conv", "input", *held, name="one", kernel_shape=[3]))
    x = b.op("Conv", x, b.weight("v", 4, 8, 3), name="two", kernel_shape=[3])
    model = b.model(x, ("batch", 4, 20), rank=3)
    loaded, result = quantized(model, tmp_path)
    assert executed(models.save(result.value, tmp_path, "int8.onnx"), 1) == (2, 0)
    inputs = feed(loaded.value, 40, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.05
