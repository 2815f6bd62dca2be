"""How far a candidate's outputs agree with the baseline's, for outputs of any shape, sample by sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
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

    found: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for before, after in _shared(baseline, candidate):
        rows = max(1, CHUNK * len(before) // before.size)
        pieces = [_compare(before[row : row + rows], after[row : row + rows]) for row in range(0, len(before), rows)]
        for measure in pieces[0]:
            found[measure].append(np.concatenate([piece[measure] for piece in pieces]))
    values = found.pop("values", [])
    if not found:
        return {"values": np.stack(values, axis=1).tolist()}
    return {measure: np.mean(rows, axis=0).tolist() for measure, rows in found.items()}


def summarise_agreement(records: Records) -> tuple[dict[str, float | None], Interval]:
    """Return the means (`top1` in 0–100) and the 95 % interval of the drop from full agreement, in points.

    The drop is that of top1, or of the cosine where there are no classes. The cosine of `values` is that of all samples
    as one vector: of a single number it would tell the sign alone.
    """
    import numpy as np

    if "values" in records:
        old, new = np.moveaxis(np.asarray(records["values"], dtype=np.float64), -1, 0)

        def cosine(chosen: Sequence[int]) -> float:
            return float(_cosine(old[list(chosen)].reshape(1, -1), new[list(chosen)].reshape(1, -1))[0])

        low, high = jackknife(len(old), cosine)
        means: dict[str, float | None] = {"top1": None, "cosine": cosine(range(len(old))), "kl": None}
        return means, (100 - 100 * min(high, 1.0), 100 - 100 * low)
    means = {name: float(np.mean(records[name])) if name in records else None for name in ("top1", "cosine", "kl")}
    low, high = mean_interval(np.asarray(records["top1" if "top1" in records else "cosine"]))
    return {**means, "top1": None if means["top1"] is None else 100 * means["top1"]}, (100 - high, 100 - low)


def _shared(baseline: Arrays, candidate: Arrays) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    shared = [name for name, before in baseline.items() if before.dtype.kind in "fiu" and before.size]
    shared = [name for name in shared if name in candidate and candidate[name].shape == baseline[name].shape]
    if not shared:
        old, new = (", ".join(f"'{name}' {side[name].shape}" for name in side) for side in (baseline, candidate))
        raise StageError(
            f"the models share no output to compare: the baseline has {old}, the optimized model {new}",
            fix="compare models with the same output names and shapes",
        )
    return ((baseline[name], candidate[name]) for name in shared)


def _compare(before: NDArray[Any], after: NDArray[Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    count = len(before)
    if before.dtype.kind in "iu":
        return {"top1": (before == after).reshape(count, -1).mean(axis=1)}
    if before.size == count:
        return {"values": np.stack([before.ravel(), after.ravel()], axis=1)}
    old, new = (array.astype(np.float64) for array in (before, after))
    if old.ndim >= 4:
        old, new = np.moveaxis(old, 1, -1), np.moveaxis(new, 1, -1)
    cosine = _cosine(old.reshape(count, -1), new.reshape(count, -1))
    if old.shape[-1] == 1:
        return {"cosine": cosine}
    same = old.argmax(axis=-1) == new.argmax(axis=-1)
    return {"top1": same.reshape(count, -1).mean(axis=1), "cosine": cosine, "kl": _divergence(old, new)}


def _cosine(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosine = np.divide((old * new).sum(axis=1), lengths, out=np.zeros(len(old)), where=lengths > 0)
    return np.where((old == new).all(axis=1), 1.0, np.clip(cosine, -1.0, 1.0))


def _divergence(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Return KL(old ‖ new) a sample; the baseline tells whether outputs are probabilities already."""
    import numpy as np

    if (old >= 0).all() and np.allclose(old.sum(axis=-1), 1.0, atol=1e-3):
        old, new = (np.log(np.clip(array, FLOOR, None)) for array in (old, new))
    log_old, log_new = _log_softmax(old), _log_softmax(new)  # of logarithms: normalises them
    rows = (np.exp(log_old) * (log_old - log_new)).sum(axis=-1)
    means: NDArray[Any] = np.maximum(rows.reshape(len(rows), -1).mean(axis=1), 0.0)  # rounding may give -1e-17
    return means


def _log_softmax(scores: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    shifted = scores - scores.max(axis=-1, keepdims=True)
    logs: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
