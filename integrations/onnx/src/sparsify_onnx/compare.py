"""Measure how far each layer's output in a compressed model is from the dense model's, all upstream error included."""

from __future__ import annotations

from collections.abc import Mapping
from math import log10, prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Dataset, Model, StageError

from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.graph import consumers, weight_layers
from sparsify_onnx.sessions import open_model
from sparsify_onnx.turning import AFTER

LIMIT_DB = 200.0  # what identical outputs are given: JSON has no infinity
BATCH_BYTES = 256 << 20  # of exposed float32 outputs held at once
INPUT_SUFFIX = "_QuantizeLinear_Input"  # what ONNX Runtime's quantizer appends to a renamed output


def compare(reference: Model, candidate: Model, dataset: Dataset, batch_size: int) -> dict[str, float]:
    """Return each weighted layer's signal-to-noise ratio in dB, 10·log10(Σy² / Σ(y−ŷ)²), over all samples.

    Layers that the candidate no longer has, or has with other channels, are left out. Where the quantizer merged an
    activation into the layer, the activation's output is compared. Both models run unoptimised, so that every output
    exists; memory is one batch.
    Raises StageError for NaN or infinite outputs, naming the layer.
    """
    pairs = matching_outputs(reference.value, candidate.value)
    if not pairs:
        return {}
    sessions = [
        open_model(model.value, expose=names)
        for model, names in ((reference, [a for a, _ in pairs.values()]), (candidate, [b for _, b in pairs.values()]))
    ]
    signal, noise = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    narrower: set[str] = set()
    fixed = fixed_batch(reference.value)
    size = fixed or _bounded(batch_size, [a for a, _ in pairs.values()], reference.facts.get("shapes", {}))
    for batch in dataset.batches(size, pad=fixed > 0):
        rows = len(next(iter(batch.inputs.values())))
        left = sessions[0].run([a for a, _ in pairs.values()], batch.inputs)
        right = sessions[1].run([b for _, b in pairs.values()], batch.inputs)
        for name, before, after in zip(pairs, left, right, strict=True):
            wanted = _samples(before, len(batch.keys), rows)
            found = _undo_equalization(_samples(after, len(batch.keys), rows), candidate.facts, name)
            _check(name, wanted, found)
            if wanted.shape != found.shape:
                narrower.add(name)
                continue
            signal[name] += _energy(wanted)
            noise[name] += _energy(wanted - found)
    return {name: _decibel(signal[name], noise[name]) for name in pairs if name not in narrower}


def _undo_equalization(array: NDArray[Any], facts: Mapping[str, Any], layer: str) -> NDArray[Any]:
    """Multiply a layer's output by what equalizing divided its channels by; they lie on axis 1."""
    scales = facts.get("channel_scales", {}).get(layer)
    return array if scales is None else array * np.reshape(scales, (1, -1, *[1] * (array.ndim - 2)))


def matching_outputs(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Map layer names to the tensor of the reference and the tensor of the candidate that hold the same value."""
    made = {name for node in reference.graph.node for name in node.output}
    nodes = {node.name: node for node in candidate.graph.node}
    readers = consumers(candidate)
    pairs: dict[str, tuple[str, str]] = {}
    for layer in weight_layers(reference):
        node = nodes.get(layer.name)
        if node is None:
            continue
        written = node.output[0]
        meant = written.removesuffix(INPUT_SUFFIX)
        turned = f"{layer.name}{AFTER}"  # a product that was turned around: what is turned back is compared
        found = layer.output if written == turned else _rounded(written, readers)
        pairs[layer.name] = (meant if meant in made else layer.output, found)
    return pairs


def _rounded(name: str, readers: Mapping[str, list[onnx.NodeProto]]) -> str:
    """Follow a tensor through the quantization that its readers see it through."""
    for quantize in readers.get(name, ()):
        if quantize.op_type == "QuantizeLinear":
            for restore in readers.get(quantize.output[0], ()):
                if restore.op_type == "DequantizeLinear":
                    return str(restore.output[0])
    return name


def _bounded(batch_size: int, names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    sample = 4 * sum(prod(shapes.get(name, ())) for name in names)
    return max(1, min(batch_size, BATCH_BYTES // max(sample, 1)))


def _samples(array: NDArray[np.float32], samples: int, rows: int) -> NDArray[np.float32]:
    """Drop the padding; a tensor whose first axis is windows or heads within samples keeps their share of it."""
    share = len(array) // rows if array.ndim and len(array) % rows == 0 else 0
    return array[: samples * share] if share else array


def _check(name: str, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    for whose, array in (("original", wanted), ("compressed", found)):
        if not np.isfinite(array).all():
            raise StageError(
                f"layer '{name}' of the {whose} model puts out NaN or infinite values",
                fix="check the samples for extreme values, or leave this layer out of the recipe (ignore)",
            )


def _energy(array: NDArray[np.float32]) -> float:
    flat = array.reshape(-1).astype(np.float64)
    return float(flat @ flat)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return LIMIT_DB
    return LIMIT_DB * -1 if signal == 0 else max(-LIMIT_DB, min(LIMIT_DB, 10 * log10(signal / noise)))
