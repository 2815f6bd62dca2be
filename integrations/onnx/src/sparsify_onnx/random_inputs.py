"""Draw inputs that fit a model file: every free axis filled, ids valid in any vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from sparsify import RequestError, Session, TensorSpec

from sparsify_onnx.graph import model_inputs
from sparsify_onnx.storage import read_proto

Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Contender:
    """Hold one model on one runtime, and what it takes; open(threads) opens it."""

    model: Path
    runtime: str
    open: Callable[[int], Session]
    inputs: tuple[TensorSpec, ...]


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name:1,3,224,224`; the name may hold colons. Raises RequestError."""
    found = re.fullmatch(r"(.+):([1-9]\d*(?:,[1-9]\d*)*)", text)
    if not found:
        raise RequestError(f"--input-shape {text} is no shape", fix="write for example --input-shape input:1,3,224,224")
    return found[1], tuple(map(int, found[2].split(",")))


def read_inputs(path: Path) -> tuple[Path, tuple[TensorSpec, ...]]:
    """Find the model file, also in a deployment or run folder, and read what inputs it takes; raises RequestError."""
    places = [path / "model.onnx", path / "deployment" / "model.onnx"] if path.is_dir() else [path]
    file = next((place for place in places if place.is_file() or place == path), None)
    if file is None:
        problem = f"MODEL: {path} is a folder without model.onnx"
        raise RequestError(problem, fix="give a model file or a deployment folder")
    return file, tuple(_specs(file))


def _specs(path: Path) -> Iterator[TensorSpec]:
    for value in model_inputs(read_proto(path)):
        tensor = value.type.tensor_type
        dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
        yield TensorSpec(value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(dims))


def natural_batch(found: Sequence[Contender], shapes: Shapes) -> int:
    """Return the batch size that --input-shape or else the first model with a fixed one asks for, or 1."""
    given = [shapes[spec.name][0] for one in found for spec in one.inputs if spec.name in shapes]
    return next((batch for batch in (*given, *map(_fixed_batch, found)) if batch), 1)


def _fixed_batch(contender: Contender) -> int:
    """Return the batch size a model is bound to, or 0 where any of its inputs is free."""
    firsts = [spec.shape[0] for spec in contender.inputs if spec.shape]
    return min((first if isinstance(first, int) else 0 for first in firsts), default=0)


def random_inputs(contender: Contender, shapes: Shapes, batch: int, seed: int = 0) -> Arrays:
    """Draw normal floats, and integers of 0 and 1, which are valid ids of any vocabulary.

    Raises RequestError for a batch size or a shape that the model does not take.
    """
    model, fixed, names = contender.model, _fixed_batch(contender), [spec.name for spec in contender.inputs]
    if fixed not in (0, batch):
        problem = f"{model} has a fixed batch size of {fixed}, not {batch}"
        raise RequestError(problem, fix=f"use --batch-size {fixed}, or export the model with a free first axis")
    if unknown := sorted(shapes.keys() - names):
        problem = f"--input-shape: {model} has no input '{unknown[0]}'"
        raise RequestError(problem, fix=f"use one of: {', '.join(names)}")
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in contender.inputs:
        shape, dtype = _shape(model, spec, shapes.get(spec.name), batch), np.dtype(spec.dtype)
        drawn = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        inputs[spec.name] = np.asarray(drawn).astype(dtype)
    return inputs


def _shape(model: Path, spec: TensorSpec, given: tuple[int, ...] | None, batch: int) -> tuple[int, ...]:
    """Fill the free axes: the first is the batch, the others must be given."""
    said = "(" + ", ".join("?" if length is None else str(length) for length in spec.shape) + ")"
    own = [length if isinstance(length, int) else 0 for length in spec.shape]
    wanted = given or own
    if len(wanted) != len(own) or any(fixed not in (0, new) for fixed, new in zip(own, wanted, strict=True)):
        raise RequestError(
            f"--input-shape: input '{spec.name}' of {model} is {said}, not {given}",
            fix="give every axis, the batch first, and keep those that the model fixes",
        )
    shape = tuple(wanted) if not own or own[0] else (batch, *wanted[1:])
    if 0 in shape:
        example = ",".join(str(length or 128) for length in shape)
        raise RequestError(
            f"input '{spec.name}' of {model} has free axes: {said}",
            fix=f"give its shape, for example --input-shape {spec.name}:{example}",
        )
    return shape
