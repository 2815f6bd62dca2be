"""The pruning modifiers end to end on small models: sparsity, repair, resuming, and every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from sparsify import Context, Dataset, Model, Sample
from sparsify_onnx import calibration, layerwise
from sparsify_onnx.affine import read_bias, read_matrix
from sparsify_onnx.equalization import EqualizationModifier
from sparsify_onnx.graph import initializers, weight_layers, write_initializer
from sparsify_onnx.pruning import MagnitudePruningModifier, SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import models
from tests.onnx.models import Builder

Weights = dict[str, NDArray[np.float32]]


class Memory:
    """Keep finished layers in a dictionary; with `lives`, die at the save after that many."""

    def __init__(self, lives: int = 1000) -> None:
        self.held: dict[str, Mapping[str, NDArray[Any]]] = {}
        self.lives = lives

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        return dict(self.held[name]) if name in self.held else None

    def save(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.held[name] = {key: array.copy() for key, array in arrays.items()}


def context(model: onnx.ModelProto, count: int = 40, **facts: Any) -> Context:
    return Context(models.dataset(model, count), threads=1, **facts)


def prune(model: onnx.ModelProto, given: Context | None = None, **options: Any) -> onnx.ModelProto:
    modifier = SparseGPTModifier(**{"sparsity": 0.5, **options})
    pruned: onnx.ModelProto = modifier.apply(Model("onnx", model), given or context(model)).value
    return pruned


def matrices(model: onnx.ModelProto) -> Weights:
    return {layer.name: read_matrix(model, layer) for layer in weight_layers(model)}


def zeros(matrix: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(matrix == 0))


def output_error(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> float:
    """Return the share of the output's energy that a pruned model gets wrong on samples it has not seen."""
    feed = models.samples(dense, 200, seed=99)
    wanted, found = models.run(dense, feed)[0], models.run(pruned, feed)[0]
    return float(np.sum((wanted - found) ** 2) / np.sum((wanted - wanted.mean(0)) ** 2))


@pytest.mark.parametrize("modifier", [SparseGPTModifier, MagnitudePruningModifier])
@pytest.mark.parametrize("family", sorted(models.FAMILY))
def test_prunable_layers_get_the_sparsity_asked_for_and_others_keep_their_weights(family: str, modifier: Any) -> None:
    dense = models.FAMILY[family]()
    before = dense.SerializeToString()
    result = modifier(sparsity=0.37).apply(Model("onnx", dense, {"path": "x"}), context(dense))
    assert dense.SerializeToString() == before
    onnx.checker.check_model(result.value)
    after, old = matrices(result.value), matrices(dense)
    for layer in weight_layers(dense):
        if layer.prunable:
            assert zeros(after[layer.name]) == round(0.37 * after[layer.name].size)
            assert abs(result.facts["pruned"][layer.name]["sparsity"] - 0.37) <= 1 / after[layer.name].size
        else:
            np.testing.assert_array_equal(after[layer.name], old[layer.name])
    assert result.facts["pruned"].keys() == {layer.name for layer in weight_layers(dense) if layer.prunable}
    assert result.facts["path"] == "x"
    assert np.isfinite(models.run(result.value, models.samples(dense, 3))[0]).all()


@pytest.mark.parametrize("family", ["residual_net", "fire_net", "mlp"])
def test_repair_beats_sparsegpt_and_sparsegpt_beats_magnitude_at_the_outputs(family: str) -> None:
    errors = []
    for seed in range(3):
        dense = models.FAMILY[family](seed)
        given = context(dense, 100, batch_size=50)
        magnitude = MagnitudePruningModifier(sparsity=0.5).apply(Model("onnx", dense), given).value
        kinds = (magnitude, prune(dense, given, refit=False), prune(dense, given))
        errors.append([output_error(dense, pruned) for pruned in kinds])
    magnitude_error, plain_error, repaired_error = np.median(errors, axis=0)
    assert repaired_error < plain_error < magnitude_error


