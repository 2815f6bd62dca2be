"""The form that DeepSparse runs: the same function in integers, in an opset that it reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sparsify import Context, Model, RequestError, load_plugins
from sparsify_onnx.integer_form import FORMAT, IR, OPSET, export
from sparsify_onnx.loader import load, read
from sparsify_onnx.opsets import changed_since, lower
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import models

INTEGER = ("ConvInteger", "MatMulInteger")
LAYERS = ("Conv", "Gemm", "MatMul")


def quantized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    loaded = load(models.save(model, folder))
    value: onnx.ModelProto = QuantizationModifier().apply(loaded, Context(models.dataset(model), threads=1)).value
    return value


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_every_int8_layer_becomes_an_integer_node_and_the_function_stays(name: str, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    before = quantized(model, tmp_path)
    untouched = before.SerializeToString()
    exported = export(Model("onnx", before))
    after: onnx.ModelProto = exported.value
    assert exported.format == FORMAT
    assert before.SerializeToString() == untouched
    onnx.checker.check_model(after, full_check=True)
    makers = {name: node.op_type for node in before.graph.node for name in node.output}
    nodes = [node for node in before.graph.node if node.op_type in LAYERS]
    rounded = {node.name for node in nodes if {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}}
    integer = {node.name for node in after.graph.node if node.op_type in INTEGER}
    # MatMulInteger scales a weight on the left by rows alone, which this one is not
    assert integer == rounded - ({"matmul0"} if name == "left_matmul" else set())
    assert len(integer) >= 3
    # no weight is turned back while the model runs
    held = {tensor.name for tensor in after.graph.initializer}
    assert not any(node.op_type == "DequantizeLinear" and node.input[0] in held for node in after.graph.node)
    inputs = models.samples(model, 6, seed=4)
    for found, wanted in zip(models.run(after, inputs), models.run(before, inputs), strict=True):
        # a float32 rescale may round to the neighbouring step of the next grid
        assert abs(found - wanted).max() <= 4 * abs(wanted).max() / 255


def test_weights_are_the_same_integers_around_128_and_zeros_stay_zeros(tmp_path: Path) -> None:
    before = quantized(models.conv_net(), tmp_path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    makers = {name: node for node in before.graph.node for name in node.output}
    after = export(Model("onnx", before)).value
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    convs = [node for node in before.graph.node if node.op_type == "Conv"]
    assert convs
    for node in convs:
        integers = held[makers[node.input[1]].input[0]]
        stored = written[f"{node.name}_weight_uint8"]
        assert stored.dtype == np.uint8
        np.testing.assert_array_equal(stored.astype(int) - 128, integers)


def test_it_is_done_once(tmp_path: Path) -> None:
    once = export(Model("onnx", quantized(models.residual_net(), tmp_path)))
    assert export(Model("onnx", once.value)).value == once.value


def test_a_float_model_only_changes_its_opset() -> None:
    model = models.mlp()
    assert kinds(export(Model("onnx", model)).value) == kinds(model)


def reduced(opset: int) -> onnx.ModelProto:
    """A model with a ReduceMean, whose axes became an input in opset 18, as the newer torch exporter writes it."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, size])
        for name, size in (("x", 4), ("y", 1))
    ]
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean", keepdims=1, noop_with_empty_axes=0)
    axes = [numpy_helper.from_array(np.array([2]), "axes")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], axes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("opset", range(18, 24))
def test_newer_opsets_are_lowered_and_compute_the_same(opset: int) -> None:
    model = reduced(opset)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    after = export(Model("onnx", model)).value
    assert (after.opset_import[0].version, after.ir_version) == (OPSET, IR)
    np.testing.assert_allclose(models.run(after, {"x": x})[0], x.mean(axis=2, keepdims=True), rtol=1e-6)
    assert model.opset_import[0].version == opset


def test_an_operator_without_an_older_form_is_named_with_the_runtimes_that_take_it() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mish", ["x"], ["y"], "act")], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert changed_since(model, 17, 18) == [("act", "Mish")]
    with pytest.raises(RequestError, match="node 'act' is a Mish of opset 18, which opset 17 has not") as caught:
        lower(model, 17)
    assert "--runtime onnxruntime or --runtime openvino" in caught.value.fix


def test_a_file_that_is_quantized_already_can_be_exported(tmp_path: Path) -> None:
    path = models.save(quantized(models.mlp(), tmp_path), tmp_path, "int8.onnx")
    form = load_plugins().load("model_loaders", "onnx")
    assert form.read(path) == Model("onnx", read(path))
    assert kinds(export(form.read(path)).value)["MatMulInteger"] == 4
