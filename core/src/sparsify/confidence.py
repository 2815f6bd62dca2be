"""Verify at the operating point: how far a candidate moves the top probability, and test samples that show it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sparsify.agreement import are_probabilities, log_softmax
from sparsify.contracts import Arrays, Data
from sparsify.data import Dataset
from sparsify.errors import RequestError
from sparsify.metrics import class_scores

THRESHOLD = 0.5  # likely enough to act on: no other class can be as likely
SHOWN, CHANGED, SHIFTED = 8, 4, 2  # examples in all, with a changed prediction, with a large shift

Prediction = tuple[int, float, int, float]  # the baseline's class of a sample and its probability, then the candidate's


def observe_predictions(baseline: Arrays, candidate: Arrays) -> list[Prediction]:
    """Return what two models predict, sample by sample; nothing where no output scores classes.

    Probabilities are the softmax of the scores, or the scores themselves where the baseline's are probabilities.
    """
    import numpy as np

    try:
        old, new = (class_scores(outputs, ids=False).astype(np.float64) for outputs in (baseline, candidate))
    except RequestError:
        return []
    ready = are_probabilities(old)[:, None]
    before, after = (np.where(ready, scores, np.exp(log_softmax(scores))) for scores in (old, new))
    columns = (before.argmax(axis=1), before.max(axis=1), after.argmax(axis=1), after.max(axis=1))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def summarise_confidence(predictions: Mapping[str, Prediction]) -> dict[str, Any] | None:
    """Return `confidence` of metrics.json, None where there are no predictions.

    f1_at_threshold takes what the baseline accepts, a probability of at least the threshold, for the truth: a hit is a
    sample that both accept as the same class. It is None where neither accepts any.
    """
    import numpy as np

    if not predictions:
        return None
    was, before, now, after = np.array(list(predictions.values())).T
    accepted = [side >= THRESHOLD for side in (before, after)]
    hits, either = (accepted[0] & accepted[1] & (was == now)).sum(), np.sum(accepted)
    return {
        "name": "top probability",
        "before": float(before.mean()),
        "after": float(after.mean()),
        "shift": float((after - before).mean()),
        "shift_p95": float(np.percentile(abs(after - before), 95)),
        "flips": float((was != now).mean()),
        "threshold": THRESHOLD,
        "f1_at_threshold": float(2 * hits / either) if either else None,
    }


def show_examples(
    predictions: Mapping[str, Prediction], data: Data, test: Dataset, picture: Callable[[Data, str], bytes] | None
) -> list[dict[str, Any]]:
    """Return `examples` of metrics.json, with a picture where the use case draws one."""

    def name(number: Any) -> str | None:
        known = isinstance(number, int) and number < len(data.labels)
        return data.labels[number] if known else None if number is None else str(number)

    def show(key: str, was: int, before: float, now: int, after: float) -> dict[str, Any]:
        image = b64encode(picture(replace(data, splits={"test": test}), key)) if picture else b""
        return {
            "key": key,
            "target": name(test.read(key).target),
            "before": {"label": name(was), "score": before},
            "after": {"label": name(now), "score": after},
            "image": f"data:image/png;base64,{image.decode()}" if image else None,
        }

    return [show(key, *predictions[key]) for key in choose_examples(predictions)]


def choose_examples(predictions: Mapping[str, Prediction]) -> list[str]:
    """Return the keys of a few samples: changed predictions first, then the largest shifts, then ordinary ones."""
    shifts = {key: abs(after - before) for key, (_, before, _, after) in predictions.items()}
    flipped = {key for key, (was, _, now, _) in predictions.items() if was != now}
    ranked = sorted(shifts, key=lambda key: -shifts[key])
    changed, same = ([key for key in ranked if (key in flipped) == wanted] for wanted in (True, False))
    chosen = dict.fromkeys([*changed[:CHANGED], *same[:SHIFTED], *same[len(same) // 2 :], *ranked])
    return sorted(list(chosen)[:SHOWN], key=lambda key: key not in flipped)
