"""Measure how far a changed model's outputs drift from the original's on a few samples, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Context, Dataset, StageError, observe_agreement

from sparsify_onnx.describe import fixed_batch
from sparsify_onnx.memory import share
from sparsify_onnx.sessions import ORT_ERRORS, open_model

MACS = 300e9  # multiplications that a whole series of measurements may cost: some ten seconds of one core
FEWEST, MOST = 16, 128
OUTPUT_BYTES = 128 << 20  # of the original's outputs kept; a segmentation net's are computed again instead
Outputs = Mapping[str, NDArray[Any]]
Drift = Callable[[onnx.ModelProto], float]


def spread(samples: Dataset, count: int) -> Dataset:
    """Take at most `count` evenly spread samples."""
    keys = samples.keys
    return samples.take(keys[:: -(-len(keys) // count)] if len(keys) > count else keys)


def affordable(macs: int, runs: int) -> int:
    """Return how many samples `runs` measurements of a model may use; the same for the same model, so runs repeat."""
    return int(np.clip(MACS // max(macs * (runs + 1), 1), FEWEST, MOST))


def drift_from(model: onnx.ModelProto, samples: Dataset, context: Context) -> Drift:
    """Return a function that runs another model over `samples` and gives its drift from `model`.

    The drift is the mean KL divergence in nats where outputs have classes, else 1 − cosine, else the relative squared
    error; 0 means the same outputs. It sees small damage that top-1 does not.
    """
    kept = _within(_run(model, samples, context), share(context, OUTPUT_BYTES, 8))

    def measure(candidate: onnx.ModelProto) -> float:
        wanted = _run(model, samples, context) if kept is None else iter(kept)
        found = _run(candidate, samples, context)
        records = [_distance(before, after) for before, after in zip(wanted, found, strict=True)]
        return float(np.mean(np.concatenate(records))) if records else 0.0

    return measure


def _within(outputs: Iterator[Outputs], most: int) -> list[Outputs] | None:
    """Gather outputs, or return None where they take more than `most` bytes and must be computed each time."""
    found: list[Outputs] = []
    for batch in outputs:
        found.append(batch)
        most -= sum(array.nbytes for array in batch.values())
        if most < 0:
            return None
    return found


def _distance(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    records = observe_agreement(before, after)
    if "kl" in records:
        return np.asarray(records["kl"], dtype=np.float64)
    if "cosine" in records:
        return 1 - np.asarray(records["cosine"], dtype=np.float64)
    if "values" in records:
        old, new = np.moveaxis(np.asarray(records["values"], dtype=np.float64), -1, 0)
        return np.atleast_1d(np.sum((old - new) ** 2) / max(float(np.sum(old**2)), 1e-30))
    return 1 - np.asarray(records["top1"], dtype=np.float64)


def _run(model: onnx.ModelProto, samples: Dataset, context: Context) -> Iterator[Outputs]:
    names = [value.name for value in model.graph.output]
    fixed = fixed_batch(model)
    try:
        session = open_model(model, threads=context.threads, optimise=True)
        for batch in samples.batches(fixed or context.batch_size, pad=fixed > 0):
            results = zip(names, session.run(names, batch.inputs), strict=True)
            yield {name: array[: len(batch.keys)] for name, array in results}
    except ORT_ERRORS as error:
        raise StageError(
            f"ONNX Runtime cannot run the model while measuring drift: {str(error).strip().splitlines()[0]}",
            fix="check that the samples fit the model's inputs (`sparsify analyze MODEL` lists them)",
        ) from error
