"""Normalizing never changes what a model computes, and leaves weights as initializers of plain, named layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from sparsify_onnx.graph import initializers, weight_layers
from sparsify_onnx.metadata import PATH, scrub
from sparsify_onnx.normalize import name_nodes, normalize, settle
from sparsify_onnx.sessions import open_model

from tests.onnx import models

STEPS = (
    "conv", "conv_no_bias", "batch_norm", "relu", "mul", "div", "add", "sub", "add_scalar", "identity", "dropout",
    "skip", "transpose_conv", "pool", "two_readers",
)  # fmt: skip


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def same(before: onnx.ModelProto, after: onnx.ModelProto, count: int = 3) -> None:
    inputs = models.samples(before, count)
    onnx.checker.check_model(after, full_check=True)
    for left, right in zip(models.run(before, inputs), models.run(after, inputs), strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(left).max())))


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return normalize(copy)[0]


def grow(steps: list[str], seed: int) -> onnx.ModelProto:
    """Chain steps on 4 channels of 6 × 6 pixels."""
    b = models.Builder(seed)
    x = b.conv("input", 4, 4, name="stem")
    for step in steps:
        if step in ("mul", "div", "add", "sub"):
            row = b.constant(f"row{len(b.nodes)}", b.random.uniform(0.5, 1.5, (1, 4, 1, 1)).astype(np.float32))
            x = b.op(step.title(), x, row)
        elif step == "add_scalar":
            x = b.op("Add", b.constant(f"scalar{len(b.nodes)}", np.float32(0.3)), x)
        elif step.startswith("conv"):
            x = b.conv(x, 4, 4, group=2 if step == "conv" else 1, bias=step == "conv")
        elif step == "batch_norm":
            x = b.batch_norm(x, 4)
        elif step == "transpose_conv":
            weight = b.weight(f"up{len(b.nodes)}.weight", 4, 2, 3, 3)
            x = b.op("ConvTranspose", x, weight, group=2, pads=[1] * 4)
        elif step == "skip":
            x = b.op("Add", x, "input")
        elif step == "two_readers":
            x = b.op("Mul", x, b.op("Sigmoid", x))
        elif step == "pool":
            x = b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
        else:
            x = b.op(step.title(), x)
    return b.model(b.head(x, 4, 3), ("batch", 4, 6, 6))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(STEPS), max_size=7), st.integers(0, 99))
def test_any_chain_computes_the_same(steps: list[str], seed: int) -> None:
    model = grow(steps, seed)
    after = normalized(model)
    same(model, after)
    assert not ops(after).keys() & {"Identity", "Dropout", "Constant"}
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    twice = normalized(after)
    assert twice.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_the_family_computes_the_same(name: str) -> None:
    model = models.FAMILY[name]()
    same(model, normalized(model))


@pytest.mark.parametrize("scale", ["batch_norm", "mul", "div", "add", "sub", "add_scalar"])
def test_what_follows_a_convolution_is_folded(scale: str) -> None:
    model = grow([scale], 0)
    assert ops(normalized(model)) == {"Conv": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


def test_a_batch_norm_alone_stays() -> None:
    assert ops(normalized(grow(["relu", "batch_norm"], 0)))["BatchNormalization"] == 1


def test_a_convolution_that_others_read_is_not_folded_into() -> None:
    b = models.Builder()
    x = b.conv("input", 3, 4, name="stem")
    y = b.op("Add", b.batch_norm(x, 4), x)
    model = b.model(b.head(y, 4, 3))
    assert ops(normalized(model))["BatchNormalization"] == 1
    same(model, normalized(model))


def test_a_shared_weight_is_copied_before_it_is_folded_into() -> None:
    b = models.Builder()
    weight = b.weight("tied", 3, 3, 3, 3)
    x = b.batch_norm(b.op("Conv", "input", weight, pads=[1] * 4), 3)
    x = b.batch_norm(b.op("Conv", x, weight, pads=[1] * 4), 3)
    model = b.model(b.head(x, 3, 3))
    after = normalized(model)
    same(model, after)
    assert not any(layer.reason.startswith("weight shared") for layer in weight_layers(after))


def test_a_batch_norm_that_would_give_infinite_weights_stays() -> None:
    b = models.Builder()
    x = b.batch_norm(b.conv("input", 3, 4, name="stem"), 4, name="bn")
    model = b.model(b.head(x, 4, 3))
    tensor = initializers(model)["bn.variance"]
    tensor.CopyFrom(numpy_helper.from_array(np.full(4, -1, dtype=np.float32), tensor.name))
    assert ops(normalized(model))["BatchNormalization"] == 1


def test_a_per_pixel_constant_is_not_folded() -> None:
    b = models.Builder()
    x = b.op("Add", b.conv("input", 3, 4, name="stem"), b.weight("position", 1, 4, 8, 8))
    model = b.model(b.head(x, 4, 3))
    assert ops(normalized(model))["Add"] == 1


@pytest.mark.parametrize("trans_b", [True, False])
def test_gemm_factors_and_batch_norm_go_into_the_weight(trans_b: bool) -> None:
    b = models.Builder()
    x = b.gemm("input", 6, 5, trans_b=trans_b, name="first", alpha=0.5, beta=2.0)
    x = b.op("Relu", b.batch_norm(x, 5))
    model = b.model(b.gemm(x, 5, 3, name="last"), ("batch", 6))
    after = normalized(model)
    same(model, after)
    assert ops(after) == {"Gemm": 2, "Relu": 1}
    assert not {item.name for item in after.graph.node[0].attribute} & {"alpha", "beta"}


def test_constants_become_initializers_and_leave_the_inputs() -> None:
    b = models.Builder()
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "")
    b.nodes.append(helper.make_node("Constant", [], ["w"], value=weight))
    b.nodes.append(helper.make_node("Constant", [], ["s"], value_float=2.0))
    x = b.op("Mul", b.op("MatMul", "input", "w"), "s")
    model = b.model(b.matmul(x, 4, 4, name="last"), ("batch", 4))
    model.graph.input.append(helper.make_tensor_value_info("last.weight", onnx.TensorProto.FLOAT, [4, 4]))
    after = normalized(model)
    same(model, after)
    assert [value.name for value in after.graph.input] == ["input"]
    assert {"w", "s"} <= initializers(after).keys()
    assert settle(after) == 0


def test_a_weight_behind_transposes_and_casts_is_computed() -> None:
    b = models.Builder()
    x = b.op("MatMul", "input", b.op("Transpose", b.op("Identity", b.weight("w", 7, 4)), perm=[1, 0]), name="first")
    model = b.model(b.matmul(x, 7, 3, name="last"), ("batch", 4))
    after = normalized(model)
    same(model, after)
    assert [layer.shape for layer in weight_layers(after)] == [(4, 7), (7, 3)]
    assert ops(after) == {"MatMul": 2}


def test_constants_that_would_grow_the_file_are_not_computed() -> None:
    b = models.Builder()
    big = b.op("ConstantOfShape", b.constant("shape", np.array([1024, 1024], dtype=np.int64)))
    model = b.model(b.op("MatMul", b.matmul("input", 4, 1024), big), ("batch", 4))
    after = normalized(model)
    same(model, after)
    assert ops(after)["ConstantOfShape"] == 1


def test_random_nodes_are_not_frozen() -> None:
    b = models.Builder()
    noise = b.op("RandomNormalLike", b.constant("zero", np.zeros((1, 4), dtype=np.float32)))
    model = b.model(b.op("Add", b.matmul("input", 4, 4), noise), ("batch", 4))
    assert ops(normalized(model))["RandomNormalLike"] == 1


def test_identity_between_input_and_output_stays() -> None:
    b = models.Builder()
    b.nodes.append(helper.make_node("Identity", ["input"], ["echo"]))
    model = b.model(b.matmul("input", 4, 4), ("batch", 4))
    model.graph.output.append(helper.make_tensor_value_info("echo", onnx.TensorProto.FLOAT, ["batch", 4]))
    after = normalized(model)
    same(model, after)
    assert [value.name for value in after.graph.output] == ["logits", "echo"]


def test_an_identity_that_makes_the_output_gives_its_name_away() -> None:
    b = models.Builder()
    x = b.matmul("input", 4, 4, name="only")
    model = b.model(b.op("Identity", x), ("batch", 4))
    after = normalized(model)
    same(model, after)
    assert ops(after) == {"MatMul": 1}


def test_dropout_that_trains_or_gives_its_mask_stays() -> None:
    b = models.Builder()
    ratio, training = b.constant("ratio", np.float32(0.5)), b.constant("training", np.array(True))
    x = b.op("Dropout", b.matmul("input", 4, 4), ratio, training)
    assert ops(normalized(b.model(x, ("batch", 4))))["Dropout"] == 1


def test_subgraphs_keep_what_they_read() -> None:
    b = models.Builder()
    x = b.op("Identity", b.matmul("input", 4, 4, name="only"))
    flag = b.op("Greater", b.op("ReduceMax", "input", keepdims=0), b.constant("zero", np.float32(0)))
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, [x], ["y"])], name, [], [helper.make_tensor_value_info("y", 1, None)]
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    model = b.model(b.op("If", flag, **branches), ("batch", 4))
    after = normalized(model)
    same(model, after)
    assert ops(after)["Identity"] == 0


def test_local_functions_are_inlined() -> None:
    b = models.Builder()
    x = b.matmul("input", 4, 4, name="only")
    b.nodes.append(helper.make_node("Double", [x], ["twice"], domain="mine"))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("input", "twice")]
    graph = helper.make_graph(b.nodes, "g", ends[:1], ends[1:], b.weights)
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("mine", 1)]
    body = [helper.make_node("Add", ["a", "a"], ["c"])]
    function = helper.make_function("mine", "Double", ["a"], ["c"], body, opsets[:1])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    after = normalized(model)
    same(model, after)
    assert ops(after) == {"MatMul": 1, "Add": 1}
    assert not after.functions


def test_dead_nodes_and_weights_go() -> None:
    b = models.Builder()
    b.matmul("input", 4, 4, name="dead")
    model = b.model(b.matmul("input", 4, 4, name="alive"), ("batch", 4))
    after = normalized(model)
    assert [node.name for node in after.graph.node] == ["alive"]
    assert list(initializers(after)) == ["alive.weight"]


def test_names_become_unique_and_good_ones_stay() -> None:
    b = models.Builder()
    x = b.op("Relu", b.op("Relu", b.matmul("input", 4, 4, name="Relu_1"), name=""), name="same")
    model = b.model(b.op("Relu", x, name="same"), ("batch", 4))
    assert name_nodes(model) == 2
    assert [node.name for node in model.graph.node] == ["Relu_1", "Relu_1_1", "same", "same_1"]
    assert name_nodes(model) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('File "/home/me/net.py", line 3', True),
        ("trained on /data/coco/val.yaml", True),
        ("path:/srv/models/x", True),
        ("C:\\Users\\me\\net.pt", True),
        ("~/runs/exp", True),
        ("file:///srv/x", True),
        ("https://ultralytics.com/license/agpl", False),
        ("layer1/layer1.0/conv1", False),
        ("{0: 'person', 1: 'n/a'}", False),
        ("2026-11-20T10:00:00", False),
    ],
)
def test_paths_are_told_from_names(text: str, found: bool) -> None:
    assert bool(PATH.search(text)) is found


def test_metadata_keeps_names_and_drops_paths() -> None:
    model = models.conv_net()
    model.doc_string = "exported from /home/me/project/net.py"
    model.graph.node[0].doc_string = 'File "/home/me/project/net.py", line 1'
    for key, value in (("names", "{0: 'cat'}"), ("weights", "/home/me/best.pt"), ("stride", "32")):
        model.metadata_props.add(key=key, value=value)
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="forward")
    assert scrub(model) == 4
    assert [item.key for item in model.metadata_props] == ["names", "stride"]
    assert b"/home/me" not in model.SerializeToString()


def test_dynamic_axes_and_names_survive(tmp_path: Path) -> None:
    after = normalized(models.attention(length="length"))
    dims = after.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "length", 16]
    noise = np.random.default_rng(0).standard_normal((2, 11, 16)).astype(np.float32)
    assert models.run(models.save(after, tmp_path), {"input": noise})[0].shape == (2, 5)


def gelu(layer: str = "matmul", *, half: float = 0.5, seen: bool = False) -> onnx.ModelProto:
    """Write GELU as torch's exporter does: the half multiplies what multiplies the layer's output."""
    b = models.Builder()
    if layer == "conv":
        x, shape, rank = b.conv("input", 3, 4), ("batch", 3, 8, 8), 4
    else:
        x, shape, rank = b.matmul("input", 12, 16), ("batch", 6, 12), 3
        x = b.op("Add", x, b.weight("bias", 16, scale=0.1))
    erf = b.op("Erf", b.op("Div", x, b.constant("root", np.float32(np.sqrt(2)))))
    halved = b.op("Mul", b.constant("half", np.float32(half)), b.op("Add", erf, b.constant("one", np.float32(1))))
    y = b.op("Mul", x, halved, output="gelu")
    y = b.op("Add", y, halved) if seen else y
    return b.model(y, shape, rank=rank)


def test_gelu_is_written_as_onnx_runtime_fuses_it_and_gives_the_same_bits(tmp_path: Path) -> None:
    model = gelu()
    after, notes = normalize(gelu())
    assert "1 GELUs written as ONNX Runtime fuses them" in notes
    inputs = models.samples(model, 4)
    np.testing.assert_array_equal(run_plain(after, inputs), run_plain(model, inputs))
    assert "BiasGelu" in fused(after, tmp_path)
    assert "BiasGelu" not in fused(model, tmp_path)
    assert after == normalized(after)


@pytest.mark.parametrize("other", [gelu("conv"), gelu(half=0.3), gelu(seen=True)])
def test_other_products_keep_their_order(other: onnx.ModelProto) -> None:
    assert not any("GELU" in note for note in normalize(other)[1])


def run_plain(model: onnx.ModelProto, inputs: models.Arrays) -> np.ndarray:
    session = open_model(model, threads=1)  # as written, unfused
    found: np.ndarray = session.run(None, inputs)[0]
    return found


def fused(model: onnx.ModelProto, folder: Path) -> set[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}
