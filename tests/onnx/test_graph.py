"""Weighted layers are found, ordered and read back as matrices, and whatever must not be pruned says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sparsify_onnx import graph

from tests.onnx import models


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    return {layer.name: layer.reason for layer in graph.weight_layers(model)}


def test_layers_come_in_order_with_the_ends_kept_dense() -> None:
    assert reasons(models.residual_net()) == {
        "stem": "first layer",
        "block1.conv1": "",
        "block1.conv2": "",
        "block2.conv1": "",
        "block2.side": "",
        "block2.conv2": "",
        "head": "last layer",
    }


def test_depthwise_convolutions_are_not_prunable_grouped_ones_are() -> None:
    found = reasons(models.depthwise_net())
    assert found["depthwise"] == "depthwise convolution"
    assert found["grouped"] == found["expand"] == found["project"] == ""
    found = reasons(models.upsampler())
    assert found["deepen"] == "depthwise convolution"
    assert found["widen"] == found["grow"] == ""


def test_products_of_activations_are_no_layers() -> None:
    names = set(reasons(models.attention()))
    assert names == {"embed", "query", "key", "value", "project", "up", "down", "head"}


def test_a_shared_weight_names_its_other_reader() -> None:
    b = models.Builder()
    x = b.matmul("input", 4, 4, name="first")
    x = b.op("MatMul", x, b.weight("tied", 4, 4), name="one")
    x = b.op("MatMul", x, "tied", name="two")
    model = b.model(b.matmul(x, 4, 4, name="last"), ("batch", 4))
    assert reasons(model) == {
        "first": "first layer",
        "one": "weight shared with two",
        "two": "weight shared with one",
        "last": "last layer",
    }


def test_batched_weights_say_so() -> None:
    b = models.Builder()
    x = b.matmul("input", 4, 4, name="first")
    x = b.op("MatMul", x, b.weight("stack", 2, 4, 4), name="batched")
    x = b.op("ConvTranspose", x, b.weight("up.weight", 2, 2, 3), name="up")
    model = b.model(b.matmul(x, 6, 4, name="last"), ("batch", 2, 4, 4), rank=3)
    assert reasons(model)["batched"] == "batched weight"
    assert not reasons(model)["up"]


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_matrices_round_trip_and_multiply_as_the_node_does(name: str) -> None:
    model = models.FAMILY[name]()
    for layer in graph.weight_layers(model):
        stored = numpy_helper.to_array(graph.initializers(model)[layer.weight])
        matrix = graph.read_weight(model, layer)
        np.testing.assert_array_equal(graph.from_matrix(layer, matrix), stored)
        if layer.op == "ConvTranspose":  # inputs × outputs of one group × kernel
            groups = stored.reshape(layer.group, -1, stored.shape[1], 9).swapaxes(1, 2)
            rows = groups.reshape(len(matrix), -1)
        else:
            rows = np.moveaxis(stored, graph.channel_axis(layer), 0).reshape(len(matrix), -1)
        np.testing.assert_allclose(matrix.sum(axis=1), rows.sum(axis=1), rtol=1e-4, atol=1e-5)


def test_the_matrix_of_a_left_weight_maps_inputs_to_outputs() -> None:
    model = models.left_matmul()
    layer = next(layer for layer in graph.weight_layers(model) if layer.name == "left")
    assert layer.weight_input == 0
    assert layer.input == "relu1_out"
    assert graph.read_weight(model, layer).shape == (9, 6)


def test_subgraph_reads_count_as_reads() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["outer", "local"], ["y"])],
        "then",
        [],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.array(2, dtype=np.float32), "local")],
    )
    node = onnx.helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=inner)
    assert graph.reads(node) == {"flag", "outer"}
    assert [found.op_type for found in graph.walk(onnx.GraphProto(node=[node]))] == ["If", "Mul", "Mul"]
