"""What would break in 8 bits is found from the graph's structure, whatever its nodes are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sparsify import Context, Dataset, Model, Sample
from sparsify_onnx.describe import describe
from sparsify_onnx.exclusions import AFFORDABLE, find_exclusions, structural_exclusions
from sparsify_onnx.graph import consumers, producers, weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.macs import count_macs
from sparsify_onnx.placement import place
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import graphs, models

Build = Callable[[int], onnx.ModelProto]
HEAD = "detection head: boxes and scores"
SCORES = "softmax and its inputs"
NORM = "normalisation and its statistics"
POSITION = "position or mask: no layer before it"
MASK = "mask: values far beyond the others"


def feed(model: onnx.ModelProto, rows: int, seed: int = 0) -> models.Arrays:
    """Draw noise for floats, and ids of at most 49 and masks that hide the end for integers."""
    random, found = np.random.default_rng(seed), {}
    for value in model.graph.input:
        shape = (rows, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            found[value.name] = random.standard_normal(shape).astype(np.float32)
        elif value.name == "mask":
            found[value.name] = (np.arange(shape[1]) < random.integers(3, shape[1] + 1, (rows, 1))).astype(np.int64)
        else:
            found[value.name] = random.integers(0, 50, shape)
    return found


def quantized(model: onnx.ModelProto, tmp_path: Path, rows: int = 24, **options: Any) -> tuple[Model, Model]:
    loaded = load(models.save(model, tmp_path))
    batch = feed(loaded.value, rows)

    def read(key: str) -> Sample:
        return Sample({name: array[int(key)] for name, array in batch.items()})

    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 8
    context = Context(Dataset(tuple(map(str, range(rows))), read), batch_size=size, threads=1)
    return loaded, QuantizationModifier(**options).apply(loaded, context)


def error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def renamed(model: onnx.ModelProto, seed: int) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Give every node and tensor but inputs and outputs a meaningless name."""
    random, copy = np.random.default_rng(seed), onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {"", *(value.name for value in (*copy.graph.input, *copy.graph.output))}
    tensors = {name for node in copy.graph.node for name in (*node.input, *node.output)} - kept
    numbers = iter(random.permutation(10_000))
    fresh = {name: f"t{next(numbers)}" for name in sorted(tensors)}
    names = {node.name: f"n{next(numbers)}" for node in copy.graph.node}
    for node in copy.graph.node:
        node.name = names[node.name]
        for index, name in enumerate(node.input):
            node.input[index] = fresh.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = fresh.get(name, name)
    for tensor in copy.graph.initializer:
        tensor.name = fresh.get(tensor.name, tensor.name)
    del copy.graph.value_info[:]
    return copy, names


