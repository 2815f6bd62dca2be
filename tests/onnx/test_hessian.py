"""Rows, windows and statistics against ONNX Runtime and plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sparsify_onnx.affine import read_bias, read_matrix
from sparsify_onnx.columns import input_rows, inputs, output_rows, outputs, rows_per_sample, sample_rows
from sparsify_onnx.graph import WeightLayer, weight_layers
from sparsify_onnx.hessian import add_rows, empty
from sparsify_onnx.sessions import ORT_ERRORS as RuntimeErrors

from tests.onnx.models import run

AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def one_node(
    op: str, weight: np.ndarray, rank: int, *, left: bool = False, bias: Any = None, **facts: Any
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    names = ["w", "x"] if left else ["x", "w"]
    if bias is not None:
        constants.append(numpy_helper.from_array(np.asarray(bias, dtype=np.float32), "b"))
        names.append("b")
    node = helper.make_node(op, names, ["y"], name="layer", **facts)
    given_ = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [given_], [made], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check_rows(model: onnx.ModelProto, x: np.ndarray, batch: int) -> None:
    """Assert W · rows + b of the input equals the rows of the output, at all positions and at some."""
    layer = weight_layers(model)[0]
    y = run(model, {"x": x})[0]
    share = rows_per_sample(layer, y, batch)
    assert share * batch == y.size // outputs(layer)
    weights = read_matrix(model, layer).reshape(layer.group, -1, inputs(layer))
    for rows in (np.arange(share * batch), sample_rows(share, 0, batch, 3, seed=1)):
        gathered = input_rows(layer, x, y.shape, rows)
        fitted = np.einsum("goi,rgi->rgo", weights, gathered).reshape(len(rows), -1) + read_bias(model, layer)
        np.testing.assert_allclose(fitted, output_rows(layer, y, rows), rtol=1e-4, atol=1e-4)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_windows_times_weights_are_the_convolution(data: st.DataObject) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 3))
    groups, per_in, per_out = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    facts: dict[str, Any] = {"kernel_shape": kernel, "group": groups}
    facts["strides"] = [draw(st.integers(1, 3)) for _ in range(dims)]
    facts["auto_pad"] = draw(st.sampled_from(AUTO))
    if facts["auto_pad"] in ("NOTSET", "VALID"):
        facts["dilations"] = [draw(st.integers(1, 2)) for _ in range(dims)]
    if facts["auto_pad"] == "NOTSET":
        facts["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    bias = random.standard_normal(groups * per_out) if draw(st.booleans()) else None
    weight = random.standard_normal((groups * per_out, per_in, *kernel))
    sizes = [draw(st.integers(5, 8)) for _ in range(dims)]
    x = random.standard_normal((2, groups * per_in, *sizes)).astype(np.float32)
    check_rows(one_node("Conv", weight, dims + 2, bias=bias, **facts), x, 2)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_inputs_times_weights_are_the_transposed_convolution(data: st.DataObject) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 3))
    groups, per_in, per_out = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    facts: dict[str, Any] = {"kernel_shape": kernel, "group": groups}
    facts["strides"] = [draw(st.integers(1, 3)) for _ in range(dims)]
    facts["dilations"] = [draw(st.integers(1, 2)) for _ in range(dims)]
    facts["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in facts["strides"]]
    sizes = [draw(st.integers(4, 6)) for _ in range(dims)]
    form = draw(st.sampled_from(("pads", "shape", *AUTO[1:])))
    if form == "pads":
        facts["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * dims)]
    elif form == "shape":
        facts["output_shape"] = [
            size * stride + draw(st.integers(0, 1)) for size, stride in zip(sizes, facts["strides"], strict=True)
        ]
    else:
        facts["auto_pad"] = form
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    bias = random.standard_normal(groups * per_out) if draw(st.booleans()) else None
    weight = random.standard_normal((groups * per_in, per_out, *kernel))
    x = random.standard_normal((2, groups * per_in, *sizes)).astype(np.float32)
    model = one_node("ConvTranspose", weight, dims + 2, bias=bias, **facts)
    try:
        run(model, {"x": x})
    except RuntimeErrors:  # not every combination has an output
        assume(False)
    check_rows(model, x, 2)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, np.arange(5), np.array(2.0), np.arange(5)[None]])
def test_gemm_rows(trans_a: int, trans_b: int, bias: Any) -> None:
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((5, 4) if trans_b else (4, 5)), random.standard_normal((6, 4)).astype(np.float32)
    model = one_node("Gemm", weight, 2, bias=bias, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    check_rows(model, np.ascontiguousarray(x.T) if trans_a else x, 6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4), (3, 2, 7, 4)])
def test_matmul_rows_with_the_weight_on_the_right(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype(np.float32)
    check_rows(one_node("MatMul", random.standard_normal((4, 5)), len(shape)), x, 3)


@pytest.mark.parametrize("shape", [(3, 4, 7), (3, 2, 4, 6)])
def test_matmul_rows_with_the_weight_on_the_left(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype(np.float32)
    check_rows(one_node("MatMul", random.standard_normal((5, 4)), len(shape), left=True), x, 3)


def test_sampled_rows_depend_on_the_sample_alone() -> None:
    whole = sample_rows(50, 0, 6, 7, seed=3)
    assert len(whole) == 42
    for sample in range(6):
        alone = sample_rows(50, sample, 1, 7, seed=3)
        np.testing.assert_array_equal(alone, whole[7 * sample : 7 * sample + 7] - 50 * sample)
    assert not np.array_equal(whole, sample_rows(50, 0, 6, 7, seed=4))
    np.testing.assert_array_equal(sample_rows(5, 4, 2, 7, seed=3), np.arange(10))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9))
def test_streamed_statistics_are_the_direct_ones(seed: int, groups: int, out: int, columns: int, batch: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((20, groups, columns)).astype(np.float32)
    y = random.standard_normal((20, groups * out)).astype(np.float32)
    statistics = empty(groups, out, columns)
    for start in range(0, 20, batch):
        add_rows(statistics, x[start : start + batch], y[start : start + batch])
    assert statistics.rows == 20
    for group in range(groups):
        whole = np.hstack([x[:, group], np.ones((20, 1))]).astype(np.float64)
        wanted = y[:, group * out : (group + 1) * out].astype(np.float64)
        np.testing.assert_allclose(statistics.gram[group], whole.T @ whole, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(statistics.cross[group], wanted.T @ whole, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(statistics.energy[group], (wanted**2).sum(0), rtol=1e-5)


def test_an_output_that_does_not_divide_among_the_batch_is_taken_whole() -> None:
    model = one_node("MatMul", np.ones((4, 5)), 2)
    layer: WeightLayer = weight_layers(model)[0]
    assert rows_per_sample(layer, np.zeros((7, 5)), 2) == 0
