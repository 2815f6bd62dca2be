"""What a layer aims at: its own dense output, or the residual sum less the other, already compressed branch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from sparsify import Context, Model
from sparsify_onnx import layerwise
from sparsify_onnx.goals import Goal, find_goal
from sparsify_onnx.graph import WeightLayer, weight_layers
from sparsify_onnx.pruning import SparseGPTModifier

from tests.onnx import models
from tests.onnx.models import Builder


def layers_of(model: onnx.ModelProto) -> dict[str, WeightLayer]:
    return {layer.name: layer for layer in weight_layers(model)}


def sums(model: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node if node.op_type == "Add"]


def test_the_last_layer_of_a_branch_aims_at_the_sum() -> None:
    model = models.residual_net()
    layers = layers_of(model)
    goal = find_goal(model, layers["block2.conv2"], ())
    assert goal.sum == sums(model)[-1]
    assert goal.other == layers["block2.side"].output


def test_a_branch_that_waits_for_the_other_one_aims_at_itself() -> None:
    model = models.residual_net()
    layers = layers_of(model)
    waiting = [layers["block2.conv2"]]
    assert find_goal(model, layers["block2.side"], waiting) == Goal(layers["block2.side"].output)
    # the one solved later sees the other solved, and takes the sum
    assert find_goal(model, layers["block2.conv2"], waiting).other == layers["block2.side"].output


def test_a_layer_whose_output_is_read_twice_aims_at_itself() -> None:
    b = Builder(0)
    x = b.conv("input", 3, 8, name="stem")
    y = b.conv(x, 8, 8, name="twice")
    b.op("Relu", y)
    model = b.model(b.head(b.op("Add", y, x), 8, 4))
    assert find_goal(model, layers_of(model)["twice"], ()) == Goal(y)


def test_a_matmul_looks_past_its_bias() -> None:
    b = Builder(0)
    x = b.op("Relu", b.matmul("input", 6, 6, name="first"))
    y = b.op("Add", b.matmul(x, 6, 6, name="second"), b.constant("bias", np.full(6, 0.5, np.float32)))
    model = b.model(b.op("Add", y, x), ("batch", 6))
    layer = layers_of(model)["second"]
    goal = find_goal(model, layer, ())
    assert (goal.sum, goal.other) == ("logits", x)
    total, other = np.full((2, 6), 3.0, np.float32), np.ones((2, 6), np.float32)
    np.testing.assert_array_equal(goal.wanted(total, other), np.full((2, 6), 1.5))


def block_error(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> float:
    from sparsify_onnx.stream import open_stretch

    feed = models.samples(dense, 200, seed=99)
    wanted, found = (open_stretch(model, {}, [sums(dense)[-1]], 1)(dict(feed)) for model in (dense, pruned))
    name = sums(dense)[-1]
    return float(np.sum((wanted[name] - found[name]) ** 2))


def test_aiming_at_the_sum_repairs_what_the_other_branch_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = []
    for seed in range(3):
        dense = models.residual_net(seed)
        context = Context(models.dataset(dense, 200), batch_size=50, threads=1)
        modifier = SparseGPTModifier(sparsity=0.6)
        aimed = block_error(dense, modifier.apply(Model("onnx", dense), context).value)
        with monkeypatch.context() as patch:
            patch.setattr(layerwise, "find_goal", lambda model, layer, others: Goal(layer.output))
            alone = block_error(dense, modifier.apply(Model("onnx", dense), context).value)
        gains.append(aimed / alone)
    assert np.median(gains) < 0.9
