"""Learn tensor shapes by running one sample: inference leaves gaps at Reshape and Slice, the run leaves none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, shape_inference

from sparsify_onnx.graph import model_inputs
from sparsify_onnx.sessions import ORT_ERRORS, open_model
from sparsify_onnx.storage import as_inputs

Shape = tuple[int, ...]
# what to try where a graph leaves a size open: pixels of an image side, length of anything else
GUESSES = ((224, 128), (256, 64), (32, 16), (640, 32), (64, 8), (16, 4), (1, 1))
COLOURS = 3


@dataclass(frozen=True)
class Shapes:
    """Hold the shapes of one sample: by tensor name, and of the inputs; `problem` is why no session could be opened."""

    tensors: dict[str, Shape]
    inputs: dict[str, Shape] = field(default_factory=dict)
    problem: str = ""


def measure_shapes(model: onnx.ModelProto) -> Shapes:
    """Run one sample with every tensor exposed; open sizes are guessed, batch axes are 1.

    Where a session opens but no guess runs, shape inference says what it can.
    """
    names = [name for node in model.graph.node for name in node.output if name]
    try:
        session = open_model(model, expose=names, threads=1)
    except ORT_ERRORS as error:
        return Shapes({}, problem=" ".join(str(error).split()))
    running: Shapes | None = None
    for pixels, length in _guesses(model):
        found = _run(session, model, pixels, length)
        if found is not None and _agree(model, found):
            return found
        running = running or found
    return running or Shapes(infer_shapes(model))


def _guesses(model: onnx.ModelProto) -> tuple[tuple[int, int], ...]:
    inputs = model_inputs(model)
    if not all(value.type.HasField("tensor_type") for value in inputs):
        return ()
    is_open = any(not dim.dim_value for value in inputs for dim in value.type.tensor_type.shape.dim[1:])
    return GUESSES if is_open else GUESSES[:1]


def _run(session: ort.InferenceSession, model: onnx.ModelProto, pixels: int, length: int) -> Shapes | None:
    inputs = {value.name: _sizes(value, pixels, length) for value in model_inputs(model)}
    wanted = [output.name for output in session.get_outputs()]
    try:
        results = session.run(
            wanted, {value.name: _filling(value, inputs[value.name]) for value in model_inputs(model)}
        )
    except ORT_ERRORS:
        return None
    found = {name: array.shape for name, array in zip(wanted, results, strict=True) if isinstance(array, np.ndarray)}
    return Shapes({**inputs, **found}, inputs)


def _agree(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Say whether axes of one name have one size: a wrong guess may run and turn pixels into further samples."""
    sizes: dict[str, set[int]] = {}
    for value in [*model_inputs(model), *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.tensors.get(value.name, ()), strict=False):
            sizes.setdefault(dim.dim_param, set()).add(size)
    return all(len(found) == 1 for name, found in sizes.items() if name)


def _sizes(value: onnx.ValueInfoProto, pixels: int, length: int) -> Shape:
    dims = value.type.tensor_type.shape.dim
    image = len(dims) == 4
    guesses = (1, COLOURS if image else length, *(pixels if image else length,) * len(dims))
    return tuple(int(dim.dim_value) or guesses[index] for index, dim in enumerate(dims))


def _filling(value: onnx.ValueInfoProto, shape: Shape) -> NDArray[np.generic]:
    """Fill an input: noise for numbers, ones for indices and masks."""
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if np.issubdtype(kind, np.floating):
        return np.random.default_rng(0).standard_normal(shape).astype(kind)
    return np.full(shape, "", dtype=object) if kind == np.dtype(object) else np.ones(shape, dtype=kind)


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the fully known shapes that ONNX's own inference finds."""
    graph = shape_inference.infer_shapes(as_inputs(model), data_prop=True).graph
    found = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and all(dim.dim_value for dim in dims):
            found[value.name] = tuple(int(dim.dim_value) for dim in dims)
    return found
