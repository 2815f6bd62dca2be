"""OpenVINO sessions: what ONNX Runtime gives, what really ran in INT8, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from sparsify import Context, RequestError, StageError, load_plugins, load_runtime
from sparsify.cli.app import main
from sparsify_onnx.loader import load
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import open_session as open_in_onnxruntime
from sparsify_openvino.runtime import open_session
from sparsify_plugin_kit import check_plugin

from tests.onnx import models

BF16 = 0.02  # of the largest output: bf16 has 8 bits of mantissa, and a handful of layers add up


def quantized(model: onnx.ModelProto, folder: Path, **options: tuple[str, ...]) -> Path:
    loaded = load(models.save(model, folder))
    result = QuantizationModifier.model_validate(options).apply(loaded, Context(models.dataset(model), threads=1))
    return models.save(result.value, folder, "int8.onnx")


def test_it_conforms() -> None:
    assert check_plugin("openvino") == ()


@pytest.mark.parametrize("name", sorted(models.FAMILY))
def test_a_float_model_gives_what_onnx_runtime_gives(name: str, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    inputs = models.samples(model, 5)
    wanted = models.run(model, inputs)
    session = open_session(models.save(model, tmp_path), 1)
    found = session.run(inputs)
    assert list(found) == [value.name for value in model.graph.output]
    for array, reference in zip(found.values(), wanted, strict=True):
        assert abs(array - reference).max() <= BF16 * abs(reference).max()
    facts = session.facts
    assert (facts["int8_executed"], facts["threads"]) == (0, 1)
    assert facts["precision"] in ("float32", "bf16", "float16")  # whichever this CPU multiplies fastest
    session.close()


@pytest.mark.parametrize(("name", "count"), [("conv_net", 4), ("fire_net", 8), ("mlp", 4), ("residual_net", 7)])
def test_our_int8_runs_in_int8_and_agrees_with_onnx_runtime(name: str, count: int, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    path, inputs = quantized(model, tmp_path), models.samples(model, 64, seed=3)
    session, other = open_session(path, 1), open_in_onnxruntime(path, 1)
    assert (session.facts["int8_executed"], session.facts["precision"]) == (count, "int8")
    assert session.facts["int8_executed"] == other.facts["int8_executed"]
    (found,), (wanted,) = session.run(inputs).values(), other.run(inputs).values()
    assert np.mean(found.argmax(axis=-1) == wanted.argmax(axis=-1)) >= 0.95
    assert abs(found - wanted).max() <= 4 * wanted.max() / 255  # grid steps: each layer may round to a neighbour


def test_a_float_model_runs_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    model = models.conv_net()
    path, inputs = models.save(model, tmp_path), models.samples(model, 5)
    session = load_runtime("openvino:float32", load_plugins())(path, 1)
    assert session.facts["precision"] == "float32"
    (found,), (wanted,) = session.run(inputs).values(), models.run(model, inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(RequestError, match="openvino has no precision 'int3'") as caught:
        load_runtime("openvino:int3", load_plugins())(path, 1)
    assert "openvino:float32, openvino:bf16" in caught.value.fix
    with pytest.raises(RequestError, match="runtime 'onnxruntime' chooses its precision itself"):
        load_runtime("onnxruntime:bf16", load_plugins())


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 22])
def test_what_we_write_is_read_in_every_opset_that_we_leave_as_it_is(opset: int, tmp_path: Path) -> None:
    model = models.mlp_at(opset)
    model.ir_version = 10
    path, inputs = quantized(model, tmp_path), models.samples(model, 4)
    assert onnx.load(path).opset_import[0].version == opset
    (found,), (wanted,) = (opened(path, 1).run(inputs).values() for opened in (open_session, open_in_onnxruntime))
    assert abs(found - wanted).max() <= 4 * abs(wanted).max() / 255


def test_a_model_of_both_is_mixed(tmp_path: Path) -> None:
    facts = open_session(quantized(models.conv_net(), tmp_path, ignore=("middle",)), 1).facts
    assert (facts["int8_executed"], facts["float_executed"], facts["precision"]) == (3, 1, "mixed")
    assert sum(facts["precisions"].values()) == 4


def test_each_refusal_names_the_file_and_the_reason(tmp_path: Path) -> None:
    model = models.conv_net()
    path, inputs = models.save(model, tmp_path), models.samples(model, 2)
    session = open_session(path, 1)
    (name, array), *_ = inputs.items()
    for feed, reason in (
        ({}, "not nothing"),  # OpenVINO itself would take the input of the run before
        ({"other": array}, "not 'other' float32"),
        ({name: array.astype(np.float64)}, f"not '{name}' float64"),
        ({name: array[:, :1]}, "incompatible"),
    ):
        with pytest.raises(StageError, match="cannot run") as caught:
            session.run(feed)
        assert str(path) in caught.value.problem
        assert reason in caught.value.problem
    session.close()
    with pytest.raises(StageError, match="is closed"):
        session.run(inputs)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(StageError, match=r"cannot open .*broken.onnx: Unable to read the model") as caught:
        open_session(broken)
    assert caught.value.fix.startswith("use --runtime onnxruntime")


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    model = models.mlp()
    first = model.graph.node[0]
    first.domain, first.op_type = "nobody", "Unheard"
    model.opset_import.add(domain="nobody", version=1)
    path = tmp_path / "odd.onnx"
    onnx.save(model, path)
    with pytest.raises(StageError, match=r"No conversion rule found for operations: nobody\.Unheard"):
        open_session(path)


def test_benchmark_sets_runtimes_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(models.save(models.mlp(), tmp_path))
    arguments = ["--runtime", "onnxruntime", "--runtime", "openvino", "--seconds", "0.05", "--threads", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", path, *arguments])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "openvino"]
    assert [row["int8_executed"] for row in rows] == [0, 0]
    assert rows[1]["time_ratio"]["low"] <= rows[1]["time_ratio"]["value"] <= rows[1]["time_ratio"]["high"]


def test_a_run_can_be_decided_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.mlp()
    path, data = models.save(model, tmp_path), tmp_path / "data"
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", **{name: array[0] for name, array in models.samples(model, 1, index).items()})
    arguments = ["--use-case", "custom", "--data", str(data), "--optim-level", "0.2", "--max-drop", "none", "--json"]
    arguments += ["--runtime", "openvino", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["run", "one-shot", "--model", str(path), *arguments, "--output", str(tmp_path / "run")])
    metrics = json.loads(capsys.readouterr().out)
    assert ended.value.code == (6 if metrics["verdict"] == "slower" else 0)  # so small a model may well be slower
    for side, int8 in (("baseline", 0), ("optimized", 4)):
        latency = metrics[side]["latency"]
        assert next(iter(latency)) == "openvino"
        assert latency["onnxruntime"]["int8_executed"] == int8  # timed beside it, because it is installed
        assert latency["openvino"]["int8_executed"] == int8
    assert metrics["optimized"]["quantized"] == {"int8": 4, "of": 4}
    assert metrics["speedup"].keys() >= {"openvino", "onnxruntime"}
