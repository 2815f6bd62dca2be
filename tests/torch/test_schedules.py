"""Schedules against closed forms: when a part acts, and the values that it writes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.interpolation import interpolate, progress
from sparsify_torch.learning_rate import LearningRateFunctionModifier, LearningRateModifier, SetLearningRateModifier
from sparsify_torch.loop import Part
from sparsify_torch.parameter_groups import SetWeightDecayModifier
from sparsify_torch.parameters import GradualParamModifier, SetParamModifier, TrainableParamsModifier
from sparsify_torch.schedule import Turn

from tests.torch.loops import attach, batches, net, sgd, train


class Recorder(Part):
    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def start(self, epoch: float) -> None:
        self.seen.append(("start", epoch))

    def update(self, epoch: float) -> None:
        self.seen.append(("update", epoch))

    def end(self, epoch: float) -> None:
        self.seen.append(("end", epoch))


def played(start: float, end: float, frequency: float, steps: int, epochs: int) -> list[tuple[str, float]]:
    options = SimpleNamespace(start_epoch=start, end_epoch=end, update_frequency=frequency)
    part = Recorder()
    turn = Turn("x", "x", options, part, end)
    for step in range(steps * epochs + 1):
        turn.advance(step / steps)
    return part.seen


@given(
    start=st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    length=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    frequency=st.sampled_from([-1.0, 0.1, 0.3, 1.0]),
    steps=st.sampled_from([1, 3, 7, 10]),
)
def test_a_part_acts_by_the_rule(start: float, length: float, frequency: float, steps: int) -> None:
    end = max(start, 0) + length
    seen = played(start, end, frequency, steps, 4)
    epochs = [step / steps for step in range(4 * steps + 1)]
    begin = next(epoch for epoch in epochs if start == -1 or epoch >= start)
    finish = next(epoch for epoch in epochs if epoch >= end - 1e-9)
    expected = [("start", begin), ("update", begin)]
    last = begin
    for epoch in epochs:
        if begin < epoch < finish and (frequency == -1 or epoch - last > frequency - 1e-9):
            expected.append(("update", epoch))
            last = epoch
    expected += ([("update", finish)] if finish > begin else []) + [("end", finish)]
    assert seen == expected


def test_a_part_without_end_never_ends() -> None:
    assert [name for name, _ in played(0, -1, 1.0, 2, 3)] == ["start", "update", "update", "update", "update"]


@given(done=st.floats(0, 1), first=st.floats(0, 1), last=st.floats(0, 1))
def test_interpolation(done: float, first: float, last: float) -> None:
    span = last - first
    assert interpolate("linear", done, first, last) == pytest.approx(first + span * done)
    assert interpolate("cubic", done, first, last) == pytest.approx(last - span * (1 - done) ** 3)
    assert interpolate("inverse_cubic", done, first, last) == pytest.approx(last - span * (1 - done) ** (1 / 3))


def test_progress_of_spans_without_length() -> None:
    assert [progress(epoch, 1, 1) for epoch in (1.0, 2.0)] == [1.0, 1.0]
    assert [progress(epoch, -1, 2) for epoch in (0.0, 1.0, 3.0)] == [0.0, 0.5, 1.0]


def rates(modifiers: list[Any], epochs: int = 4, steps: int = 5) -> list[float]:
    module = net()
    _manager, optimizer = attach(modifiers, module, sgd(module), steps_per_epoch=steps)
    seen: list[float] = []
    train(module, optimizer, batches(epochs * steps), lambda step: seen.append(optimizer.param_groups[0]["lr"]))
    return seen


@pytest.mark.parametrize("name", ["linear", "cosine", "cyclic_linear"])
def test_learning_rate_functions(name: str) -> None:
    options = LearningRateFunctionModifier(
        lr_func=name, init_lr=0.1, final_lr=0.02, start_epoch=1, end_epoch=3, cycle_epochs=0.6
    )
    for step, rate in enumerate(rates([options])):
        epoch = step / 5
        done = min(max((epoch - 1) / 2, 0), 1)
        if name == "cosine":
            expected = 0.02 + 0.08 * (1 + math.cos(math.pi * done)) / 2
        elif name == "cyclic_linear" and done < 1:
            expected = 0.1 - 0.08 * ((step - 5) % 3) / 3
        else:
            expected = 0.1 - 0.08 * done
        assert rate == pytest.approx(expected if epoch >= 1 else 0.05)


@pytest.mark.parametrize(
    ("name", "keywords", "expected"),
    [
        ("StepLR", {"step_size": 1.2, "gamma": 0.5}, lambda e: 0.1 * 0.5 ** int((e - 1 + 1e-9) // 1.2)),
        ("MultiStepLR", {"milestones": [1.4, 3], "gamma": 0.1}, lambda e: 0.1 * 0.1 ** ((e >= 1.4) + (e >= 3))),
        ("ExponentialLR", {"gamma": 0.9}, lambda e: 0.1 * 0.9 ** int(e - 1)),
        (
            "CosineAnnealingWarmRestarts",
            {"lr_min": 0.01, "cycle_epochs": 2},
            lambda e: 0.01 + 0.09 * (1 + math.cos(math.pi * ((e - 1) % 2) / 2)) / 2,
        ),
    ],
)
def test_learning_rate_classes(name: str, keywords: dict[str, Any], expected: Any) -> None:
    options = LearningRateModifier(lr_class=name, lr_kwargs=keywords, init_lr="1e-1", start_epoch=1)
    found = rates([options])
    assert found[:5] == [0.05] * 5
    assert found[5:] == pytest.approx([expected(step / 5) for step in range(5, 20)])


def test_learning_rate_is_pytorchs_own() -> None:
    """By whole epochs, StepLR and MultiStepLR are torch's."""
    for name, keywords in (
        ("StepLR", {"step_size": 2, "gamma": 0.3}),
        ("MultiStepLR", {"milestones": [1, 3], "gamma": 0.3}),
    ):
        options = LearningRateModifier(lr_class=name, lr_kwargs=keywords, init_lr=0.2, start_epoch=0)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
        theirs = getattr(torch.optim.lr_scheduler, name)(optimizer, **keywords)
        for epoch in range(5):
            assert options.rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()


