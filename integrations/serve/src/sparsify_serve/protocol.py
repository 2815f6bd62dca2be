"""Read requests and write responses of the Open Inference Protocol (v2), with its binary tensor extension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sparsify import Deployment, RequestError, TensorSpec

from sparsify_serve.datatypes import DATATYPES, DTYPES, shown
from sparsify_serve.tensors import binary_array, json_array

VERSION = "1"
NAMES = {np.dtype(dtype): name for dtype, name in DATATYPES.items()}  # str(dtype) takes 14 µs
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class InferRequest:
    """Hold a request that fits the model; `outputs` maps the wanted names to whether they come in binary."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, bool]
    id: str | None


def read_request(body: memoryview, header: int | None, deployment: Deployment) -> InferRequest:
    """Parse a request: JSON in the first `header` bytes (all of them for None), then the tensors sent in binary.

    Arrays are views of `body` where they are binary and aligned. Raises RequestError for whatever does not fit.
    """
    if header is not None and not 0 <= header <= len(body):
        problem = f"Inference-Header-Content-Length is {header}, the body has {len(body)} bytes"
        raise RequestError(problem, fix="give the length of the JSON part, in bytes")
    end = len(body) if header is None else header
    document = _document(body[:end])
    inputs = _read_inputs(document, body[end:], {spec.name: spec for spec in deployment.inputs})
    given = document.get("id")
    if given is not None and not isinstance(given, str):
        raise RequestError("'id' is no text", fix='send for example "id": "42"')
    wanted = dict(_read_outputs(document, [spec.name for spec in deployment.outputs]))
    return InferRequest(inputs, wanted, given)


def _document(text: memoryview) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = f"the request is no JSON: {error}"
        raise RequestError(problem, fix="send an object with 'inputs'; see docs/how-to/serve.md") from None
    if not isinstance(found, dict):
        raise RequestError("the request is no JSON object", fix="send an object with 'inputs'")
    return found


def _read_inputs(
    document: Mapping[str, Any], rest: memoryview, specs: Mapping[str, TensorSpec]
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for row in _rows(document, "inputs"):
        name = row["name"]
        if name not in specs:
            raise RequestError(f"the model has no input '{name[:100]}'", fix=f"use: {', '.join(specs)}")
        if name in arrays:
            raise RequestError(f"input '{name}' is given twice", fix="give each input once")
        shape = read_shape(row, specs[name])
        size = _parameters(row, f"input '{name}'").get("binary_data_size")
        if size is None:
            arrays[name] = json_array(row, shape)
            continue
        arrays[name] = binary_array(row, shape, size, rest)
        rest = rest[size:]
    if absent := [name for name in specs if name not in arrays]:
        raise RequestError(f"input '{absent[0]}' is missing", fix=f"give all of: {', '.join(specs)}")
    if len(rest):
        problem = f"{len(rest)} bytes follow the inputs"
        raise RequestError(problem, fix="let the sizes in 'binary_data_size' sum to the bytes after the JSON part")
    return arrays


def _rows(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = document.get(key)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        problem = f"'{key}' is {'missing' if rows is None else 'no list of objects with a name'}"
        raise RequestError(problem, fix=f'send "{key}": [{{"name": …}}]')
    return rows


def _parameters(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = row.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError(f"{what} has 'parameters' that are no object", fix='send "parameters": {}, or leave it out')
    for key in ("shared_memory_region", "classification"):
        if key in found:
            raise RequestError(f"{what} asks for '{key}', which is not served", fix=f"leave '{key}' out")
    return found


def read_shape(row: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of an input; raises RequestError where shape or datatype are not the model's."""
    datatype, shape = row.get("datatype"), row.get("shape")
    if datatype != DATATYPES[spec.dtype]:
        if datatype == "BYTES":
            problem = f"input '{spec.name}' is BYTES, which is not served"
            raise RequestError(problem, fix=f"send numbers, as {DATATYPES[spec.dtype]}")
        known = f"is {datatype}" if isinstance(datatype, str) and datatype in DTYPES else "has no known 'datatype'"
        problem = f"input '{spec.name}' {known}, the model takes {DATATYPES[spec.dtype]}"
        raise RequestError(problem, fix=f'send "datatype": "{DATATYPES[spec.dtype]}"')
    if not isinstance(shape, list) or not all(type(axis) is int and axis > 0 for axis in shape):
        raise RequestError(f"input '{spec.name}' has no 'shape' of positive whole numbers", fix=_shape_fix(spec))
    fits = len(shape) == len(spec.shape) and all(
        own == axis or not isinstance(own, int) for own, axis in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        problem = f"input '{spec.name}' has shape {shown(shape)[:200]}, the model takes {shown(spec.shape)}"
        raise RequestError(problem, fix=_shape_fix(spec))
    return tuple(shape)


def _shape_fix(spec: TensorSpec) -> str:
    return f'send for example "shape": {[axis if isinstance(axis, int) else 1 for axis in spec.shape]}'


def _read_outputs(document: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield the outputs that are wanted, all of them where none is named, and whether they are to be binary."""
    every = _flag(_parameters(document, "the request"), "binary_data_output", "the request")
    if document.get("outputs") is None:
        yield from ((name, bool(every)) for name in names)
        return
    rows = _rows(document, "outputs")
    if len({row["name"] for row in rows}) < len(rows):
        raise RequestError("an output is asked for twice", fix="ask for each output once")
    for row in rows or [{"name": name} for name in names]:
        name = row["name"]
        if name not in names:
            raise RequestError(f"the model has no output '{name[:100]}'", fix=f"use: {', '.join(names)}")
        own = _flag(_parameters(row, f"output '{name}'"), "binary_data", f"output '{name}'")
        yield name, bool(every if own is None else own)


def _flag(parameters: Mapping[str, Any], key: str, what: str) -> bool | None:
    found = parameters.get(key)
    if found is not None and not isinstance(found, bool):
        raise RequestError(f"{what} has a '{key}' that is neither true nor false", fix=f'send "{key}": true')
    return found


def write_response(name: str, request: InferRequest, results: Arrays) -> tuple[bytes, int | None]:
    """Return a response's body, and the length of its JSON part where tensors in binary follow it.

    Raises RequestError for a NaN or an infinity in JSON, which has neither.
    """
    rows, tail = [], []
    for output, binary in request.outputs.items():
        array = np.ascontiguousarray(results[output])
        row: dict[str, Any] = {"name": output, "datatype": NAMES[array.dtype], "shape": results[output].shape}
        if binary:
            row["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.reshape(-1).view(np.uint8).data)
        else:
            row["data"] = check_finite(output, array.reshape(-1))
        rows.append(row)
    document = {"model_name": name, "model_version": VERSION, "outputs": rows}
    if request.id is not None:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def check_finite(output: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that JSON can hold; raises RequestError for one with NaN or infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        problem = f"output '{output}' holds NaN or infinity, which JSON cannot say"
        raise RequestError(problem, fix='ask for it with "parameters": {"binary_data": true}')
    return array
