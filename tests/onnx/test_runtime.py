"""ONNX Runtime sessions: outputs, what really ran in INT8, errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sparsify import Context, StageError
from sparsify_onnx import runtime
from sparsify_onnx.loader import load
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import open_session, usable_cores

from tests.onnx import models


def quantized(model: onnx.ModelProto, folder: Path, **options: tuple[str, ...]) -> Path:
    loaded = load(models.save(model, folder))
    result = QuantizationModifier.model_validate(options).apply(loaded, Context(models.dataset(model), threads=1))
    return models.save(result.value, folder, "int8.onnx")


def test_a_float_model_runs_and_says_so(tmp_path: Path) -> None:
    model = models.conv_net()
    session = open_session(models.save(model, tmp_path), 1)
    inputs = models.samples(model, 3)
    outputs = session.run(inputs)
    assert list(outputs) == ["logits"]
    assert outputs["logits"] == pytest.approx(models.run(model, inputs)[0], abs=1e-5)
    assert session.facts["precision"] == "float32"
    assert session.facts["int8_executed"] == 0
    assert session.facts["float_executed"] == 4
    assert session.facts["version"] == ort.__version__
    assert dict(session.facts)["runtime"] == "onnxruntime"
    assert len(session.facts) == 9
    session.close()


@pytest.mark.parametrize(("name", "count"), [("conv_net", 4), ("fire_net", 8), ("mlp", 4), ("residual_net", 7)])
def test_int8_nodes_are_counted_in_the_optimised_graph(name: str, count: int, tmp_path: Path) -> None:
    session = open_session(quantized(models.FAMILY[name](), tmp_path), 1)
    assert (session.facts["int8_executed"], session.facts["precision"]) == (count, "int8")


def test_a_model_of_both_is_mixed(tmp_path: Path) -> None:
    session = open_session(quantized(models.conv_net(), tmp_path, ignore=("middle",)), 1)
    facts = session.facts
    assert (facts["int8_executed"], facts["float_executed"], facts["precision"]) == (3, 1, "mixed")


def test_facts_are_read_once_and_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def counted(path: Path, threads: int) -> tuple[int, int]:
        calls.append(path)
        return 2, 0

    monkeypatch.setattr(runtime, "executed", counted)
    session = open_session(models.save(models.mlp(), tmp_path), 1)
    session.run(models.samples(models.mlp(), 1))
    assert not calls
    assert session.facts["int8_executed"] == session.facts["int8_executed"] == 2
    assert len(calls) == 1


def test_threads_default_to_physical_cores(tmp_path: Path) -> None:
    session = open_session(models.save(models.mlp(), tmp_path))
    assert session.facts["threads"] == usable_cores()
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_a_broken_file_is_a_stage_error_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(StageError, match=r"ONNX Runtime .* cannot open .*broken\.onnx: .*") as caught:
        open_session(path, 1)
    assert "\n" not in caught.value.problem
    assert "pip install -U onnxruntime" in caught.value.fix


def test_wrong_inputs_are_a_stage_error_with_the_reason(tmp_path: Path) -> None:
    session = open_session(models.save(models.conv_net(), tmp_path), 1)
    for inputs in ({"input": np.zeros((1, 5, 8, 8), np.float32)}, {}, {"input": np.zeros((1, 3, 8, 8), np.int32)}):
        with pytest.raises(StageError, match=r"ONNX Runtime .* cannot run .*model\.onnx: ") as caught:
            session.run(inputs)
        assert "sparsify analyze MODEL" in caught.value.fix


def test_a_closed_session_says_so(tmp_path: Path) -> None:
    session = open_session(models.save(models.mlp(), tmp_path), 1)
    session.close()
    with pytest.raises(StageError, match=r"the session of .* is closed") as caught:
        session.run({})
    assert caught.value.fix == "open it again"


def test_external_data_is_found_by_path(tmp_path: Path) -> None:
    model = models.conv_net()
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="external.bin", size_threshold=16)
    session = open_session(path, 1)
    assert session.facts["float_executed"] == 4
    assert session.run(models.samples(models.conv_net(), 2))["logits"].shape == (2, 10)
