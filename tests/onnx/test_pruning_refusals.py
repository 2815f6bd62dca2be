"""What the pruning modifiers refuse, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError
from sparsify import Context, Dataset, Model, RequestError, Sample, SparsifyError, StageError
from sparsify_onnx.graph import initializers, weight_layers, write_initializer
from sparsify_onnx.pruning import MagnitudePruningModifier, SparseGPTModifier

from tests.onnx import models
from tests.onnx.models import Builder
from tests.onnx.test_pruning import context, prune, stored, zeros


def refused(error: type[SparsifyError], model: onnx.ModelProto, given: Context | None = None, **options: Any) -> str:
    with pytest.raises(error) as caught:
        prune(model, given, **options)
    return caught.value.lines()


def test_a_target_that_matches_nothing_names_the_nearest_layers() -> None:
    dense = models.residual_net()
    assert refused(RequestError, dense, targets="block1.conv3") == (
        "error: targets: 'block1.conv3' matches none of the model's 7 layers\n"
        "fix: use a layer's name, such as block1.conv2, block1.conv1, block2.conv2 (`sparsify analyze` lists all)"
    )
    assert "ignore: 're:stage' matches none" in refused(RequestError, dense, ignore="re:stage")
    with pytest.raises(RequestError, match="targets: 'nope' matches none"):
        MagnitudePruningModifier(sparsity=0.5, targets=("nope",)).apply(Model("onnx", dense), context(dense))


def test_a_broken_pattern_is_named() -> None:
    assert refused(RequestError, models.mlp(), targets="re:[") == (
        "error: targets: 're:[' is no regular expression: unterminated character set at position 0\n"
        "fix: mend the pattern, or write the layer's name"
    )


def test_a_layer_that_cannot_be_pruned_is_refused_where_named_and_skipped_by_all() -> None:
    b = Builder()
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    x = b.op("MatMul", x, b.weight("up.weight", 1, 8, 8), name="up")
    dense = b.model(b.head(x, 8, 4))
    assert refused(RequestError, dense, targets="re:u") == (
        "error: layer 'up' (targets: 're:u') cannot be pruned: its weight has more than two axes\n"
        "fix: leave it out of `targets`, or name it in `ignore` after a pattern"
    )
    assert not zeros(stored(prune(dense, targets="__ALL__"), "up.weight"))


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("batched", "its weight has more than two axes"),
        ("constant", "its input is constant"),
        ("shared", "its weight is shared with other"),
        ("bias", "its bias is not one constant per output"),
    ],
)
def test_what_stands_in_the_way_is_named(case: str, why: str) -> None:
    b = Builder()
    x = b.matmul("input", 6, 6, name="first")
    if case == "batched":
        x = b.op("MatMul", x, b.weight("w", 1, 6, 6), name="odd")
    elif case == "constant":
        y = b.op("Gemm", b.weight("c", 1, 6), b.weight("w", 6, 6), name="odd")
        x = b.op("Add", x, y)
    elif case == "shared":
        x = b.op("MatMul", x, b.weight("w", 6, 6), name="odd")
        x = b.op("MatMul", x, "w", name="other")
    else:
        x = b.op("Gemm", x, b.weight("w", 6, 6), x, name="odd")
    dense = b.model(b.matmul(x, 6, 3, name="last"), (4, 6), rank=3 if case == "batched" else 2)
    given = context(dense)
    assert f"layer 'odd' (targets: 'odd') cannot be pruned: {why}\n" in refused(
        RequestError, dense, given, targets="odd"
    )


def test_weights_and_activations_that_are_not_finite_are_refused_by_name() -> None:
    dense = models.conv_net()
    middle = next(layer for layer in weight_layers(dense) if layer.name == "middle")
    weight = numpy_helper.to_array(initializers(dense)[middle.weight]).copy()
    weight[0, 0, 0, 0] = np.nan
    write_initializer(dense, middle.weight, weight)
    assert refused(StageError, dense) == (
        "error: layer 'middle' has NaN or infinite weights\nfix: export the model again from a sound checkpoint"
    )
    with pytest.raises(StageError, match="layer 'middle' has NaN or infinite weights"):
        MagnitudePruningModifier(sparsity=0.5).apply(Model("onnx", dense), context(dense))
    broken = Dataset(("0",), lambda key: Sample({"input": np.full((3, 8, 8), np.inf, dtype=np.float32)}))
    assert refused(StageError, models.conv_net(), Context(broken, threads=1)) == (
        "error: layer 'middle': its inputs hold NaN or infinite values (samples 0 and on)\n"
        "fix: check the samples and the preprocessing, or name the layers before this one in `ignore`"
    )


def test_no_calibration_samples_are_refused() -> None:
    empty = Dataset((), lambda key: Sample({}))
    assert refused(RequestError, models.conv_net(), Context(empty)) == (
        "error: SparseGPTModifier has no calibration samples\nfix: give at least one, with --calibration-samples"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, "less than or equal to 1"),
        ({"sparsity": -0.1}, "greater than or equal to 0"),
        ({}, "Field required"),
        ({"sparsity": 0.5, "prunen": 2}, "Extra inputs are not permitted"),
        ({"sparsity": 0.5, "mask_structure": "blocky"}, "'blocky' is none of unstructured, N:M"),
        ({"sparsity": 0.5, "mask_structure": "4:2"}, "'4:2' needs 0 < N < M"),
        ({"sparsity": 0.5, "mask_structure": "0x4"}, "'0x4' needs 0 < N < M, or R and C of at least 1"),
        ({"sparsity": 0.5, "block_size": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "dampening_frac": -1}, "greater than or equal to 0"),
    ],
)
def test_options_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", "[(]")):
        SparseGPTModifier.model_validate(options)
