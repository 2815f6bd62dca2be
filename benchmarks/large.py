"""Compress a model of more than 2 GB, with its weights beside the graph, and print what it took.

    python benchmarks/large.py FOLDER [--layers 12] [--width 7168] [--level 0.2]

Writes to FOLDER a network of square Gemm and Relu with random weights (2.3 GB at the defaults), 64 samples as NPZ, and
the run. Protobuf cannot hold such a model in one message: this shows that weights travel as external data throughout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SAMPLES = 64
CLASSES = 10


def main() -> None:
    """Write the model and the samples, run one-shot, and print size, memory, agreement and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--level", type=float, default=0.2)
    options = parser.parse_args()
    data = options.folder / "samples"
    data.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(SAMPLES):
        np.savez(data / f"{index:03d}.npz", input=generator.normal(size=options.width).astype(np.float32))
    model = options.folder / "large.onnx"
    write_model(model, options.layers, options.width, generator)
    command = [sys.executable, "-m", "sparsify", "run", "one-shot", "--use-case", "custom:large", "--json", "--quiet"]
    command += ["--model", str(model), "--data", str(data), "--optim-level", str(options.level), "--max-drop", "none"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--output", str(options.folder / "run")], stdout=subprocess.PIPE, text=True, check=False
    )
    metrics = json.loads(done.stdout)
    before, after = (metrics[side]["bytes"] for side in ("baseline", "optimized"))
    peak = max(stage["peak_rss_mb"] for stage in metrics["stages"])
    print(
        f"exit {done.returncode}, {metrics['verdict']}: {before:,} to {after:,} bytes, sparsity "
        f"{metrics['optimized']['sparsity']}, INT8 {metrics['optimized']['quantized']}, cosine "
        f"{metrics['agreement']['cosine']:.5f}, peak {peak:.0f} MB, {time.monotonic() - started:.0f} s"
    )


def write_model(path: Path, layers: int, width: int, generator: np.random.Generator) -> None:
    """Write the network with one data file, a tensor at a time."""
    graph = onnx.GraphProto(name="large")
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", width]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES]))
    name, data = "input", path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for index in range(layers):
            last = index == layers - 1
            rows = CLASSES if last else width
            weight = generator.normal(scale=(2 / width) ** 0.5, size=(rows, width)).astype(np.float32)
            tensor = TensorProto(name=f"weight{index}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            graph.initializer.append(tensor)
            file.write(weight.tobytes())
            output = "logits" if last else f"gemm{index}"
            graph.node.append(helper.make_node("Gemm", [name, tensor.name], [output], name=output, transB=1))
            if not last:
                name = f"relu{index}"
                graph.node.append(helper.make_node("Relu", [output], [name], name=name))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
