"""Run a model over calibration samples with tensors exposed, and reduce each to statistics of fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from sparsify import Context, Dataset, StageError

from sparsify_onnx.columns import input_rows, inputs, pieces, rows_per_sample, sample_rows
from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.drift import spread
from sparsify_onnx.graph import WeightLayer
from sparsify_onnx.histogram import EMPTY, Histogram, count, merge
from sparsify_onnx.memory import by_weight, share
from sparsify_onnx.padding import Arrays, Mask, Padding, find_padding, select
from sparsify_onnx.sessions import ORT_ERRORS, open_model
from sparsify_onnx.symmetric import add_gram

BATCH_BYTES = 128 << 20  # of exposed tensors held at once
HESSIAN_BYTES = 256 << 20  # above it, a layer is rounded to nearest, and layers take turns
WIDE = 2048  # inputs above which float32 must do
WIDEST = 5120  # inputs above which a layer is rounded to nearest: at 7,168 each took a minute, of two cores
HESSIAN_ROWS = 16384  # rows gathered for each layer
FEW = 128  # samples that means and peaks are taken from
Tensors = Mapping[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Moment:
    """Hold the exposed tensors of one batch; `first` numbers its first sample.

    real: the positions of each sample that are no padding, where there is padding; padded: the tensors it holds for.
    """

    first: int
    samples: int
    tensors: Tensors
    real: Mask | None = None
    padded: frozenset[str] = frozenset()

    def rows(self, name: str) -> NDArray[np.float32]:
        """Return a tensor without the rows of padding."""
        return select(self.tensors[name], self.real if name in self.padded else None)


@dataclass(frozen=True)
class Statistics:
    """Hold what one pass found: a histogram by tensor, and Σ x xᵀ by layer as groups × inputs × inputs."""

    histograms: dict[str, Histogram]
    hessians: dict[str, NDArray[Any]]


def watch(
    model: onnx.ModelProto, names: Iterable[str], samples: Dataset, context: Context, shapes: Shapes, label: str
) -> Iterator[Moment]:
    """Yield the named tensors batch by batch; raises StageError where one holds NaN or infinity, or a run fails."""
    wanted = list(dict.fromkeys(names))
    given = {value.name for value in model.graph.input}
    computed = [name for name in wanted if name not in given]
    first, fixed = 0, fixed_batch(model)
    sample_bytes = 4 * sum(prod(shapes.get(name, ())) for name in wanted)
    size = fixed or max(1, min(context.batch_size, BATCH_BYTES // max(sample_bytes, 1)))
    try:
        session = open_model(model, expose=computed, threads=context.threads)
        padding = session_padding(session, model, wanted, samples)
        with context.progress(label, -(-len(samples) // size)) as advance:
            for batch in samples.batches(size, pad=fixed > 0):
                rows = len(next(iter(batch.inputs.values())))
                found = dict(zip(computed, session.run(computed, batch.inputs) if computed else [], strict=True))
                found |= {name: batch.inputs[name] for name in wanted if name in given}
                tensors = {name: _samples(found[name], len(batch.keys), rows) for name in wanted}
                _refuse_not_finite(tensors)
                if padding is None:
                    yield Moment(first, len(batch.keys), tensors)
                else:
                    real = batch.inputs[padding.mask][: len(batch.keys)] != 0
                    yield Moment(first, len(batch.keys), tensors, real, padding.tensors)
                first += len(batch.keys)
                advance()
    except ORT_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(
            f"ONNX Runtime cannot run the model while {label}: {reason}",
            fix="check that the samples fit the model's inputs (`sparsify analyze MODEL` lists them)",
        ) from error


def session_padding(
    session: ort.InferenceSession, model: onnx.ModelProto, names: Sequence[str], samples: Dataset
) -> Padding | None:
    """Find the padding of samples with a session that exposes the computed ones of `names`."""
    given = {value.name for value in session.get_inputs()}
    if len(given) < 2:
        return None  # what marks padding is an input of its own

    def run(wanted: Sequence[str], feed: Arrays) -> Arrays:
        computed = [name for name in wanted if name not in given]
        return {**feed, **dict(zip(computed, session.run(computed, dict(feed)), strict=True))}

    outputs = [value.name for value in model.graph.output]
    return find_padding(run, outputs, names, samples, fixed_batch(model) or 1)


def _samples(array: NDArray[np.float32], samples: int, rows: int) -> NDArray[np.float32]:
    """Drop the padding; a tensor whose first axis is windows or heads within samples keeps their share of it."""
    if samples == rows:
        return array
    share = len(array) // rows if array.ndim and len(array) % rows == 0 else 0
    return array[: samples * share] if share else array


def _refuse_not_finite(tensors: Tensors) -> None:
    for name, array in tensors.items():
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not np.isfinite(low + high) and not np.isfinite(array).all():
            what = "NaN" if np.isnan(low) or np.isnan(high) else "infinity"
            raise StageError(
                f"activations of '{name}' contain {what}",
                fix="check the calibration samples for extreme or NaN values, and the model's weights",
            )


def in_order(context: Context) -> Context:
    """Take the calibration samples by name: which rows of a sample count depends on its place among them."""
    return replace(context, calibration=context.calibration.take(sorted(context.calibration.keys)))


def few(context: Context) -> Dataset:
    """Take evenly spread samples, enough for means."""
    return spread(in_order(context).calibration, FEW)


def measure_peaks(
    model: onnx.ModelProto, names: Sequence[str], context: Context, shapes: Shapes, axis: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each channel of each tensor."""
    peaks: dict[str, NDArray[np.float32]] = {}
    for moment in watch(model, names, few(context), context, shapes, "measuring channels") if names else ():
        for name in names:
            array = moment.rows(name)
            others = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
            found = np.abs(array).max(axis=others, initial=0.0)
            peaks[name] = np.maximum(peaks[name], found) if name in peaks else found
    return peaks