def test_set_learning_rate_yields_to_what_starts_later() -> None:
    found = rates(
        [
            SetLearningRateModifier(learning_rate=0.2, start_epoch=0),
            LearningRateFunctionModifier(lr_func="linear", init_lr=0.1, final_lr=0.0, start_epoch=1, end_epoch=2),
            SetLearningRateModifier(learning_rate=0.3, start_epoch=3),
        ]
    )
    assert found[:5] == [0.2] * 5
    assert found[5:11] == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.0])
    assert found[11:15] == pytest.approx([0.0] * 4)
    assert found[15:] == [0.3] * 5


def test_an_open_schedule_yields_to_a_later_one() -> None:
    found = rates(
        [
            LearningRateModifier(lr_class="ExponentialLR", lr_kwargs={"gamma": 0.5}, init_lr=0.1, start_epoch=0),
            SetLearningRateModifier(learning_rate=0.01, start_epoch=2),
        ]
    )
    assert found == pytest.approx([0.1] * 5 + [0.05] * 5 + [0.01] * 10)


def test_an_open_schedule_ends_before_a_closed_one_begins() -> None:
    found = rates(
        [
            LearningRateModifier(lr_class="ExponentialLR", lr_kwargs={"gamma": 0.5}, init_lr=0.1, start_epoch=0),
            LearningRateFunctionModifier(lr_func="linear", init_lr=0.02, final_lr=0.02, start_epoch=2, end_epoch=3),
        ]
    )
    assert found == pytest.approx([0.1] * 5 + [0.05] * 5 + [0.02] * 10)


def test_open_schedules_hand_over_one_after_the_other() -> None:
    open_ended = {"lr_class": "ExponentialLR", "lr_kwargs": {"gamma": 1.0}}
    found = rates(
        [
            LearningRateFunctionModifier(lr_func="linear", init_lr=0.3, final_lr=0.3, start_epoch=3, end_epoch=4),
            LearningRateModifier(**open_ended, init_lr=0.1, start_epoch=0),
            LearningRateModifier(**open_ended, init_lr=0.2, start_epoch=1),
        ]
    )
    assert found == pytest.approx([0.1] * 5 + [0.2] * 10 + [0.3] * 5)


