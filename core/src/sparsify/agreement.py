"""How far a candidate's outputs agree with the baseline's, for outputs of any shape, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsify.errors import StageError
from sparsify.intervals import Interval, jackknife, mean_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsify.contracts import Arrays

FLOOR = 1e-6  # the least probability, so that a probability quantized to 0 costs a finite divergence

CHUNK = 2**20  # values compared at a time: detectors give millions a batch

Records = dict[str, list[Any]]


def observe_agreement(baseline: Arrays, candidate: Arrays) -> Records:
    """Compare two models' outputs; a record a sample, each the mean over the outputs that it is defined for.

    top1: share of positions with the same largest class. cosine: of the flattened outputs. kl: mean KL(baseline ‖
    candidate) in nats of the softmax over classes, or of the outputs themselves where they are probabilities already.
    Classes lie on the last axis, from rank 4 on axis 1. Integers are compared as ids. Where outputs have one value a
    sample, as in regression, there is only `values`: (baseline, candidate). Raises StageError where the two models
    share no numeric output.
    """
    import numpy as np

    found: dict[str, list[NDArray[Any]]] = {"top1": [], "cosine": [], "kl": []}
    values: list[NDArray[Any]] = []
    for before, after in _shared(baseline, candidate):
        if before.dtype.kind == "f" and before.size == len(before):
            values.append(np.stack([before.ravel(), after.ravel()], axis=1))
            continue
        for measure, records in _compare(before, after).items():
            found[measure].append(records)
    if not any(found.values()):
        return {"values": [row.tolist() for row in np.stack(values, axis=1)]}
    return {measure: np.mean(rows, axis=0).tolist() for measure, rows in found.items() if rows}


def summarise_agreement(records: Records) -> tuple[dict[str, float | None], Interval]:
    """Return the means (`top1` in 0–100) and the 95 % interval of the drop from full agreement, in points.

    The drop is that of top1, or of the cosine where there are no classes. The cosine of `values` is that of all samples
    as one vector: of a single number it would tell the sign alone.
    """
    import numpy as np

    if "values" in records:
        values = np.asarray(records["values"], dtype=np.float64)

        def cosine(chosen: Sequence[int]) -> float:
            old, new = np.moveaxis(values[list(chosen)], -1, 0).reshape(2, 1, -1)
            return float(_cosine(old, new)[0])

        low, high = jackknife(len(values), cosine)
        interval = 100 - 100 * min(high, 1.0), 100 - 100 * low
        return {"top1": None, "cosine": cosine(range(len(values))), "kl": None}, interval
    means = {name: float(np.mean(records[name])) if name in records else None for name in ("top1", "cosine", "kl")}
    low, high = mean_interval(np.asarray(records["top1" if "top1" in records else "cosine"]))
    top1 = means["top1"]
    return {**means, "top1": None if top1 is None else 100 * top1}, (100 - high, 100 - low)


def _shared(baseline: Arrays, candidate: Arrays) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    shared = [
        (before, candidate[name])
        for name, before in baseline.items()
        if name in candidate and candidate[name].shape == before.shape and before.dtype.kind in "fiu" and before.size
    ]
    if not shared:
        shapes = [
            ", ".join(f"'{name}' {array.shape}" for name, array in side.items()) for side in (baseline, candidate)
        ]
        raise StageError(
            f"the models share no output to compare: the baseline has {shapes[0]}, the optimized model {shapes[1]}",
            fix="compare models with the same output names and shapes",
        )
    return shared


def _compare(before: NDArray[Any], after: NDArray[Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    rows = max(1, CHUNK * len(before) // before.size)
    chunks = [
        _compare_chunk(before[start : start + rows], after[start : start + rows])
        for start in range(0, len(before), rows)
    ]
    return {measure: np.concatenate([chunk[measure] for chunk in chunks]) for measure in chunks[0]}


def _compare_chunk(before: NDArray[Any], after: NDArray[Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    count = len(before)
    if before.dtype.kind in "iu":
        return {"top1": (before == after).reshape(count, -1).mean(axis=1)}
    old, new = (_classes_last(array.astype(np.float64)) for array in (before, after))
    records = {"cosine": _cosine(old.reshape(count, -1), new.reshape(count, -1))}
    if old.ndim > 1 and old.shape[-1] > 1:
        same = old.argmax(axis=-1) == new.argmax(axis=-1)
        records |= {"top1": same.reshape(count, -1).mean(axis=1), "kl": _divergence(old, new)}
    return records


def _classes_last(array: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.moveaxis(array, 1, -1) if array.ndim >= 4 else array


def _cosine(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    both_zero = (old == 0).all(axis=1) & (new == 0).all(axis=1)
    cosine = np.divide((old * new).sum(axis=1), lengths, out=np.zeros(len(old)), where=lengths > 0)
    return np.where(both_zero, 1.0, np.clip(cosine, -1.0, 1.0))


def _divergence(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Return KL(old ‖ new) a sample; the baseline tells whether outputs are probabilities already."""
    import numpy as np

    if (old >= 0).all() and np.allclose(old.sum(axis=-1), 1.0, atol=1e-3):
        old, new = (np.clip(array, FLOOR, None) for array in (old, new))
        log_old, log_new = (np.log(array / array.sum(axis=-1, keepdims=True)) for array in (old, new))
    else:
        log_old, log_new = _log_softmax(old), _log_softmax(new)
    rows = (np.exp(log_old) * (log_old - log_new)).sum(axis=-1)
    means: NDArray[Any] = np.maximum(rows.reshape(len(rows), -1).mean(axis=1), 0.0)  # rounding may give -1e-17
    return means


def _log_softmax(scores: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    shifted = scores - scores.max(axis=-1, keepdims=True)
    logs: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
