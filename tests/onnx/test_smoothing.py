"""SmoothQuant: the function stays, outliers go, and only what reads a normalisation changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from sparsify import Context, Dataset, Model, RequestError, Sample
from sparsify.recipe import parse_recipe
from sparsify_onnx.alone import measure_alone
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.graph import initializers, weight_layers, write_initializer
from sparsify_onnx.loader import load
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import executed
from sparsify_onnx.smoothing import SmoothQuantModifier, find_factors, needs_nodes

from tests.onnx import models
from tests.onnx.models import Builder

WIDTH = 8
FORMS = ("fused", "written", "rms")
Edit = Callable[[Builder, str], str]


def norm(b: Builder, x: str, form: str, gamma: str, beta: str) -> str:
    """Normalise over the last axis, as one operator or written out."""
    if form == "fused":
        return b.op("LayerNormalization", x, gamma, beta, axis=-1)
    if form == "written":
        x = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    square = b.op("ReduceMean", b.op("Mul", x, x), axes=[-1])
    small = b.constant(f"epsilon{len(b.nodes)}", np.float32(1e-5))
    x = b.op("Div", x, b.op("Sqrt", b.op("Add", square, small)))
    x = b.op("Mul", gamma, x)
    return b.op("Add", x, beta) if form == "written" else x


def scales(b: Builder, name: str, spread: float = 1.0) -> tuple[str, str]:
    """Draw the scale and shift of a norm; one channel is `spread` times as wide."""
    gamma = b.random.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    gamma[1] *= spread
    return b.constant(f"{name}.gamma", gamma), b.weight(f"{name}.beta", WIDTH, scale=0.1)


def block(
    form: str = "fused",
    *,
    post: bool = False,
    shared: bool = False,
    spread: float = 1.0,
    seed: int = 0,
    length: int | str = "length",
    move: Edit = lambda b, x: x,
) -> onnx.ModelProto:
    """Build two norms with two layers and one behind them: (batch, length, width) in.

    post: the residual takes what the first norm gives; shared: both norms have the same constants.
    """
    b = Builder(seed)
    x = b.op("Relu", b.matmul("input", WIDTH, WIDTH, name="embed"))
    held = scales(b, "norm1", spread)
    y = move(b, norm(b, x, form, *held))
    left, right = (b.op("Tanh", b.matmul(y, WIDTH, WIDTH, name=name)) for name in ("left", "right"))
    x = b.op("Add", y if post else move(b, x), b.op("Mul", left, right))
    y = norm(b, x, form, *(held if shared else scales(b, "norm2", spread)))
    y = b.op("Relu", b.matmul(y, WIDTH, 2 * WIDTH, name="up"))
    x = b.op("ReduceMean", b.matmul(y, 2 * WIDTH, WIDTH, name="down"), axes=[1], keepdims=0)
    y = norm(b, x, form, *scales(b, "norm3", spread))
    return b.model(b.gemm(y, WIDTH, 5, name="head"), ("batch", length, WIDTH))


def smooth(model: onnx.ModelProto | Model, count: int = 12, **options: Any) -> Model:
    held = model if isinstance(model, Model) else Model("onnx", model)
    context = Context(models.dataset(held.value, count), batch_size=4, threads=1)
    return SmoothQuantModifier(**options).apply(held, context)


def added(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    known = {node.name for node in before.graph.node}
    return [node.op_type for node in after.graph.node if node.name not in known]


def outputs(model: onnx.ModelProto, count: int = 32) -> NDArray[np.float32]:
    return models.run(model, models.samples(model, count, seed=1))[0]


def error(model: onnx.ModelProto, of: onnx.ModelProto) -> float:
    wanted = outputs(of)
    return float(np.sqrt(np.mean((outputs(model) - wanted) ** 2) / np.mean(wanted**2)))


def held(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(initializers(model)[name])


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    post=st.booleans(),
    shared=st.booleans(),
    spread=st.sampled_from([1.0, 50.0, 1e4]),
    seed=st.integers(0, 99),
    length=st.sampled_from([6, "length"]),
    strength=st.floats(0, 1),
)
def test_the_function_is_unchanged(
    form: str, post: bool, shared: bool, spread: float, seed: int, length: int | str, strength: float
) -> None:
    dense = block(form, post=post, shared=shared, spread=spread, seed=seed, length=length)
    before = dense.SerializeToString(deterministic=True)
    result = smooth(dense, smoothing_strength=strength)
    onnx.checker.check_model(result.value, full_check=True)
    assert error(result.value, dense) < 1e-4
    assert result.facts["smoothed"] == ("left", "right", "up", "head")
    assert added(dense, result.value) == (["Mul"] if post else [])
    assert dense.SerializeToString(deterministic=True) == before
    for name in ("embed.weight", "down.weight", "head.bias"):
        assert np.array_equal(held(result.value, name), held(dense, name))


def test_factors_are_those_of_the_paper_up_to_one_number() -> None:
    peaks, columns = np.array([4.0, 1.0, 0.0, 9.0], np.float32), np.array([1.0, 4.0, 1.0, 0.0], np.float32)
    found = find_factors(peaks, columns, 0.5)
    assert found[0] / found[1] == pytest.approx(2 / 0.5)
    assert found[:2].prod() == pytest.approx(1)  # around one, so that dead channels lie among the others
    assert found[2:].tolist() == [1, 1]  # no activations, no weights
    even = find_factors(peaks, columns, 1.0)
    assert peaks[0] / even[0] == pytest.approx(peaks[1] / even[1])
    assert find_factors(np.zeros(2, np.float32), np.ones(2, np.float32), 0.5).tolist() == [1, 1]


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_int8_errs_less_where_a_channel_stands_out(form: str, post: bool, tmp_path: Path) -> None:
    model = block(form, post=post, spread=60)
    for name in ("left", "right", "up", "head"):
        weight = held(model, f"{name}.weight").copy()
        weight[(..., 1) if name == "head" else 1] /= 60  # what stands out in a trained model says no more than others
        write_initializer(model, f"{name}.weight", weight)
    dense = load(models.save(model, tmp_path))
    context = Context(models.dataset(dense.value, 64), batch_size=8, threads=1)
    plain = QuantizationModifier(equalize=False).apply(dense, context)
    for result in (
        QuantizationModifier(equalize=False).apply(smooth(dense, 64), context),
        *(() if post else (QuantizationModifier().apply(dense, context),)),  # which smooths what costs no node
    ):
        assert error(result.value, dense.value) < 0.6 * error(plain.value, dense.value)
    counts = [executed(models.save(model.value, tmp_path, "int8.onnx"), 1) for model in (plain, result)]
    assert counts[0] == counts[1] == (6, 0)


def test_names_do_not_matter(tmp_path: Path) -> None:
    plain = block("written", post=True)
    renamed = onnx.ModelProto()
    renamed.CopyFrom(plain)
    fresh: dict[str, str] = {"input": "input"}
    for tensor in renamed.graph.initializer:
        tensor.name = fresh.setdefault(tensor.name, f"t{len(fresh)}")
    for index, node in enumerate(renamed.graph.node):
        node.name = f"n{index}"
        node.input[:] = [fresh.setdefault(name, f"t{len(fresh)}") for name in node.input]
        node.output[:] = [fresh.setdefault(name, f"t{len(fresh)}") for name in node.output]
    renamed.graph.output[0].name = fresh["logits"]
    left, right = smooth(plain).value, smooth(renamed).value
    assert [node.op_type for node in left.graph.node] == [node.op_type for node in right.graph.node]
    for name in ("left", "right", "up", "head"):
        np.testing.assert_array_equal(held(left, f"{name}.weight"), held(right, fresh[f"{name}.weight"]))


def test_a_pruned_weight_stays_zero() -> None:
    dense = block(post=True)
    zero = np.random.default_rng(0).random((WIDTH, WIDTH)) < 0.5
    write_initializer(dense, "left.weight", np.where(zero, 0, held(dense, "left.weight")).astype(np.float32))
    result = smooth(dense)
    assert np.array_equal(held(result.value, "left.weight") == 0, zero)


def test_a_channel_that_is_always_zero_stays_as_it_is() -> None:
    dense = block()
    for name in ("norm1.gamma", "norm1.beta"):
        array = held(dense, name).copy()
        array[3] = 0
        write_initializer(dense, name, array)
    result = smooth(dense)
    assert error(result.value, dense) < 1e-4
    assert np.array_equal(held(result.value, "left.weight")[3], held(dense, "left.weight")[3])


def turned(b: Builder, x: str) -> str:
    return b.op("Transpose", x, perm=[1, 0, 2])


def laid(b: Builder, x: str) -> str:
    return b.op("Reshape", x, b.constant(f"laid{len(b.nodes)}", np.array([0, -1, WIDTH], dtype=np.int64)))


def mixed(b: Builder, x: str) -> str:
    """Move channels to another axis and back, so that they are others."""
    split = b.constant(f"split{len(b.nodes)}", np.array([0, -1, 2, WIDTH // 2], dtype=np.int64))
    return laid(b, b.op("Transpose", b.op("Reshape", x, split), perm=[0, 2, 1, 3]))


@pytest.mark.parametrize(("move", "found"), [(turned, True), (laid, True), (mixed, False)])
def test_channels_are_followed_through_nodes_that_move_other_axes(move: Edit, found: bool) -> None:
    dense = block(move=move)
    result = smooth(dense)
    assert result.facts["smoothed"] == (("left", "right", "up", "head") if found else ("up", "head"))
    assert not added(dense, result.value)
    assert error(result.value, dense) < 1e-4


def test_an_output_of_the_model_is_no_layer() -> None:
    dense = block()
    seen = next(node for node in dense.graph.node if node.op_type == "LayerNormalization").output[0]
    dense.graph.output.add(name=seen, type=dense.graph.input[0].type)
    result = smooth(dense)
    assert added(dense, result.value) == ["Mul"]
    inputs = models.samples(dense, 4)
    np.testing.assert_array_equal(models.run(result.value, inputs)[1], models.run(dense, inputs)[1])


def test_a_norm_whose_scale_is_its_shift_too_is_scaled_once() -> None:
    dense = block(spread=50)
    for node in dense.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[2] = node.input[1]
    result = smooth(dense)
    assert not added(dense, result.value)
    assert error(result.value, dense) < 1e-4


def repeated(elsewhere: bool) -> onnx.ModelProto:
    """Build two blocks that share one weight, as ALBERT does, after different norms, and perhaps one without a norm."""
    b = Builder()
    weight = b.weight("weight", WIDTH, WIDTH)
    x = b.matmul("input", WIDTH, WIDTH, name="embed")
    for index in range(2):
        y = norm(b, x, "fused", *scales(b, f"norm{index}", 10.0**index))
        x = b.op("Add", x, b.op("MatMul", y, weight, name=f"block{index}"))
    x = b.op("MatMul", b.op("Relu", x), weight, name="bare") if elsewhere else x
    x = b.op("ReduceMean", x, axes=[1], keepdims=0)
    return b.model(b.gemm(norm(b, x, "fused", *scales(b, "last")), WIDTH, 5, name="head"), ("batch", 6, WIDTH))


@pytest.mark.parametrize(("elsewhere", "smoothed"), [(False, ("block0", "block1", "head")), (True, ("head",))])
def test_a_shared_weight_takes_one_set_of_factors(elsewhere: bool, smoothed: tuple[str, ...]) -> None:
    dense = repeated(elsewhere)
    result = smooth(dense)
    assert result.facts["smoothed"] == smoothed
    assert error(result.value, dense) < 1e-4
    assert [layer.weight for layer in weight_layers(result.value)].count("weight") == 2 + elsewhere


def test_ignored_layers_keep_their_inputs() -> None:
    dense = block()
    result = smooth(dense, ignore="left")
    assert result.facts["smoothed"] == ("right", "up", "head")
    assert added(dense, result.value) == ["Mul"]
    assert np.array_equal(held(result.value, "left.weight"), held(dense, "left.weight"))
    assert error(result.value, dense) < 1e-4


def test_weights_that_are_rounded_already_are_left_alone() -> None:
    dense = Model("onnx", block(), {"weight_scales": {"up": np.ones(2 * WIDTH, np.float32)}})
    assert smooth(dense).facts["smoothed"] == ("left", "right", "head")


def test_a_convolution_net_has_nothing_to_smooth() -> None:
    assert not needs_nodes(models.conv_net())
    with pytest.raises(RequestError) as caught:
        smooth(models.conv_net())
    assert caught.value.lines() == (
        "error: SmoothQuantModifier finds no INT8 layer that reads a normalisation and has weights of its own\n"
        "fix: remove it, put it before the modifier that rounds weights, or shorten its `ignore`"
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("post", [False, True])
def test_equalizing_smooths_what_costs_no_node(form: str, post: bool) -> None:
    dense = block(form, post=post, spread=50)
    context = Context(models.dataset(dense, 12), batch_size=4, threads=1)
    result = EqualizationModifier().apply(Model("onnx", dense), context)
    assert result.facts["smoothed"] == (("up", "head") if post else ("left", "right", "up", "head"))
    assert not added(dense, result.value)
    assert error(result.value, dense) < 1e-4
    assert needs_nodes(dense) == post
    again = EqualizationModifier().apply(result, context)
    assert again.facts["smoothed"] == result.facts["smoothed"]
    once = EqualizationModifier().apply(smooth(dense), context)
    assert once.facts["smoothed"] == ("left", "right", "up", "head")


def test_a_smoothed_layer_is_measured_alone_in_its_own_units() -> None:
    dense = Model("onnx", block(post=True, spread=50, length=6))
    samples = models.dataset(dense.value, 12)
    quantized = QuantizationModifier().apply(smooth(dense), Context(samples, batch_size=4, threads=1))
    for name, figures in measure_alone(dense, quantized, samples, 4).items():
        assert figures["isolated_db"] > 25, name
    forgotten = replace(quantized, facts={**quantized.facts, "input_scales": {}})
    assert measure_alone(dense, forgotten, samples, 4)["left"]["isolated_db"] < 10


def test_a_pattern_without_a_match_and_a_run_without_samples_are_refused() -> None:
    with pytest.raises(RequestError, match="ignore: 'lift' matches none of the model's"):
        smooth(block(), ignore="lift")
    with pytest.raises(RequestError, match="SmoothQuantModifier has no calibration samples"):
        SmoothQuantModifier().apply(Model("onnx", block()), Context(Dataset((), lambda key: Sample({}))))


def test_mappings_of_old_recipes_are_dropped_with_a_note() -> None:
    recipe = parse_recipe(
        'test_stage: {obcq_modifiers: {SmoothQuantModifier: {mappings: [[["re:.*q"], "re:.*norm"]]}}}'
    )
    assert recipe.notes == (
        "SmoothQuantModifier: dropped 'mappings': what reads each normalisation is found from the graph",
    )
    assert SmoothQuantModifier(**recipe.steps[0].options) == SmoothQuantModifier()


def test_new_tensors_have_shapes_and_the_mul_stands_before_its_readers(tmp_path: Path) -> None:
    dense = load(models.save(block(post=True, length=6), tmp_path))
    result = smooth(dense)
    mul = next(node for node in result.value.graph.node if node.name not in {n.name for n in dense.value.graph.node})
    assert result.facts["shapes"][mul.output[0]] == result.facts["shapes"][mul.input[0]]
