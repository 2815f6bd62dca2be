"""Each layer's time in ONNX Runtime's optimised graph, through its renamings, measured once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparsify import Context
from sparsify_onnx.graph import weight_layers
from sparsify_onnx.layer_times import EVENT, aliases, layer_times
from sparsify_onnx.loader import load
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import models
from tests.onnx.test_pruning import Memory


@pytest.mark.parametrize("family", ["conv_net", "residual_net", "depthwise_net", "fire_net", "mlp"])
@pytest.mark.parametrize("int8", [False, True])
def test_every_layer_has_a_time(family: str, int8: bool, tmp_path: Path) -> None:
    model = load(models.save(models.FAMILY[family](), tmp_path))
    context = Context(models.dataset(model.value), threads=1)
    measured = QuantizationModifier().apply(model, context) if int8 else model
    names = [layer.name for layer in weight_layers(model.value)]
    found = layer_times(measured.value, names, context)
    assert found.keys() == set(names)
    assert all(0 < took < 100 for took in found.values())


def test_times_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(models.save(models.mlp(), tmp_path))
    kept = Memory()
    context = Context(models.dataset(model.value), threads=1, kept=kept)
    names = [layer.name for layer in weight_layers(model.value)]
    first = layer_times(model.value, names, context)
    monkeypatch.setattr("sparsify_onnx.layer_times.open_profiled", pytest.fail)
    assert layer_times(model.value, names, context) == first


def test_a_fixed_batch_is_timed_as_it_is(tmp_path: Path) -> None:
    model = load(models.save(models.conv_net(batch=4), tmp_path))
    free = models.conv_net()
    names = [layer.name for layer in weight_layers(model.value)]
    assert layer_times(model.value, names, Context(models.dataset(free), threads=1)).keys() == set(names)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("/a/Conv_kernel_time", "/a/Conv"),
        ("/a/Relu_output_0_nchwc_kernel_time", "/a/Relu_output_0"),
        ("/a/Conv_token_12_kernel_time", "/a/Conv"),
        ("conv_2_kernel_time", "conv_2"),
        ("fused third/MatMulAddFusion_kernel_time", "third"),
    ],
)
def test_kernels_are_named_after_layers_or_tensors(event: str, name: str) -> None:
    found = EVENT.match(event)
    assert found is not None
    assert found["name"] == name


def test_a_layer_answers_for_what_was_fused_into_it() -> None:
    model = models.residual_net()
    found = aliases(model, {layer.name for layer in weight_layers(model)})
    for node in model.graph.node:
        if node.op_type == "Relu" and node.input[0].startswith("conv"):
            assert node.name in found
