"""Name tensor types as the Open Inference Protocol does, and NumPy's as the model files do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sparsify import Deployment, RequestError, TensorSpec

DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPES: Mapping[str, str] = {dtype: name for name, dtype in DTYPES.items()}


def check_types(deployment: Deployment) -> None:
    """Raise RequestError where a model takes or gives what is no number."""
    for spec in (*deployment.inputs, *deployment.outputs):
        if spec.dtype not in DATATYPES:
            problem = f"{deployment.folder}: tensor '{spec.name}' is {spec.dtype}, which cannot be served"
            raise RequestError(problem, fix="export the model with numbers as inputs and outputs")


def is_batchable(deployment: Deployment) -> bool:
    """Say whether requests can be joined along the first axis: it is free, and one and the same, in every tensor."""
    firsts = [_first_axis(spec) for spec in (*deployment.inputs, *deployment.outputs)]
    named = {axis for spec, axis in zip(deployment.inputs, firsts, strict=False) if isinstance(axis, str)}
    return bool(deployment.inputs) and not any(isinstance(axis, int) for axis in firsts) and len(named) < 2


def _first_axis(spec: TensorSpec) -> int | str | None:
    return spec.shape[0] if spec.shape else 0  # a single number has no axis to join along


def dims(spec: TensorSpec) -> list[int]:
    """Give a shape as the servers write it: -1 for what is free."""
    return [axis if isinstance(axis, int) else -1 for axis in spec.shape]


def shown(shape: Sequence[object]) -> str:
    """Write a shape for a message."""
    return "[" + ", ".join("?" if axis is None else str(axis) for axis in shape) + "]"


def model_name(deployment: Deployment) -> str:
    """Name a model after its use case, in letters that fit into an address and a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", deployment.use_case).strip("._-") or "model"


def check_name(name: str) -> None:
    """Raise RequestError for a name that does not fit into an address and a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RequestError(f"'{name}' is no name of a model", fix="use letters and digits, such as resnet50-int8")
