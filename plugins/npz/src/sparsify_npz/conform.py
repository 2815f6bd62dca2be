"""Compare one sample with the model's inputs, and name what is wrong: file, key, expected, found, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import RequestError, TensorSpec

LABEL = "label"
Arrays = Mapping[str, NDArray[Any]]


def conform(arrays: Arrays, inputs: Sequence[TensorSpec], file: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the model's inputs in its dtypes; raises RequestError."""
    check_keys(arrays, inputs, file)
    for spec in inputs:
        _check_shape(arrays[spec.name].shape, spec, file)
    return {spec.name: _cast(arrays[spec.name], spec, file) for spec in inputs}


def casts(arrays: Arrays, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Say in one line each which inputs are stored in another dtype than the model takes."""
    return tuple(
        f"input '{spec.name}' is stored as {arrays[spec.name].dtype} and cast to the model's {spec.dtype}"
        for spec in inputs
        if arrays[spec.name].dtype != dtype_of(spec)
    )


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """Return an input's dtype; raises RequestError for one that NumPy does not have (bfloat16, float8) and for objects.

    ml_dtypes, which onnx imports, teaches NumPy the name `bfloat16`, but not to store it: its kind is V.
    """
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype("V")
    if dtype.kind not in "biufc":
        raise RequestError(
            f"the model's input '{spec.name}' is {spec.dtype}, which NPZ files cannot hold",
            fix="export the model with inputs of numbers that NumPy has, such as float32",
        )
    return dtype


def check_model(inputs: Sequence[TensorSpec]) -> None:
    """Raise RequestError for a model whose inputs cannot be fed sample by sample."""
    for spec in inputs:
        dtype_of(spec)
        if not spec.shape:
            raise RequestError(
                f"the model's input '{spec.name}' is a scalar, so it has no batch axis to stack samples along",
                fix="export the model with this input as a constant, or with a leading batch axis",
            )


def check_keys(arrays: Arrays, inputs: Sequence[TensorSpec], file: str) -> None:
    """Raise RequestError for a key that is no input, and for an input without a key."""
    names = [spec.name for spec in inputs]
    expected = ", ".join(f"'{name}'" for name in names)
    absent = [name for name in names if name not in arrays]
    for key in arrays:
        if key in names or key == LABEL:
            continue
        near = get_close_matches(key, absent or names, n=1, cutoff=0.3) or absent[:1]
        rename = f"rename it to '{near[0]}'" if near and near[0] in absent else "remove it"
        raise RequestError(
            f"{file}: key '{key}' is no input of the model; expected {expected} (and '{LABEL}' for the target)",
            fix=f"{rename} and write the file again with numpy.savez",
        )
    if absent:
        found = ", ".join(f"'{key}'" for key in arrays) or "no arrays at all"
        raise RequestError(
            f"{file}: the model's input '{absent[0]}' is missing; expected {expected}, found {found}",
            fix=f"add it: numpy.savez(path, **{{'{absent[0]}': array}})",
        )


def _check_shape(found: tuple[int, ...], spec: TensorSpec, file: str) -> None:
    expected = spec.shape[1:]
    if fits(found, expected):
        return
    problem = f"{file}: key '{spec.name}' has shape {show(found)}, expected {show(expected)}"
    if fits(found[1:], expected) and len(found) == len(expected) + 1:
        how = "save array[0]" if found[0] == 1 else f"save each of the {found[0]} samples as a file of its own"
        raise RequestError(
            f"{problem}: it still has a batch dimension", fix=f"remove the leading axis of '{spec.name}': {how}"
        )
    if len(found) == 3 and fits((found[2], *found[:2]), expected):
        raise RequestError(f"{problem}: the channels are last", fix=f"save '{spec.name}' as array.transpose(2, 0, 1)")
    raise RequestError(problem, fix=f"save '{spec.name}' with shape {show(expected)}, one sample and no batch axis")


def fits(found: tuple[int, ...], expected: tuple[int | str | None, ...]) -> bool:
    """Say whether a shape has these axes; a dynamic axis takes any size."""
    return len(found) == len(expected) and all(
        not isinstance(axis, int) or axis == size for size, axis in zip(found, expected, strict=True)
    )


def show(shape: tuple[int | str | None, ...]) -> str:
    """Write a shape as NumPy does, a dynamic axis by its name or `?`."""
    axes = [str(axis) if axis is not None else "?" for axis in shape]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def _cast(array: NDArray[Any], spec: TensorSpec, file: str) -> NDArray[Any]:
    dtype = dtype_of(spec)
    if array.dtype == dtype:
        return array
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    kinds = array.dtype.kind + dtype.kind
    if not (set(kinds) <= set("iu") or kinds == "ff"):
        raise RequestError(
            f"{file}: key '{spec.name}' is {array.dtype}, expected {spec.dtype}; the cast may change its values",
            fix=f"save '{spec.name}' as array.astype(numpy.{spec.dtype}) if that is what you mean",
        )
    return _narrowed(array, dtype, spec, file)


def _narrowed(array: NDArray[Any], dtype: np.dtype[Any], spec: TensorSpec, file: str) -> NDArray[Any]:
    """Cast to a smaller type of the same kind, where the values allow it."""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if int(low) < int(limits.min) or int(high) > int(limits.max):
        worst = low if int(low) < int(limits.min) else high
        raise RequestError(
            f"{file}: key '{spec.name}' is {array.dtype} and holds {worst}, which {spec.dtype} cannot hold",
            fix=f"save '{spec.name}' as {spec.dtype} with values from {limits.min} to {limits.max}",
        )
    return array.astype(dtype)
