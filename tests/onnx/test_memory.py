"""Memory: the same for any number of samples, and divided as `--max-memory` asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sparsify import Context, Model, RequestError
from sparsify_onnx import calibration, drift, layerwise, memory
from sparsify_onnx.blocks import add_to_blocks, empty_blocks
from sparsify_onnx.graph import weight_layers
from sparsify_onnx.joint import Options
from sparsify_onnx.loader import load
from sparsify_onnx.masks import Structure
from sparsify_onnx.pruning import MagnitudePruningModifier, SparseGPTModifier
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import models
from tests.onnx.test_pruning import matrices, output_error, zeros

ROOT = Path(__file__).parents[2]


def peaks(samples: int) -> dict[str, float]:
    """Compress in a process of its own; returns each step's peak in MB."""
    command = [sys.executable, "-m", "tests.onnx.growth", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak when told to")
def test_memory_does_not_grow_with_the_samples() -> None:
    few, some, many = (peaks(samples) for samples in (64, 512, 4096))
    for step, peak in many.items():
        assert peak < 1.05 * some[step] + 3, (step, few, some, many)  # heaps differ by 1 to 2 MB from run to run
        assert peak < 1.05 * few[step] + 6, (step, few, some, many)


def loaded(model: onnx.ModelProto, tmp_path: Path) -> Model:
    return load(models.save(model, tmp_path))


def test_a_limit_below_what_the_model_needs_is_refused_with_the_least(tmp_path: Path) -> None:
    model = loaded(models.conv_net(), tmp_path)
    with pytest.raises(RequestError, match="--max-memory: 100 MB is too little for this model") as caught:
        memory.fit(model, 100_000_000)
    least = int(caught.value.fix.removeprefix("give --max-memory ").partition("MB")[0]) * 1_000_000
    free, batch = memory.fit(model, least)
    assert free >= memory.LEAST_BYTES
    assert batch == memory.LARGEST_BATCH
    assert memory.fit(model, least + 10_000)[0] == free + 10_000


def test_the_batch_shrinks_with_what_is_left_for_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_resident", lambda: 100 << 20)  # whatever other tests have left in this process
    model = loaded(models.conv_net(), tmp_path)
    shapes = {name: (1000 * shape[0], *shape[1:]) for name, shape in model.facts["shapes"].items()}
    large = replace(model, facts={**model.facts, "shapes": shapes})
    sample = memory.sample_bytes(large)
    assert sample == 1000 * memory.sample_bytes(model)
    least = next(limit for limit in range(10**8, 10**10, 10**7) if fits(large, limit))
    assert [memory.fit(large, least + more * 4 * sample)[1] for more in (0, 1, 2, 20)] == [1, 2, 3, 8]


def fits(model: Model, limit: int) -> bool:
    try:
        return bool(memory.fit(model, limit))
    except RequestError:
        return False


def test_what_the_process_holds_of_other_things_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(models.conv_net(), tmp_path)
    monkeypatch.setattr(memory, "_resident", lambda: 100 << 20)
    alone = memory.fit(model, 4 << 30)[0]
    monkeypatch.setattr(memory, "_resident", lambda: 1000 << 20)
    assert alone - memory.fit(model, 4 << 30)[0] == pytest.approx((1000 << 20) - memory.USUAL_BYTES, abs=64 << 20)


def test_without_a_limit_uses_take_what_they_always_did() -> None:
    context = Context(models.dataset(models.mlp(), 2))
    assert memory.share(context, 1000, 4) == 1000
    assert memory.share(replace(context, memory=800), 1000, 4) == 200
    assert memory.share(replace(context, memory=80_000), 1000, 4) == 1000


def prune(model: onnx.ModelProto, limit: int, notes: list[str], **options: Any) -> Model:
    context = Context(models.dataset(model, 60), threads=1, memory=limit, note=notes.append)
    return SparseGPTModifier(**{"sparsity": 0.5, **options}).apply(Model("onnx", model), context)


@pytest.mark.parametrize("options", [{}, {"round_weights": True}, {"mask_structure": "2:4"}, {"refit": False}])
def test_a_layer_too_wide_for_the_memory_is_solved_in_blocks(options: dict[str, Any], tmp_path: Path) -> None:
    model = wide_net()
    notes: list[str] = []
    context = Context(models.dataset(model, 60))
    pruned = prune(model, 200_000, notes, **options)
    assert notes[-1 - bool(len(notes) > 1 and "inputs of" in notes[-1])].startswith("1 layers are solved in blocks")
    found = matrices(pruned.value)["wide"]
    assert zeros(found) == found.size // 2
    if "mask_structure" in options:
        groups = found.reshape(16, 9, 4, 4)  # outputs, positions, groups of four channels
        assert (np.count_nonzero(groups, axis=-1) == 2).all()
    if "round_weights" in options:
        steps = found / pruned.facts["weight_scales"]["wide"][:, None]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert "sqnr_db" not in pruned.facts["pruned"]["wide"]
    whole = prune(model, 0, [], **options)
    magnitude = MagnitudePruningModifier(sparsity=0.5, mask_structure=options.get("mask_structure", "unstructured"))
    errors = [output_error(model, one.value) for one in (whole, pruned, magnitude.apply(Model("onnx", model), context))]
    assert errors[0] <= 1.1 * errors[1]
    assert errors[1] < errors[2]


def wide_net() -> onnx.ModelProto:
    b = models.Builder(0)
    x = b.op("Relu", b.conv("input", 3, 16, name="stem"))
    x = b.op("Relu", b.conv(x, 16, 16, name="wide"))
    return b.model(b.head(x, 16, 10))


def test_blocks_hold_the_statistics_of_their_own_inputs() -> None:
    layer = next(layer for layer in weight_layers(wide_net()) if layer.name == "wide")
    blocks = empty_blocks(layer, Options(Structure(), {}), 8 * 144 * 100)
    assert blocks.edges == [0, 100, 144]
    random = np.random.default_rng(0)
    x, y = random.standard_normal((30, 1, 144)).astype(np.float32), random.standard_normal((30, 16)).astype(np.float32)
    for part in (slice(0, 7), slice(7, 30)):
        add_to_blocks(blocks, x[part], y[part])
    ones = np.hstack([x[:, 0, 100:], np.ones((30, 1))])
    np.testing.assert_allclose(blocks.grams[0][1], ones.T @ ones, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(blocks.total, y.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_layers_that_do_not_fit_together_take_turns() -> None:
    layers = [layer for layer in weight_layers(models.fire_net()) if layer.name != "stem"]
    sizes = {layer.name: 8 * memory.inputs(layer) ** 2 for layer in layers}
    most = max(sizes.values())
    turns = calibration._turns(layers, most)
    assert [layer.name for turn in turns for layer in turn] == [layer.name for layer in layers]
    assert all(sum(sizes[layer.name] for layer in turn) <= most for turn in turns)
    assert {layer.name for turn in calibration._turns(layers, most - 1) for layer in turn} < sizes.keys()


def test_outputs_too_large_to_keep_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, changed = models.conv_net(0), models.conv_net(1)
    context = Context(models.dataset(model, 20), threads=1)
    kept = drift.drift_from(model, context.calibration, context)(changed)
    monkeypatch.setattr(drift, "OUTPUT_BYTES", 1)
    measure = drift.drift_from(model, context.calibration, context)
    assert [measure(changed), measure(changed), measure(model)] == [kept, kept, 0.0]


def test_the_default_solves_what_fits_four_gigabytes_whole() -> None:
    context = Context(models.dataset(models.mlp(), 2))
    layer = weight_layers(models.mlp())[0]
    assert not layerwise.in_blocks(replace(layer, shape=(512, 4608)), context)
    assert layerwise.in_blocks(replace(layer, shape=(4096, 25088)), context)


def test_layers_too_wide_for_a_hessian_are_rounded_to_nearest_and_named() -> None:
    model = wide_net()
    context = Context(models.dataset(model, 20), threads=1, memory=100_000)
    notes = QuantizationModifier().apply(Model("onnx", model), context).facts["notes"]
    assert "too wide for the memory or the time allowed, rounded to nearest: wide" in notes
