"""Layer errors against NumPy, whatever the batch size, through the renamings of ONNX Runtime's quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat
from sparsify import Model, StageError
from sparsify_onnx import compare as module
from sparsify_onnx.graph import initializers, weight_layers
from sparsify_onnx.loader import load, read

from tests.onnx import models
from tests.onnx.test_describe import quantized


def loaded(model: onnx.ModelProto, folder: Path) -> Model:
    return load(models.save(model, folder))


def disturbed(model: Model, name: str, factor: float = 0.01) -> Model:
    """Copy a model with noise on one initializer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.value)
    tensor = initializers(copy)[name]
    array = numpy_helper.to_array(tensor)
    noise = np.clip(factor * np.random.default_rng(0).standard_normal(array.shape), -3e38, 3e38)
    tensor.CopyFrom(numpy_helper.from_array((array + noise).astype(np.float32), name))
    return Model("onnx", copy, model.facts)


def exposed(model: onnx.ModelProto, name: str, inputs: models.Arrays) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return models.run(copy, inputs)[-1].astype(np.float64)


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_errors_equal_numpy_for_any_batch_size(name: str, tmp_path: Path) -> None:
    reference = loaded(models.FAMILY[name](), tmp_path)
    layers = weight_layers(reference.value)
    candidate = disturbed(reference, layers[1].weight)
    data, inputs = models.dataset(reference.value, 7), models.samples(reference.value, 7)
    found = module.compare(reference, candidate, data, 3)
    assert found[layers[0].name] == module.LIMIT_DB  # upstream of the disturbance
    for layer in layers[1:]:
        left, right = (exposed(model.value, layer.output, inputs) for model in (reference, candidate))
        noise = float(np.square(left - right).sum())
        expected = 10 * np.log10(np.square(left).sum() / noise) if noise else module.LIMIT_DB
        assert found[layer.name] == pytest.approx(expected, abs=0.05)
    for size in (1, 7, 64):
        again = module.compare(reference, candidate, data, size)
        assert again == pytest.approx(dict(found), abs=0.05)


def test_a_fixed_batch_is_padded_and_the_padding_does_not_count(tmp_path: Path) -> None:
    fixed = loaded(models.conv_net(batch=4), tmp_path)
    free = loaded(models.conv_net(), tmp_path)
    data = models.dataset(free.value, 6)
    pairs = [(model, disturbed(model, "middle.weight")) for model in (fixed, free)]
    first, second = (module.compare(a, b, data, 8) for a, b in pairs)
    assert dict(first) == pytest.approx(dict(second), abs=1e-3)


@pytest.mark.parametrize("name", ["conv_net", "residual_net", "depthwise_net", "fire_net", "mlp", "attention"])
def test_quantized_graphs_match_layer_by_layer(name: str, tmp_path: Path) -> None:
    reference = loaded(models.FAMILY[name](), tmp_path)
    candidate = Model("onnx", read(quantized(reference.value, tmp_path, QuantFormat.QDQ)))
    found = module.compare(reference, candidate, models.dataset(reference.value, 8), 4)
    assert list(found) == [layer.name for layer in weight_layers(reference.value)]
    assert all(15 < value < 80 for value in found.values()), found


def test_a_merged_activation_is_compared_behind_the_activation(tmp_path: Path) -> None:
    reference = loaded(models.conv_net(), tmp_path)
    candidate = read(quantized(reference.value, tmp_path, QuantFormat.QDQ))
    pairs = module.matching_outputs(reference.value, candidate)
    assert pairs["deep"][0] == next(
        node.output[0] for node in reference.value.graph.node if node.input[0] == "conv6_out"
    )
    assert pairs["head"] == ("logits", "logits")


def test_layers_that_are_gone_are_left_out(tmp_path: Path) -> None:
    reference = loaded(models.mlp(), tmp_path)
    candidate = disturbed(reference, "second.weight")
    next(node for node in candidate.value.graph.node if node.name == "first").name = "renamed"
    assert "first" not in module.compare(reference, candidate, models.dataset(reference.value), 8)
    assert module.compare(reference, Model("onnx", onnx.ModelProto()), models.dataset(reference.value), 8) == {}


def test_outputs_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    reference = loaded(models.mlp(), tmp_path)
    candidate = disturbed(reference, "second.weight", factor=1e39)
    with pytest.raises(StageError) as caught:
        module.compare(reference, candidate, models.dataset(reference.value), 8)
    assert "of the compressed model puts out NaN or infinite values" in caught.value.problem
    assert "layer 'second'" in caught.value.problem
    assert caught.value.fix.startswith("check the samples for extreme values")


def test_large_outputs_shrink_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = loaded(models.conv_net(), tmp_path)
    candidate = disturbed(reference, "middle.weight")
    data = models.dataset(reference.value, 5)
    whole = module.compare(reference, candidate, data, 5)
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    assert dict(module.compare(reference, candidate, data, 5)) == pytest.approx(dict(whole), abs=1e-3)
