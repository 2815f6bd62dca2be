"""The shift of the top probability against direct NumPy, and which samples are shown for it."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sparsify.agreement import are_probabilities
from sparsify.confidence import (
    CHANGED,
    SHOWN,
    THRESHOLD,
    Prediction,
    choose_examples,
    observe_predictions,
    show_examples,
    summarise_confidence,
)
from sparsify.contracts import Data
from sparsify.data import Dataset, Sample
from sparsify.evaluation import evaluate_pair

Array = np.ndarray[Any, Any]
scores = arrays(np.float32, (7, 4), elements=st.floats(-20, 20, width=32))
predictions = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.25, 1), st.integers(0, 3), st.floats(0.25, 1)), min_size=1, max_size=40
)


def numbered(rows: list[Prediction]) -> dict[str, Prediction]:
    return {f"{place}.png": row for place, row in enumerate(rows)}


def softmax(values: Array) -> Array:
    exponentials = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@given(scores, scores)
def test_predictions_are_the_largest_softmax(old: Array, new: Array) -> None:
    assume(not are_probabilities(old.astype(np.float64)).any())  # those are taken as they are: the next test
    rows = observe_predictions({"y": old}, {"y": new})
    was, before, now, after = np.array(rows).T
    np.testing.assert_allclose(before, softmax(old).max(axis=1))
    np.testing.assert_allclose(after, softmax(new).max(axis=1))
    for ids, side in ((was, old), (now, new)):
        chosen = softmax(side)[np.arange(7), ids.astype(int)]
        np.testing.assert_allclose(chosen, softmax(side).max(axis=1))
    assert {type(value) for row in rows for value in row} == {int, float}, "records that JSON and a disk can hold"


@given(scores, scores)
def test_probabilities_are_taken_as_they_are(old: Array, new: Array) -> None:
    old, new = softmax(old), softmax(new)
    _, before, _, after = np.array(observe_predictions({"y": old}, {"y": new})).T
    np.testing.assert_allclose(before, old.max(axis=1))
    np.testing.assert_allclose(after, new.max(axis=1))


def test_the_baseline_tells_whether_outputs_are_probabilities() -> None:
    """An INT8 softmax need not sum to 1: its grid has 1/256 for a step."""
    ((_, before, _, after),) = observe_predictions({"y": np.array([[0.7, 0.3]])}, {"y": np.array([[0.65, 0.25]])})
    assert (before, after) == (0.7, 0.65)


@pytest.mark.parametrize("shape", [(3, 1), (3, 4, 5), (3,), (3, 6, 2, 2)])
def test_outputs_without_classes_have_no_predictions(shape: tuple[int, ...]) -> None:
    outputs = {"y": np.ones(shape, np.float32)}
    assert observe_predictions(outputs, outputs) == []
    assert summarise_confidence({}) is None


def test_the_logits_of_several_outputs_count() -> None:
    logits, features = np.array([[0.0, 9.0]]), np.array([[5.0, 0.0, 0.0]])
    ((was, before, _, _),) = observe_predictions(*[{"features": features, "logits": logits}] * 2)
    assert (was, round(before, 3)) == (1, 1.0)


def reference(rows: list[Prediction]) -> dict[str, Any]:
    """Compute the summary sample by sample."""
    shifts = [after - before for _, before, _, after in rows]
    accepted = {(place, was) for place, (was, before, _, _) in enumerate(rows) if before >= 0.5}
    still = {(place, now) for place, (_, _, now, after) in enumerate(rows) if after >= 0.5}
    precision = len(accepted & still) / len(still) if still else 0.0
    recall = len(accepted & still) / len(accepted) if accepted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "name": "top probability",
        "before": pytest.approx(np.mean([row[1] for row in rows])),
        "after": pytest.approx(np.mean([row[3] for row in rows])),
        "shift": pytest.approx(np.mean(shifts)),
        "shift_p95": pytest.approx(np.percentile(np.abs(shifts), 95)),
        "flips": pytest.approx(np.mean([row[0] != row[2] for row in rows])),
        "threshold": THRESHOLD,
        "f1_at_threshold": pytest.approx(f1) if accepted or still else None,
    }


@given(predictions)
def test_the_summary_is_what_it_says(rows: list[Prediction]) -> None:
    assert summarise_confidence(numbered(rows)) == reference(rows)


@given(predictions)
def test_the_same_model_shifts_nothing(rows: list[Prediction]) -> None:
    found = summarise_confidence(numbered([(was, before, was, before) for was, before, _, _ in rows]))
    assert found is not None
    assert (found["shift"], found["shift_p95"], found["flips"]) == (0, 0, 0)
    assert found["f1_at_threshold"] in (1, None)


@given(predictions)
def test_changed_predictions_are_shown_first(rows: list[Prediction]) -> None:
    found = numbered(rows)
    shown = choose_examples(found)
    changed = [key for key, (was, _, now, _) in found.items() if was != now]
    assert len(shown) == len(set(shown)) == min(SHOWN, len(rows))
    flags = [key in changed for key in shown]
    assert flags == sorted(flags, reverse=True)
    assert sum(flags) >= min(CHANGED, len(changed))
    shifts = {key: abs(after - before) for key, (_, before, _, after) in found.items()}
    for group in (changed, [key for key in found if key not in changed]):
        if group:
            assert max(shifts[key] for key in group) in [shifts[key] for key in shown]


def test_large_shifts_and_ordinary_samples_are_both_shown() -> None:
    found = numbered([(0, 0.5, 0, 0.5 + place / 1000) for place in range(101)])
    assert choose_examples(found)[:3] == ["100.png", "99.png", "50.png"]


def data_of(labels: tuple[str, ...], targets: list[Any]) -> tuple[Data, Dataset]:
    test = Dataset(tuple(f"{place}.png" for place in range(len(targets))), lambda key: Sample({}, targets[int(key[0])]))
    return Data({"train": Dataset((), test.read)}, has_targets=True, labels=labels), test


def test_examples_name_classes_and_show_pictures() -> None:
    data, test = data_of(("cat", "dog"), [1, 0])
    asked: list[tuple[list[str], str]] = []

    def picture(given: Data, key: str) -> bytes:
        asked.append((list(given.splits), key))
        assert given == replace(data, splits={"test": test})
        return b"png" if key == "0.png" else b""

    shown = show_examples(numbered([(1, 0.9, 0, 0.6), (0, 0.8, 0, 0.7)]), data, test, picture)
    image = str(shown[0].pop("image"))
    assert b64decode(image.removeprefix("data:image/png;base64,")) == b"png"
    assert shown == [
        {"key": "0.png", "target": "dog", "before": {"label": "dog", "score": 0.9},
         "after": {"label": "cat", "score": 0.6}},
        {"key": "1.png", "target": "cat", "before": {"label": "cat", "score": 0.8},
         "after": {"label": "cat", "score": 0.7}, "image": None},
    ]  # fmt: skip
    assert asked == [(["test"], "0.png"), (["test"], "1.png")]


@pytest.mark.parametrize(("target", "said"), [(None, None), (7, "7"), (np.int64(1), "1"), ("seven", "seven")])
def test_classes_without_a_name_are_numbers(target: Any, said: str | None) -> None:
    data, test = data_of((), [target])
    (shown,) = show_examples(numbered([(3, 0.9, 4, 0.6)]), data, test, None)
    assert (shown["target"], shown["before"]["label"], shown["after"]["label"]) == (said, "3", "4")
    assert shown["image"] is None


class Scores:
    """Give fixed scores by sample."""

    facts: Mapping[str, Any] = {}

    def __init__(self, table: Array) -> None:
        self.table = table

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.table[inputs["x"][:, 0].astype(int)]}

    def close(self) -> None: ...


@pytest.mark.parametrize(("size", "pad"), [(1, False), (4, True), (23, False)])
def test_a_pass_keeps_predictions_by_sample_whatever_the_batch(size: int, pad: bool) -> None:
    generator = np.random.default_rng(0)
    old = generator.normal(size=(23, 5)).astype(np.float32)
    new = old + generator.normal(size=old.shape).astype(np.float32)
    dataset = Dataset(tuple(map(str, range(23))), lambda key: Sample({"x": np.array([float(key)])}, 0))
    pair = evaluate_pair(Scores(old), Scores(new), dataset, (), batch_size=size, pad=pad)
    expected = observe_predictions({"y": old}, {"y": new})
    assert list(pair.predictions) == list(dataset.keys)
    assert list(pair.predictions.values()) == expected
    found = summarise_confidence(pair.predictions)
    assert found is not None
    assert found["flips"] == pytest.approx(1 - (pair.agreement["top1"] or 0) / 100)
