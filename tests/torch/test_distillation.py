"""Distillation: the mixed loss, every kind of teacher and of outputs, features by layer, and its refusals."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from sparsify import RequestError
from sparsify_torch.distillation import DistillationModifier, distance
from sparsify_torch.layer_distillation import PerLayerDistillationModifier
from torch import nn
from torch.nn.functional import cross_entropy

from tests.torch.loops import attach, batches, net, sgd, train

INPUTS, TARGETS = batches(1)[0]


def softmax(values: Any) -> Any:
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def test_the_loss_is_hintons() -> None:
    module, teacher = net(), net(seed=5)
    options = DistillationModifier(hardness=0.3, temperature=4.0)
    _manager, optimizer = attach([options], module, sgd(module), distillation_teacher=teacher)
    outputs = module(INPUTS)
    loss = cross_entropy(outputs, TARGETS)
    mixed = optimizer.loss_update(loss)
    p = softmax(teacher.eval()(INPUTS).detach().double().numpy() / 4)
    q = softmax(outputs.detach().double().numpy() / 4)
    divergence = 16 * (p * np.log(p / q)).sum(-1).mean()
    assert mixed.item() == pytest.approx(0.7 * loss.item() + 0.3 * divergence, rel=1e-5)
    assert not any(layer.training for layer in teacher.modules())


def test_classes_of_images_and_tokens() -> None:
    one, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    tokens = distance(one.movedim(1, -1).flatten(1, 2), other.movedim(1, -1).flatten(1, 2), 2.0)
    torch.testing.assert_close(distance(one, other, 2.0), tokens)


def test_self_is_the_model_at_the_start_and_stays_as_it_is() -> None:
    module = net()
    _manager, optimizer = attach([DistillationModifier(hardness=1.0, start_epoch=1)], module, sgd(module))
    train(module, optimizer, batches(4))
    held = copy.deepcopy(module.state_dict())
    module.eval()
    expected = module(INPUTS)
    module.train()
    train(module, optimizer, batches(4))
    teacher = optimizer.run.turns[0].part.teacher.module
    torch.testing.assert_close(teacher.state_dict(), held)
    torch.testing.assert_close(teacher(INPUTS), expected)
    outputs = module(INPUTS)
    loss = optimizer.loss_update(torch.zeros(()))
    assert loss.item() == pytest.approx(distance(outputs, expected, 2.0).item(), rel=1e-5)


def test_disable_leaves_the_loss_alone() -> None:
    module = net()
    modifiers = [DistillationModifier(), PerLayerDistillationModifier()]
    _manager, optimizer = attach(modifiers, module, sgd(module), distillation_teacher="disable")
    loss = cross_entropy(module(INPUTS), TARGETS)
    assert optimizer.loss_update(loss) is loss


class Named(nn.Module):
    """Answers as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, ids: Any, mask: Any = None) -> Any:
        found = self.layer(ids)
        return OrderedDict(
            loss=found.sum(), start=found[:, :3], end=found[:, 3:], count=torch.ones(2, dtype=torch.long)
        )


def test_outputs_and_inputs_by_name() -> None:
    module, teacher = Named(), Named()
    ids = torch.randn(2, 4)
    losses = {}
    for keys in (None, ("start",), ("end",)):
        options = DistillationModifier(hardness=1.0, distill_output_keys=keys, teacher_input_keys=["ids"])
        manager, optimizer = attach([options], module, sgd(module), distillation_teacher=teacher)
        module(ids=ids, mask=torch.ones(1))
        losses[keys] = optimizer.loss_update(torch.zeros(())).item()
        manager.finalize()
    assert losses[None] == pytest.approx((losses["start",] + losses["end",]) / 2)


def test_outputs_given_by_hand() -> None:
    module, teacher = net(), net(seed=5)
    _manager, optimizer = attach(
        [DistillationModifier(hardness=1.0)], module, sgd(module), distillation_teacher=teacher
    )
    seen = optimizer.loss_update(cross_entropy(module(INPUTS), TARGETS))
    outputs = copy.deepcopy(module)(INPUTS)
    optimizer.run.loop.forward = type(optimizer.run.loop.forward)()
    by_hand = optimizer.loss_update(torch.zeros(()), outputs=outputs, inputs=INPUTS)
    named = optimizer.loss_update(torch.zeros(()), outputs=outputs, inputs={"x": INPUTS})
    assert seen.item() == pytest.approx(by_hand.item()) == pytest.approx(named.item())


def features(module: nn.Module) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    for name in ("features.2", "features.4", "features.5"):
        module.get_submodule(name).register_forward_hook(lambda layer, i, o, name=name: seen.__setitem__(name, o))
    module(INPUTS)
    return seen


