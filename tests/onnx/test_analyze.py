"""`sparsify analyze`: the numbers of the JSON against the file, a table for people, errors in two lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantFormat
from sparsify import RequestError
from sparsify_onnx.analyze import app, examine
from typer.testing import CliRunner

from tests.onnx import models
from tests.onnx.test_describe import quantized

KEYS = {
    "schema", "model", "opset", "bytes", "compressed_bytes", "parameters", "zeros", "sparsity_file", "sparsity", "macs",
    "sample", "computing", "inputs", "outputs", "layers",
}  # fmt: skip
LAYER_KEYS = {"name", "op", "shape", "parameters", "macs", "sparsity", "precision", "eligible", "reason"}


def test_json_is_stable_and_true(tmp_path: Path) -> None:
    path = models.save(models.conv_net(), tmp_path)
    result = CliRunner().invoke(app, [str(path), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found.keys() == KEYS
    assert {key for layer in found["layers"] for key in layer} == LAYER_KEYS
    assert found["schema"] == 1
    assert found["bytes"] == path.stat().st_size
    assert found["compressed_bytes"] == len(gzip.compress(path.read_bytes(), 9, mtime=0))
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]


def test_the_table_names_every_layer_and_why_it_is_kept(tmp_path: Path) -> None:
    path = models.save(models.depthwise_net(), tmp_path)
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 0
    for text in ("stem", "no: first layer", "no: depthwise convolution", "16×1×3×3", "compressed (gzip -9); opset 17"):
        assert text in result.stdout


def test_quantized_files_are_read_too(tmp_path: Path) -> None:
    found = examine(quantized(models.fire_net(), tmp_path, QuantFormat.QDQ))
    assert {layer["precision"] for layer in found["layers"]} == {"int8"}
    assert found["macs"] == examine(tmp_path / "float.onnx")["macs"]


def test_data_files_count_as_part_of_the_model(tmp_path: Path) -> None:
    whole = examine(models.save(models.mlp(), tmp_path))
    onnx.save(models.mlp(), tmp_path / "split.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    parts = examine(tmp_path / "split.onnx")
    assert parts["bytes"] == (tmp_path / "split.onnx").stat().st_size + (tmp_path / "data.bin").stat().st_size
    assert parts["parameters"] == whole["parameters"]


def test_macs_are_null_where_nothing_runs(tmp_path: Path) -> None:
    b = models.Builder()
    x = b.op("Swirl", b.conv("input", 3, 4), domain="com.acme")
    path = models.save(b.model(b.head(x, 4, 3), domain="com.acme"), tmp_path)
    found = examine(path)
    assert found["macs"] is None
    assert [layer["macs"] for layer in found["layers"]] == [None, None]
    assert "MACs unknown: no sample could be run" in CliRunner().invoke(app, [str(path)]).stdout


def test_sparsity_is_of_the_layers_that_pruning_may_touch(tmp_path: Path) -> None:
    model = models.mlp()
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            tensor.raw_data = np.zeros(tuple(tensor.dims), np.float32).tobytes()
    found = examine(models.save(model, tmp_path))
    eligible = [layer for layer in found["layers"] if layer["eligible"]]
    assert found["sparsity"] == pytest.approx(16 * 24 / sum(layer["parameters"] for layer in eligible), abs=1e-6)
    assert found["zeros"] == 16 * 24


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    result = CliRunner().invoke(app, [str(tmp_path / "text.onnx")])
    assert isinstance(result.exception, RequestError)
    assert "is no ONNX model" in result.exception.problem