@pytest.mark.parametrize("build", graphs.ALL.values(), ids=graphs.ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_names_decide_nothing(build: Build, seed: int, tmp_path: Path) -> None:
    model = load(models.save(build(seed), tmp_path)).value
    other, names = renamed(model, seed)
    found, again = find_exclusions(model, {}), find_exclusions(other, {})
    assert again.nodes == {names[name]: reason for name, reason in found.nodes.items()}
    assert again.outputs == {names[name]: reason for name, reason in found.outputs.items()}
    assert found.nodes
    placement, replaced = place(model), place(other)
    assert {names[name] for name in placement.nodes} == set(replaced.nodes)


def after_layers(model: onnx.ModelProto) -> set[str]:
    """Name the nodes that no layer but arithmetic follows."""
    learned = {layer.name for layer in weight_layers(model) if not layer.reason.startswith("fixed")}
    leading: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name in learned or not leading.isdisjoint(node.output):
            leading.update(node.input)
    return {node.name for node in model.graph.node if leading.isdisjoint(node.output)} - learned


@pytest.mark.parametrize("build", [*graphs.HEADS.values(), graphs.head_nms], ids=[*graphs.HEADS, "nms"])
def test_all_that_follows_the_last_layers_of_a_detector_is_its_head(build: Build, tmp_path: Path) -> None:
    model = load(models.save(build(0), tmp_path)).value
    found = structural_exclusions(model, {})
    head = after_layers(model)
    assert {name for name in head if name not in found} <= {
        node.name for node in model.graph.node if node.op_type == "Cast"
    }
    assert found.keys() <= head
    assert set(found.values()) - {HEAD} <= {"fixed weights after Softmax", "fixed weights that convert coordinates"}


@pytest.mark.parametrize("build", graphs.HEADS.values(), ids=graphs.HEADS)
def test_the_last_layers_of_a_head_are_int8_and_give_floats(build: Build, tmp_path: Path) -> None:
    model = build(0)
    loaded, result = quantized(model, tmp_path)
    placement = place(loaded.value)
    readers, makers = consumers(loaded.value), producers(loaded.value)
    ends = {maker.name for name in structural_exclusions(loaded.value, {}) for maker in before(loaded.value, name)}
    ends = {name for name in ends if placement.reasons.get(name) == "int8"}
    assert ends
    assert {makers[name].name for name in placement.exact} == ends
    assert all(readers[name] for name in placement.exact)
    head = structural_exclusions(result.value, {})
    made = producers(result.value)
    for node in result.value.graph.node:
        if node.name in head and node.name in structural_exclusions(loaded.value, {}):
            assert not any(name in made and made[name].op_type == "DequantizeLinear" for name in node.input), node.name


def before(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    makers, node = producers(model), next(node for node in model.graph.node if node.name == name)
    return [makers[source] for source in node.input if source in makers]


class Reader(CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto) -> None:
        batch = feed(model, 24)
        self.rows = iter([{name: array[i : i + 1] for name, array in batch.items()} for i in range(24)])

    def get_next(self) -> models.Arrays | None:
        return next(self.rows, None)


def naive(model: onnx.ModelProto, tmp_path: Path) -> onnx.ModelProto:
    """Let ONNX Runtime round the whole graph by the least and the greatest value, as it does by default."""
    kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(
        models.save(model, tmp_path, "float.onnx"),
        tmp_path / "naive.onnx",
        Reader(model),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        **kinds,
    )
    return onnx.load(tmp_path / "naive.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", graphs.HEADS.values(), ids=graphs.HEADS)
def test_boxes_and_scores_stay_close_each_where_rounding_everything_breaks_the_scores(
    build: Build, tmp_path: Path
) -> None:
    model = build(0)
    loaded, result = quantized(model, tmp_path)
    inputs = feed(model, 40, seed=1)
    dense, ours, theirs = (
        models.run(m, inputs)[0] for m in (loaded.value, result.value, naive(loaded.value, tmp_path))
    )
    axis = 1 if dense.shape[1] in (4 + graphs.CLASSES, 5 + graphs.CLASSES) else 2
    parts = [np.split(array, [4], axis=axis) for array in (dense, ours, theirs)]
    for wanted, found in zip(parts[0], parts[1], strict=True):
        assert error(found, wanted) < 0.08
    assert error(parts[2][1], parts[0][1]) > 4 * error(parts[1][1], parts[0][1])


def test_boxes_that_are_written_back_into_the_scores_are_a_head() -> None:
    b = models.Builder(0)
    x = b.op("Relu", b.conv("input", 3, 8, name="body"))
    x = b.op("Sigmoid", b.conv(x, 8, 6, 1, name="detect"))
    low, high, axis = (b.constant(name, np.array([n], np.int64)) for name, n in (("low", 0), ("high", 2), ("axis", 1)))
    box = b.op("Mul", b.op("Slice", x, low, high, axis, name="cut"), b.constant("stride", np.float32(8)), name="decode")
    places = np.broadcast_to(np.arange(2).reshape(1, 2, 1, 1), (1, 2, 8, 8)).copy()
    x = b.op("ScatterElements", x, b.constant("places", places), box, axis=1, name="write")
    model = b.model(x, (1, 3, 8, 8), rank=4)
    found = find_exclusions(model, {})
    assert found.nodes == dict.fromkeys(("sigmoid3", "cut", "decode", "write"), HEAD)
    assert set(found.outputs) == {"detect"}


def test_proposals_that_only_say_where_to_look_are_a_head_though_layers_follow(tmp_path: Path) -> None:
    model = load(models.save(graphs.two_stages(), tmp_path)).value
    found = find_exclusions(model, {})
    assert {"cut", "move", "grow", "proposals"} <= found.nodes.keys()
    assert set(found.outputs) == {"propose"}
    assert place(model).reasons == dict.fromkeys(
        ("stem", "body1", "body2", "propose", "features", "judge", "decide"), "int8"
    )


def test_layers_that_are_arithmetic_are_neither_rounded_nor_pruned(tmp_path: Path) -> None:
    for build, fixed, ends in (
        (graphs.head_v8, {"mean_of_bins": "fixed weights after Softmax"}, ("last_box0", "last_class1")),
        (graphs.head_exp, {"to_corners": "fixed weights that convert coordinates"}, ("box0", "class1")),
    ):
        loaded, result = quantized(build(), tmp_path)
        reasons = {layer.name: layer.reason for layer in weight_layers(loaded.value)}
        assert {name: reasons[name] for name in ends} == dict.fromkeys(ends, "last layer")
        assert fixed.items() <= reasons.items()
        assert fixed.items() <= result.facts["quantized"].items()
        described = {layer.name: (layer.reason, layer.precision) for layer in describe(result).layers}
        for name, reason in fixed.items():
            assert described[name] == (reason, "float32")
        assert {name: described[name][0] for name in ends} == dict.fromkeys(ends, "last layer")


def test_learned_layers_at_the_end_are_no_arithmetic() -> None:
    for build in models.FAMILY.values():
        assert not [layer for layer in weight_layers(build()) if layer.reason.startswith("fixed")]


def test_classifiers_need_no_exclusion() -> None:
    for name in ("conv_net", "residual_net", "depthwise_net", "fire_net", "mlp", "left_matmul"):
        assert structural_exclusions(models.FAMILY[name](), {}) == {}


def test_softmax_keeps_its_inputs_and_attention_its_masks_and_positions(tmp_path: Path) -> None:
    model = load(models.save(graphs.conv_attention(), tmp_path)).value
    found = find_exclusions(model, {})
    scores = ("scale", "hide", "soften", "choose", "weigh")
    assert {name: found.nodes[name] for name in scores} == dict.fromkeys(scores, SCORES)
    assert found.nodes["place"] == POSITION
    assert set(found.outputs) == {"gate"}
    assert {"project", "after", "head"} <= set(place(model).nodes)


def test_masks_and_positions_of_an_encoder_are_told_from_its_words(tmp_path: Path) -> None:
    model = load(models.save(graphs.masked_encoder(), tmp_path)).value
    found = structural_exclusions(model, {})
    assert found["far"] == MASK
    assert found["mask_as_float"] == found["embed"] == POSITION
    assert found["scale"] == found["hide"] == found["soften"] == SCORES
    assert found["norm"] == NORM
    assert "look_up" not in found
    assert "add22" not in found  # the residual
    reasons = place(model).reasons
    assert {name for name, reason in reasons.items() if reason == "int8"} == {*"qkv", "project", "up", "down", "head"}


@pytest.mark.parametrize("far", [-1e4, -1e9, float(np.finfo(np.float32).min), -np.inf])
def test_nothing_between_a_product_and_its_softmax_is_rounded_whatever_the_mask(far: float, tmp_path: Path) -> None:
    loaded, result = quantized(graphs.conv_attention(mask=far), tmp_path)
    makers, node = producers(result.value), {node.name: node for node in result.value.graph.node}["soften"]
    while node.name != "compare":
        assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        node = makers[node.input[0]]
    inputs = feed(loaded.value, 40, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.08


@pytest.mark.parametrize("least", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_an_encoder_with_a_mask_stays_close(least: float, tmp_path: Path) -> None:
    loaded, result = quantized(graphs.masked_encoder(least=least), tmp_path)
    inputs = feed(loaded.value, 60, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.08


def test_normalisations_that_are_written_out_stay_exact(tmp_path: Path) -> None:
    loaded, result = quantized(graphs.conv_norms(), tmp_path)
    norms = {node.name for node in loaded.value.graph.node if node.name.startswith(("ln_", "rms_", "l2_"))}
    found = structural_exclusions(loaded.value, {})
    assert {name for name, reason in found.items() if reason == NORM} == norms
    assert not norms & set(place(loaded.value).nodes)
    inputs = feed(loaded.value, 60, seed=1)
    assert error(models.run(result.value, inputs)[0], models.run(loaded.value, inputs)[0]) < 0.05


def test_normalising_operators_are_listed() -> None:
    found = structural_exclusions(models.attention(), {})
    assert {name for name, reason in found.items() if reason == NORM} == {"norm1", "norm2"}


def test_reasons_reach_the_facts_and_one_line_of_notes(tmp_path: Path) -> None:
    loaded, result = quantized(graphs.head_v8(), tmp_path)
    excluded = result.facts["excluded"]
    assert excluded == place(loaded.value, (), loaded.facts["shapes"]).excluded
    assert not excluded.keys() & result.facts["quantized"].keys()
    lines = [line for line in result.facts["notes"] if HEAD in line]
    assert lines == [f"not rounded between layers: {len(excluded)} x {HEAD}"]
    assert any(line.startswith("left in float: 1 x fixed weights after Softmax") for line in result.facts["notes"])


@pytest.mark.parametrize("build", graphs.HEADS.values(), ids=graphs.HEADS)
def test_layers_that_give_floats_are_a_small_part_of_the_work(build: Build, tmp_path: Path) -> None:
    loaded = load(models.save(build(0), tmp_path))
    shapes = loaded.facts["shapes"]
    chosen = find_exclusions(loaded.value, shapes).outputs
    costs = {layer.name: count_macs(layer, shapes) for layer in weight_layers(loaded.value)}
    assert sum(costs[name] for name in chosen) <= AFFORDABLE * sum(costs.values())
    assert chosen.keys() <= find_exclusions(loaded.value, {}).outputs.keys()


def test_a_float_input_that_joins_activations_is_data() -> None:
    b = models.Builder(0)
    x = b.conv("input", 3, 3, name="one")
    x = b.op("Add", x, b.op("Resize", "input", "", b.constant("same", np.array([1, 1, 1, 1], np.float32))), name="skip")
    model = b.model(b.conv(x, 3, 3, name="two"), rank=4)
    assert structural_exclusions(model, {}) == {}
    assert "skip" in place(model).nodes
