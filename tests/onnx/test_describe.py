"""Descriptions count what is in the file: layers, MACs against brute force, zeros, precision of quantized graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sparsify import Description, Layer, Model, TensorSpec
from sparsify_onnx.graph import initializers, weight_layers
from sparsify_onnx.loader import load, read
from sparsify_onnx.macs import count_macs
from sparsify_onnx.model_format import FORMAT

from tests.onnx import models


def described(model: onnx.ModelProto, folder: Path) -> Description:
    return FORMAT.describe(load(models.save(model, folder)))


def named(description: Description) -> dict[str, Layer]:
    return {layer.name: layer for layer in description.layers}


class Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: onnx.ModelProto) -> None:
        self.batches = iter([models.samples(model, 4, seed) for seed in range(2)])

    def get_next(self) -> Any:
        return next(self.batches, None)


def quantized(model: onnx.ModelProto, folder: Path, form: QuantFormat, **options: Any) -> Path:
    target = folder / "quantized.onnx"
    quantize_static(
        models.save(model, folder, "float.onnx"), target, Noise(model), quant_format=form, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, **options,
    )  # fmt: skip
    return target


def test_inputs_outputs_and_dynamic_axes(tmp_path: Path) -> None:
    found = described(models.attention(length="length"), tmp_path)
    assert found.inputs == (TensorSpec("input", "float32", ("batch", "length", 16)),)
    assert found.outputs == (TensorSpec("logits", "float32", ("batch", None)),)
    fixed = described(models.conv_net(batch=4), tmp_path)
    assert fixed.inputs[0].shape == (4, 3, 8, 8)


def test_layers_parameters_and_computing_nodes(tmp_path: Path) -> None:
    found = described(models.attention(), tmp_path)
    assert list(named(found)) == ["embed", "query", "key", "value", "project", "up", "down", "head"]
    assert found.computing == 10  # two products of activations
    up = named(found)["up"]
    assert (up.op, up.shape, up.parameters, up.precision, up.eligible) == ("MatMul", (16, 32), 512, "float32", True)
    assert named(found)["head"].reason == "last layer"
    floats = [tensor for tensor in models.attention().graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert found.parameters == sum(int(np.prod(tensor.dims)) for tensor in floats)


def brute_force_macs(layer: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Count by running the layer on ones with a weight of ones: every product adds one (no padding, no bias)."""
    output = shapes[layer.output]
    if layer.op == "Conv":
        return int(np.prod(output)) * int(np.prod(layer.shape[1:]))
    if layer.op == "ConvTranspose":
        return int(np.prod(shapes[layer.input])) * int(np.prod(layer.shape[1:]))
    columns: int = layer.shape[1] if layer.attributes.get("transB") or layer.weight_input == 0 else layer.shape[0]
    return int(np.prod(output)) * columns


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_macs_are_one_product_per_output_and_input(name: str, tmp_path: Path) -> None:
    model = load(models.save(models.FAMILY[name](), tmp_path))
    found = named(FORMAT.describe(model))
    for layer in weight_layers(model.value):
        assert found[layer.name].macs == brute_force_macs(layer, model.facts["shapes"])


def test_macs_of_a_transposed_convolution_equal_its_mirror() -> None:
    b = models.Builder()
    x = b.op("ConvTranspose", "input", b.weight("up.weight", 4, 3, 3, 3), strides=[2, 2], pads=[1] * 4)
    model = b.model(x, ("batch", 4, 5, 5), rank=4)
    (layer,) = weight_layers(model)
    assert count_macs(layer, {"input": (2, 4, 5, 5), layer.output: (2, 3, 9, 9)}, batch=2) == 4 * 3 * 9 * 25
    assert count_macs(layer, {}) == 0


def test_macs_do_not_depend_on_a_fixed_batch(tmp_path: Path) -> None:
    one, four = (described(models.conv_net(batch=size), tmp_path) for size in ("batch", 4))
    assert [layer.macs for layer in one.layers] == [layer.macs for layer in four.layers]


