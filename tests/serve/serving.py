"""Deployments, sessions that do as they are told, and real servers on a free port, for the tests of the server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvicorn
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sparsify import Deployment, RequestError, StageError, TensorSpec, load_plugins
from sparsify_serve.app import create_app
from sparsify_serve.batching import Batching
from sparsify_serve.command import gather, listen, open_models
from sparsify_serve.loading import Loaded
from sparsify_serve.reading import Limits
from sparsify_serve.serving import ServedModel

Arrays = dict[str, NDArray[Any]]
KINDS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def specs(values: Sequence[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    rows = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim]
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        rows.append({"name": value.name, "dtype": dtype, "shape": shape})
    return rows


def deployment(
    model: onnx.ModelProto, folder: Path, use_case: str = "custom:test", labels: Sequence[str] = (), **save: Any
) -> Path:
    """Write a deployment folder around a model."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx", **save)
    sides = {"inputs": specs(model.graph.input), "outputs": specs(model.graph.output)}
    config = {"schema": 1, "use_case": use_case, "labels": list(labels), **sides}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def echo() -> onnx.ModelProto:
    """Give every type back as it came: inputs `in_FP32` and so on of shape (batch, 3), outputs `out_FP32`."""
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in KINDS]
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{side}_{name}", kind, ["batch", 3]) for name, kind in KINDS.items()]
        for side in ("in", "out")
    )
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def adder(amount: float = 0.0) -> onnx.ModelProto:
    """Give `x` + amount, and x's rows summed: two outputs, the first with a free second axis too."""
    weights = [numpy_helper.from_array(np.array([amount], np.float32), "amount")]
    nodes = [
        helper.make_node("Add", ["x", "amount"], ["y"]),
        helper.make_node("ReduceSum", ["x"], ["total"], axes=[1], keepdims=0),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])]
    made = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"]),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch"]),
    ]
    graph = helper.make_graph(nodes, "adder", given, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)


class Told:
    """Be a session: double `x`, wait at a gate that starts open, refuse rows below zero, record each batch."""

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] = {}
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.batches: list[list[float]] = []
        self.broken = self.closed = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        self.entered.release()
        assert self.gate.wait(30)
        x = inputs["x"]
        self.batches.append(x[:, 0].tolist())
        if self.broken:
            raise ValueError("it is broken")
        if (x < 0).any():
            raise StageError("below zero", fix="send more")
        return {"y": 2 * x}

    def close(self) -> None:
        self.closed = True


def told(session: Told, *, batchable: bool = True, **batching: Any) -> ServedModel:
    """Serve a session under the name `told`; inputs (batch, length) of float32."""
    spec = TensorSpec("x", "float32", ("batch", None)), TensorSpec("y", "float32", ("batch", None))
    held = Deployment(Path("nowhere"), "custom", (), spec[:1], spec[1:], None)
    task = RequestError("it reads no files", fix="send tensors")
    good = {"x": np.zeros((1, 1), np.float32)}

    def open_model() -> Loaded:
        return Loaded(held, session, (), frozenset(), task, batchable=batchable, known_good=good)

    return ServedModel("told", "told", open_model, Batching(**batching))


@contextmanager
def serving(models: Sequence[ServedModel], **limits: Any) -> Iterator[str]:
    """Serve models on a free port, in a thread; yields the address."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(create_app(models, Limits(**limits)), log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def serving_folder(folder: Path, *, limits: Mapping[str, Any] | None = None, **own: Any) -> Iterator[str]:
    """Serve a deployment as the command does; yields the model's address."""
    models = open_models(gather(folder, {"threads": 1, **own}, {"port": 0}), load_plugins())
    with serving(models, **(limits or {})) as address:
        yield f"{address}/v2/models/{models[0].name}"


def rows(*values: float) -> dict[str, Any]:
    """Ask the told model, or the adder, for these rows of one number."""
    return {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP32", "data": list(values)}]}


def every(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1), … at once, each in a thread of its own; raises what one of them raised."""
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
