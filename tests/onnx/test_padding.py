"""Padding is found by what it does not change, and no statistic sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sparsify import Context, Dataset, Model, Sample
from sparsify_onnx.calibration import watch
from sparsify_onnx.columns import sample_rows
from sparsify_onnx.padding import find_padding, select
from sparsify_onnx.pruning import SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.smoothing import SmoothQuantModifier

from tests.onnx.models import Arrays, Builder

WIDTH, WORDS, LENGTH = 8, 20, 10


def encoder(*, masked: bool = True, pooled: bool = True, batch: int | str = "batch") -> onnx.ModelProto:
    """Embed `words` and `kinds`, attend where `here` is one, and classify the first word, or each."""
    b = Builder()
    x = b.op("Gather", b.weight("table", WORDS, WIDTH, scale=1.0), "words")
    x = b.op("Add", x, b.op("Gather", b.weight("kind_table", 2, WIDTH, scale=1.0), "kinds"))
    q, k, v = (b.matmul(x, WIDTH, WIDTH, name=name) for name in ("query", "key", "value"))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    if masked:
        absent = b.op("Sub", b.constant("one", np.float32(1)), b.op("Cast", "here", to=TensorProto.FLOAT))
        absent = b.op(
            "Mul", b.op("Unsqueeze", absent, b.constant("axis", np.array([1]))), b.constant("far", np.float32(-1e9))
        )
        scores = b.op("Add", scores, absent)
    else:  # the input is read, but hides nothing
        scores = b.op(
            "Add",
            scores,
            b.op("Unsqueeze", b.op("Cast", "here", to=TensorProto.FLOAT), b.constant("axis", np.array([2]))),
        )
    x = b.op("Add", x, b.op("MatMul", b.op("Softmax", scores, axis=-1), v))
    gamma, beta = b.constant("gamma", np.ones(WIDTH, np.float32)), b.weight("beta", WIDTH, scale=0.1)
    x = b.op("LayerNormalization", x, gamma, beta, axis=-1, output="normed")
    x = b.op("Add", x, b.matmul(b.op("Relu", b.matmul(x, WIDTH, 16, name="up")), 16, WIDTH, name="down"), output="deep")
    if pooled:
        x = b.op("Flatten", b.op("Gather", x, b.constant("first", np.array([0])), axis=1))
    x = b.gemm(x, WIDTH, 3, name="head") if pooled else b.matmul(x, WIDTH, 3, name="head")
    ins = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [batch, LENGTH]) for name in ("words", "kinds", "here")
    ]
    made = helper.make_tensor_value_info(x, TensorProto.FLOAT, [batch, *[None] * (1 if pooled else 2)])
    graph = helper.make_graph(b.nodes, "encoder", ins, [made], b.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def sentences(count: int = 24, rubbish: int = 0) -> Dataset:
    """Draw sentences of 2 to 10 words; `rubbish` stands behind them."""

    def read(key: str) -> Sample:
        random = np.random.default_rng(int(key))
        here = np.arange(LENGTH) < random.integers(2, LENGTH + 1)
        words = np.where(here, random.integers(2, WORDS, LENGTH), rubbish)
        kinds = np.where(here, np.arange(LENGTH) > 3, 0)
        return Sample({"words": words, "kinds": kinds.astype(np.int64), "here": here.astype(np.int64)})

    return Dataset(tuple(map(str, range(count))), read)


def found(model: onnx.ModelProto, names: list[str], samples: Dataset) -> tuple[str, set[str]]:
    """Say whether calibration finds a mask, and for which tensors."""
    moment = next(iter(watch(model, names, samples, Context(samples, batch_size=6, threads=1), {}, "testing")))
    return ("" if moment.real is None else "mask"), set(moment.padded)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("batch", ["batch", 4])
def test_the_mask_is_found_whatever_it_is_called(pooled: bool, batch: int | str) -> None:
    model = encoder(pooled=pooled, batch=batch)
    logits = model.graph.output[0].name
    held = {"normed", "deep"} if pooled else {"normed", "deep", logits}
    assert found(model, ["normed", "deep", logits], sentences()) == ("mask", held)
    moment = next(iter(watch(model, ["deep"], sentences(), Context(sentences(), batch_size=4), {}, "testing")))
    assert moment.real is not None
    assert len(moment.rows("deep")) == moment.real.sum() < moment.tensors["deep"].size // WIDTH


def test_an_input_of_zeros_and_ones_that_says_something_else_is_no_mask() -> None:
    assert found(encoder(masked=False), ["normed"], sentences()) == ("", set())


def test_without_padding_there_is_no_mask() -> None:
    full = Dataset(("0",), lambda key: Sample({name: np.ones(LENGTH, np.int64) for name in ("words", "kinds", "here")}))
    assert found(encoder(), ["normed"], full) == ("", set())


def everything(model: onnx.ModelProto, samples: Dataset) -> bytes:
    context = Context(samples, batch_size=5, threads=1)
    held = Model("onnx", model)
    for modifier in (SmoothQuantModifier(), SparseGPTModifier(sparsity=0.5), QuantizationModifier(ranges="percentile")):
        held = modifier.apply(held, context)
    result: bytes = held.value.SerializeToString(deterministic=True)
    return result


def test_what_stands_in_the_padding_changes_no_byte_of_the_result() -> None:
    assert everything(encoder(), sentences(rubbish=0)) == everything(encoder(), sentences(rubbish=1))
    assert everything(encoder(masked=False), sentences(rubbish=0)) != everything(
        encoder(masked=False), sentences(rubbish=1)
    )


def test_rows_are_dropped_where_the_first_axes_are_the_masks() -> None:
    real = np.array([[True, False, True], [False, False, True]])
    tensor = np.arange(12.0).reshape(2, 3, 2)
    assert select(tensor, real).tolist() == [[0, 1], [4, 5], [10, 11]]
    assert select(tensor.reshape(6, 2), real).tolist() == [[0, 1], [4, 5], [10, 11]]
    assert select(tensor.reshape(3, 4), real).shape == (3, 4)
    assert select(tensor, None) is tensor


def test_rows_are_drawn_from_what_is_real() -> None:
    real = np.random.default_rng(0).random((5, 12)) < 0.5
    assert np.array_equal(sample_rows(12, 0, 5, 99, 0, real), np.flatnonzero(real.reshape(-1)))
    few = sample_rows(12, 0, 5, 3, 0, real)
    assert real.reshape(-1)[few].all()
    assert np.bincount(few // 12).tolist() == np.minimum(real.sum(axis=1), 3).tolist()
    assert np.array_equal(sample_rows(12, 0, 5, 3, 0, real[:, :4]), sample_rows(12, 0, 5, 3, 0))


def test_nothing_is_concluded_from_infinities_or_equal_values() -> None:
    sample = Dataset(("0",), lambda key: Sample({"a": np.array([3, 3]), "b": np.array([1, 0])}))

    def run(names: Any, feed: Arrays) -> Arrays:
        return {"y": np.full((1, 2), np.inf, dtype=np.float32)}

    assert find_padding(run, ["y"], [], sample) is None  # nothing else can stand there
    other: NDArray[Any] = np.array([3, 5])
    sample = Dataset(("0",), lambda key: Sample({"a": other, "b": np.array([1, 0])}))
    assert find_padding(run, ["y"], [], sample) is None