def test_zeros_are_counted_per_layer_and_in_the_file(tmp_path: Path) -> None:
    model = models.mlp()
    tensor = initializers(model)["second.weight"]
    array = np.array(numpy_helper.to_array(tensor))
    array[:, ::2] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = described(model, tmp_path)
    assert named(found)["second"].sparsity == 0.5
    assert found.zeros == array.size // 2


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("name", ["conv_net", "mlp", "attention", "depthwise_net"])
def test_quantized_files_read_like_the_float_model(name: str, form: QuantFormat, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    plain = load(models.save(model, tmp_path))
    before = FORMAT.describe(plain)
    after = FORMAT.describe(Model("onnx", read(quantized(plain.value, tmp_path, form))))
    assert after.computing == before.computing
    assert len(after.layers) == len(before.layers)
    for old, new in zip(before.layers, after.layers, strict=True):
        assert (new.op, new.shape, new.parameters, new.macs) == (old.op, old.shape, old.parameters, old.macs)
        assert (new.precision, new.reason) == ("int8", old.reason)
    assert after.inputs == before.inputs
    assert [spec.name for spec in after.outputs] == [spec.name for spec in before.outputs]


def test_zeros_survive_quantization_in_the_count(tmp_path: Path) -> None:
    model = models.conv_net()
    tensor = initializers(model)["deep.weight"]
    array = np.array(numpy_helper.to_array(tensor))
    array[np.abs(array) < np.quantile(np.abs(array), 0.6)] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = named(FORMAT.describe(Model("onnx", read(quantized(model, tmp_path, QuantFormat.QDQ)))))["deep"]
    assert np.mean(array == 0) <= found.sparsity <= 0.64  # rounding adds some, and loses none


def test_unsigned_weights_count_their_zero_point(tmp_path: Path) -> None:
    b = models.Builder()
    held = b.constant("w_q", np.array([[128, 130], [7, 128]], dtype=np.uint8))
    scale, zero = b.constant("s", np.array([0.1, 0.2], np.float32)), b.constant("z", np.array([128, 7], np.uint8))
    w = b.op("DequantizeLinear", held, scale, zero, axis=0)
    path = models.save(b.model(b.op("MatMul", "input", w, name="only"), ("batch", 2)), tmp_path)
    found = FORMAT.describe(Model("onnx", read(path)))
    assert [(layer.name, layer.precision, layer.sparsity) for layer in found.layers] == [("only", "uint8 weights", 0.5)]
    assert (found.parameters, found.zeros) == (4, 2)


def test_weights_trained_with_fake_quantization_have_its_precision(tmp_path: Path) -> None:
    b = models.Builder()
    scale, zero = b.constant("s", np.float32(0.1)), b.constant("z", np.int8(0))
    w = b.op("DequantizeLinear", b.op("QuantizeLinear", b.weight("w", 3, 4), scale, zero), scale, zero)
    x = b.op("MatMul", "input", b.op("Transpose", w), name="only")
    found = FORMAT.describe(Model("onnx", read(models.save(b.model(x, ("batch", 4)), tmp_path))))
    assert [(layer.precision, layer.shape, layer.parameters) for layer in found.layers] == [("int8", (4, 3), 12)]


def test_half_precision_is_described(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op("MatMul", b.op("Cast", "input", to=TensorProto.FLOAT16), b.constant("w", np.ones((4, 3), np.float16)))
    model = b.model(b.op("Cast", x, to=TensorProto.FLOAT), ("batch", 4))
    found = FORMAT.describe(Model("onnx", read(models.save(model, tmp_path))))
    assert [layer.precision for layer in found.layers] == ["float16"]


def test_an_input_without_a_type_is_described(tmp_path: Path) -> None:
    model = models.mlp()
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_value_info("extra", kind))
    found = FORMAT.describe(Model("onnx", model))
    assert found.inputs[1] == TensorSpec("extra", "unknown", ())