def test_parameter_groups() -> None:
    module = net()
    optimizer = torch.optim.SGD(
        [{"params": module.features.parameters()}, {"params": module.head.parameters()}], lr=0.5, weight_decay=0.1
    )
    _manager, wrapped = attach(
        [
            SetLearningRateModifier(learning_rate=0.2, param_groups=[1]),
            LearningRateFunctionModifier(
                lr_func="linear", init_lr=0.1, final_lr=0.1, start_epoch=0, end_epoch=1, param_groups=[0]
            ),
            SetWeightDecayModifier(weight_decay=0.0, param_groups=0, start_epoch=0.5),
        ],
        module,
        optimizer,
    )
    seen: list[tuple[float, ...]] = []
    train(
        module,
        wrapped,
        batches(4),
        lambda step: seen.append(tuple(group[key] for group in wrapped.param_groups for key in ("lr", "weight_decay"))),
    )
    assert seen == [(0.1, 0.1, 0.2, 0.1)] * 2 + [(0.1, 0.0, 0.2, 0.1)] * 2


def test_trainable_params_freeze_and_come_back() -> None:
    module = net()
    options = TrainableParamsModifier(params=["re:features.0"], trainable=False, start_epoch=0, end_epoch=2)
    first = module.features[0].weight.detach().clone()
    _manager, optimizer = attach([options], module, sgd(module))
    assert not module.features[0].weight.requires_grad  # before the first forward pass
    assert module.head.weight.requires_grad
    train(module, optimizer, batches(8))
    assert torch.equal(module.features[0].weight, first)
    assert module.features[0].weight.requires_grad
    train(module, optimizer, batches(1))
    assert not torch.equal(module.features[0].weight, first)


def test_trainable_params_in_the_middle_of_an_epoch_drop_gradients() -> None:
    module = net()
    _manager, optimizer = attach(
        [TrainableParamsModifier(params="__ALL__", trainable=False, start_epoch=0.5)], module, sgd(module)
    )
    train(module, optimizer, batches(2))
    frozen = module.head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(module.head.weight, frozen)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_set_param_writes_once_and_gradual_param_follows_its_curve() -> None:
    module = net()
    modifiers = [
        SetParamModifier(params=["features.3.weight"], val=2.0, start_epoch=1),
        GradualParamModifier(
            params="head.bias",
            init_val=0,
            final_val=1,
            start_epoch=0,
            end_epoch=2,
            update_frequency=0.5,
            inter_func="cubic",
        ),
        EpochRangeModifier(start_epoch=0, end_epoch=2),
    ]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    manager, wrapped = attach(modifiers, module, optimizer)
    biases: list[float] = []
    norms: list[float] = []

    def look(step: int) -> None:
        biases.append(float(module.head.bias[0].detach()))
        norms.append(float(module.features[3].weight[0].detach()))

    train(module, wrapped, batches(8), look)
    manager.finalize(module)
    curve = [1 - (1 - t) ** 3 for t in (0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75)]
    assert biases == pytest.approx(curve)
    assert float(module.head.bias[0].detach()) == pytest.approx(1.0)
    assert norms == [1.0] * 4 + [2.0] * 4


@settings(max_examples=20, deadline=None)
@given(first=st.floats(-2, 2), last=st.floats(-2, 2), epoch=st.floats(0, 4))
def test_gradual_param_honours_inter_func(first: float, last: float, epoch: float) -> None:
    options = GradualParamModifier(
        params="x",
        init_val=first,
        final_val=last,
        start_epoch=1,
        end_epoch=3,
        update_frequency=-1,
        inter_func="inverse_cubic",
    )
    done = min(max((epoch - 1) / 2, 0), 1)
    assert options.value(epoch) == pytest.approx(first + (last - first) * (1 - (1 - done) ** (1 / 3)))
