"""The INT8 modifier end to end: what it promises for every model, and every error it raises."""

from __future__ import annotations

import re
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
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from pydantic import ValidationError
from sparsify import Context, Dataset, Model, RequestError, Sample, StageError
from sparsify_onnx.calibration import measure
from sparsify_onnx.correction import measure_shifts
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.equalize import find_channels
from sparsify_onnx.graph import initializers, producers, read_weight, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.placement import place
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.ranges import choose_range, grid
from sparsify_onnx.rounding import bias_floor, channel_scales, round_nearest, round_with_feedback

from tests.onnx import models

BARE = {"feedback": False, "equalize": False, "bias_correction": False}


def quantized(model: onnx.ModelProto, tmp_path: Path, count: int = 24, **options: Any) -> tuple[Model, Model]:
    loaded = load(models.save(model, tmp_path))
    context = Context(models.dataset(model, count), batch_size=8, threads=1)
    return loaded, QuantizationModifier(**options).apply(loaded, context)


def stored(model: onnx.ModelProto, node: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Read a layer's integers, scales and zero points from a QDQ model."""
    layer = next(item for item in model.graph.node if item.name == node)
    maker = producers(model)[layer.input[1]]
    values, scales, zeros = (numpy_helper.to_array(initializers(model)[name]) for name in maker.input)
    return values, scales, zeros


def reference(model: onnx.ModelProto, inputs: models.Arrays) -> NDArray[np.float32]:
    """Run ONNX's own evaluator, which knows DequantizeLinear from opset 19 on; ours mean the same there."""
    later = onnx.ModelProto()
    later.CopyFrom(model)
    later.opset_import[0].version = 19
    (found,) = ReferenceEvaluator(later).run(None, inputs)
    return np.asarray(found)


@pytest.mark.parametrize("build", models.FAMILY.values(), ids=models.FAMILY)
def test_a_quantized_model_stays_close_and_agrees_with_the_reference(
    build: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    model = build()
    loaded, result = quantized(model, tmp_path)
    onnx.checker.check_model(result.value)
    inputs = models.samples(model, 200, seed=1)
    dense, found = models.run(loaded.value, inputs)[0], models.run(result.value, inputs)[0]
    assert np.sqrt(np.mean((found - dense) ** 2) / np.mean(dense**2)) < 0.05
    kinds = {node.op_type for node in model.graph.node}
    # ReduceMean's axes became an input between opset 17 and 19; the reference cannot group transposed convolutions
    if not kinds & {"ReduceMean", "ConvTranspose"}:
        wanted = reference(result.value, inputs)
        assert np.mean(wanted.argmax(-1) == found.argmax(-1)) >= 0.97  # random nets: logits lie close together
        assert np.abs(wanted - found).max() <= 0.05 * np.abs(wanted).max()


def test_top_1_agrees_with_the_reference_evaluator_in_99_5_per_cent(tmp_path: Path) -> None:
    model = models.conv_net()
    _, result = quantized(model, tmp_path)
    inputs = models.samples(model, 400, seed=2)
    wanted = reference(result.value, inputs)
    assert np.mean(wanted.argmax(-1) == models.run(result.value, inputs)[0].argmax(-1)) >= 0.995


@pytest.mark.parametrize("build", models.FAMILY.values(), ids=models.FAMILY)
def test_batch_size_and_order_change_no_range(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model = load(models.save(build(), tmp_path)).value
    placement = place(model)
    data = models.dataset(model, 12)
    found = []
    for keys, size in ((data.keys, 1), (data.keys, 8), (data.keys[::-1], 5)):
        context = Context(data.take(keys), batch_size=size, threads=1)
        statistics = next(iter(measure(model, placement.tensors, (), context, {})))
        found.append({name: grid(choose_range(h, "mse", 0)) for name, h in statistics.histograms.items()})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, cell in other.items():
            # a kernel may round the last bit of a sum by batch size: a bin's width at most
            assert cell.scale == pytest.approx(found[0][name].scale, rel=2e-3)
    assert found[1] == found[2]


def test_same_seed_same_bytes_and_a_resume_too(tmp_path: Path) -> None:
    class Disk:
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}

        def load(self, name: str) -> Any:
            return self.held.get(name)

        def save(self, name: str, arrays: Any) -> None:
            np.savez(tmp_path / f"{name}.npz", **arrays)
            with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as read:
                self.held[name] = {key: read[key] for key in read.files}

    model = models.residual_net()
    loaded = load(models.save(model, tmp_path))
    before = loaded.value.SerializeToString(deterministic=True)
    reads: list[str] = []
    data = models.dataset(model, 16)

    def read(key: str) -> Sample:
        reads.append(key)
        return data.read(key)

    context = Context(replace(data, read=read), batch_size=8, threads=1, checkpoint=Disk())
    first = QuantizationModifier().apply(loaded, context)
    seen = len(reads)
    resumed = QuantizationModifier().apply(loaded, context)
    fresh = QuantizationModifier().apply(loaded, Context(data, batch_size=8, threads=1))
    assert len(reads) == seen > 0
    bytes_of = [item.value.SerializeToString(deterministic=True) for item in (first, resumed, fresh)]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]
    assert loaded.value.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("net", ["residual_net", "fire_net", "mlp"])
def test_zeros_survive(net: str, tmp_path: Path) -> None:
    model = models.FAMILY[net]()
    masks = {}
    for layer in weight_layers(model):
        matrix = numpy_helper.to_array(initializers(model)[layer.weight]).copy()
        masks[layer.name] = np.random.default_rng(0).random(matrix.shape) < 0.6
        matrix[masks[layer.name]] = 0
        initializers(model)[layer.weight].CopyFrom(numpy_helper.from_array(matrix, layer.weight))
    _, result = quantized(model, tmp_path)
    assert masks
    for name, mask in masks.items():
        values, _, zero_points = stored(result.value, name)
        assert not values[mask].any()
        assert not zero_points.any()
        assert np.abs(values.astype(int)).max() <= 127


def test_axes_names_and_metadata_survive(tmp_path: Path) -> None:
    model = models.conv_net()
    model.metadata_props.add(key="author", value="someone")
    model.producer_name = "exporter"
    loaded, result = quantized(model, tmp_path)
    assert result.value.graph.input == loaded.value.graph.input
    assert result.value.graph.output == loaded.value.graph.output
    assert result.value.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(item.key, item.value) for item in result.value.metadata_props] == [("author", "someone")]
    assert result.value.producer_name == "exporter"
    assert str(tmp_path).encode() not in result.value.SerializeToString()
    for rows in (1, 3):
        assert models.run(result.value, models.samples(model, rows))[0].shape == (rows, 10)