def test_the_reported_sqnr_is_that_of_the_layers_output() -> None:
    dense = models.mlp()
    result = SparseGPTModifier(sparsity=0.5).apply(Model("onnx", dense), context(dense))
    layer = next(layer for layer in weight_layers(dense) if layer.name == "second")
    feed = models.samples(dense, 40)
    wanted, found = (layerwise_output(model, layer.output, feed).astype(np.float64) for model in (dense, result.value))
    expected = 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2))
    assert result.facts["pruned"]["second"]["sqnr_db"] == pytest.approx(expected, abs=0.05)


def layerwise_output(model: onnx.ModelProto, name: str, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    from sparsify_onnx.stream import open_stretch

    return open_stretch(model, {}, [name], 1)(dict(feed))[name]


def test_no_pruning_leaves_the_outputs() -> None:
    dense = models.residual_net()
    assert output_error(dense, prune(dense, sparsity=0.0)) < 1e-6


def test_everything_pruned_leaves_the_bias() -> None:
    dense = models.conv_net()
    pruned = prune(dense, sparsity=1.0)
    layer = next(layer for layer in weight_layers(dense) if layer.name == "deep")
    assert not read_matrix(pruned, layer).any()
    assert read_bias(pruned, layer).any()


@pytest.mark.parametrize("family", ["conv_net", "attention", "left_matmul"])
def test_the_batch_size_changes_rounding_only(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "ROWS_PER_SAMPLE", 5)  # so that rows are sampled
    monkeypatch.setattr(layerwise, "ROWS_PER_COLUMN", 1)
    dense = models.FAMILY[family]()
    one, eight = (matrices(prune(dense, context(dense, 60, batch_size=size))) for size in (1, 8))
    for name, matrix in one.items():
        np.testing.assert_allclose(matrix, eight[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", sorted(models.FAMILY))
def test_layers_that_share_a_pass_come_out_as_one_by_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = models.FAMILY[family]()
    together = matrices(prune(dense))
    monkeypatch.setattr(layerwise, "STATISTICS_BYTES", 0)
    assert all(len(level) == 1 for level in layerwise.levels(dense, weight_layers(dense), 0))
    for name, matrix in matrices(prune(dense)).items():
        np.testing.assert_allclose(matrix, together[name], rtol=1e-2, atol=1e-3)


def test_no_layer_of_a_level_is_upstream_of_another() -> None:
    names = [[layer.name for layer in level] for level in layerwise.levels(*both(models.attention()))]
    assert names == [["embed"], ["query", "key", "value"], ["project"], ["up"], ["down"], ["head"]]
    names = [[layer.name for layer in level] for level in layerwise.levels(*both(models.residual_net()))]
    assert ["block2.conv1", "block2.side"] in names


def both(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Any]:
    return model, weight_layers(model)


@pytest.mark.parametrize("family", ["residual_net", "attention", "fire_net"])
def test_a_killed_run_resumes_to_the_same_bytes(family: str) -> None:
    dense = models.FAMILY[family]()
    whole = Memory()
    undisturbed = prune(dense, context(dense, checkpoint=whole)).SerializeToString()
    assert prune(dense, context(dense)).SerializeToString() == undisturbed
    saves = len(whole.held)  # every layer, and what the samples covered
    assert saves == sum(layer.prunable for layer in weight_layers(dense)) + 1
    for lives in range(saves):
        memory = Memory(lives)
        with pytest.raises(KeyboardInterrupt):
            prune(dense, context(dense, checkpoint=memory))
        assert len(memory.held) == lives
        memory.lives = saves - lives
        assert prune(dense, context(dense, checkpoint=memory)).SerializeToString() == undisturbed
    assert memory.lives == 0


@pytest.mark.parametrize("options", [{}, {"allocation": "parameters", "round_weights": True}], ids=["plain", "all"])
def test_the_order_of_the_samples_changes_nothing(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Which rows of a sample count depends on its place among them: samples are taken by name."""
    monkeypatch.setattr(layerwise, "ROWS_PER_SAMPLE", 2)
    monkeypatch.setattr(layerwise, "ROWS_PER_COLUMN", 1)
    dense = models.fire_net()
    given = context(dense)
    turned = replace(given, calibration=given.calibration.take(given.calibration.keys[::-1]))
    monkeypatch.setattr(calibration, "FEW", 8)  # means and peaks come from every fifth sample then
    one, other = (
        QuantizationModifier().apply(
            SparseGPTModifier(sparsity=0.5, **options).apply(
                EqualizationModifier().apply(Model("onnx", dense, {}), each), each
            ),
            each,
        )
        for each in (given, turned)
    )
    assert one.value.SerializeToString() == other.value.SerializeToString()


def test_another_seed_samples_other_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "ROWS_PER_SAMPLE", 2)
    monkeypatch.setattr(layerwise, "ROWS_PER_COLUMN", 1)
    dense = models.conv_net()
    zero, one = (prune(dense, context(dense, seed=seed)).SerializeToString() for seed in (0, 1))
    assert zero != one


def test_a_second_pass_keeps_the_zeros_of_the_first() -> None:
    dense = models.conv_net()
    first = prune(dense, sparsity=0.3)
    again, lost = prune(first, sparsity=0.6), prune(first, sparsity=0.1)
    for name in ("middle", "deep"):
        gone = matrices(first)[name] == 0
        assert not matrices(again)[name][gone].any()
        np.testing.assert_array_equal(matrices(lost)[name] == 0, gone)
    free = prune(first, sparsity=0.1, preserve_sparsity_mask=False)
    assert zeros(matrices(free)["deep"]) < zeros(matrices(lost)["deep"])


@pytest.mark.parametrize("modifier", [SparseGPTModifier, MagnitudePruningModifier])
def test_structures_run_along_input_channels(modifier: Any) -> None:
    dense = models.conv_net()
    deep = next(layer for layer in weight_layers(dense) if layer.name == "deep")  # 16 × 16 × 3 × 3
    notes: list[str] = []
    given = context(dense, note=notes.append)
    pairs = modifier(sparsity=0.514, mask_structure="2:4").apply(Model("onnx", dense), given).value
    weight = numpy_helper.to_array(initializers(pairs)[deep.weight])
    assert (np.count_nonzero(weight.reshape(16, 4, 4, 3, 3), axis=2) == 2).all()
    assert "2:4 zeros 50 % of the weights, not the 51.4 % asked for" in notes
    blocks = modifier(sparsity=0.5, mask_structure="2x4").apply(Model("onnx", dense), given).value
    weight = numpy_helper.to_array(initializers(blocks)[deep.weight]).reshape(8, 2, 4, 4, 3, 3)
    counts = np.count_nonzero(weight, axis=(1, 3))
    assert set(np.unique(counts)) == {0, 8}
    assert abs(np.count_nonzero(counts == 0) - counts.size / 2) <= 1


def test_grouped_and_depthwise_convolutions_are_pruned_where_named() -> None:
    dense = models.depthwise_net()
    pruned = matrices(prune(dense, targets=["depthwise", "grouped", "__ALL_PRUNABLE__"]))
    assert {name for name, matrix in pruned.items() if zeros(matrix)} == {"expand", "depthwise", "grouped", "project"}
    for matrix in pruned.values():
        assert zeros(matrix) in (0, round(matrix.size / 2))


def test_all_takes_the_first_and_last_layers_too_and_ignore_takes_away() -> None:
    dense = models.mlp()
    pruned = matrices(prune(dense, targets="__ALL__", ignore="re:th"))
    assert {name for name, matrix in pruned.items() if zeros(matrix)} == {"first", "second", "last"}
    by_weight = matrices(prune(dense, targets="re:.*cond[.]weight"))
    assert {name for name, matrix in by_weight.items() if zeros(matrix)} == {"second"}


def test_a_convolution_without_a_bias_gets_one() -> None:
    b = Builder()
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    x = b.op("Relu", b.conv(x, 8, 8, name="plain", bias=False))
    dense = b.model(b.head(x, 8, 4))
    node = next(node for node in prune(dense).graph.node if node.name == "plain")
    assert len(node.input) == 3
    assert [node.name for node in dense.graph.node if len(node.input) == 2] == ["plain"]


def test_a_shared_bias_is_copied_before_it_is_changed() -> None:
    b = Builder()
    bias = b.weight("shared", 8, scale=0.1)
    x = b.op("Relu", b.conv("input", 3, 8, name="stem"))
    for name in ("one", "two"):
        x = b.op("Relu", b.op("Conv", x, b.weight(f"{name}.weight", 8, 8, 1, 1), bias, name=name))
    dense = b.model(b.head(x, 8, 4))
    pruned = prune(dense)
    names = {node.name: node.input[2] for node in pruned.graph.node if node.name in ("one", "two")}
    assert names["one"] != names["two"]
    assert not np.array_equal(stored(pruned, names["one"]), stored(pruned, names["two"]))


def stored(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    return numpy_helper.to_array(initializers(model)[name])


def test_gemm_factors_and_the_add_after_matmul_are_respected() -> None:
    b = Builder()
    x = b.op("Relu", b.gemm("input", 12, 16, name="first"))
    x = b.op("Relu", b.gemm(x, 16, 16, name="scaled", alpha=0.5, beta=2.0))
    x = b.op("Relu", b.op("Add", b.weight("row", 1, 16), b.matmul(x, 16, 16, name="added")))
    x = b.op("Relu", b.matmul(x, 16, 16, name="bare"))
    dense = b.model(b.gemm(x, 16, 5, name="last"), ("batch", 12))
    pruned = prune(dense, sparsity=0.3)
    assert output_error(dense, pruned) < 0.15
    assert output_error(dense, prune(dense, sparsity=0.0)) < 1e-6
    assert not np.array_equal(stored(dense, "row"), stored(pruned, "row"))


def test_dead_inputs_go_first_and_are_noted() -> None:
    dense = models.conv_net()
    stem = next(layer for layer in weight_layers(dense) if layer.name == "stem")
    write_initializer(dense, "bn1.beta", np.where(np.arange(8) < 4, -100, 0).astype(np.float32))
    notes: list[str] = []
    pruned = prune(dense, context(dense, note=notes.append), sparsity=0.5)
    assert notes[-1] == (
        "36 inputs of 1 layers are zero on every calibration sample, most of them in middle: their weights went first"
    )
    matrix = matrices(pruned)["middle"].reshape(16, 9, 8)
    assert stem.reason == "first layer"
    assert not matrix[:, :, :4].any()


def test_activations_that_are_all_zero_are_survived() -> None:
    dense = models.conv_net()
    silent = Dataset(("0", "1"), lambda key: Sample({"input": np.zeros((3, 8, 8), dtype=np.float32)}))
    write_initializer(dense, "bn1.beta", np.full(8, -100, dtype=np.float32))
    pruned = prune(dense, Context(silent, threads=1))
    assert zeros(matrices(pruned)["middle"]) == matrices(pruned)["middle"].size // 2


def test_progress_and_options_round_trip() -> None:
    modifier = SparseGPTModifier(sparsity=0.5, targets=["a", "re:b"])
    assert SparseGPTModifier.model_validate(modifier.model_dump(mode="json")) == modifier
    steps: list[tuple[str, int]] = []

    class Bar:
        def __enter__(self) -> Any:
            return lambda: steps.append(("step", 1))

        def __exit__(self, *_: object) -> None:
            steps.append(("end", 0))

    dense = models.conv_net()

    def progress(label: str, total: int) -> Any:
        steps.append((label, total))
        return Bar()

    prune(dense, context(dense, progress=progress))
    assert steps == [("pruning", 2), ("step", 1), ("step", 1), ("end", 0)]
