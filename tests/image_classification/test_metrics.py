"""Top-5, F1 and recall against direct counting, and outputs and targets that they cannot take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify import RequestError, load_plugins
from sparsify_image_classification.metrics import F1, RECALL, TOP5

labelled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def one_hot(ids: list[int], classes: int = 5) -> dict[str, Any]:
    return {"logits": np.eye(classes, dtype=np.float32)[ids]}


def brute_macro(predicted: list[int], true: list[int], *, recall: bool) -> float:
    scores = []
    for label in sorted(set(true) | (set() if recall else set(predicted))):
        hits = sum(p == label and t == label for p, t in zip(predicted, true, strict=True))
        if recall:
            scores.append(hits / true.count(label))
        else:
            scores.append(2 * hits / (predicted.count(label) + true.count(label)))
    return 100 * sum(scores) / len(scores)


@given(labelled)
def test_f1_and_recall_equal_direct_counting(pairs: list[tuple[int, int]]) -> None:
    predicted, true = [p for p, _ in pairs], [t for _, t in pairs]
    outputs = one_hot(predicted)
    for metric, recall in ((F1, False), (RECALL, True)):
        assert metric.reduce is not None
        found = metric.reduce(metric.observe(outputs, true))
        assert found == pytest.approx(brute_macro(predicted, true, recall=recall))


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_top5_holds_the_target_among_the_five_best(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(9, classes)).astype(np.float32)
    targets = generator.integers(0, classes, 9).tolist()
    expected = [(row > row[target]).sum() < 5 for row, target in zip(scores, targets, strict=True)]
    assert list(TOP5.observe({"y": scores}, targets)) == expected


def test_top5_needs_scores() -> None:
    with pytest.raises(RequestError, match=r"no output scores classes.*'label' int64 \(2,\)"):
        TOP5.observe({"label": np.array([1, 0])}, [1, 1])


def test_targets_outside_the_classes_are_refused() -> None:
    for metric in (F1, RECALL, TOP5):
        with pytest.raises(RequestError, match=r"target 5 is outside the model's 5 classes \(0 to 4\)"):
            metric.observe(one_hot([0, 1]), [0, 5])


def test_the_plugin_offers_them_by_name() -> None:
    plugins = load_plugins()
    assert [plugins.load("evaluators", name) for name in ("top5", "f1", "recall")] == [TOP5, F1, RECALL]
