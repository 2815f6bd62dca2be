"""Metrics against direct counting, the choice of the output, and every message of a user's own function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.errors import PluginError, RequestError
from sparsify.metrics import ACCURACY, class_scores, function_metric

labelled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def one_hot(ids: list[int], classes: int = 5) -> dict[str, Any]:
    return {"logits": np.eye(classes, dtype=np.float32)[ids]}


@given(labelled)
def test_accuracy_equals_direct_counting(pairs: list[tuple[int, int]]) -> None:
    predicted, true = [p for p, _ in pairs], [t for _, t in pairs]
    assert list(ACCURACY.observe(one_hot(predicted), true)) == [p == t for p, t in pairs]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1), (4, 1, 1, 5)])
def test_axes_of_length_one_are_dropped(shape: tuple[int, ...]) -> None:
    scores = np.eye(5, dtype=np.float32)[[0, 1, 2, 3]].reshape(shape)
    assert list(ACCURACY.observe({"y": scores}, [0, 1, 2, 4])) == [True, True, True, False]


def test_of_several_outputs_logits_win_else_the_first() -> None:
    first, second = np.zeros((2, 3), np.float32), np.ones((2, 7), np.float32)
    assert class_scores({"pooled": second, "Logits": first}) is not second
    assert class_scores({"pooled": second, "Logits": first}).shape == (2, 3)
    assert class_scores({"main": first, "auxiliary": second}).shape == (2, 3)
    assert class_scores({"map": np.zeros((2, 3, 8, 8), np.float32), "main": second}).shape == (2, 7)


def test_scores_win_over_ids_and_ids_alone_do() -> None:
    ids, scores = np.array([1, 0]), np.eye(3, dtype=np.float32)[:2]
    assert list(ACCURACY.observe({"label": ids, "scores": scores}, [0, 1])) == [True, True]
    assert list(ACCURACY.observe({"label": ids}, [1, 1])) == [True, False]
    with pytest.raises(RequestError, match=r"no output scores classes.*'label' int64 \(2,\)"):
        class_scores({"label": ids}, ids=False)


def test_outputs_without_classes_are_refused() -> None:
    with pytest.raises(RequestError, match=r"no output scores classes.*'boxes' float32 \(2, 6, 4\)") as error:
        ACCURACY.observe({"boxes": np.zeros((2, 6, 4), np.float32)}, [0, 1])
    assert "--eval-metric package.module:function" in error.value.fix


@pytest.mark.parametrize(
    ("targets", "told"), [([0.5, 1.0], r"float64 of shape \(\)"), ([[0, 1], [1, 2]], r"int64 of shape \(2,\)")]
)
def test_targets_that_are_no_ids_are_refused(targets: list[Any], told: str) -> None:
    with pytest.raises(RequestError, match=f"targets are class ids, one integer a sample; found .*{told}") as error:
        ACCURACY.observe(one_hot([0, 1]), targets)
    assert "store the label as one integer" in error.value.fix


@pytest.mark.parametrize("wrong", [5, -1])
def test_targets_outside_the_classes_are_refused(wrong: int) -> None:
    with pytest.raises(RequestError, match=rf"target {wrong} is outside the model's 5 classes \(0 to 4\)") as error:
        ACCURACY.observe(one_hot([0, 1]), [0, wrong])
    assert "--class-list FILE" in error.value.fix


def test_targets_may_be_arrays_of_one_integer() -> None:
    assert list(ACCURACY.observe(one_hot([3, 1]), [np.array([3]), np.array([2])])) == [True, False]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module of metrics, good and bad, with a name of its own so that no test sees another's import."""
    name = f"metrics_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "def good(outputs, targets): return [float(o.max() > t) for o, t in zip(outputs['y'], targets)]\n"
        "def short(outputs, targets): return [1.0]\n"
        "def big(outputs, targets): return [0.5, 100.0]\n"
        "def nan(outputs, targets): return [0.5, float('nan')]\n"
        "def words(outputs, targets): return ['a', 'b']\n"
        "def raising(outputs, targets): return outputs['nothing']\n"
        "number = 3\n"
        "class Klass: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_is_a_metric(module: str) -> None:
    metric = function_metric(f"{module}:good")
    assert metric.name == f"{module}:good"
    assert metric.observe({"y": np.ones((2, 3))}, [0, 5]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("short", r"returned shape \(1,\), expected 2 numbers from 0 to 1"),
        ("big", "returned 100, expected 2 numbers from 0 to 1"),
        ("nan", "returned nan, expected 2 numbers from 0 to 1"),
    ],
)
def test_what_a_function_returns_is_checked(module: str, name: str, told: str) -> None:
    with pytest.raises(PluginError, match=told) as error:
        function_metric(f"{module}:{name}").observe({"y": np.ones((2, 3))}, [0, 5])
    assert error.value.fix == "return a list with one number from 0 to 1 for each sample of the batch"


@pytest.mark.parametrize(("name", "told"), [("raising", "KeyError: 'nothing'"), ("words", "ValueError: could not")])
def test_a_function_that_fails_is_named(module: str, name: str, told: str) -> None:
    with pytest.raises(PluginError, match=f"--eval-metric {module}:{name} failed: {told}") as error:
        function_metric(f"{module}:{name}").observe({"y": np.ones((2, 3))}, [0, 5])
    assert "--debug" in error.value.fix


@pytest.mark.parametrize("name", ["absent", "number", "Klass"])
def test_what_is_no_function_is_refused(module: str, name: str) -> None:
    with pytest.raises(RequestError, match=f"{module} has no function '{name}'") as error:
        function_metric(f"{module}:{name}")
    assert error.value.fix == f"define {name}(outputs, targets) there"


def test_a_module_that_cannot_be_imported_is_refused() -> None:
    with pytest.raises(RequestError, match="importing 'no_such_module' failed: ModuleNotFoundError") as error:
        function_metric("no_such_module:score")
    assert "PYTHONPATH=." in error.value.fix


@pytest.mark.parametrize(
    ("spec", "told"),
    [(":score", "importing '' failed"), ("json:", "json has no function ''"), ("json", "json has no function ''")],
)
def test_a_spec_without_module_or_name_is_refused(spec: str, told: str) -> None:
    with pytest.raises(RequestError, match=f"--eval-metric {spec}: {told}"):
        function_metric(spec)