def measure(
    model: onnx.ModelProto, names: Sequence[str], layers: Sequence[WeightLayer], context: Context, shapes: Shapes
) -> Iterator[Statistics]:
    """Count every tensor's values, and gather the Hessian of every layer that is not too large for one.

    Yields once a pass: all the histograms each time, and the Hessians of the layers whose turn it was.
    """
    histograms = dict.fromkeys(names, EMPTY)
    for turn, group in enumerate(_turns(layers, hessian_limit(context)) or [[]]):
        hessians: dict[str, NDArray[Any]] = {}
        counted = names if turn == 0 else []
        exposed = [*counted, *(name for layer in group for name in (layer.input, layer.output))]
        for moment in watch(model, exposed, context.calibration, context, shapes, "calibrating"):
            for name in counted:
                histograms[name] = merge(histograms[name], count(moment.rows(name)))
            for layer in group:
                _add_rows(hessians, layer, moment, context)
        yield Statistics(histograms, hessians)


def _turns(layers: Sequence[WeightLayer], most: int) -> list[list[WeightLayer]]:
    """Group layers so that each group's Hessians fit the memory allowed; those that are too wide are left out."""
    return list(by_weight([layer for layer in layers if not too_wide(layer, most)], hessian_bytes, most))


def hessian_bytes(layer: WeightLayer) -> int:
    """Return what a layer's Hessian takes in memory."""
    return layer.group * inputs(layer) ** 2 * np.dtype(_precision(layer)).itemsize


def too_wide(layer: WeightLayer, most: int) -> bool:
    """Say whether a layer is rounded to nearest: its Hessian takes more than `most` bytes, or minutes to factor."""
    return hessian_bytes(layer) > most or inputs(layer) > WIDEST


def hessian_limit(context: Context) -> int:
    """Return the bytes above which a layer gets no Hessian."""
    return share(context, HESSIAN_BYTES, 4)


def _precision(layer: WeightLayer) -> type[np.floating[Any]]:
    return np.float32 if inputs(layer) > WIDE else np.float64


def _add_rows(hessians: dict[str, NDArray[Any]], layer: WeightLayer, moment: Moment, context: Context) -> None:
    output = moment.tensors[layer.output]
    per_sample = rows_per_sample(layer, output, moment.samples)
    if not per_sample:
        return
    cap = max(-(-HESSIAN_ROWS // max(len(context.calibration), 1)), 1)
    real = moment.real if {layer.input, layer.output} <= moment.padded else None
    rows = sample_rows(per_sample, moment.first, moment.samples, cap, context.seed, real)
    size = inputs(layer)
    if layer.name not in hessians:
        hessians[layer.name] = np.zeros((layer.group, size, size), dtype=_precision(layer))
    for part in pieces(rows, layer):
        gathered = np.swapaxes(input_rows(layer, moment.tensors[layer.input], output.shape, part), 0, 1)
        for total, found in zip(hessians[layer.name], np.ascontiguousarray(gathered), strict=True):
            add_gram(total, found)
