"""Evaluation against direct NumPy: values, padding, agreement, and intervals that cover what they claim to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.contracts import Metric
from sparsify.data import Dataset, Sample
from sparsify.errors import PluginError, RequestError, StageError
from sparsify.evaluation import evaluate, evaluate_pair
from sparsify.intervals import difference_interval, jackknife, mean_interval, student
from sparsify.metrics import ACCURACY

Array = np.ndarray[Any, Any]


def pairs(outputs: Mapping[str, Array], targets: Sequence[Any]) -> list[tuple[int, int]]:
    return list(zip(outputs["y"].argmax(axis=1).tolist(), targets, strict=True))


def macro_f1(records: Sequence[tuple[int, int]]) -> float:
    predicted, true = np.array(records).T
    hits = [((predicted == label) & (true == label)).sum() for label in np.union1d(predicted, true)]
    sizes = [(predicted == label).sum() + (true == label).sum() for label in np.union1d(predicted, true)]
    return 100 * float(np.mean(2 * np.array(hits) / np.array(sizes)))


F1 = Metric("f1", pairs, macro_f1)  # its value is no mean over samples


class Linear:
    """Multiply inputs by a matrix; remember the size of each batch."""

    def __init__(self, weight: Array, shape: tuple[int, ...] = (), dtype: type = np.float32) -> None:
        self.weight, self.shape, self.dtype = weight, shape, dtype
        self.facts: Mapping[str, Any] = {}
        self.rows: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.rows.append(len(inputs["x"]))
        scores: Array = (inputs["x"] @ self.weight).astype(self.dtype)
        return {"y": scores.reshape(len(scores), *self.shape) if self.shape else scores}

    def close(self) -> None:
        pass


class Constant(Linear):
    """Give the same outputs whatever the inputs."""

    def __init__(self, **outputs: Array) -> None:
        super().__init__(np.zeros((1, 1)))
        self.outputs = outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.outputs)


def problem(samples: int, seed: int = 0, classes: int = 6, noise: float = 0.4) -> tuple[Dataset, Linear, Linear]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(samples, 5)).astype(np.float32)
    weight = generator.normal(size=(5, classes))
    targets = (features @ weight + generator.normal(size=(samples, classes))).argmax(axis=1)
    dataset = Dataset(
        tuple(map(str, range(samples))), lambda key: Sample({"x": features[int(key)]}, int(targets[int(key)]))
    )
    return dataset, Linear(weight), Linear(weight + noise * generator.normal(size=weight.shape))


def softmax(scores: Array) -> Array:
    shares: Array = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return shares


def everything(dataset: Dataset, session: Linear) -> tuple[Array, Array]:
    samples = [sample for _, sample in dataset.samples()]
    outputs = session.run({"x": np.stack([sample.inputs["x"] for sample in samples])})["y"]
    return outputs.astype(np.float64), np.array([sample.target for sample in samples])


@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_values_and_agreement_equal_direct_numpy(samples: int, size: int, pad: bool, seed: int) -> None:
    dataset, before, after = problem(samples, seed)
    pair = evaluate_pair(before, after, dataset, (ACCURACY, F1), batch_size=size, pad=pad)
    old, targets = everything(dataset, before)
    new, _ = everything(dataset, after)
    assert pair.baseline.values["accuracy"] == pytest.approx(100 * (old.argmax(1) == targets).mean())
    assert pair.candidate.values["accuracy"] == pytest.approx(100 * (new.argmax(1) == targets).mean())
    assert pair.agreement["top1"] == pytest.approx(100 * (old.argmax(1) == new.argmax(1)).mean())
    p, q = softmax(old), softmax(new)
    assert pair.agreement["kl"] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-6, abs=1e-9)
    cosine = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    assert pair.agreement["cosine"] == pytest.approx(cosine.mean())
    assert pair.baseline.samples == pair.candidate.samples == samples


def test_padding_fills_every_batch_and_reaches_no_metric() -> None:
    dataset, session, _ = problem(10)
    seen: list[int] = []

    def observe(outputs: Mapping[str, Array], targets: Sequence[Any]) -> list[float]:
        seen.append(len(outputs["y"]))
        return [1.0] * len(targets)

    result = evaluate(session, dataset, (Metric("hits", observe),), batch_size=4, pad=True)
    assert session.rows == [4, 4, 4]
    assert seen == [4, 4, 2]
    assert (result.samples, result.values["hits"]) == (10, 100.0)


def test_batch_size_changes_no_value() -> None:
    dataset, session, _ = problem(37)
    results = [
        evaluate(session, dataset, (ACCURACY, F1), batch_size=size, pad=pad) for size, pad in ((1, False), (8, True))
    ]
    assert results[0].values == results[1].values
    assert results[0].intervals == results[1].intervals


def test_identical_models_agree_fully_and_still_have_an_interval() -> None:
    dataset, session, _ = problem(200)
    pair = evaluate_pair(session, session, dataset, (ACCURACY,))
    assert pair.agreement == {"top1": 100.0, "cosine": pytest.approx(1.0), "kl": pytest.approx(0.0)}
    low, high = pair.drop_interval
    assert low == pytest.approx(-high)
    assert 0 < high < 2, "200 samples without a change do not prove a drop of exactly 0"


def test_without_metrics_agreement_decides() -> None:
    dataset, before, after = problem(300)
    pair = evaluate_pair(before, after, dataset, ())
    low, high = pair.drop_interval
    assert pair.baseline.values == {}
    assert low < 100 - (pair.agreement["top1"] or 0) < high
    assert set(pair.drop_intervals) == {"agreement"}


def test_a_metric_that_should_fall_turns_the_drop_round() -> None:
    dataset, before, after = problem(400)
    error = Metric("error", lambda o, t: 1.0 * (o["y"].argmax(1) != np.array(t)), higher_is_better=False)
    pair = evaluate_pair(before, after, dataset, (error, ACCURACY))
    assert pair.drop_intervals["error"] == pytest.approx(pair.drop_intervals["accuracy"])
    assert pair.candidate.values["error"] == pytest.approx(100 - pair.candidate.values["accuracy"])


def test_probabilities_are_not_softmaxed_again() -> None:
    p, q = np.array([[0.7, 0.2, 0.1]], np.float32), np.array([[0.5, 0.5, 0.0]], np.float32)
    dataset, *_ = problem(1)
    pair = evaluate_pair(Constant(y=p), Constant(y=q), dataset, ())
    floored = np.array([0.5, 0.5, 1e-6])
    assert pair.agreement["kl"] == pytest.approx((p[0] * np.log(p[0] / floored)).sum(), rel=1e-4)


def test_maps_have_their_classes_on_axis_one() -> None:
    old = np.zeros((1, 3, 2, 2), np.float32)
    old[0, 1] = 1
    new = old.copy()
    new[0, 2, 0, 0] = 5
    dataset, *_ = problem(1)
    assert evaluate_pair(Constant(y=old), Constant(y=new), dataset, ()).agreement["top1"] == 75.0


@pytest.mark.parametrize("turned", [False, True], ids=["yolov8", "yolov5"])
def test_boxes_and_scores_in_one_array_are_no_classes(turned: bool) -> None:
    """Neither places nor coordinates are classes; and boxes of hundreds of pixels must not hide ruined scores."""
    generator = np.random.default_rng(0)
    old = np.concatenate([640 * generator.random((1, 4, 300)), generator.random((1, 20, 300)) ** 8], axis=1)
    noisy = old * (1 + 1e-3 * generator.normal(size=old.shape))
    noisy[:, 4:] = noisy[:, 4:].clip(0, 1)
    ruined = old.copy()
    ruined[:, 4:] = generator.permuted(old[:, 4:], axis=2)
    dataset, *_ = problem(1)
    found = [
        evaluate_pair(*(Constant(y=side.swapaxes(1, 2) if turned else side) for side in (old, new)), dataset, ())
        for new in (noisy, ruined)
    ]
    assert [pair.agreement["top1"] for pair in found] == [None, None]
    assert found[0].agreement["cosine"] == pytest.approx(1, abs=1e-4)
    parts = [(old[0, part] * ruined[0, part]).sum() / (old[0, part] ** 2).sum() for part in (np.s_[:4], np.s_[4:])]
    assert found[1].agreement["cosine"] == pytest.approx(np.mean(parts), rel=1e-6)
    assert found[1].agreement["cosine"] < 0.8


def test_tokens_have_their_classes_on_the_last_axis() -> None:
    old = np.eye(5, dtype=np.float32)[None, :4]
    new = old.copy()
    new[0, 3] = 0, 9, 0, 0, 0
    dataset, *_ = problem(1)
    assert evaluate_pair(Constant(y=old), Constant(y=new), dataset, ()).agreement["top1"] == 75.0


def test_batch_size_changes_no_agreement() -> None:
    dataset, before, after = problem(50)
    whole = evaluate_pair(before, after, dataset, (), batch_size=50).agreement
    assert evaluate_pair(before, after, dataset, (), batch_size=7).agreement == pytest.approx(whole)


@pytest.mark.parametrize("size", [1, 8])
def test_regression_has_the_cosine_of_all_samples(size: int) -> None:
    dataset, before, after = problem(60, classes=1)
    pair = evaluate_pair(before, after, dataset, (), batch_size=size)
    (old, _), (new, _) = everything(dataset, before), everything(dataset, after)
    assert pair.agreement["top1"] is None
    assert pair.agreement["kl"] is None
    cosine = float((old * new).sum() / np.linalg.norm(old) / np.linalg.norm(new))
    assert pair.agreement["cosine"] == pytest.approx(cosine)
    low, high = pair.drop_interval
    assert low < 100 - 100 * cosine < high


def test_one_value_a_position_has_a_cosine_and_no_classes() -> None:
    dataset, *_ = problem(2)
    old = np.array([[[1.0], [0.0]], [[1.0], [1.0]]], np.float32)
    new = np.array([[[0.0], [1.0]], [[2.0], [2.0]]], np.float32)
    pair = evaluate_pair(Constant(y=old, single=np.ones(2)), Constant(y=new, single=np.ones(2)), dataset, ())
    assert pair.agreement == {"top1": None, "cosine": pytest.approx(0.5), "kl": None}


def test_ids_agree_where_they_are_equal() -> None:
    dataset, *_ = problem(2)
    pair = evaluate_pair(Constant(y=np.array([1, 2])), Constant(y=np.array([1, 3])), dataset, ())
    assert pair.agreement == {"top1": 50.0, "cosine": None, "kl": None}


def test_zero_outputs_agree_only_with_zero_outputs() -> None:
    dataset, *_ = problem(1)
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert evaluate_pair(Constant(y=zero), Constant(y=zero), dataset, ()).agreement["cosine"] == 1.0
    assert evaluate_pair(Constant(y=zero), Constant(y=one), dataset, ()).agreement["cosine"] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_output_and_the_sample(bad: float) -> None:
    dataset, session, _ = problem(8)
    scores = np.zeros((4, 6), np.float32)
    scores[2, 1] = bad
    with pytest.raises(StageError, match="output 'y' of the model holds NaN or infinity for sample '2'") as error:
        evaluate(Constant(y=scores), dataset, (ACCURACY,), batch_size=4)
    assert "--optim-level" in error.value.fix
    with pytest.raises(StageError, match="output 'y' of the optimized model holds NaN"):
        evaluate_pair(session, Constant(y=scores), dataset, (), batch_size=4)


def test_an_output_without_a_batch_axis_is_left_out_and_refused_alone() -> None:
    dataset, *_ = problem(2)
    scores, version = np.eye(6, dtype=np.float32)[:2], np.zeros(7, np.float32)
    assert evaluate(Constant(version=version, y=scores), dataset, (ACCURACY,), batch_size=2).samples == 2
    with pytest.raises(
        StageError, match=r"no output of the model has the batch of 2 as its first axis.*\(7,\)"
    ) as error:
        evaluate(Constant(version=version), dataset, (), batch_size=2)
    assert "first axis of its outputs" in error.value.fix


def test_models_without_a_shared_output_are_refused() -> None:
    dataset, *_ = problem(1)
    with pytest.raises(StageError, match=r"share no output.*'a' \(1, 3\), the optimized model 'b' \(1, 3\)") as error:
        evaluate_pair(Constant(a=np.ones((1, 3))), Constant(b=np.ones((1, 3))), dataset, ())
    assert "same output names" in error.value.fix


def test_an_empty_dataset_is_refused() -> None:
    dataset, session, _ = problem(1)
    for call in (
        lambda: evaluate(session, dataset.take([]), (ACCURACY,)),
        lambda: evaluate_pair(session, session, dataset.take([]), (ACCURACY,)),
    ):
        with pytest.raises(RequestError, match="there are no samples to evaluate on") as error:
            call()
        assert "at least one test sample" in error.value.fix


def test_a_metric_with_too_few_records_is_named() -> None:
    dataset, session, _ = problem(4)
    with pytest.raises(PluginError, match="metric 'lazy' gave 1 records for 4 samples") as error:
        evaluate(session, dataset, (Metric("lazy", lambda outputs, targets: [1]),))
    assert "one record a sample" in error.value.fix


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.93])
@pytest.mark.parametrize("count", [30, 300])
def test_hit_rate_intervals_cover(rate: float, count: int) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        low, high = mean_interval((generator.random(count) < rate).astype(float))
        covered += low <= 100 * rate <= high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.1, 0.1)])
def test_paired_difference_intervals_cover(lost: float, won: float) -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        draw = generator.random(250)
        before = np.where(draw < lost, 1, np.where(draw < lost + won, 0, generator.random(250) < 0.5)).astype(float)
        after = np.where(draw < lost, 0, np.where(draw < lost + won, 1, before)).astype(float)
        low, high = difference_interval(before, after)
        covered += low <= 100 * (lost - won) <= high
    assert 0.92 <= covered / 400 <= 1.0


def test_intervals_cover_fractions() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        low, high = mean_interval(generator.beta(2, 5, 120))
        covered += low <= 100 * 2 / 7 <= high
    assert covered >= 52


def test_jackknife_intervals_cover_macro_f1() -> None:
    generator = np.random.default_rng(4)

    def draw(count: int) -> list[tuple[int, int]]:
        true = generator.integers(0, 4, count)
        predicted = np.where(generator.random(count) < 0.7, true, generator.integers(0, 4, count))
        return list(zip(predicted.tolist(), true.tolist(), strict=True))

    expected = macro_f1(draw(200_000))
    covered = 0
    for _ in range(150):
        records = draw(200)
        low, high = jackknife(200, lambda chosen, rows=records: macro_f1([rows[i] for i in chosen]))  # type: ignore
        covered += low <= expected <= high
    assert 0.88 <= covered / 150 <= 1.0


def test_jackknife_of_a_mean_is_the_textbook_standard_error() -> None:
    values = np.random.default_rng(5).normal(size=400)
    low, high = jackknife(400, lambda chosen: float(values[list(chosen)].mean()))
    assert (high - low) / 2 == pytest.approx(student(19) * values.std(ddof=1) / 20, rel=0.5)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert jackknife(1, lambda chosen: 7.0) == (7.0, 7.0)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(3, 3.182), (4, 2.776), (6, 2.447), (10, 2.228), (19, 2.093), (100, 1.984)]
)
def test_student_quantiles(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=0.01)


def test_extreme_rates_have_one_sided_room() -> None:
    low, high = mean_interval(np.ones(50))
    assert 90 < low < 95
    assert high == 100.0
    assert mean_interval(np.zeros(50)) == pytest.approx((0.0, 100 - low))
