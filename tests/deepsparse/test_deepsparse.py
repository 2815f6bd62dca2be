"""DeepSparse in its own environment, over a pipe: what ONNX Runtime gives, what it reads, and every refusal.

Skips, saying why, where the environment cannot be made: no Linux on x86, no package index, no Python 3.11.
"""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sparsify import (
    Context,
    MissingLibraryError,
    Model,
    Pipeline,
    RequestError,
    SparsifyError,
    StageError,
    find_runtime,
    fit,
    load_plugins,
)
from sparsify.cli.app import main
from sparsify_deepsparse import environment, worker
from sparsify_deepsparse.runtime import open_session
from sparsify_onnx.integer_form import IR, OPSET, export
from sparsify_onnx.loader import load
from sparsify_onnx.opsets import lower
from sparsify_onnx.pruning import MagnitudePruningModifier
from sparsify_onnx.quantization import QuantizationModifier
from sparsify_onnx.runtime import open_session as open_in_onnxruntime
from sparsify_openvino.runtime import open_session as open_in_openvino
from sparsify_plugin_kit import check_plugin

from tests.onnx import models


@pytest.fixture(scope="module")
def deepsparse() -> None:
    """Make the environment, once for this machine."""
    try:
        environment.install(lambda line: None)
    except SparsifyError as error:
        pytest.skip(f"no DeepSparse here: {error.problem}")


def compressed(model: onnx.ModelProto, folder: Path, sparsity: float = 0.0) -> Path:
    """A model pruned and quantized for ONNX Runtime, as a deployment has it."""
    context = Context(models.dataset(model), threads=1)
    changed = MagnitudePruningModifier(sparsity=sparsity).apply(load(models.save(model, folder)), context)
    return models.save(QuantizationModifier().apply(changed, context).value, folder, "int8.onnx")


def test_it_conforms() -> None:
    assert check_plugin("deepsparse") == ()


@pytest.mark.usefixtures("deepsparse")
@pytest.mark.parametrize("name", ["conv_net", "residual_net", "fire_net", "mlp"])
def test_three_runtimes_agree_on_a_float_model(name: str, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    path, inputs = models.save(model, tmp_path), models.samples(model, 4)
    session = open_session(path, 1)
    found, wanted = session.run(inputs), open_in_onnxruntime(path, 1).run(inputs)
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=1e-5)
        assert found[key].dtype == array.dtype
    assert dict(session.facts) == {
        "runtime": "deepsparse", "version": "1.8.0", "precision": None, "int8_executed": None, "uses_zeros": True,
        "static_shapes": True, "supported": 1.0, "threads": 1,
    }  # fmt: skip
    session.close()


@pytest.mark.usefixtures("deepsparse")
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@pytest.mark.parametrize("name", ["conv_net", "residual_net", "mlp"])
def test_three_runtimes_agree_on_the_same_int8_model(name: str, sparsity: float, tmp_path: Path) -> None:
    model = models.FAMILY[name]()
    path, inputs = compressed(model, tmp_path, sparsity), models.samples(model, 32, seed=3)
    fitted = fit(path, "deepsparse", load_plugins(), tmp_path / "fitted")
    assert fitted != path
    session = open_session(fitted, 1)
    (wanted,) = open_in_onnxruntime(path, 1).run(inputs).values()
    (other,) = open_in_openvino(path, 1).run(inputs).values()
    (found,) = session.run(inputs).values()
    assert session.facts["supported"] == 1.0
    for array in (found, other):
        assert np.mean(array.argmax(axis=-1) == wanted.argmax(axis=-1)) >= 0.95
        assert abs(array - wanted).max() <= 4 * abs(wanted).max() / 255
    session.close()


