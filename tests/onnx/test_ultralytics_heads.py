"""Heads as Ultralytics exports them, with random weights; that package is AGPL, so it is only ever imported here."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sparsify import Context, Dataset, Sample
from sparsify_onnx.exclusions import find_exclusions, structural_exclusions
from sparsify_onnx.graph import weight_layers
from sparsify_onnx.loader import load
from sparsify_onnx.placement import place
from sparsify_onnx.quantization import QuantizationModifier

from tests.onnx import models
from tests.onnx.test_exclusions import HEAD, after_layers, naive, renamed

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("ultralytics", "torch")),
        reason="needs ultralytics and torch: pip install ultralytics",
    ),
    pytest.mark.filterwarnings("ignore"),
]
SIDE = 320
FAMILIES = {"v8": "yolov8n.yaml", "v5u": "yolov5n.yaml", "11": "yolo11n.yaml"}


def images(count: int, seed: int) -> NDArray[np.float32]:
    """Draw smooth noise: blocks of several sizes, summed."""
    random = np.random.default_rng(seed)
    sizes = (5, 20, 80)
    layers = [np.kron(random.random((count, 3, n, n)), np.ones((SIDE // n, SIDE // n))) for n in sizes]
    return (sum(layers) / len(sizes)).astype(np.float32)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a detector whose batch norms are settled on noise, and narrow, so that rounding errors do not explode."""
    folder = tmp_path_factory.mktemp("ultralytics")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("YOLO_CONFIG_DIR", str(folder))
        patch.setenv("YOLO_OFFLINE", "true")
        import torch
        from ultralytics.nn.tasks import DetectionModel

        torch.manual_seed(0)
        model = DetectionModel(request.param, nc=80, verbose=False)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
                layer.weight.data.fill_(0.3)
        with torch.no_grad():
            model.train().predict(torch.from_numpy(images(8, seed=0)))
        model.eval()
        for layer in model.modules():
            if hasattr(layer, "export"):
                layer.export, layer.format = True, "onnx"
        model.fuse(verbose=False)
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["output0"]}
        torch.onnx.export(
            model, torch.zeros(1, 3, SIDE, SIDE), folder / "model.onnx", opset_version=17, dynamo=False, **names
        )
    return folder / "model.onnx"


def test_the_head_is_found_whatever_its_nodes_are_called(exported: Path) -> None:
    loaded = load(exported)
    found = find_exclusions(loaded.value, loaded.facts["shapes"])
    head = {name for name, reason in found.nodes.items() if reason == HEAD}
    fixed = {name: reason for name, reason in found.nodes.items() if reason.startswith("fixed")}
    assert set(fixed.values()) == {"fixed weights after Softmax"}
    after = {node.name for node in loaded.value.graph.node if node.name in after_layers(loaded.value)}
    kinds = {node.op_type for node in loaded.value.graph.node if node.name in after - head - fixed.keys()}
    assert kinds <= {"Shape", "Gather", "Add", "Div", "Mul"}  # how far to slice
    assert head <= after
    assert len(found.outputs) == 6
    reasons = place(loaded.value, (), loaded.facts["shapes"]).reasons
    assert {reason for name, reason in reasons.items() if name not in fixed} <= {"int8", "no constant weight"}
    assert {layer.reason for layer in weight_layers(loaded.value) if layer.name in found.outputs} == {"last layer"}
    other, names = renamed(loaded.value, 0)
    assert structural_exclusions(other, {}) == {names[name]: reason for name, reason in found.nodes.items()}


def test_boxes_and_scores_agree_where_rounding_everything_gives_no_scores(exported: Path, tmp_path: Path) -> None:
    loaded, calibration = load(exported), images(16, seed=1)
    data = Dataset(tuple(map(str, range(16))), lambda key: Sample({"images": calibration[int(key)]}))
    options = QuantizationModifier(feedback=False, equalize=False, bias_correction=False)
    result = options.apply(loaded, Context(data, batch_size=1, threads=2))
    test = [{"images": image[None]} for image in images(8, seed=2)]
    broken = naive(loaded.value, tmp_path)
    dense, ours, theirs = (
        np.concatenate([models.run(m, inputs)[0] for inputs in test]) for m in (loaded.value, result.value, broken)
    )
    assert dense.shape == (8, 84, 2100)
    for part in (slice(0, 4), slice(4, None)):
        assert alike(dense[:, part], ours[:, part]) > 0.99
    assert not theirs[:, 4:].any()


def alike(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Correlate two parts of an output."""
    return float(np.corrcoef(left.reshape(-1), right.reshape(-1))[0, 1])