def test_a_fixed_batch_is_fed_whole_and_its_padding_not_counted(tmp_path: Path) -> None:
    fixed, free = models.conv_net(batch=4), models.conv_net()
    results = []
    for model in (fixed, free):
        loaded = load(models.save(model, tmp_path))
        results.append(QuantizationModifier(**BARE).apply(loaded, Context(models.dataset(model, 6), threads=1)).value)
    scales = [
        {item.name: float(numpy_helper.to_array(item)) for item in result.graph.initializer if item.dims == []}
        for result in results
    ]
    assert scales[0] == pytest.approx(scales[1], rel=2e-3)


def test_facts_say_what_became_of_each_layer(tmp_path: Path) -> None:
    _, result = quantized(models.attention(), tmp_path, ignore=("query",))
    facts = result.facts["quantized"]
    assert facts["scores"] == facts["mix"] == "no constant weight"
    assert facts["query"] == "ignored"
    assert facts["up"] == "int8"
    assert result.format == "onnx"
    assert any("2 x no constant weight" in line for line in result.facts["notes"])


def test_scales_are_numpys(tmp_path: Path) -> None:
    loaded, result = quantized(models.conv_net(), tmp_path, **BARE)
    for layer in weight_layers(loaded.value):
        matrix = read_weight(loaded.value, layer)
        values, scales, _ = stored(result.value, layer.name)
        wanted = np.abs(matrix).max(axis=1) / 127
        assert scales == pytest.approx(wanted, rel=1e-6)
        assert np.array_equal(np.rint(matrix / scales[:, None]), values.reshape(len(scales), -1))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), outputs=st.integers(1, 6), inputs=st.integers(2, 12), groups=st.integers(1, 3))
