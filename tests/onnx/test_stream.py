"""Walking through a graph in stretches gives what the whole models give, with one generation of tensors on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sparsify import Context
from sparsify_onnx import storage
from sparsify_onnx import stream as module
from sparsify_onnx.graph import initializers, weight_layers
from sparsify_onnx.layerwise import levels
from sparsify_onnx.stream import Stream, live, open_stretch, upstream

from tests.onnx import models

SAMPLES = 10


def shifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with every float weight changed a little."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.9), tensor.name))
    return other


def walk(dense: onnx.ModelProto, compressed: onnx.ModelProto, folder: Path, batch: int = 4) -> dict[str, np.ndarray]:
    """Run level by level and join each layer's dense output and compressed input over the batches."""
    layers = weight_layers(dense)
    context = Context(models.dataset(dense, SAMPLES), batch_size=batch, threads=1)
    stream = Stream(dense, compressed, context, folder, upstream(dense, [layer.output for layer in layers]))
    found: dict[str, np.ndarray] = {}
    for level in levels(dense, layers):
        seen = 0
        kept: dict[str, list[np.ndarray]] = {}
        names = ([layer.output for layer in level], [layer.input for layer in level])
        for moment in stream.run(*names, advance=True):
            assert moment.first == seen
            seen += moment.samples
            for layer in level:
                kept.setdefault(f"y {layer.name}", []).append(moment.dense[layer.output][: moment.samples])
                kept.setdefault(f"x {layer.name}", []).append(moment.compressed[layer.input][: moment.samples])
        assert seen == SAMPLES
        assert len({path.name[:5] for path in folder.iterdir()}) <= 1
        found |= {name: np.concatenate(parts) for name, parts in kept.items()}
    return found


@pytest.mark.parametrize("limit", [module.SPOOL_BYTES, 0], ids=["on disk", "too large for the disk"])
@pytest.mark.parametrize("family", sorted(models.FAMILY))
def test_stretches_give_what_the_whole_models_give(
    family: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPOOL_BYTES", limit)
    dense = models.FAMILY[family]()
    compressed = shifted(dense)
    found = walk(dense, compressed, tmp_path)
    assert any(tmp_path.iterdir()) == (limit > 0)
    layers, feed = weight_layers(dense), models.samples(dense, SAMPLES)
    dense_run = open_stretch(dense, {}, [layer.output for layer in layers], 1)
    compressed_run = open_stretch(compressed, {}, [layer.input for layer in layers], 1)
    y, x = dense_run(feed), compressed_run(feed)
    for layer in layers:
        np.testing.assert_allclose(found[f"y {layer.name}"], y[layer.output], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"x {layer.name}"], x[layer.input], rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_padded_and_the_padding_left_out(tmp_path: Path) -> None:
    dense = models.conv_net(batch=4)
    folders = [tmp_path / "fixed", tmp_path / "flexible"]
    for folder in folders:
        folder.mkdir()
    found = walk(dense, shifted(dense), folders[0], batch=3)
    flexible = models.conv_net()
    for name, array in walk(flexible, shifted(flexible), folders[1], batch=3).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_subgraphs_reading_outer_tensors_are_followed(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.matmul("input", 6, 6, name="one")
    y = b.matmul(x, 6, 6, name="two")
    branch = helper.make_graph(
        [helper.make_node("Add", [x, y], ["sum"])],
        "then",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
    )
    b.nodes.append(
        helper.make_node(
            "If", [b.constant("yes", np.array(True))], ["joined"], then_branch=branch, else_branch=branch, name="if"
        )
    )
    dense = b.model(b.matmul("joined", 6, 3, name="three"), ("batch", 6))
    layers = {layer.name: layer for layer in weight_layers(dense)}
    assert upstream(dense, [layers["three"].output]) == {0, 1, 2, 3}
    behind = upstream(dense, [layers["two"].input])
    assert live(dense, behind, frozenset({0, 1, 2, 3})) == [layers["one"].output]
    found = walk(dense, shifted(dense), tmp_path)
    assert found["x three"].shape == (SAMPLES, 6)


def test_a_stretch_carries_only_its_own_weights() -> None:
    model = models.mlp()
    second = next(layer for layer in weight_layers(model) if layer.name == "second")
    kind = helper.make_tensor_value_info(second.input, TensorProto.FLOAT, [None, None])
    part = module.stretch(model, {second.input: kind}, [second.output])
    assert initializers(part).keys() == {"second.weight", "second.bias"}
    assert [value.name for value in part.graph.input] == [second.input]
    assert [node.name for node in part.graph.node] == ["second"]


def test_asking_for_what_is_already_there_runs_nothing() -> None:
    feed = {"input": np.ones((2, 12), dtype=np.float32)}
    assert open_stretch(models.mlp(), {}, ["input"], 1)(feed)["input"] is feed["input"]


def test_weights_are_handed_over_beside_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.mlp()
    feed = models.samples(model, 3)
    expected = models.run(model, feed)[0]
    monkeypatch.setattr(storage, "SMALL_BYTES", 1)
    np.testing.assert_array_equal(open_stretch(model, {}, ["logits"], 1)(feed)["logits"], expected)


def test_tensors_without_numbers_are_not_put_on_disk() -> None:
    context = Context(models.dataset(models.mlp(), 4))
    assert module._fits([np.zeros((2, 3))], 2, context)
    assert not module._fits([np.array(["a", "b"], dtype=object)], 2, context)
