"""Every model that cannot be handled is refused by name; every other one arrives normalized, with its shapes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sparsify import RequestError, StageError
from sparsify_onnx import loader, storage
from sparsify_onnx.graph import initializers, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.model_format import FORMAT

from tests.onnx import models


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        load(path)
    assert caught.value.fix
    return caught.value.lines()


def test_a_model_loads_with_its_facts(tmp_path: Path) -> None:
    path = models.save(models.conv_net(), tmp_path)
    model = load(path)
    assert model.format == "onnx"
    assert model.facts["path"] == str(path)
    assert model.facts["opset"] == {"found": 17, "used": 17}
    assert model.facts["ir_version"] == 8
    assert model.facts["notes"] == (
        "normalized: 2 batch norms and constant scales or shifts folded into the layer before them",
    )
    assert model.facts["sample"] == {"input": (1, 3, 8, 8)}
    assert model.facts["shapes"]["logits"] == (1, 10)
    assert all(layer.output in model.facts["shapes"] for layer in weight_layers(model.value))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert f"error: model {tmp_path / 'no.onnx'} does not exist" in refusal(tmp_path / "no.onnx")
    assert f"error: model {tmp_path} is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"hello, world", b"\x08\x08"])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "model.onnx is no ONNX model, or it is cut short" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = models.save(models.conv_net(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "is no ONNX model, or it is cut short" in refusal(path)


def test_a_graph_that_the_checker_refuses(tmp_path: Path) -> None:
    model = models.mlp()
    model.graph.node[0].input[0] = "nowhere"
    assert "is not a valid ONNX model" in refusal(models.save(model, tmp_path))


def external(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    model = models.residual_net()
    inputs = models.samples(model, 2)
    expected = models.run(model, inputs)[0]
    loaded = load(external(model, tmp_path))
    np.testing.assert_allclose(models.run(loaded.value, inputs)[0], expected, rtol=1e-4, atol=1e-4)


def test_missing_and_short_external_data_are_named(tmp_path: Path) -> None:
    path = external(models.mlp(), tmp_path)
    data = tmp_path / "weights.bin"
    held = data.read_bytes()
    data.write_bytes(held[:100])
    assert "weights.bin is cut short: tensor 'first.weight' needs bytes 0 to 768, found 100" in refusal(path)
    data.unlink()
    text = refusal(path)
    assert "the external data file 'weights.bin' is missing (tensor 'first.weight' needs it)" in text
    assert f"fix: copy weights.bin into {tmp_path}" in text


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "C:\\weights.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(models.mlp(), folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    assert f"keeps its data in '{place}', outside the model's folder" in refusal(path)


def test_links_to_models_and_to_data_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "view").mkdir()
    path = external(models.mlp(), tmp_path / "store")
    os.symlink(path, tmp_path / "view" / "net.onnx")
    assert load(tmp_path / "view" / "net.onnx").facts["opset"]["found"] == 17
    (tmp_path / "store" / "weights.bin").rename(tmp_path / "store" / "blob")
    os.symlink(tmp_path / "store" / "blob", tmp_path / "view" / "weights.bin")
    assert load(tmp_path / "view" / "net.onnx").facts["opset"]["found"] == 17


def with_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    model.opset_import[0].version = version
    return model


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    text = refusal(models.save(with_opset(models.residual_net(), 10), tmp_path))
    assert "has opset 10, expected 11 or higher" in text


@pytest.mark.parametrize("version", [11, 12])
def test_opsets_below_13_are_raised(tmp_path: Path, version: int) -> None:
    b = models.Builder()
    x = b.op("Squeeze", b.op("GlobalAveragePool", b.conv("input", 3, 4, name="stem")), axes=[2, 3])
    model = b.model(b.gemm(x, 4, 3, name="head"), opset=version)
    path = models.save(model, tmp_path)
    loaded = load(path)
    assert loaded.facts["opset"] == {"found": version, "used": 13}
    assert loaded.facts["notes"][0] == f"opset {version} raised to 13, which per-channel INT8 needs"
    inputs = models.samples(model, 2)
    np.testing.assert_allclose(models.run(loaded.value, inputs)[0], models.run(path, inputs)[0], rtol=1e-4, atol=1e-5)


def test_a_failing_converter_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("adapter.h:72: lookup: Assertion `false` failed: No Adapter From Version $11 for Upsample")

    monkeypatch.setattr("sparsify_onnx.loader.version_converter.convert_version", fail)
    text = refusal(models.save(models.mlp_at(12), tmp_path))
    assert "opset 12 cannot be raised to 13: operator Upsample" in text
    assert "fix: export the model again with opset 13 or higher" in text


@pytest.mark.parametrize(
    "kind", ["QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"]
)
def test_quantized_models_are_refused(tmp_path: Path, kind: str) -> None:
    b = models.Builder()
    zero = b.constant("zero", np.uint8(0))
    scale = b.constant("scale", np.float32(0.1))
    w = b.constant("w", np.ones((3, 3, 1, 1), dtype=np.uint8))
    q = b.op("QuantizeLinear", "input", scale, zero, name="quantize")
    if kind == "DynamicQuantizeLinear":
        b.nodes[-1] = helper.make_node(kind, ["input"], [q, "s", "z"], name="quantize")
        x = b.op("DequantizeLinear", q, "s", "z")
    elif kind == "QLinearConv":
        x = b.op("DequantizeLinear", b.op(kind, q, scale, zero, w, scale, zero, scale, zero), scale, zero)
    elif kind.endswith("Integer"):
        right = w if kind == "ConvInteger" else b.constant("m", np.ones((8, 8), dtype=np.uint8))
        x = b.op("Cast", b.op(kind, q, right), to=1)
    else:
        x = b.op("DequantizeLinear", q, scale, zero)
    text = refusal(models.save(b.model(b.head(x, 3, 3)), tmp_path))
    assert "is already quantized: node 'quantize' is a " in text
    assert "fix: give the float model" in text


def test_custom_operators_are_refused_by_domain_and_name(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op("Swirl", b.conv("input", 3, 4, name="stem"), name="twist", domain="com.acme")
    model = b.model(b.head(x, 4, 3), domain="com.acme")
    text = refusal(models.save(model, tmp_path))
    assert "node 'twist' is the custom operator Swirl of domain 'com.acme', which onnxruntime cannot run" in text


def test_contributed_operators_that_run_are_fine(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op("Gelu", b.conv("input", 3, 4, name="stem"), domain="com.microsoft")
    model = b.model(b.head(x, 4, 3), domain="com.microsoft")
    assert [layer.name for layer in weight_layers(load(models.save(model, tmp_path)).value)] == ["stem", "head"]


def test_contributed_operators_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    b = models.Builder()
    model = b.model(b.head(b.op("Swirl", b.conv("input", 3, 4), domain="com.microsoft"), 4, 3), domain="com.microsoft")
    text = refusal(models.save(model, tmp_path))
    assert "onnxruntime cannot open" in text
    assert "Swirl" in text


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    b = models.Builder()
    path = models.save(b.model(b.op("Relu", "input"), rank=4), tmp_path)
    assert "has no Conv, ConvTranspose, Gemm or MatMul with a constant float32 weight" in refusal(path)


@pytest.mark.parametrize(("value", "place"), [(np.nan, "middle.weight"), (np.inf, "head.bias"), (-np.inf, "bn1.mean")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, place: str) -> None:
    model = models.conv_net()
    tensor = initializers(model)[place]
    array = np.array(numpy_helper.to_array(tensor))
    array.reshape(-1)[:2] = value
    tensor.CopyFrom(numpy_helper.from_array(array, place))
    with pytest.raises(StageError) as caught:
        load(models.save(model, tmp_path))
    text = caught.value.problem
    assert f"layer '{place.split('.')[0]}' has 2 NaN or infinite values in '{place}' (of {array.size})" in text


def test_an_infinite_mask_is_fine(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op(
        "Softmax", b.op("Add", b.matmul("input", 4, 4), b.constant("mask", np.array([0, 0, 0, -np.inf], np.float32)))
    )
    assert load(models.save(b.model(x, ("batch", 4)), tmp_path)).facts["shapes"]["logits"] == (1, 4)


@pytest.mark.parametrize(("kind", "name"), [(np.float16, "float16"), (np.float64, "double")])
def test_other_float_types_are_refused(tmp_path: Path, kind: type, name: str) -> None:
    b = models.Builder()
    half = b.op("Cast", "input", to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    x = b.op("MatMul", half, b.constant("half", np.ones((4, 4), kind)), name="fc")
    path = models.save(b.model(b.op("Cast", x, to=TensorProto.FLOAT), ("batch", 4)), tmp_path)
    text = refusal(path)
    assert f"weight 'half' of layer 'fc' is {name}, expected float32" in text
    assert "model.float()" in text


def test_open_sizes_are_guessed_until_one_runs(tmp_path: Path) -> None:
    path = models.save(models.attention(length="length"), tmp_path)
    assert load(path).facts["sample"] == {"input": (1, 128, 16)}
    b = models.Builder()
    x = b.op("Reshape", b.conv("input", 3, 4, strides=[2, 2]), b.constant("flat", np.array([-1, 4 * 16 * 16])))
    path = models.save(b.model(b.gemm(x, 1024, 3), ("batch", 3, "height", "width")), tmp_path)
    assert load(path).facts["sample"]["input"] == (1, 3, 32, 32)


def test_shapes_fall_back_on_inference(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op("Reshape", "input", b.constant("row", np.array([5, 37])))
    path = models.save(b.model(b.gemm(x, 37, 3), ("batch", "odd", "odder"), rank=2), tmp_path)
    found = load(path).facts
    assert found["sample"] == {}
    assert found["shapes"]["logits"] == (5, 3)


def test_large_models_pass_through_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LARGE_BYTES", 1000)
    monkeypatch.setattr(storage, "EXTERNAL_BYTES", 1000)
    model = models.residual_net()
    loaded = load(external(models.residual_net(), tmp_path))
    assert loaded.facts["shapes"]["logits"] == (1, 10)
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    FORMAT.save(loaded, target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    inputs = models.samples(model, 2)
    np.testing.assert_allclose(models.run(target, inputs)[0], models.run(model, inputs)[0], rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(str(target))
    before = target.read_bytes(), target.with_name("model.onnx.data").read_bytes()
    FORMAT.save(load(target), target)
    assert before == (target.read_bytes(), target.with_name("model.onnx.data").read_bytes())


def test_saving_is_deterministic_and_keeps_a_readable_ir(tmp_path: Path) -> None:
    model = models.fire_net()
    model.ir_version = 11
    model.metadata_props.add(key="names", value="{0: 'cat'}")
    loaded = load(models.save(model, tmp_path))
    for name in ("a.onnx", "b.onnx"):
        FORMAT.save(loaded, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    saved = onnx.load(tmp_path / "a.onnx")
    assert saved.ir_version == 10
    assert saved.metadata_props[0].value == "{0: 'cat'}"
    assert [value.name for value in (*saved.graph.input, *saved.graph.output)] == ["input", "logits"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save(models.mlp(), tmp_path)
    loaded = load(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsify_onnx.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        FORMAT.save(loaded, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_that_do_not_fill_their_shape_are_named(tmp_path: Path) -> None:
    model = models.mlp()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    weight.dims[1] = 1
    with pytest.raises(RequestError, match=r"damaged: tensor 'second.weight' holds .*, expected 64 for its shape"):
        load(models.save(model, tmp_path))


def test_names_that_are_no_text_are_no_model(tmp_path: Path) -> None:
    model = models.mlp()
    model.graph.name = "graph-to-be-damaged"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"graph-to", b"graph\xff\xfeo"))
    with pytest.raises(RequestError, match="is no ONNX model"):
        load(path)


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=8), st.floats(0, 1))
@example(b"\x01", 0.26171875)  # the dims of a weight
def test_a_damaged_file_is_an_error_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, place: float
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    data = bytearray(models.mlp().SerializeToString())
    start = int(place * len(data))
    data[start : start + len(damage)] = damage
    path.write_bytes(data)
    with suppress(RequestError, StageError):
        load(path)


def test_weights_in_subgraphs_are_left_alone(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.conv("input", 3, 4, name="stem")
    flag = b.op("Greater", b.op("ReduceMax", x, keepdims=0), b.constant("zero", np.float32(0)))
    branches = {}
    for name in ("then_branch", "else_branch"):
        kernel = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), f"{name}.weight")
        made = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
        node = helper.make_node("Conv", [x, kernel.name], [made.name], name=f"{name}.conv")
        branches[name] = helper.make_graph([node], name, [], [made], [kernel])
    model = b.model(b.head(b.op("If", flag, **branches), 4, 3))
    loaded = load(models.save(model, tmp_path))
    assert [layer.name for layer in weight_layers(loaded.value)] == ["stem", "head"]
    inputs = models.samples(model, 2)
    np.testing.assert_allclose(models.run(loaded.value, inputs)[0], models.run(model, inputs)[0], rtol=1e-5)
