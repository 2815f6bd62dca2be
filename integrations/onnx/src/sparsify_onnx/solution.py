"""Hold what a quantization computed, and keep it on disk so that a resumed run writes the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Context

from sparsify_onnx.graph import Floats
from sparsify_onnx.qdq import Weight
from sparsify_onnx.ranges import Grid, Range


@dataclass(frozen=True)
class Solution:
    """Hold grids and the ranges that calibration saw by activation, weights by initializer, and biases by layer.

    The bias of a MatMul is what is added to the Add that follows it.
    """

    grids: Mapping[str, Grid]
    seen: Mapping[str, Range]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Floats]


def fingerprint(model: onnx.ModelProto, options: str, context: Context) -> str:
    """Name a solution after all that decides it: model, options, samples and seed."""
    digest = hashlib.sha256(f"{options}|{context.seed}|{context.calibration.keys}".encode())
    for part in (*model.graph.node, *model.graph.input, *model.graph.initializer):  # a whole model may exceed 2 GB
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()[:16]


def pack(solution: Solution) -> dict[str, NDArray[np.generic]]:
    """Flatten a solution into named arrays."""
    arrays: dict[str, NDArray[np.generic]] = {
        "grids": np.array(list(solution.grids)),
        "scales": np.array([cell.scale for cell in solution.grids.values()], dtype=np.float32),
        "zero_points": np.array([cell.zero_point for cell in solution.grids.values()], dtype=np.uint8),
        "seen": np.array([solution.seen[name] for name in solution.grids], dtype=np.float64).reshape(-1, 2),
        "axes": np.array([weight.axis for weight in solution.weights.values()], dtype=np.int64),
        "weights": np.array(list(solution.weights)),
    }
    for index, weight in enumerate(solution.weights.values()):
        arrays |= {f"integers{index}": weight.integers, f"scales{index}": weight.scales}
    arrays["biases"] = np.array(list(solution.biases))
    return arrays | {f"biases{index}": values for index, values in enumerate(solution.biases.values())}


def unpack(arrays: Mapping[str, NDArray[np.generic]]) -> Solution:
    """Undo `pack`."""
    axes = [int(axis) for axis in arrays["axes"]]
    cells = [Grid(*cell) for cell in zip(arrays["scales"], arrays["zero_points"], strict=True)]
    names = [str(name) for name in arrays["grids"]]
    return Solution(
        dict(zip(names, cells, strict=True)),
        {name: (float(low), float(high)) for name, (low, high) in zip(names, arrays["seen"], strict=True)},
        {
            str(name): Weight(
                arrays[f"integers{index}"].astype(np.int8), arrays[f"scales{index}"].astype(np.float32), axes[index]
            )
            for index, name in enumerate(arrays["weights"])
        },
        {str(name): arrays[f"biases{index}"].astype(np.float32) for index, name in enumerate(arrays["biases"])},
    )
