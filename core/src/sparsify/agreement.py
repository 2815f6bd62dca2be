"""How far a candidate's outputs agree with the baseline's, for outputs of any shape, sample by sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sparsify.contracts import Array, Arrays
from sparsify.errors import StageError
from sparsify.intervals import Interval, jackknife, mean_interval

FLOOR = 1e-6  # the least probability, so that a probability quantized to 0 costs a finite divergence

Records = dict[str, list[Any]]


def observe_agreement(baseline: Arrays, candidate: Arrays) -> Records:
    """Compare two models' outputs; a record a sample, each the mean over the outputs that it is defined for.

    top1: share of positions with the same largest class. cosine: of the flattened outputs. kl: mean KL(baseline ‖
    candidate) in nats of the softmax over classes, or of the outputs themselves where they are probabilities already.
    Classes lie on the last axis, from rank 4 on axis 1. A detector's boxes and scores in one array have no classes:
    their cosine is the mean of the boxes' and the scores'. Integers are compared as ids. Where outputs have one value a
    sample, as in regression, there is only `values`: (baseline, candidate). Raises StageError where the two models
    share no numeric output.
    """
    import numpy as np

    found: Records = defaultdict(list)
    for name in _shared(baseline, candidate):
        scores = _detector_scores(baseline[name][0])
        # one sample at a time: the logarithms of a whole batch of segmentation maps would take gigabytes
        rows = [_compare(*pair, scores) for pair in zip(baseline[name], candidate[name], strict=True)]
        for measure in rows[0]:
            found[measure].append([row[measure] for row in rows])
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

    means: dict[str, float | None] = {"top1": None, "cosine": None, "kl": None}
    if "values" in records:
        pairs = np.asarray(records["values"], dtype=np.float64)

        def cosine(chosen: Sequence[int]) -> float:
            return _cosine(pairs[list(chosen), :, 0].ravel(), pairs[list(chosen), :, 1].ravel())

        low, high = jackknife(len(pairs), cosine)
        return {**means, "cosine": cosine(range(len(pairs)))}, (100 - 100 * min(high, 1.0), 100 - 100 * low)
    means |= {name: float(np.mean(rows)) * (100 if name == "top1" else 1) for name, rows in records.items()}
    low, high = mean_interval(np.asarray(records["top1" if "top1" in records else "cosine"]))
    return means, (100 - high, 100 - low)


def _shared(baseline: Arrays, candidate: Arrays) -> list[str]:
    numeric = [name for name, array in baseline.items() if array.dtype.kind in "fiu" and array.size]
    shared = [name for name in numeric if name in candidate and candidate[name].shape == baseline[name].shape]
    if not shared:
        old, new = (", ".join(f"'{name}' {side[name].shape}" for name in side) for side in (baseline, candidate))
        raise StageError(
            f"the models share no output to compare: the baseline has {old}, the optimized model {new}",
            fix="compare models with the same output names and shapes",
        )
    return shared


def _detector_scores(output: Array) -> Array | None:
    """Mark the scores in one sample's output that holds boxes in pixels too, as YOLO's (84, 8400) or (25200, 85).

    The channels are the shorter axis. Of logits or embeddings none stays within 0 and 1 at every place.
    """
    import numpy as np

    if output.ndim != 2 or output.dtype.kind != "f" or min(output.shape) < 5:
        return None
    places = int(np.argmax(output.shape))
    scores = ((output >= 0) & (output <= 1)).all(axis=places, keepdims=True)
    mixed = scores.any() and abs(np.delete(output, scores.ravel(), 1 - places)).max(initial=0.0) > 2
    return np.broadcast_to(scores, output.shape) if mixed else None


def _compare(before: Array, after: Array, scores: Array | None) -> dict[str, Any]:
    """Compare one output of one sample."""
    import numpy as np

    if before.dtype.kind in "iu":
        return {"top1": np.mean(before == after)}
    if before.size == 1:
        return {"values": (before.item(), after.item())}
    old, new = before.astype(np.float64), after.astype(np.float64)
    if scores is not None:
        return {"cosine": np.mean([_cosine(old[part], new[part]) for part in (scores, ~scores)])}
    if old.ndim >= 3:
        old, new = np.moveaxis(old, 0, -1), np.moveaxis(new, 0, -1)
    found = {"cosine": _cosine(old.ravel(), new.ravel())}
    if old.shape[-1] > 1:
        found |= {"top1": np.mean(old.argmax(axis=-1) == new.argmax(axis=-1)), "kl": _divergence(old, new)}
    return found


def _cosine(old: Array, new: Array) -> float:
    lengths = math.sqrt((old @ old) * (new @ new))
    if (old == new).all() or not lengths:
        return float((old == new).all())
    return min(max(float(old @ new) / lengths, -1.0), 1.0)


def _divergence(old: Array, new: Array) -> float:
    """Return the mean KL(old ‖ new) over positions; the baseline tells whether outputs are probabilities already."""
    import numpy as np

    if are_probabilities(old).all():
        old, new = (np.log(np.clip(array, FLOOR, None)) for array in (old, new))
    log_old, log_new = log_softmax(old), log_softmax(new)  # of logarithms: normalises them
    mean = (np.exp(log_old) * (log_old - log_new)).sum(axis=-1).mean()
    return max(float(mean), 0.0)  # rounding may give -1e-17


def are_probabilities(scores: Array) -> Array:
    """Say of each row whether it is a distribution already."""
    import numpy as np

    ready: Array = (scores >= 0).all(axis=-1) & np.isclose(scores.sum(axis=-1), 1.0, atol=1e-3)
    return ready


def log_softmax(scores: Array) -> Array:
    """Return the logarithm of the softmax over the last axis."""
    import numpy as np

    shifted = scores - scores.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
