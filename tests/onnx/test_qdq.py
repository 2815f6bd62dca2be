"""What is written is what was computed, and each integer layer is NumPy's within one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sparsify import Context, StageError
from sparsify_onnx import qdq
from sparsify_onnx.graph import channel_axis, initializers, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.placement import Placement, place
from sparsify_onnx.qdq import Weight, write_qdq
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.ranges import Grid, grid

from tests.onnx import models

Integers = NDArray[np.uint8]


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def ingredients(model: onnx.ModelProto, bias: float = 0.0) -> tuple[Placement, dict[str, Grid], dict[str, Weight]]:
    placement = place(model)
    weights = {}
    for layer in placement.layers:
        shape = initializers(model)[layer.weight].dims
        integers = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        scales = np.linspace(0.001, 0.01, shape[channel_axis(layer)]).astype(np.float32)
        weights[layer.weight] = Weight(integers, scales, channel_axis(layer))
        if bias and layer.bias:
            tensor = initializers(model)[layer.bias]
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, bias, np.float32), layer.bias))
    return placement, {name: grid((-0.7, 3.1)) for name in placement.tensors}, weights


def dequantized(integers: NDArray[Any], cell: Grid) -> NDArray[np.float64]:
    return (integers.astype(np.float64) - float(cell.zero_point)) * float(cell.scale)


def requantized(values: NDArray[np.float64], cell: Grid) -> NDArray[np.float64]:
    return np.clip(np.rint(values / float(cell.scale)) + float(cell.zero_point), 0, 255)


def convolve(x: NDArray[np.float64], weight: NDArray[np.float64], pad: int, stride: int, group: int) -> Any:
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    ins, outs = x.shape[1] // group, len(weight) // group
    parts = [
        np.einsum(
            "nchwij,ocij->nohw", windows[:, g * ins : (g + 1) * ins], weight[g * outs : (g + 1) * outs], optimize=True
        )
        for g in range(group)
    ]
    return np.concatenate(parts, axis=1)


CONVOLUTIONS = {
    "plain": {"channels": 4, "outputs": 6, "kernel": 3, "group": 1, "stride": 1},
    "strided": {"channels": 4, "outputs": 6, "kernel": 3, "group": 1, "stride": 2},
    "pointwise": {"channels": 8, "outputs": 5, "kernel": 1, "group": 1, "stride": 1},
    "grouped": {"channels": 8, "outputs": 8, "kernel": 3, "group": 2, "stride": 1},
    "depthwise": {"channels": 8, "outputs": 8, "kernel": 3, "group": 8, "stride": 1},
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("clip", [None, "Relu", "Clip"])
def test_a_convolution_on_the_same_integers_is_numpys_within_one_step(
    case: dict[str, int], clip: str | None, tmp_path: Path
) -> None:
    b = models.Builder(1)
    kernel, group = case["kernel"], case["group"]
    x = b.conv(
        "input", case["channels"], case["outputs"], kernel, group=group, strides=[case["stride"]] * 2, name="layer"
    )
    if clip == "Relu":
        x = b.op("Relu", x)
    if clip == "Clip":
        x = b.op("Clip", x, b.constant("low", np.float32(0)), b.constant("high", np.float32(2)))
    model = b.model(x, ("batch", case["channels"], 8, 8), rank=4)
    placement, grids, weights = ingredients(model)
    name = placement.tensors[-1]
    grids[name] = grid({None: (-5.0, 5.0), "Relu": (0.0, 5.0), "Clip": (0.0, 2.0)}[clip])
    bias = numpy_helper.to_array(initializers(model)["layer.bias"])
    written = write_qdq(model, placement, grids, weights)
    kinds = [node.op_type for node in optimized(written, tmp_path).graph.node]
    assert kinds.count("QLinearConv") == 1
    integers = np.random.default_rng(2).integers(0, 256, (2, case["channels"], 8, 8)).astype(np.uint8)
    weight = weights["layer.weight"]
    exact = convolve(
        dequantized(integers, grids["input"]), weight.floats.astype(np.float64), kernel // 2, case["stride"], group
    )
    wanted = requantized(exact + bias[:, None, None], grids[name])
    fed = dequantized(integers, grids["input"]).astype(np.float32)
    found = models.run(written, {"input": fed})[0] / grids[name].scale + float(grids[name].zero_point)
    assert np.abs(np.rint(found) - wanted).max() <= 1
    assert np.mean(np.rint(found) == wanted) > 0.99


@pytest.mark.parametrize("kind", ["gemm", "gemm_turned", "matmul"])
def test_a_matrix_product_on_the_same_integers_is_numpys(kind: str, tmp_path: Path) -> None:
    b = models.Builder(1)
    if kind == "matmul":
        x = b.matmul("input", 24, 10, name="layer")
    else:
        x = b.gemm("input", 24, 10, trans_b=kind == "gemm", name="layer")
    model = b.model(x, ("batch", 24))
    placement, grids, weights = ingredients(model)
    bias = numpy_helper.to_array(initializers(model)["layer.bias"]) if kind != "matmul" else 0.0
    assert placement.tensors == ("input",)  # the output stays float: no step is lost there
    written = write_qdq(model, placement, grids, weights)
    kinds = [node.op_type for node in optimized(written, tmp_path).graph.node]
    assert {"gemm": "QGemm", "gemm_turned": "QGemm", "matmul": "MatMulIntegerToFloat"}[kind] in kinds
    integers = np.random.default_rng(2).integers(0, 256, (5, 24)).astype(np.uint8)
    fed = dequantized(integers, grids["input"])
    matrix = weights["layer.weight"].floats.astype(np.float64)
    wanted = fed @ (matrix.T if kind == "gemm" else matrix) + bias
    step = float(grids["input"].scale) * weights["layer.weight"].scales.max()
    assert np.abs(models.run(written, {"input": fed.astype(np.float32)})[0] - wanted).max() <= max(step, 1e-4)


def test_integer_chains_are_unbroken_in_the_optimised_graph(tmp_path: Path) -> None:
    kinds = {}
    for name in ("fire_net", "residual_net", "depthwise_net", "mlp", "left_matmul"):
        model = models.FAMILY[name]()
        loaded = load(models.save(model, tmp_path))
        result = QuantizationModifier().apply(loaded, Context(models.dataset(model), threads=1))
        kinds[name] = [node.op_type for node in optimized(result.value, tmp_path).graph.node]
    assert kinds["fire_net"].count("QuantizeLinear") == 1
    assert kinds["fire_net"].count("QLinearConcat") == 2
    assert not {"Conv", "Concat", "Relu", "FusedConv"} & set(kinds["fire_net"])
    assert kinds["residual_net"].count("QLinearAdd") == 2
    assert kinds["residual_net"].count("QuantizeLinear") == 1
    assert kinds["depthwise_net"].count("QLinearConv") == 5
    assert "Clip" not in kinds["depthwise_net"]
    assert kinds["mlp"].count("QGemm") == 4
    assert kinds["left_matmul"].count("QLinearMatMul") + kinds["left_matmul"].count("MatMulIntegerToFloat") == 3


def test_what_only_a_concat_reads_shares_its_grid() -> None:
    model = load_fire()
    placement = place(model)
    nodes = {node.name: node for node in model.graph.node}
    joins = [node for node in nodes.values() if node.op_type == "Concat"]
    for join in joins:
        assert {placement.grid_of(name) for name in join.input} == {join.output[0]}
    pool = next(node for node in nodes.values() if node.op_type == "MaxPool")
    assert placement.grid_of(pool.output[0]) == pool.input[0]


def load_fire() -> onnx.ModelProto:
    from sparsify_onnx.normalize import normalize

    return normalize(models.fire_net())[0]


def test_a_concat_of_differently_clipped_tensors_shares_nothing() -> None:
    b = models.Builder(0)
    one = b.op("Relu", b.conv("input", 3, 4, name="one"))
    two = b.conv("input", 3, 4, name="two")
    x = b.conv(b.op("Concat", one, two, axis=1), 8, 4, name="last")
    placement = place(b.model(x, rank=4))
    assert not placement.same


def test_a_clip_that_excludes_zero_stays() -> None:
    b = models.Builder(0)
    low, high = b.constant("low", np.float32(0.5)), b.constant("high", np.float32(6))
    x = b.op("Clip", b.conv("input", 3, 4, name="one"), low, high, name="clip")
    placement = place(b.model(b.conv(x, 4, 4, name="two"), rank=4))
    assert "clip" not in placement.nodes
    assert not placement.absorbed


def test_what_follows_the_last_layer_stays_float() -> None:
    b = models.Builder(0)
    x = b.op("Relu", b.conv("input", 3, 4, name="one"))
    x = b.op("GlobalAveragePool", b.op("MaxPool", x, kernel_shape=[2, 2], name="pool"), name="mean")
    placement = place(b.model(x, rank=4))
    assert not {"pool", "mean"} & set(placement.nodes)


REASONS = {
    "up": "weight only: no INT8 kernel for transposed convolutions",
    "odd": "bias is not one constant per output",
    "scaled": "Gemm with factors",
    "batched": "batched weight",
    "still": "its input is constant",
}


def test_each_reason_for_float_is_given() -> None:
    b = models.Builder(0)
    x = b.op("ConvTranspose", "input", b.weight("up.weight", 3, 4, 2, 2), name="up")
    x = b.op("Conv", x, b.weight("odd.weight", 4, 4, 1, 1), b.op("Identity", b.weight("b", 4)), name="odd")
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.op("Gemm", x, b.weight("scaled.weight", 4, 4), name="scaled", alpha=0.5)
    still = b.op("Gemm", b.weight("fixed", 1, 4), b.weight("still.weight", 4, 4), name="still")
    x = b.op("MatMul", b.op("Add", x, still), b.weight("batched.weight", 2, 4, 5), name="batched")
    model = b.model(x, rank=3)
    assert place(model).reasons == REASONS


def test_a_bias_beyond_int32_is_refused_by_name() -> None:
    model = models.mlp()
    placement, grids, weights = ingredients(model, bias=1e9)
    with pytest.raises(
        StageError, match=r"bias of layer 'first' does not fit int32: channel 0 needs .* steps"
    ) as caught:
        write_qdq(model, placement, grids, weights)
    assert caught.value.fix == "leave the layer in float: add `ignore: ['first']` to QuantizationModifier"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weight", "changed the weight of layer 'first'"),
        ("grid", "changed the grid of tensor 'input'"),
        ("bias", "changed the bias of layer 'first'"),
    ],
)
def test_a_library_that_writes_something_else_is_caught(
    what: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.mlp()
    placement, grids, weights = ingredients(model)
    honest = qdq._quantizer

    def tampering(*parts: Any) -> onnx.ModelProto:
        written = honest(*parts)
        name = {"weight": "first.weight_quantized", "grid": "input_scale", "bias": "first.bias_quantized"}[what]
        tensor = initializers(written)[name]
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array + array.dtype.type(1)).astype(array.dtype), name))
        return written

    monkeypatch.setattr(qdq, "_quantizer", tampering)
    with pytest.raises(StageError, match=message) as caught:
        write_qdq(model, placement, grids, weights)
    assert caught.value.fix.startswith("pip install 'onnxruntime>=1.22'")


def test_constants_of_add_and_mul_are_rounded_on_grids_of_their_own(tmp_path: Path) -> None:
    b = models.Builder(0)
    x = b.conv("input", 3, 4, name="one")
    x = b.op("Mul", x, b.constant("factor", np.array([[[0.5]], [[1.0]], [[-2.0]], [[0.0]]], np.float32)))
    x = b.op("Add", x, b.constant("shift", np.float32(0.25)))
    model = b.model(b.conv(x, 4, 4, name="two"), rank=4)
    loaded = load(models.save(model, tmp_path))
    result = QuantizationModifier().apply(loaded, Context(models.dataset(model), threads=1))
    inputs = models.samples(model, 20)
    dense, found = models.run(model, inputs)[0], models.run(result.value, inputs)[0]
    assert np.sqrt(np.mean((found - dense) ** 2) / np.mean(dense**2)) < 0.05
    assert [node.op_type for node in optimized(result.value, tmp_path).graph.node].count("QLinearConv") == 2


def test_subgraphs_keep_the_tensors_they_read(tmp_path: Path) -> None:
    b = models.Builder(0)
    x = b.conv("input", 3, 4, name="one")
    y = b.op("Relu", x, name="clip")
    flag = b.constant("flag", np.array(True))
    branches = {}
    for branch in ("then_branch", "else_branch"):
        inner = helper.make_node("Neg" if branch[0] == "t" else "Abs", [x], [f"{branch}_out"], name=branch)
        value = helper.make_tensor_value_info(f"{branch}_out", TensorProto.FLOAT, None)
        branches[branch] = helper.make_graph([inner], branch, [], [value])
    side = b.op("If", flag, name="if", **branches)
    model = b.model(b.conv(b.op("Add", y, side), 4, 4, name="two"), rank=4)
    loaded = load(models.save(model, tmp_path))
    assert "clip" not in place(loaded.value).nodes
    result = QuantizationModifier().apply(loaded, Context(models.dataset(model), threads=1))
    inputs = models.samples(model, 20)
    dense, found = models.run(model, inputs)[0], models.run(result.value, inputs)[0]
    assert np.sqrt(np.mean((found - dense) ** 2) / np.mean(dense**2)) < 0.05


def test_weights_are_as_given_in_the_file() -> None:
    model = models.conv_net()
    from sparsify_onnx.normalize import normalize

    model = normalize(model)[0]
    placement, grids, weights = ingredients(model)
    assert [layer.name for layer in weight_layers(model)] == [layer.name for layer in placement.layers]
    written = write_qdq(model, placement, grids, weights)
    held = initializers(written)
    for name, weight in weights.items():
        assert np.array_equal(numpy_helper.to_array(held[f"{name}_quantized"]), weight.integers)
        assert np.array_equal(numpy_helper.to_array(held[f"{name}_scale"]), weight.scales)


def test_what_a_float_node_gives_is_rounded_for_integer_nodes_only(tmp_path: Path) -> None:
    b = models.Builder(1)
    x = b.op("Tanh", b.matmul("input", 24, 24, name="first"), output="seen")
    model = b.model(b.op("Add", b.matmul(x, 24, 24, name="second"), x, name="residual"), ("batch", 6, 24), rank=3)
    placement, grids, weights = ingredients(model)
    written = write_qdq(model, placement, grids, weights)
    residual = next(node for node in written.graph.node if node.name == "residual")
    assert "seen" in residual.input
    kinds = [node.op_type for node in optimized(written, tmp_path).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert "DequantizeLinear" not in kinds