@pytest.mark.usefixtures("deepsparse")
def test_the_exported_form_is_what_it_needs(tmp_path: Path) -> None:
    path = compressed(models.conv_net(), tmp_path)
    shares = {}
    for name, file in (("qdq", path), ("integer", fit(path, "deepsparse", load_plugins(), tmp_path / "fitted"))):
        session = open_session(file, 1)
        shares[name] = session.facts["supported"]
        session.close()
    assert shares["integer"] == 1.0
    assert shares["qdq"] < 0.1


@pytest.mark.usefixtures("deepsparse")
@pytest.mark.parametrize(("opset", "ir", "read"), [(OPSET, IR, True), (OPSET + 3, IR, False), (OPSET, IR + 2, False)])
def test_the_table_of_opset_and_ir_holds(opset: int, ir: int, read: bool, tmp_path: Path) -> None:
    model = models.mlp()
    model.opset_import[0].version, model.ir_version = opset, ir
    session = open_session(models.save(model, tmp_path), 1)
    if read:
        assert session.facts["supported"] == 1.0
    else:
        with pytest.raises(StageError, match=r"DeepSparse 1\.8\.0 cannot run"):
            session.run(models.samples(model, 1))
    session.close()


@pytest.mark.usefixtures("deepsparse")
def test_any_batch_may_follow_any_other(tmp_path: Path) -> None:
    model = models.mlp()
    path = models.save(model, tmp_path)
    session, reference = open_session(path, 1), open_in_onnxruntime(path, 1)
    for batch in (1, 5, 5, 2):
        inputs = models.samples(model, batch, seed=batch)
        for key, wanted in reference.run(inputs).items():
            np.testing.assert_allclose(session.run(inputs)[key], wanted, rtol=1e-4, atol=1e-5)
    session.close()


@pytest.mark.usefixtures("deepsparse")
def test_each_refusal_names_the_file_and_the_reason(tmp_path: Path) -> None:
    model = models.mlp()
    path, inputs = models.save(model, tmp_path), models.samples(model, 2)
    session = open_session(path, 1)
    (name, array), *_ = inputs.items()
    for feed, reason in (
        ({}, "at least one input"),
        ({"other": array}, "it takes"),
        ({name: array.astype(np.float64)}, "float64"),
        ({name: array[:, :-1]}, "RuntimeError"),
    ):
        with pytest.raises(StageError, match=reason) as caught:
            session.run(feed)
        assert str(path) in caught.value.problem
        assert "--runtime onnxruntime" in caught.value.fix
    assert session.run(inputs)  # a refused batch costs nobody else anything
    session.close()
    session.close()
    with pytest.raises(StageError, match="is closed"):
        session.run(inputs)


@pytest.mark.usefixtures("deepsparse")
def test_a_process_that_died_with_a_request_unread_is_closed(tmp_path: Path) -> None:
    model = models.mlp()
    session = open_session(models.save(model, tmp_path), 1)
    session.run(models.samples(model, 1))
    process = session.process
    process.kill()
    process.wait()
    process.stdin.write(b"unread")
    session.close()
    assert process.stdin.closed
    assert process.stdout.closed


@pytest.mark.usefixtures("deepsparse")
def test_a_process_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    model = models.mlp()
    session = open_session(models.save(model, tmp_path), 1)
    session.run(models.samples(model, 1))
    os.kill(session.process.pid, signal.SIGKILL)
    with pytest.raises(StageError, match="its process ended with -9"):
        session.run(models.samples(model, 1))
    session.close()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    session = open_session(broken, 1)
    with pytest.raises(StageError, match=r"its process ended with 1: .*DecodeError"):
        session.run(models.samples(model, 1))
    session.close()


