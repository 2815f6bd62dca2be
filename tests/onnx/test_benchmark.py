"""`sparsify benchmark` on real files and ONNX Runtime, and with a runtime of the test that records what it was fed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sparsify import MissingLibraryError, RequestError, TensorSpec, load_plugins
from sparsify_onnx.benchmark import app, pinned
from sparsify_onnx.random_inputs import Contender, natural_batch, parse_shape, random_inputs
from sparsify_onnx.runtime import physical_cores
from typer.testing import CliRunner

from tests.onnx import models

PLUGIN = """
from sparsify import Entry, hookimpl

@hookimpl
def runtimes():
    return [
        Entry("slow", "{name}:Session", "as it is"),
        Entry("silent", "{name}:Session", "the same again"),
        Entry("absent", "{name}:Session", "lacks a library", requires=("no_such_library",)),
    ]

SHAPES = []

class Session:
    facts = {{"precision": "float32", "int8_executed": None}}

    def __init__(self, path, threads):
        pass

    def run(self, inputs):
        SHAPES.append({{name: array.shape for name, array in inputs.items()}})
        return {{}}

    def close(self):
        pass
"""
Run = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """Write a model that takes inputs given as (name, type, shape)."""

    def write(*rows: Any, name: str = "a.onnx") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = {row[0]: helper.np_dtype_to_tensor_dtype(np.dtype(row[1])) for row in rows}
        inputs = [helper.make_tensor_value_info(row[0], kinds[row[0]], row[2]) for row in rows]
        outputs = [helper.make_tensor_value_info(f"{row[0]}_out", TensorProto.FLOAT, row[2]) for row in rows]
        nodes = [helper.make_node("Cast", [row[0]], [f"{row[0]}_out"], to=TensorProto.FLOAT) for row in rows]
        graph = helper.make_graph(nodes, "inputs", inputs, outputs)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return str(path)

    return write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    name = f"bench_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    plugins = load_plugins(
        [EntryPoint("bench", name, "sparsify"), EntryPoint("onnx", "sparsify_onnx.plugin", "sparsify")]
    )
    assert not any(plugin.error for plugin in plugins.found)
    monkeypatch.setattr("sparsify_onnx.benchmark.load_plugins", lambda: plugins)

    def invoke(*arguments: str, shapes: bool = False) -> Any:
        result = CliRunner().invoke(app, ["--seconds", "0.01", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        if shapes:
            import sys

            seen = sys.modules[name].SHAPES
            return [one for place, one in enumerate(seen) if place == 0 or one != seen[place - 1]]
        return result.stdout

    return invoke


def test_onnx_runtime_runs_the_file_and_says_what_it_executed(run: Run, tmp_path: Path) -> None:
    path = models.save(models.conv_net(), tmp_path)
    rows = json.loads(run(str(path), "--input-shape", "input:2,3,8,8", "--threads", "1", "--json"))["results"]
    assert [(row["runtime"], row["batch"], row["precision"]) for row in rows] == [("onnxruntime", 2, "float32")]
    assert 0 < rows[0]["p50_ms"] <= rows[0]["p95_ms"]


def test_json_holds_the_latency_keys_and_the_ratio_to_the_first(run: Run, model: Callable[..., str]) -> None:
    first, second = model(["x", "float32", ["n", 3]]), model(["y", "float32", ["n", 3]], name="b.onnx")
    results = json.loads(run(first, second, "--runtime", "slow", "--batch-size", "1", "--batch-size", "4", "--json"))
    rows = results["results"]
    assert [(Path(row["model"]).name, row["batch"]) for row in rows] == [
        ("a.onnx", 1), ("b.onnx", 1), ("a.onnx", 4), ("b.onnx", 4),
    ]  # fmt: skip
    assert set(rows[0]) == {
        "model", "runtime", "version", "batch", "streams", "threads", "input_shapes", "p50_ms", "p95_ms", "throughput",
        "distribution_ms", "precision", "int8_executed", "supported", "time_ratio", "time_ratio_own",
    }  # fmt: skip
    assert rows[0]["time_ratio"] is rows[0]["time_ratio_own"] is None
    ratio = rows[1]["time_ratio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert rows[2]["input_shapes"] == {"x": [4, 3]}
    spread = rows[1]["distribution_ms"]
    assert spread["p25"] <= spread["p50"] <= spread["p75"] <= spread["p90"] <= spread["p95"] <= spread["p99"]
    assert spread["iterations"] >= 7 * 5
    assert spread["seconds"] == pytest.approx(spread["iterations"] * spread["mean"] / 1000, rel=0.01, abs=1e-3)
    assert set(results["environment"]) == {"python", "system", "cpu", "cores", "cpu_features", "pinned_cores"}


def test_the_same_model_may_be_timed_twice_and_on_several_runtimes(run: Run, model: Callable[..., str]) -> None:
    path = model(["x", "float32", ["n", 3]])
    rows = json.loads(run(path, path, "--runtime", "slow", "--runtime", "silent", "--json"))["results"]
    assert [row["runtime"] for row in rows] == ["slow", "silent", "slow", "silent"]


def test_each_runtime_has_its_own_first(run: Run, model: Callable[..., str]) -> None:
    first, second = model(["x", "float32", ["n", 3]]), model(["y", "float32", ["n", 3]], name="b.onnx")
    rows = json.loads(run(first, second, "--runtime", "slow", "--runtime", "silent", "--json"))["results"]
    assert [row["time_ratio_own"] is None for row in rows] == [True, True, False, False]
    assert [row["time_ratio"] is None for row in rows] == [True, False, False, False]


def test_all_runtimes_are_those_whose_libraries_are_installed(run: Run, model: Callable[..., str]) -> None:
    rows = json.loads(run(model(["x", "float32", ["n", 3]]), "--runtime", "all", "--json"))["results"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "silent", "slow"]


def test_streams_run_batches_at_once_and_count_them_all(run: Run, tmp_path: Path) -> None:
    path = str(models.save(models.conv_net(), tmp_path))
    arguments = ["-b", "2", "--streams", "1", "--streams", "3", "--input-shape", "input:2,3,8,8", "--threads", "3"]
    rows = json.loads(run(path, *arguments, "--json"))["results"]
    assert [(row["batch"], row["streams"]) for row in rows] == [(2, 1), (2, 3)]
    for row in rows:
        spent = row["distribution_ms"]
        items = spent["iterations"] * row["batch"] * row["streams"]
        assert row["throughput"] == pytest.approx(items / spent["seconds"], rel=0.05)
    assert "streams" in run(path, *arguments)


def test_a_stream_that_fails_fails_the_round() -> None:
    from sparsify_onnx.streams import open_streams

    opened: list[int] = []

    class Odd:
        facts: ClassVar[dict[str, Any]] = {}

        def __init__(self, threads: int) -> None:
            opened.append(threads)
            self.last = len(opened) == 3

        def run(self, inputs: Any) -> dict[str, Any]:
            if self.last:
                raise RequestError("it fails", fix="none")
            return {}

        def close(self) -> None:
            opened.pop()

    session = open_streams(Odd, 3, 8)
    assert opened == [2, 2, 2]
    with pytest.raises(RequestError, match="it fails"):
        session.run({})
    session.close()
    assert opened == []


def test_the_json_goes_into_a_file_too(run: Run, model: Callable[..., str], tmp_path: Path) -> None:
    shown = run(model(["x", "float32", ["n", 3]]), "-e", "slow", "-x", str(tmp_path / "out.json"), "--json")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(shown)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins processes")
def test_a_process_is_pinned_to_physical_cores_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    for threads, wanted in ((0, len(physical_cores())), (1, 1)):
        with pinned(threads) as cores:
            assert (cores, os.sched_getaffinity(0)) == (wanted, set(physical_cores()[:wanted]))
        assert os.sched_getaffinity(0) == before
    with pinned(None) as cores:
        assert os.sched_getaffinity(0) == before
    assert cores == len(physical_cores())


def test_the_table_names_everything_and_shows_unknowns_as_dashes(run: Run, model: Callable[..., str]) -> None:
    path = model(["x", "float32", ["n", 3]])
    shown = run(path, path, "--runtime", "slow")
    for word in ("a.onnx", "slow", "p50", "p95", "items/s", "float32", "the first", "–"):
        assert word in shown


def test_inputs_are_those_of_the_file(run: Run, model: Callable[..., str]) -> None:
    path = model(["ids", "int64", ["n", 4]], ["mask", "bool", ["n", 4]])
    assert run(path, "--runtime", "silent", "--batch-size", "2", shapes=True) == [{"ids": (2, 4), "mask": (2, 4)}]


def test_input_shape_fixes_free_axes_and_the_batch(run: Run, model: Callable[..., str]) -> None:
    path = model(["ids:0", "int64", ["n", "length"]])
    assert run(path, "--runtime", "slow", "--input-shape", "ids:0:2,16", shapes=True) == [{"ids:0": (2, 16)}]


def test_batch_size_replaces_that_of_input_shape(run: Run, model: Callable[..., str]) -> None:
    path = model(["ids", "int64", ["n", "length"]])
    arguments = (path, "--runtime", "slow", "--input-shape", "ids:2,16", "--batch-size", "3")
    assert run(*arguments, shapes=True) == [{"ids": (3, 16)}]


def test_a_deployment_folder_is_a_model(run: Run, model: Callable[..., str], tmp_path: Path) -> None:
    model(["x", "float32", [2, 3]], name="run/deployment/model.onnx")
    for folder in ("run", "run/deployment"):
        rows = json.loads(run(str(tmp_path / folder), "--runtime", "slow", "--json"))["results"]
        assert Path(rows[0]["model"]).name == "model.onnx"
        assert rows[0]["batch"] == 2


def test_a_folder_without_a_model_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"empty is a folder without model\.onnx") as error:
        run(str(tmp_path / "empty"), "--runtime", "slow")
    assert error.value.fix == "give a model file or a deployment folder"


def test_an_absent_file_is_refused(run: Run) -> None:
    with pytest.raises(RequestError, match=r"model absent/a\.onnx does not exist"):
        run("absent/a.onnx", "--runtime", "slow")


def test_an_unknown_runtime_is_refused(run: Run, model: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="there is no runtime 'slov'") as error:
        run(model(["x", "float32", ["n", 3]]), "--runtime", "slov")
    assert error.value.fix == "use 'slow'"


def test_a_runtime_without_its_library_says_what_to_install(run: Run, model: Callable[..., str]) -> None:
    with pytest.raises(MissingLibraryError, match="needs no_such_library") as error:
        run(model(["x", "float32", ["n", 3]]), "--runtime", "absent")
    assert error.value.exit_code == 4


def test_a_free_axis_is_refused_with_the_option_that_fixes_it(run: Run, model: Callable[..., str]) -> None:
    path = model(["ids", "int64", ["n", "length"]])
    with pytest.raises(RequestError, match=r"input 'ids' of .*a\.onnx has free axes: \(n, length\)") as error:
        run(path, "--runtime", "slow")
    assert error.value.fix == "give its shape, for example --input-shape ids:1,128"


def test_a_fixed_batch_is_refused_with_its_size(run: Run, model: Callable[..., str]) -> None:
    path = model(["x", "float32", [2, 3]])
    with pytest.raises(RequestError, match=r"a\.onnx has a fixed batch size of 2, not 8") as error:
        run(path, "--runtime", "slow", "--batch-size", "8")
    assert "--batch-size 2" in error.value.fix


def test_models_of_different_fixed_batches_are_refused(run: Run, model: Callable[..., str]) -> None:
    both = model(["x", "float32", [2, 3]]), model(["x", "float32", [4, 3]], name="b.onnx")
    with pytest.raises(RequestError, match=r"b\.onnx has a fixed batch size of 4, not 2"):
        run(*both, "--runtime", "slow")


@pytest.mark.parametrize(
    ("shape", "told", "fix"),
    [
        ("y:1,3", r"a\.onnx has no input 'y'", "use one of: x"),
        (
            "x:1,3,4",
            r"is \(n, 3\), not \(1, 3, 4\)",
            "give every axis, the batch first, and keep those that the model fixes",
        ),
        (
            "x:1,5",
            r"input 'x' of .* is \(n, 3\), not \(1, 5\)",
            "give every axis, the batch first, and keep those that the model fixes",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    run: Run, model: Callable[..., str], shape: str, told: str, fix: str
) -> None:
    with pytest.raises(RequestError, match=told) as error:
        run(model(["x", "float32", ["n", 3]]), "--runtime", "slow", "--input-shape", shape)
    assert error.value.fix == fix


@pytest.mark.parametrize("text", ["x", "x:", ":1,2", "x:a,b", "x:0,3", "x:1,-3"])
def test_text_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no shape") as error:
        parse_shape(text)
    assert error.value.fix == "write for example --input-shape input:1,3,224,224"


def test_shapes_are_read() -> None:
    assert parse_shape("x:1,3,8,8") == ("x", (1, 3, 8, 8))
    assert parse_shape("serving:0:1,16") == ("serving:0", (1, 16))


def contender(*inputs: TensorSpec) -> Contender:
    return Contender(Path("m.onnx"), "none", lambda threads: pytest.fail("not opened"), inputs)


def test_random_inputs_are_seeded_and_integers_are_small() -> None:
    one = contender(TensorSpec("x", "float32", (None, 3)), TensorSpec("ids", "int64", ("n", 50)))
    first, again = random_inputs(one, {}, 4), random_inputs(one, {}, 4)
    assert first["x"].dtype == np.float32
    assert first["x"].shape == (4, 3)
    assert set(np.unique(first["ids"])) == {0, 1}
    assert all((first[name] == again[name]).all() for name in first)
    assert not np.array_equal(first["x"], random_inputs(one, {}, 4, seed=1)["x"])


def test_side_inputs_keep_their_fixed_axes() -> None:
    one = contender(
        TensorSpec("x", "float32", ("n", 3)), TensorSpec("scale", "float32", (1,)), TensorSpec("t", "int64", ())
    )
    assert natural_batch([one], {}) == 1
    assert {name: array.shape for name, array in random_inputs(one, {}, 8).items()} == {
        "x": (8, 3),
        "scale": (1,),
        "t": (),
    }
