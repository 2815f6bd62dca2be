"""The further metrics of plain classifiers: top-5, macro F1 and macro recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import Metric, class_ids, class_scores

Outputs = Mapping[str, NDArray[Any]]


def _top5(outputs: Outputs, targets: Sequence[Any]) -> list[bool]:
    scores = class_scores(outputs, ids=False)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return [bool(hit) for hit in (best == class_ids(targets, scores)[:, None]).any(axis=1)]


def _pairs(outputs: Outputs, targets: Sequence[Any]) -> list[tuple[int, int]]:
    """Record the predicted and the true class."""
    scores = class_scores(outputs)
    predicted = scores.argmax(axis=1) if scores.ndim == 2 else scores
    return list(zip(predicted.tolist(), class_ids(targets, scores).tolist(), strict=True))


def _counts(records: Sequence[Any]) -> list[NDArray[Any]]:
    """Count by class that occurs: right predictions, all predictions, all targets."""
    pairs = np.asarray(records)
    ids = np.unique(pairs, return_inverse=True)[1].reshape(pairs.shape)
    right = ids[ids[:, 0] == ids[:, 1], 0]
    return [np.bincount(some, minlength=ids.max() + 1) for some in (right, *ids.T)]


def _macro_f1(records: Sequence[Any]) -> float:
    """Average over the classes that occur among targets or predictions."""
    right, predicted, true = _counts(records)
    return 100 * float((2 * right / (predicted + true)).mean())


def _macro_recall(records: Sequence[Any]) -> float:
    """Average over the classes that occur among targets."""
    right, _, true = _counts(records)
    return 100 * float((right[true > 0] / true[true > 0]).mean())


TOP5 = Metric("top5", _top5)
F1 = Metric("f1", _pairs, _macro_f1)
RECALL = Metric("recall", _pairs, _macro_recall)
