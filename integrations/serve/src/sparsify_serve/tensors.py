"""Make arrays of what a request holds: numbers in JSON, or bytes after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import RequestError

from sparsify_serve.datatypes import DTYPES, shown

# what JSON's values may be for each kind of array: floats take whole numbers too
TYPES: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}
WORDS: Mapping[str, str] = {"b": "true and false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def binary_array(row: Mapping[str, Any], shape: tuple[int, ...], size: Any, rest: memoryview) -> NDArray[Any]:
    """View the next `size` bytes as an array; raises RequestError where the sizes do not match."""
    name, dtype = row["name"], np.dtype(DTYPES[row["datatype"]]).newbyteorder("<")
    wanted = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != wanted:
        problem = (
            f"input '{name}' has binary_data_size {size!r:.40}, {row['datatype']} {shown(shape)} is {wanted} bytes"
        )
        raise RequestError(problem, fix=f'send "binary_data_size": {wanted}')
    if "data" in row:
        raise RequestError(f"input '{name}' has both 'data' and 'binary_data_size'", fix="leave one of them out")
    if size > len(rest):
        problem = f"input '{name}' has {size} bytes, only {len(rest)} of them follow the JSON part"
        raise RequestError(problem, fix="send the tensors after the JSON part, in the order of the inputs")
    if dtype.kind == "b" and np.frombuffer(rest, np.uint8, size).max() > 1:
        raise RequestError(f"input '{name}' holds bytes that are no BOOL", fix="send one byte of 0 or 1 a value")
    array = np.frombuffer(rest, dtype, math.prod(shape)).reshape(shape)
    return array if array.flags.aligned else array.copy()  # runtimes read whole vectors


def json_array(row: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Make an array of `data`, flat or nested as the shape is; raises RequestError for what does not fit."""
    name, data, dtype = row["name"], row.get("data"), np.dtype(DTYPES[row["datatype"]])
    if not isinstance(data, list):
        problem = f"input '{name}' has {'no' if data is None else 'no list as'} 'data'"
        raise RequestError(problem, fix='send "data": […], or the bytes with "binary_data_size"')
    values = _flat(data, shape)
    if values is None or len(values) != math.prod(shape):
        problem = f"input '{name}' has 'data' that does not fill its shape {shown(shape)}"
        raise RequestError(problem, fix=f"send {math.prod(shape)} values, flat or nested as the shape is")
    # types are looked at before NumPy is: it would read text as numbers, and None as NaN
    if not set(map(type, values)) <= TYPES[dtype.kind]:
        problem = f"input '{name}' has 'data' that is not all {row['datatype']}"
        raise RequestError(problem, fix=f"send {WORDS[dtype.kind]} alone")
    if dtype.kind in "iu":
        _check_range(name, values, np.iinfo(dtype))
    with np.errstate(over="ignore"):  # an infinity is refused below
        array = np.array(values, dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"input '{name}' holds a number beyond {row['datatype']}", fix="scale it, or send bytes")
    return array


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """Flatten nested lists, None where they are not nested as the shape says; a flat list stays as it is."""
    if not data or not isinstance(data[0], list):
        return data
    values: list[Any] = [data]
    for axis in shape:
        if not all(isinstance(inner, list) and len(inner) == axis for inner in values):
            return None
        values = list(chain.from_iterable(values))
    return values


def _check_range(name: str, values: list[int], limits: np.iinfo[Any]) -> None:
    low, high = min(values), max(values)
    if low < limits.min or high > limits.max:
        problem = f"input '{name}' holds {low if low < limits.min else high}, beyond {limits.min} to {limits.max}"
        raise RequestError(problem, fix="send numbers within the range of the datatype")