@pytest.mark.parametrize("normalize", [True, False])
def test_features_by_layer(normalize: bool) -> None:
    module, teacher = net(), net(seed=5).eval()
    names = ["re:features[.][245]$"]
    options = PerLayerDistillationModifier(gain=2.0, normalize=normalize, student_layer_names=names, epsilon=1e-3)
    _manager, optimizer = attach([options], module, sgd(module), distillation_teacher=teacher)
    loss = cross_entropy(module(INPUTS), TARGETS)
    total = optimizer.loss_update(loss)
    own, other = features(copy.deepcopy(module)), features(teacher)
    distances = [
        (own[name] - other[name]).square().mean() / ((other[name].square().mean() + 1e-3) if normalize else 1)
        for name in own
    ]
    assert total.item() == pytest.approx(loss.item() + 2.0 * sum(one.item() for one in distances), rel=1e-5)


def test_layers_by_default_are_all_but_the_last() -> None:
    module = net()
    _manager, optimizer = attach([PerLayerDistillationModifier()], module, sgd(module))
    (turn,) = optimizer.run.turns
    assert [student for student, _ in turn.part.pairs] == [f"features.{index}" for index in (0, 2, 4, 5)]


def test_wider_features_are_projected_and_learnt() -> None:
    student = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    teacher = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    inner = torch.optim.SGD(student.parameters(), lr=0.1)
    options = PerLayerDistillationModifier(student_layer_names=["0"])
    manager, optimizer = attach([options], student, inner, distillation_teacher=teacher)
    assert len(inner.param_groups) == 2
    projection = inner.param_groups[1]["params"][0]
    before = projection.detach().clone()
    optimizer.loss_update(student(torch.randn(8, 4)).sum()).backward()
    optimizer.step()
    assert projection.shape == (9, 5)
    assert not torch.equal(before, projection)
    manager.finalize(student)
    assert not student[0]._forward_hooks
    assert not teacher[0]._forward_hooks


def test_projections_know_where_the_channels_are() -> None:
    for layer, inputs in ((nn.Conv1d, torch.randn(2, 3, 7)), (nn.Linear, torch.randn(2, 7, 3))):
        extra = (3,) if layer is nn.Conv1d else ()
        student, teacher = nn.Sequential(layer(3, 4, *extra)), nn.Sequential(layer(3, 6, *extra))
        options = PerLayerDistillationModifier(student_layer_names=["0"], normalize=False, gain=1.0)
        _, optimizer = attach([options], student, sgd(student), distillation_teacher=teacher)
        own, other = student(inputs), teacher(inputs)
        if layer is nn.Conv1d:
            own, other = own.movedim(1, -1), other.movedim(1, -1)
        expected = (torch.cat([own, torch.zeros(*own.shape[:2], 2)], -1) - other).square().mean()
        assert optimizer.loss_update(torch.zeros(())).item() == pytest.approx(expected.item(), rel=1e-5)


def refused(modifier: Any, match: str, module: nn.Module | None = None, **modify: Any) -> RequestError:
    module = module or net()
    with pytest.raises(RequestError, match=match) as caught:
        attach([modifier], module, sgd(module), **modify)[1].loss_update(cross_entropy(module(INPUTS), TARGETS))
    assert caught.value.fix
    return caught.value


def test_refusals() -> None:
    refused(DistillationModifier(), "there is no teacher", distillation_teacher=None)
    refused(DistillationModifier(), "'selv' is no teacher", distillation_teacher="selv")
    refused(
        DistillationModifier(),
        r"output of the model has the shape \(6, 3\), the teacher the shape \(6, 7\)",
        distillation_teacher=net(classes=7),
    )
    refused(DistillationModifier(distill_output_keys=["logits"]), "'logits' is none of the outputs")
    layers = PerLayerDistillationModifier
    error = refused(layers(student_layer_names=["feature.2"]), "'feature.2' matches none of")
    assert "features.2" in error.fix
    with pytest.raises(ValueError, match="no regular expression"):
        layers(student_layer_names=["re:("])
    refused(
        layers(student_layer_names=["features.2"], teacher_layer_names=["features.2", "head"]),
        "1 student_layer_names, 2 teacher_layer_names",
    )
    refused(
        layers(student_layer_names=["features.2"], teacher_layer_names=["features.5"], project_features=False),
        "'features.2' has 8 channels, its teacher's 12",
        distillation_teacher=net(),
    )
    refused(layers(), "no Linear or Conv of the same name", distillation_teacher=nn.Sequential(nn.Linear(2, 2)))
    strided = net()
    strided.features[2].stride = (2, 2)
    refused(
        layers(student_layer_names=["features.2"]), "gives the shape .* its teacher's", distillation_teacher=strided
    )
    refused(
        layers(student_layer_names=["head"], teacher_layer_names=["spare"]),
        "layer 'spare' did not run",
        distillation_teacher=WithSpare(),
    )


class WithSpare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = net(), nn.Linear(2, 3)

    def forward(self, x: Any) -> Any:
        return self.body(x)


def test_a_forward_pass_that_was_not_seen() -> None:
    module = net()
    _manager, optimizer = attach([DistillationModifier()], module, sgd(module))
    with pytest.raises(RequestError, match="saw no outputs"):
        optimizer.loss_update(torch.zeros(()))
    with pytest.raises(RequestError, match="saw no inputs"):
        optimizer.loss_update(torch.zeros(()), outputs=torch.zeros(1, 3))