def test_without_its_environment_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(models.save(models.mlp(), tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", path, "--runtime", "deepsparse"])
    assert ended.value.code == 4
    assert "fix: sparsify doctor --install deepsparse" in capsys.readouterr().err


def test_an_installation_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")
    with pytest.raises(RequestError, match=r"no build for .* on arm64"):
        environment.install(print)
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 0))
    with pytest.raises(MissingLibraryError, match=r"needs Python 3\.11") as caught:
        environment.install(print)
    assert "uv" in caught.value.fix
    failing = tmp_path / "uv"
    failing.write_text("#!/bin/sh\necho no network >&2\nexit 7\n")
    failing.chmod(0o755)
    monkeypatch.setattr(environment.shutil, "which", lambda name: str(failing))
    with pytest.raises(StageError, match="ended with 7: no network") as stopped:
        environment.install(lambda line: None)
    assert stopped.value.fix.endswith("sparsify doctor --install deepsparse")
    with pytest.raises(MissingLibraryError):  # what was left half made is not taken for an environment
        environment.python()


@pytest.mark.usefixtures("deepsparse")
def test_a_run_for_it_deploys_its_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.mlp()
    path, data = models.save(model, tmp_path), tmp_path / "data"
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", **{name: array[0] for name, array in models.samples(model, 1, index).items()})
    arguments = ["--use-case", "custom", "--data", str(data), "--optim-level", "0.5", "--max-drop", "none", "--json"]
    arguments += ["--runtime", "deepsparse", "--runtime", "onnxruntime", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["run", "one-shot", "--model", str(path), *arguments, "--output", str(tmp_path / "run")])
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert ended.value.code == (6 if metrics["verdict"] == "slower" else 0), printed.err
    assert list(metrics["speedup"])[:2] == ["deepsparse", "onnxruntime"]  # others that are installed come after
    assert any("its licence is for evaluation only" in note for note in metrics["notes"])
    assert metrics["optimized"]["quantized"] == {"int8": None, "of": 4}  # it does not tell
    assert not any("unstructured zeros" in note for note in metrics["notes"])
    deployed = onnx.load(tmp_path / "run" / "deployment" / "model.onnx")
    assert sum(node.op_type == "MatMulInteger" for node in deployed.graph.node) == 4
    assert (deployed.opset_import[0].version, deployed.ir_version) <= (OPSET, IR)
    sample = {name: array[0] for name, array in models.samples(model, 1, 7).items()}
    with Pipeline.create("custom", tmp_path / "run", runtime="deepsparse", threads=1) as pipeline:
        one = pipeline(sample)
    with Pipeline.create("custom", tmp_path / "run", threads=1) as pipeline:
        other = pipeline(sample)
    for key, array in one.items():
        assert abs(array - other[key]).max() <= 4 * abs(other[key]).max() / 255


def test_a_model_that_no_exporter_can_bring_there_is_named(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mish", ["x"], ["y"], "act")], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(RequestError, match="node 'act' is a Mish"):
        fit(models.save(model, tmp_path), "deepsparse", load_plugins(), tmp_path / "fitted")
    assert find_runtime("deepsparse", load_plugins()).entry.accepts == ("onnx-integer",)
    assert lower(export(Model("onnx", models.mlp())).value, OPSET).opset_import[0].version == OPSET


shaped = arrays.arrays(
    st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)
)


@given(st.dictionaries(st.text(max_size=8), shaped, max_size=3), st.dictionaries(st.text(), st.text(), max_size=2))
def test_a_message_arrives_as_it_was_sent(sent: dict[str, np.ndarray], header: dict[str, str]) -> None:
    header.pop("arrays", None)
    stream = io.BytesIO()
    worker.send(stream, header, sent)
    worker.send(stream, header, sent)
    for length in (len(stream.getvalue()), len(stream.getvalue()) // 2 - 1):  # the second is cut off
        cut = io.BufferedReader(io.BytesIO(stream.getvalue()[:length]))
        message = worker.receive(cut)
        if length < len(stream.getvalue()) // 2:
            assert message is None
            continue
        assert message is not None
        assert message[0] == header
        assert list(message[1]) == list(sent)
        for name, array in sent.items():
            assert message[1][name].dtype == array.dtype
            np.testing.assert_array_equal(message[1][name], array)