def test_feedback_is_never_worse_than_nearest(seed: int, outputs: int, inputs: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((groups * outputs, inputs)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.3] = 0
    rows = random.standard_normal((groups, 40, inputs)) @ random.standard_normal((groups, inputs, inputs))
    hessian = np.swapaxes(rows, 1, 2) @ rows
    scales = channel_scales(matrix, "max") * np.float32(16)  # coarse, so that rounding matters
    found = round_with_feedback(matrix, scales, hessian)
    nearest = round_nearest(matrix, scales)
    for group in range(groups):
        part = slice(group * outputs, (group + 1) * outputs)
        errors = [matrix[part] - integers[part] * scales[part, None] for integers in (found, nearest)]
        losses = [np.einsum("oi,ij,oj->o", error, hessian[group], error) for error in errors]
        assert (losses[0] <= losses[1] * (1 + 1e-5)).all()
    assert not found[matrix == 0].any()


def test_feedback_helps_on_correlated_inputs() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((32, 48)).astype(np.float32)
    rows = random.standard_normal((400, 12)) @ random.standard_normal((12, 48)) + random.standard_normal((400, 48)) / 9
    hessian = (rows.T @ rows)[None]
    scales = channel_scales(matrix, "max")
    errors = [
        matrix - integers * scales[:, None]
        for integers in (round_with_feedback(matrix, scales, hessian), round_nearest(matrix, scales))
    ]
    losses = [float(np.vdot(error @ hessian[0], error)) for error in errors]
    assert losses[0] < 0.5 * losses[1]


def test_a_scale_of_least_error_beats_its_neighbours() -> None:
    matrix = np.random.default_rng(0).standard_t(3, (8, 200)).astype(np.float32)

    def loss(scales: NDArray[np.float32]) -> NDArray[Any]:
        error = matrix - round_nearest(matrix, scales) * scales[:, None]
        return np.asarray(np.einsum("oi,oi->o", error, error))

    best, largest = channel_scales(matrix, "mse"), channel_scales(matrix, "max")
    candidates = np.stack([loss((largest * share).astype(np.float32)) for share in np.linspace(0.5, 1, 51)])
    assert loss(best) == pytest.approx(candidates.min(axis=0), rel=1e-3)


def test_dead_channels_keep_their_bias() -> None:
    matrix = np.zeros((3, 8), np.float32)
    matrix[0], matrix[1] = 0.5, 1e-12
    bias = np.array([1.0, 1.0, 1000.0], np.float32)
    scales = channel_scales(matrix, "max", bias_floor(bias, 0.001))
    assert (np.abs(bias) / (scales * 0.001) < 2**31).all()
    assert scales[2] == pytest.approx(np.median([0.5, 1e-12]) / 127, rel=1e-5) or scales[2] > 0
    model = models.conv_net()
    for name, value in (("deep.weight", 0.0), ("deep.bias", 50.0)):
        tensor = initializers(model)[name]
        array = numpy_helper.to_array(tensor).copy()
        array[:4] = value
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    inputs = models.samples(model, 50)
    result = QuantizationModifier().apply(Model("onnx", load_value(model)), Context(models.dataset(model), threads=1))
    dense, found = models.run(model, inputs)[0], models.run(result.value, inputs)[0]
    assert np.abs(dense - found).max() < 0.05 * np.abs(dense).max()


def load_value(model: onnx.ModelProto) -> onnx.ModelProto:
    from sparsify_onnx.normalize import normalize

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return normalize(copy)[0]


def test_bias_correction_restores_the_means() -> None:
    b = models.Builder(0)
    model = b.model(b.gemm("input", 12, 6, name="only"), ("batch", 12))
    data = models.dataset(model, 64)
    shifted = replace(data, read=lambda key: Sample({"input": np.abs(data.read(key).inputs["input"])}))
    inputs = {"input": np.abs(models.samples(model, 64)["input"])}
    dense = models.run(model, inputs)[0].mean(axis=0)
    off = {}
    for corrected in (False, True):
        options = QuantizationModifier(ranges="percentile", percentile=90, bias_correction=corrected)
        result = options.apply(Model("onnx", model), Context(shifted, threads=1))
        off[corrected] = np.abs(models.run(result.value, inputs)[0].mean(axis=0) - dense).max()
    assert off[True] < 0.01 * off[False]


def test_shifts_are_the_difference_of_the_twins_means(tmp_path: Path) -> None:
    model = models.mlp()
    loaded, result = quantized(model, tmp_path, **BARE)
    context = Context(models.dataset(model, 32), threads=1)
    shifts = measure_shifts(loaded.value, result.value, place(loaded.value), context, {})
    values, scales, _ = stored(result.value, "first")
    rounded = next(node for node in result.value.graph.node if node.output[0] == "input_QuantizeLinear_Output")
    scale, zero = (numpy_helper.to_array(initializers(result.value)[name]) for name in rounded.input[1:])
    x = models.samples(model, 32)["input"]
    seen = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    exact = read_weight(loaded.value, weight_layers(loaded.value)[0])
    wanted = (x @ exact.T - seen @ (values * scales[:, None]).T).mean(axis=0)
    assert shifts["first"] == pytest.approx(wanted, abs=1e-4)
    assert shifts.keys() == {"first", "second", "third", "last"}


@pytest.mark.parametrize("name", ["conv_net", "residual_net", "fire_net", "depthwise_net", "mlp"])
def test_equalizing_changes_no_output(name: str, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    loaded = load(models.save(model, tmp_path))
    inputs = models.samples(model, 20)
    dense = models.run(loaded.value, inputs)[0]
    context = Context(models.dataset(model), threads=1)
    result = EqualizationModifier().apply(loaded, context)
    assert result.facts["channel_scales"] or name == "mlp"
    assert models.run(result.value, inputs)[0] == pytest.approx(dense, rel=1e-4, abs=1e-5)
    assert models.run(loaded.value, inputs)[0] == pytest.approx(dense)


def test_equalizing_leaves_outputs_and_what_it_cannot_follow_alone(tmp_path: Path) -> None:
    loaded = load(models.save(models.depthwise_net(), tmp_path))
    layers = {layer.name: layer for layer in weight_layers(loaded.value)}
    channels = find_channels(loaded.value, loaded.facts["shapes"], set(layers))
    for frozen in ("stem", "expand", "depthwise", "head"):  # ReLU6 is not homogeneous; the head is the output
        assert set(channels.numbers[layers[frozen].output].tolist()) <= channels.frozen
    for free in ("grouped", "project"):
        assert not set(channels.numbers[layers[free].output].tolist()) & channels.frozen


@pytest.mark.parametrize("turned", [False, True])
def test_shared_weights_and_biases_serve_every_reader(turned: bool, tmp_path: Path) -> None:
    b = models.Builder(0)
    x = b.op("Flatten", "input")
    square, bias = b.weight("square", 192, 192, scale=0.05), b.weight("bias", 192, scale=0.1)
    x = b.op("Relu", b.op("Gemm", x, square, bias, transB=1, name="one"))
    x = b.op("Relu", b.op("Gemm", x, square, bias, transB=1, name="two"))
    x = b.op("Relu", b.op("Gemm", x, square, bias, name="turned")) if turned else x
    model = b.model(b.gemm(x, 192, 10))
    loaded, result = quantized(model, tmp_path)
    inputs = models.samples(model, 100, seed=3)
    dense, found = models.run(loaded.value, inputs)[0], models.run(result.value, inputs)[0]
    assert np.sqrt(np.mean((found - dense) ** 2) / np.mean(dense**2)) < 0.05
    assert set(result.facts["quantized"].values()) == {"int8"}
    # read along two axes it needs scales along both, and so two copies
    assert np.array_equal(stored(result.value, "one")[0], stored(result.value, "two")[0]) != turned


def test_constant_and_zero_activations_are_handled(tmp_path: Path) -> None:
    model = models.conv_net()
    loaded = load(models.save(model, tmp_path))
    data = Dataset(("0", "1"), lambda key: Sample({"input": np.zeros((3, 8, 8), np.float32)}))
    result = QuantizationModifier().apply(loaded, Context(data, threads=1))
    zeros = {"input": np.zeros((2, 3, 8, 8), np.float32)}
    assert models.run(result.value, zeros)[0] == pytest.approx(models.run(loaded.value, zeros)[0], abs=0.05)


def test_nan_and_infinite_activations_are_named(tmp_path: Path) -> None:
    loaded = load(models.save(models.conv_net(), tmp_path))
    for value, what in ((np.nan, "NaN"), (np.inf, "infinity")):
        data = Dataset((str(value),), lambda key: Sample({"input": np.full((3, 8, 8), float(key), np.float32)}))
        with pytest.raises(StageError, match=f"activations of 'input' contain {what}") as caught:
            QuantizationModifier(equalize=False).apply(loaded, Context(data, threads=1))
        assert caught.value.fix.startswith("check the calibration samples for extreme or NaN values")


def test_samples_that_do_not_fit_are_a_stage_error(tmp_path: Path) -> None:
    loaded = load(models.save(models.conv_net(), tmp_path))
    data = Dataset(("0",), lambda key: Sample({"input": np.zeros((4, 8, 8), np.float32)}))
    with pytest.raises(StageError, match="ONNX Runtime cannot run the model while") as caught:
        QuantizationModifier().apply(loaded, Context(data, threads=1))
    assert "sparsify analyze MODEL" in caught.value.fix


def test_ignore_takes_names_and_patterns_and_refuses_what_matches_nothing(tmp_path: Path) -> None:
    loaded, result = quantized(models.residual_net(), tmp_path, ignore="re:block1.*")
    facts = result.facts["quantized"]
    assert {name for name, reason in facts.items() if reason == "ignored"} == {"block1.conv1", "block1.conv2"}
    context = Context(models.dataset(loaded.value), threads=1)
    with pytest.raises(RequestError, match=r"ignore: 'block9.conv1' matches none of the model's") as caught:
        QuantizationModifier(ignore=("block9.conv1",)).apply(loaded, context)
    assert "block1.conv1" in caught.value.fix
    with pytest.raises(RequestError, match=re.escape("ignore: 're:(' is no regular expression")) as caught:
        QuantizationModifier(ignore=("re:(",)).apply(loaded, context)
    assert caught.value.fix == "mend the pattern, or write the node's name"
    with pytest.raises(RequestError, match="no layer of the model can run in INT8: 7 x ignored") as caught:
        QuantizationModifier(ignore=("re:.*",)).apply(loaded, context)
    assert caught.value.fix.startswith("remove QuantizationModifier from the recipe")


def test_an_old_opset_is_refused() -> None:
    model = models.mlp_at(12)
    with pytest.raises(RequestError, match="the model has opset 12, expected 13 or higher") as caught:
        QuantizationModifier().apply(Model("onnx", model), Context(models.dataset(model), threads=1))
    assert "opset 17" in caught.value.fix


def test_options_are_frozen_and_know_their_names() -> None:
    assert QuantizationModifier.model_validate(QuantizationModifier().model_dump()) == QuantizationModifier()
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        QuantizationModifier.model_validate({"range": "mse"})
    with pytest.raises(ValidationError, match="less than or equal to 100"):
        QuantizationModifier(percentile=101)
    with pytest.raises(ValidationError, match="frozen"):
        QuantizationModifier().ranges = "mse"  # type: ignore[misc]


def test_no_float_weight_is_left_behind(tmp_path: Path) -> None:
    _, result = quantized(models.fire_net(), tmp_path)
    floats = [item for item in result.value.graph.initializer if item.data_type == TensorProto.FLOAT]
    assert max(int(np.prod(item.dims)) for item in floats) <= 16  # scales only
