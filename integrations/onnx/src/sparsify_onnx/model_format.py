"""Offer ONNX as a model format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

from sparsify import Context, Dataset, Model, ModelFormat, Score

from sparsify_onnx.alone import each_alone, measure_alone
from sparsify_onnx.compare import compare
from sparsify_onnx.describe import describe
from sparsify_onnx.graph import weight_layers
from sparsify_onnx.layer_times import layer_times
from sparsify_onnx.loader import common_ir, load, read
from sparsify_onnx.memory import fit
from sparsify_onnx.storage import model_files, write_atomic

ALONE_S = 10.0  # what is not measured by then stays unknown


def save(model: Model, path: Path) -> None:
    """Write a model atomically, with external data above 1.5 GB; the same model gives the same bytes."""
    model.value.ir_version = common_ir(model.value)
    write_atomic(model.value, path)


def examine(
    reference: Model, candidate: Model, dataset: Dataset, batch_size: int, score: Score | None = None
) -> dict[str, dict[str, float]]:
    """Measure by layer the accumulated and the isolated error, saturation, time in ONNX Runtime, and loss if alone.

    Without `score` only the accumulated error is measured.
    """
    found = {name: {"sqnr_db": ratio} for name, ratio in compare(reference, candidate, dataset, batch_size).items()}
    if score is None or candidate is reference:
        return found
    for name, figures in measure_alone(reference, candidate, dataset, batch_size).items():
        found[name] = {**found.get(name, {}), **figures}
    names = [layer.name for layer in weight_layers(reference.value)]
    for key, model in (("ms_before", reference), ("ms_after", candidate)):
        for name, took in layer_times(model.value, names, Context(dataset, batch_size=batch_size)).items():
            found.setdefault(name, {})[key] = took
    for name, lost in losses_alone(reference, candidate, found, score).items():
        found[name] |= lost
    return found


def losses_alone(
    reference: Model, candidate: Model, errors: Mapping[str, Mapping[str, float]], score: Score
) -> dict[str, dict[str, float]]:
    """Score each layer compressed alone, those with the largest error of their own first, for ALONE_S seconds."""
    found: dict[str, dict[str, float]] = {}
    started = monotonic()
    for name in sorted(errors, key=lambda name: errors[name].get("isolated_db", math.inf)):
        for _, changed in each_alone(reference, candidate, [name]):
            found[name] = {
                f"{'drop' if key == 'points' else key}_if_alone": value for key, value in score(changed).items()
            }
        if monotonic() - started > ALONE_S:
            break
    return found


def read_any(path: Path) -> Model:
    """Read any valid ONNX model, quantized ones too, as it is."""
    return Model("onnx", read(path))


FORMAT = ModelFormat(load, save, describe, examine, fit, model_files, read_any)
