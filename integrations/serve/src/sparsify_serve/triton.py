"""Write what NVIDIA Triton needs beside the model: config.pbtxt, and the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sparsify import Deployment, RequestError, TensorSpec

from sparsify_serve.datatypes import DATATYPES, dims, is_batchable
from sparsify_serve.repository import write_text

DELAY_US = 2000  # as `sparsify serve` waits
LABELS = "labels.txt"


def prepare(deployment: Deployment, home: Path, name: str, rows: int) -> Callable[[], list[str]]:
    """Check that a model fits into its folder; returns what writes config.pbtxt, and says what it kept.

    All versions share config.pbtxt and labels: other inputs, outputs or classes are refused. Raises RequestError.
    """
    rows = rows if is_batchable(deployment) else 0
    path, labels = home / "config.pbtxt", home / LABELS
    text = "\n".join(config(deployment, name, rows))
    classes = "".join(f"{' '.join(label.split())}\n" for label in deployment.labels)
    found, listed = _read(path), _read(labels)
    if found is not None and not all(block in found for block in tensors(deployment, batched=rows > 0)):
        problem = f"{path} describes another model: its inputs or outputs differ"
        raise RequestError(problem, fix=f"give another --name, or remove {home}")
    if listed not in (None, classes):
        raise RequestError(f"{labels} lists other classes", fix=f"give another --name, or remove {home}")

    def finish() -> list[str]:
        if classes and listed is None:
            write_text(labels, classes)
        if found is None:
            write_text(path, text)
        return [] if found in (None, text) else [f"kept {path}, which was edited"]

    return finish


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", fix="remove it, or give another --name") from None


def config(deployment: Deployment, name: str, rows: int) -> Iterator[str]:
    """Yield the lines of config.pbtxt; with 0 rows the first axis is an axis like any other."""
    yield f"name: {quoted(name)}"
    yield 'platform: "onnxruntime_onnx"'
    yield 'backend: "onnxruntime"'
    yield f"max_batch_size: {rows}"
    yield from tensors(deployment, batched=rows > 0)
    if rows > 1:
        yield f"dynamic_batching {{\n  max_queue_delay_microseconds: {DELAY_US}\n}}"
    yield "instance_group [\n  {\n    count: 1\n    kind: KIND_CPU\n  }\n]\n"  # where the model was measured


def tensors(deployment: Deployment, *, batched: bool) -> Iterator[str]:
    """Yield a block for each input and output."""
    for side, specs in (("input", deployment.inputs), ("output", deployment.outputs)):
        for spec in specs:
            lines = [f"name: {quoted(spec.name)}", f"data_type: TYPE_{DATATYPES[spec.dtype]}", *_shape(spec, batched)]
            if side == "output" and spec is deployment.outputs[0] and deployment.labels:
                lines.append(f"label_filename: {quoted(LABELS)}")
            yield f"{side} [\n  {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n]"


def _shape(spec: TensorSpec, batched: bool) -> list[str]:
    sides = dims(spec)[batched:]
    if sides:
        return [f"dims: [ {', '.join(map(str, sides))} ]"]
    return ["dims: [ 1 ]", "reshape: { shape: [ ] }"]  # Triton knows no tensor without axes


def quoted(text: str) -> str:
    """Write a string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
