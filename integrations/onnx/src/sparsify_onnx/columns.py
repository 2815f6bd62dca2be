"""Turn a layer's input and output tensors into matching rows, at a sampled set of positions.

Every Conv, ConvTranspose, Gemm and MatMul is `row_out = W @ row_in + b` (Gemm's alpha and beta taken into W and b).
Columns are ordered kernel position first, input channel last, so that blocks and N:M groups of neighbours run along
inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsify_onnx.graph import CONVOLUTIONS, Floats, WeightLayer, channel_axis

Indices = NDArray[np.intp]
ROWS_BYTES = 32 << 20  # of float32 rows gathered at once: an early layer's would be gigabytes


def sample_rows(
    per_sample: int, first: int, samples: int, cap: int, seed: int, real: NDArray[np.bool_] | None = None
) -> Indices:
    """Choose at most `cap` of each sample's rows; depends on the sample's number, not on the batch it came in.

    real: the rows to choose from, samples × rows; all of them where it has another shape.
    """
    marked = real is not None and real.shape == (samples, per_sample)
    if per_sample <= cap and not marked:
        return np.arange(samples * per_sample)
    chosen = []
    for index in range(samples):
        places = np.flatnonzero(real[index]) if real is not None and marked else np.arange(per_sample)
        if len(places) > cap:
            generator = np.random.default_rng((seed, first + index))
            places = places[np.sort(generator.choice(len(places), cap, replace=False, shuffle=False))]
        chosen.append(index * per_sample + places)
    return np.concatenate(chosen)


def pieces(rows: Indices, layer: WeightLayer) -> Iterator[Indices]:
    """Cut rows so that what `input_rows` gathers for a piece stays below ROWS_BYTES."""
    step = max(ROWS_BYTES // (4 * layer.group * inputs(layer)), 1)
    yield from (rows[start : start + step] for start in range(0, len(rows), step))


def rows_per_sample(layer: WeightLayer, output: NDArray[Any], batch: int) -> int:
    """Count one sample's rows, or 0 where the rows do not divide among the batch."""
    rows = output.size // outputs(layer)
    return rows // batch if rows % batch == 0 else 0


def outputs(layer: WeightLayer) -> int:
    """Count the rows of the layer's matrix."""
    return layer.shape[channel_axis(layer)] * (layer.group if layer.op == "ConvTranspose" else 1)


def inputs(layer: WeightLayer) -> int:
    """Count the columns of the layer's matrix: inputs of one group · kernel positions."""
    return prod(layer.shape) // outputs(layer)


def kernel_positions(layer: WeightLayer) -> int:
    """Count the positions of a convolution's kernel; 1 for Gemm and MatMul."""
    return prod(layer.shape[2:])


def column_order(layer: WeightLayer) -> Indices:
    """Map the columns used here (kernel, inputs) to those of `graph.to_matrix` (inputs, kernel)."""
    return np.arange(inputs(layer)).reshape(-1, kernel_positions(layer)).T.reshape(-1)


def output_rows(layer: WeightLayer, tensor: NDArray[Any], rows: Indices) -> Floats:
    """Gather rows × outputs; rows are numbered through samples, then through positions."""
    if layer.op not in CONVOLUTIONS:
        return np.asarray(_flat(layer, tensor)[rows], dtype=np.float32)
    sample, position = np.divmod(rows, prod(tensor.shape[2:]))
    return np.asarray(tensor.reshape(*tensor.shape[:2], -1)[sample, :, position], dtype=np.float32)


def input_rows(layer: WeightLayer, tensor: NDArray[Any], output: tuple[int, ...], rows: Indices) -> Floats:
    """Gather rows × groups × columns; `output` is the shape of the layer's output."""
    if layer.op == "Conv":
        return _windows(layer, tensor, output[2:], rows)
    if layer.op == "ConvTranspose":
        return _origins(layer, tensor, output[2:], rows)
    turned = layer.op == "Gemm" and layer.attributes.get("transA", 0) == 1
    return np.asarray(_flat(layer, tensor.T if turned else tensor)[rows][:, None], dtype=np.float32)


def _flat(layer: WeightLayer, tensor: NDArray[Any]) -> NDArray[Any]:
    if layer.op == "MatMul" and layer.weight_input == 0:
        tensor = np.swapaxes(tensor, -1, -2)
    return tensor.reshape(-1, tensor.shape[-1])


