"""Turn a layer's input and output tensors into matching rows, at a sampled set of positions.

Every Conv, Gemm and MatMul is `row_out = W @ row_in (+ b)`. A row's columns are ordered kernel position first, input
channel last, so that blocks and N:M patterns of neighbouring columns run along inputs.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsify_onnx.graph import Floats, WeightLayer


def sample_positions(count: int, cap: int, seed: int, sample: int) -> NDArray[np.intp]:
    """Choose at most `cap` of a sample's `count` positions; depends on the sample's number, never on its batch."""
    if count <= cap:
        return np.arange(count)
    chosen = np.random.default_rng((seed, sample)).choice(count, cap, replace=False, shuffle=False)
    return np.sort(chosen).astype(np.intp)


def positions_per_sample(layer: WeightLayer, output: NDArray[Any], batch: int) -> int:
    """Count the rows one sample contributes, or 0 where the output has no batch axis to divide by."""
    rows = int(output.size // max(outputs(layer), 1))
    return rows // batch if rows % batch == 0 else 0


def outputs(layer: WeightLayer) -> int:
    """Count the rows of the weight matrix."""
    if layer.op == "Conv":
        return layer.shape[0]
    outputs_first = layer.attributes.get("transB", 0) == 1 if layer.op == "Gemm" else layer.weight_input == 0
    return layer.shape[0 if outputs_first else 1]


def input_rows(layer: WeightLayer, tensor: NDArray[Any], output_shape: tuple[int, ...], rows: NDArray[np.intp]) -> Floats:
    """Gather rows × groups × (kernel · inputs) of the layer's input; `rows` counts through samples, then positions."""
    if layer.op == "Conv":
        return _windows(layer, tensor, output_shape[2:], rows)
    flat = _flat(layer, tensor, layer.attributes.get("transA", 0) == 1)
    return np.asarray(flat[rows][:, None, :], dtype=np.float32)


def output_rows(layer: WeightLayer, tensor: NDArray[Any], rows: NDArray[np.intp]) -> Floats:
    """Gather rows × outputs of the layer's output (or of anything of its shape)."""
    if layer.op == "Conv":
        positions = tensor.shape[2:]
        sample, place = np.divmod(rows, int(np.prod(positions)))
        return np.asarray(tensor.reshape(*tensor.shape[:2], -1)[sample, :, place], dtype=np.float32)
    return np.asarray(_flat(layer, tensor, transposed=False)[rows], dtype=np.float32)


def _flat(layer: WeightLayer, tensor: NDArray[Any], transposed: bool) -> NDArray[Any]:
    if transposed or (layer.op == "MatMul" and layer.weight_input == 0):
        tensor = np.swapaxes(tensor, -1, -2)
    return tensor.reshape(-1, tensor.shape[-1])


def _windows(layer: WeightLayer, tensor: NDArray[Any], places: tuple[int, ...], rows: NDArray[np.intp]) -> Floats:
    kernel = layer.shape[2:]
    strides = tuple(layer.attributes.get("strides", (1,) * len(kernel)))
    dilations = tuple(layer.attributes.get("dilations", (1,) * len(kernel)))
    before, after = padding(layer, tensor.shape[2:], places)
    padded = np.pad(np.moveaxis(tensor, 1, -1), ((0, 0), *zip(before, after, strict=True), (0, 0)))
    corner = np.unravel_index(rows, (tensor.shape[0], *places))
    index = corner[0][:, None]
    offsets = np.array(list(product(*map(range, kernel))), dtype=np.intp).T
    for axis, offset in enumerate(offsets):
        index = index * padded.shape[axis + 1] + corner[axis + 1][:, None] * strides[axis] + offset * dilations[axis]
    channels = tensor.shape[1]
    gathered = padded.reshape(-1, channels)[index]  # rows × kernel × channels
    split = gathered.reshape(len(rows), -1, layer.group, channels // layer.group)
    return np.ascontiguousarray(np.swapaxes(split, 1, 2).reshape(len(rows), layer.group, -1), dtype=np.float32)


def padding(
    layer: WeightLayer, sizes: tuple[int, ...], places: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how much a Conv pads its input before and after, per spatial axis, with `auto_pad` resolved."""
    kernel = layer.shape[2:]
    mode = layer.attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        pads = tuple(layer.attributes.get("pads", ())) if mode == b"NOTSET" else ()
        pads = pads or (0,) * (2 * len(kernel))
        return pads[: len(kernel)], pads[len(kernel) :]
    strides = layer.attributes.get("strides", (1,) * len(kernel))
    dilations = layer.attributes.get("dilations", (1,) * len(kernel))
    total = [
        max((place - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for place, stride, width, dilation, size in zip(places, strides, kernel, dilations, sizes, strict=True)
    ]
    small, large = tuple(size // 2 for size in total), tuple(size - size // 2 for size in total)
    return (small, large) if mode == b"SAME_UPPER" else (large, small)


def column_order(layer: WeightLayer) -> NDArray[np.intp]:
    """Map the columns used here (kernel, inputs) to those of `graph.to_matrix` (inputs, kernel)."""
    if layer.op != "Conv":
        return np.arange(layer.shape[1] if outputs(layer) == layer.shape[0] else layer.shape[0])
    kernel = int(np.prod(layer.shape[2:]))
    return np.arange(layer.shape[1] * kernel).reshape(layer.shape[1], kernel).T.reshape(-1)
