"""The custom use case: what it checks, and a README whose sample runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sparsify import Data, Dataset, Description, RequestError, Sample, TensorSpec, UnreadableSample
from sparsify_npz.use_case import CUSTOM


def description(*inputs: TensorSpec) -> Description:
    return Description(inputs, (TensorSpec("sum", "float32", ("batch", 2)),), (), 0, 0, 0)


IDS = TensorSpec("ids", "int64", (None, "sequence"))
SCALE = TensorSpec("scale", "float32", ("batch", 2))


def data_of(*samples: dict[str, np.ndarray] | None) -> Data:
    def read(key: str) -> Sample:
        arrays = samples[int(key)]
        if arrays is None:
            raise UnreadableSample(f"{key} is empty", fix="remove it")
        return Sample(arrays)

    return Data({"all": Dataset(tuple(str(index) for index in range(len(samples))), read)}, has_targets=False)


def test_metrics_and_a_fitting_sample_behind_a_broken_one() -> None:
    assert CUSTOM.metrics == ("accuracy",)
    CUSTOM.check(data_of(None, {"ids": np.ones(3)}), description(IDS))


def test_uncovered_input() -> None:
    with pytest.raises(RequestError) as caught:
        CUSTOM.check(data_of({"ids": np.ones(3)}), description(IDS, SCALE))
    assert caught.value.problem == "0: the model's input 'scale' is missing; expected 'ids', 'scale', found 'ids'"
    assert caught.value.fix == "add it: numpy.savez(path, **{'scale': array})"


def test_no_readable_sample() -> None:
    with pytest.raises(RequestError) as caught:
        CUSTOM.check(data_of(None, None), description(IDS))
    assert caught.value.problem == "the split 'all' holds no sample that can be read"
    assert caught.value.fix == "add .npz files to it"


def save_model(path: Path, batch: int | str) -> None:
    """Write a model of two inputs: the scale times the sum of the ids."""
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, "sequence"]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, [batch, 2]),
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], ["total"], keepdims=1),
        helper.make_node("Mul", ["total", "scale"], ["sum"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [batch, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.mark.parametrize(("batch", "rows"), [("batch", 1), (1, 1), (4, 4)])
def test_the_sample_of_the_readme_runs(tmp_path: Path, batch: int | str, rows: int) -> None:
    save_model(tmp_path / "model.onnx", batch)
    np.savez(tmp_path / "mine.npz", ids=np.array([1, 2, 3], np.int32), scale=np.array([10.0, 0.5]), label=1)
    inputs = (TensorSpec("ids", "int64", (batch, "sequence")), TensorSpec("scale", "float32", (batch, 2)))
    text = CUSTOM.readme(data_of(), description(*inputs))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "run.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "run.py", "mine.npz"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, f"sum ({rows}, 2) [60.  3.]\n"), ran.stderr
    assert f"| `ids` | int64 | ({batch}, sequence) |" in text