def _windows(layer: WeightLayer, tensor: NDArray[Any], places: tuple[int, ...], rows: Indices) -> Floats:
    """Gather each row's receptive field (im2col) without building those of the rows left out."""
    kernel = layer.shape[2:]
    strides, dilations = _steps(layer, "strides"), _steps(layer, "dilations")
    pads = padding(layer, tensor.shape[2:], places)
    padded = np.pad(np.moveaxis(tensor, 1, -1), ((0, 0), *pads, (0, 0)))
    sample, *corners = np.unravel_index(rows, (len(tensor), *places))
    index = sample[:, None]
    for axis, offset in enumerate(np.array(list(product(*map(range, kernel)))).T):
        index = index * padded.shape[axis + 1] + corners[axis][:, None] * strides[axis] + offset * dilations[axis]
    return _by_group(layer, padded.reshape(-1, padded.shape[-1])[index])


def _origins(layer: WeightLayer, tensor: NDArray[Any], places: tuple[int, ...], rows: Indices) -> Floats:
    """Gather for each place of a transposed convolution's output the inputs it comes from, zero where there is none.

    Kernel position k of place p meets input (p + padding - k · dilation) ÷ stride where that is a whole number inside.
    """
    strides, dilations = _steps(layer, "strides"), _steps(layer, "dilations")
    before = _cropped(layer, tensor.shape[2:], places)
    moved = np.moveaxis(tensor, 1, -1)
    sample, *corners = np.unravel_index(rows, (len(tensor), *places))
    index, real = sample[:, None], np.ones((len(rows), kernel_positions(layer)), dtype=bool)
    for axis, offset in enumerate(np.array(list(product(*map(range, layer.shape[2:])))).T):
        at, rest = np.divmod(corners[axis][:, None] + before[axis] - offset * dilations[axis], strides[axis])
        size = moved.shape[axis + 1]
        real &= (rest == 0) & (at >= 0) & (at < size)
        index = index * size + np.clip(at, 0, size - 1)
    return _by_group(layer, moved.reshape(-1, moved.shape[-1])[index] * real[:, :, None])


def _by_group(layer: WeightLayer, fields: NDArray[Any]) -> Floats:
    """Turn rows × kernel × channels into rows × groups × columns."""
    grouped = np.swapaxes(fields.reshape(*fields.shape[:2], layer.group, -1), 1, 2)
    return np.ascontiguousarray(grouped, dtype=np.float32).reshape(len(fields), layer.group, -1)


def _steps(layer: WeightLayer, name: str) -> tuple[int, ...]:
    return tuple(layer.attributes.get(name, ())) or (1,) * (len(layer.shape) - 2)


def padding(layer: WeightLayer, sizes: tuple[int, ...], places: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return how much a Conv pads before and after, per spatial axis, `auto_pad` resolved."""
    mode = layer.attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b""):
        pads = tuple(layer.attributes.get("pads", ())) or (0,) * (2 * len(sizes))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    if mode == b"VALID":
        return [(0, 0)] * len(sizes)
    found = []
    steps = zip(sizes, places, layer.shape[2:], _steps(layer, "strides"), _steps(layer, "dilations"), strict=True)
    for size, place, width, stride, dilation in steps:
        total = max((place - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == b"SAME_UPPER" else (more, less))
    return found


def _cropped(layer: WeightLayer, sizes: tuple[int, ...], places: tuple[int, ...]) -> list[int]:
    """Return how much a ConvTranspose cuts off before each spatial axis."""
    mode = layer.attributes.get("auto_pad", b"NOTSET")
    if mode == b"VALID":
        return [0] * len(sizes)
    if mode in (b"NOTSET", b"") and "output_shape" not in layer.attributes:
        return list(layer.attributes.get("pads", ()))[: len(sizes)] or [0] * len(sizes)
    extra = tuple(layer.attributes.get("output_padding", ())) or (0,) * len(sizes)
    found = []
    steps = zip(
        sizes, places, layer.shape[2:], _steps(layer, "strides"), _steps(layer, "dilations"), extra, strict=True
    )
    for size, place, width, stride, dilation, more in steps:
        total = max((size - 1) * stride + more + (width - 1) * dilation + 1 - place, 0)
        found.append(total // 2 if mode == b"SAME_UPPER" else total - total // 2)
    return found
