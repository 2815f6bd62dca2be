"""Tell arithmetic that is written as a layer from a layer that was learned: its weights must stay exact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

AFTER_SOFTMAX = "fixed weights after Softmax"
CONVERSION = "fixed weights that convert coordinates"
FIXED = (AFTER_SOFTMAX, CONVERSION)
PASSING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Identity", "Gather", "Cast")
SMALL = 256  # weights at most: arithmetic written as a layer has few
CONVERTING = (0.0, 0.25, 0.5, 1.0, 2.0)  # the magnitudes that corners, centres and sizes are converted with


def weighs_softmax(
    node: NodeProto, place: int, constants: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]
) -> bool:
    """Say whether a layer takes the mean of a distribution: the bins of a box side (Li et al., GFL, 2020).

    It follows a Softmax, and has one output or weights in even steps.
    """
    maker = makers.get(node.input[1 - place])
    while maker is not None and maker.op_type in PASSING:
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "Softmax":
        return False
    weight = constants[node.input[place]]
    outputs = weight.dims[0] if node.op_type == "Conv" else min(weight.dims)
    return bool(outputs == 1) or _in_steps(_values(weight))


def converts(weight: TensorProto) -> bool:
    """Say whether a weight only adds, subtracts and halves, as the turning of corners into centres does."""
    values = _values(weight)
    return bool(values.size and values.any() and np.isin(np.abs(values), CONVERTING).all())


def is_small(weight: TensorProto) -> bool:
    """Say whether a weight is small enough to be arithmetic."""
    return 1 < int(np.prod(weight.dims)) <= SMALL


def _values(weight: TensorProto) -> NDArray[np.float64]:
    if not is_small(weight) or not (weight.raw_data or weight.float_data):
        return np.empty(0)
    return numpy_helper.to_array(weight).astype(np.float64).reshape(-1)


def _in_steps(values: NDArray[np.float64]) -> bool:
    steps = np.diff(values)
    return bool(steps.size > 1 and steps[0] and np.allclose(steps, steps[0], rtol=1e-4))
