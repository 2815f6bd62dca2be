"""Measure what serving adds to a model, and what batching gains: a session alone against `sparsify serve`.

python benchmarks/serve.py DEPLOYMENT|MODEL.onnx|mlp [--seconds 20] [--clients 8] [--threads 0]

`mlp` is made here: three layers of 4,096 × 4,096, whose time at batch 1 goes into reading the weights. A model file is
wrapped into a temporary deployment. The server and the clients run in processes of their own, on the same cores. Blocks
of one second of each contender rotate, so that a machine that slows down slows all of them down.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sparsify import Deployment, load_plugins, read_deployment

BLOCK_S = 1.0
HEADER = "Inference-Header-Content-Length"
KINDS = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
Arrays = dict[str, np.ndarray]


def wrap(model: Path, folder: Path) -> Path:
    """Make a deployment folder around an ONNX file."""
    plugins = load_plugins()
    form = plugins.load("model_loaders", "onnx")
    facts = form.describe(form.read(model))
    for file in form.files(model):
        name = "model.onnx" if file == model else file.name
        (folder / name).symlink_to(file.resolve())
    specs = {
        side: [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in getattr(facts, side)]
        for side in ("inputs", "outputs")
    }
    config = {"schema": 1, "use_case": "custom:benchmark", "labels": [], **specs}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_mlp(path: Path, width: int = 4096, layers: int = 3) -> Path:
    """Write a model whose weights outgrow the caches."""
    names = ["x", *(f"h{layer}" for layer in range(layers - 1)), "y"]
    random = np.random.default_rng(0)
    weights = [random.standard_normal((width, width)).astype(np.float32) / width**0.5 for _ in range(layers)]
    held = [numpy_helper.from_array(weight, f"w{layer}") for layer, weight in enumerate(weights)]
    nodes = [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]], f"layer{at}") for at in range(layers)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def draw(deployment: Deployment) -> Arrays:
    """Draw one row of normal floats, or of zeros where whole numbers are wanted."""
    random, inputs = np.random.default_rng(0), {}
    for spec in deployment.inputs:
        shape = [1, *(axis if isinstance(axis, int) else 128 for axis in spec.shape[1:])]
        drawn = random.standard_normal(shape) if "float" in spec.dtype else np.zeros(shape)
        inputs[spec.name] = drawn.astype(spec.dtype)
    return inputs


def binary(inputs: Arrays) -> tuple[bytes, dict[str, str]]:
    """Write a request with tensors in binary."""
    rows = [
        {"name": name, "shape": array.shape, "datatype": KINDS[str(array.dtype)],
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": rows, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([head, *(array.tobytes() for array in inputs.values())])
    return body, {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}


def as_json(inputs: Arrays) -> tuple[bytes, dict[str, str]]:
    """Write a request in JSON alone."""
    rows = [
        {"name": name, "shape": array.shape, "datatype": KINDS[str(array.dtype)], "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    return json.dumps({"inputs": rows}).encode(), {"Content-Type": "application/json"}


def ask(address: str, body: bytes, headers: dict[str, str], seconds: float) -> list[float]:
    """Send one request after the other on one connection; returns the seconds each took."""
    split = urlsplit(address)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=60)
    took, ends = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        connection.request("POST", f"{split.path}/infer", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"error: {answer[:300]!r}")
        took.append(time.perf_counter() - started)
    connection.close()
    return took


def client(pipe: Connection, address: str, body: bytes, headers: dict[str, str]) -> None:
    """Measure whenever told to, until told to stop."""
    while seconds := pipe.recv():
        pipe.send(ask(address, body, headers, seconds))


@contextmanager
def clients(count: int, address: str, body: bytes, headers: dict[str, str]) -> Iterator[Callable[[float], list[float]]]:
    """Start clients, each a process; yields what runs all of them for some seconds."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(count):
        here, there = spawn.Pipe()
        process = spawn.Process(target=client, args=(there, address, body, headers), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)

    def block(seconds: float) -> list[float]:
        for pipe in pipes:
            pipe.send(seconds)
        return [one for pipe in pipes for one in pipe.recv()]

    block(0.3)  # warm
    yield block
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(0)
        process.join()


@contextmanager
def served(deployment: Path, threads: int, rows: int) -> Iterator[str]:
    """Start a server on a free port; yields the model's address."""
    command = [sys.executable, "-m", "sparsify", "serve", str(deployment), "--port", "0"]
    command += ["--threads", str(threads), "--max-batch-size", str(rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def totals(address: str) -> tuple[float, float]:
    """Read how many requests ran so far, and in how many batches."""
    split = urlsplit(address)
    connection = http.client.HTTPConnection(split.hostname or "", split.port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    found = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("sparsify_batch_req")}
    return found["sparsify_batch_requests_sum"], found["sparsify_batch_requests_count"]


def rotate(contenders: dict[str, Callable[[float], list[float]]], seconds: float) -> dict[str, list[list[float]]]:
    """Run one block of each in turn, until each has run for so long; another begins every round."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for round_ in range(max(int(seconds / BLOCK_S), 1)):
        for step in range(len(names)):
            name = names[(round_ + step) % len(names)]
            blocks[name].append(contenders[name](BLOCK_S))
    return blocks


def table(blocks: dict[str, list[list[float]]], first: str, batches: dict[str, float]) -> None:
    """Print a Markdown table: throughput, and its share of the first's, block by block."""
    print("| | requests/s | of the first | p50 ms | p99 ms | mean batch |\n|---|---|---|---|---|---|")
    for name, rows in blocks.items():
        took = np.array([one for row in rows for one in row]) * 1e3
        rate = sum(map(len, rows)) / (len(rows) * BLOCK_S)
        share = statistics.median(len(row) / len(own) for row, own in zip(rows, blocks[first], strict=True))
        batch = f"{batches[name]:.2f}" if name in batches else "1"
        p50, p99 = np.percentile(took, [50, 99])
        print(f"| {name} | {rate:.1f} | {100 * share:.1f} % | {p50:.2f} | {p99:.2f} | {batch} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="measured time of each contender")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.model
        if str(folder) == "mlp":
            folder = write_mlp(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "mlp.onnx")
        if folder.is_file():
            folder = wrap(folder, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        deployment = read_deployment(folder)
        inputs = draw(deployment)
        session = load_plugins().load("runtimes", "onnxruntime")(deployment.model, options.threads)

        def alone(seconds: float) -> list[float]:
            took, ends = [], time.perf_counter() + seconds
            while (started := time.perf_counter()) < ends:
                session.run(inputs)
                took.append(time.perf_counter() - started)
            return took

        alone(0.3)
        single = stack.enter_context(served(folder, options.threads, 1))
        batching = stack.enter_context(served(folder, options.threads, 8))
        one = {"session alone": alone}
        one["served, binary"] = stack.enter_context(clients(1, batching, *binary(inputs)))
        one["served, JSON"] = stack.enter_context(clients(1, batching, *as_json(inputs)))
        size = sum(array.nbytes for array in inputs.values())
        print(f"One client, {size / 1000:.0f} kB a request\n")
        table(rotate(one, options.seconds), "session alone", {})
        if options.clients > 1:
            several = {
                name: stack.enter_context(clients(options.clients, address, *binary(inputs)))
                for name, address in (("no batching", single), ("batching", batching))
            }
            print(f"\n{options.clients} clients, binary\n")
            before = totals(batching)
            blocks = rotate(several, options.seconds)
            requests, batches = (now - then for now, then in zip(totals(batching), before, strict=True))
            table(blocks, "no batching", {"batching": requests / batches})


if __name__ == "__main__":
    main()
