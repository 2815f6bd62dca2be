"""Pruning in a training loop: masks exact at every epoch, zeros that stay zero, copies, accumulation, autocast."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from sparsify_torch.acdc_pruning import ACDCPruningModifier
from sparsify_torch.constant_pruning import ConstantPruningModifier
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.gradual_pruning import (
    GlobalMagnitudePruningModifier,
    GMPruningModifier,
    MagnitudePruningModifier,
    MovementPruningModifier,
)
from sparsify_torch.interpolation import interpolate
from sparsify_torch.prunable import prunable_names
from sparsify_torch.rigl_pruning import RigLPruningModifier
from torch import nn
from torch.nn.functional import cross_entropy

from tests.torch.loops import EVERY, GRADUAL, OPTIMIZERS, PRUNABLE, STEPS, attach, batches, net, sgd, sparsity, train

PRUNING = [name for name, modifiers in EVERY.items() if "Pruning" in type(modifiers[0]).__name__ and name != "constant"]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("curve", ["linear", "cubic", "inverse_cubic"])
@pytest.mark.parametrize("mask_type", ["unstructured", "block4", [2, 2]])
def test_each_layer_has_the_sparsity_of_its_epoch(curve: str, mask_type: Any) -> None:
    module = net()
    options = MagnitudePruningModifier(**{**GRADUAL, "update_frequency": -1}, inter_func=curve, mask_type=mask_type)
    _manager, optimizer = attach([options], module, sgd(module))
    block = {"unstructured": 0, "block4": 4}.get(str(mask_type), 4)

    def look(step: int) -> None:
        epoch = step / STEPS
        goal = interpolate(curve, min(max((epoch - 0.5) / 2, 0), 1), 0.1, 0.7) if epoch >= 0.5 else 0.0
        for name in PRUNABLE:
            parameter = module.get_parameter(name)
            zeros = int((parameter == 0).sum())
            assert abs(zeros - round(goal * parameter.numel())) <= block / 2, (step, name)

    train(module, optimizer, batches(14), look)


def test_n_of_m_is_reached_gradually() -> None:
    module = net()
    options = GMPruningModifier(**{**GRADUAL, "final_sparsity": 0.5}, mask_type="2:4")
    _manager, optimizer = attach([options], module, sgd(module))
    seen: list[float] = []
    train(module, optimizer, batches(12), lambda step: seen.append(sparsity(module.features[2].weight)))
    assert seen == sorted(seen)
    assert 0.1 in [round(one, 2) for one in seen]
    kept = (module.features[2].weight != 0).permute(0, 2, 3, 1).reshape(-1, 4).sum(1)
    assert kept.tolist() == [2] * len(kept)


def test_final_sparsity_by_params() -> None:
    module = net()
    _manager, optimizer = attach(EVERY["gm_mapping"], module, sgd(module))
    train(module, optimizer, batches(12))
    found = [sparsity(module.get_parameter(name)) for name in (*PRUNABLE, "head.weight")]
    assert found == pytest.approx([0.5, 0.75, 0.75], abs=0.01)


def test_global_pruning_counts_over_all_layers() -> None:
    module = net()
    with torch.no_grad():
        module.features[5].weight.mul_(10)
    options = GlobalMagnitudePruningModifier(**GRADUAL)
    _manager, optimizer = attach([options], module, sgd(module))
    train(module, optimizer, batches(12))
    both = [module.get_parameter(name).detach().flatten() for name in PRUNABLE]
    assert int((torch.cat(both) == 0).sum()) == round(0.7 * sum(one.numel() for one in both))
    assert sparsity(both[0]) > sparsity(both[1])


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("name", PRUNING)
def test_zeros_stay_exactly_zero(name: str, optimizer_name: str) -> None:
    """The optimizer has momentum from before the masks, weight decay, and second moments."""
    module = net()
    manager, optimizer = attach(EVERY[name], module, OPTIMIZERS[optimizer_name](module))

    def look(step: int) -> None:
        for one, kept in manager.masks.items():
            value = module.get_parameter(one).detach()
            assert torch.all(value[~kept] == 0)
            assert not torch.signbit(value[~kept]).any()

    train(module, optimizer, batches(14), look)
    assert manager.masks or name == "global_magnitude"


@pytest.mark.parametrize("name", ["gm", "magnitude", "movement", "obs", "obs_block4", "gm_from_param"])
def test_masks_of_gradual_pruning_only_grow(name: str) -> None:
    module = net()
    manager, optimizer = attach(EVERY[name], module, sgd(module))
    before: dict[str, torch.Tensor] = {}

    def look(step: int) -> None:
        for one, kept in manager.masks.items():
            assert not (kept & ~before.get(one, kept)).any()
            before[one] = kept

    train(module, optimizer, batches(14), look)
    assert sparsity(torch.cat([kept.flatten() for kept in before.values()])) == pytest.approx(0.7, abs=0.03)


def test_masks_that_are_not_left_enabled_let_go() -> None:
    module = net()
    manager, optimizer = attach(EVERY["global_magnitude"], module, sgd(module))
    train(module, optimizer, batches(9))
    assert sparsity(module.features[2].weight) > 0.4
    train(module, optimizer, batches(4))
    assert manager.masks == {}
    assert sparsity(module.features[2].weight) < 0.05


def test_from_param_starts_where_the_weights_are() -> None:
    module = net()
    with torch.no_grad():
        for name in PRUNABLE:
            module.get_parameter(name).view(-1)[::2] = 0
    options = MagnitudePruningModifier(**{**GRADUAL, "init_sparsity": "__FROM_PARAM__", "start_epoch": 0})
    _manager, optimizer = attach([options], module, sgd(module))
    seen: list[float] = []
    train(module, optimizer, batches(12), lambda step: seen.append(sparsity(module.features[2].weight)))
    assert seen[0] == 0.5
    assert seen[-1] == pytest.approx(0.7, abs=0.01)


def test_constant_pruning_keeps_zeros_of_all_layers_and_frees_biases() -> None:
    module = net()
    with torch.no_grad():
        module.features[0].weight.view(-1)[::3] = 0
        module.head.weight.view(-1)[::2] = 0
    zeros = {name: value == 0 for name, value in weights(module).items()}
    _manager, optimizer = attach([ConstantPruningModifier(params=["__ALL_PRUNABLE__"])], module, sgd(module))
    train(module, optimizer, batches(6))
    for name in ("features.0.weight", "head.weight"):
        assert torch.equal(module.get_parameter(name) == 0, zeros[name])
    assert not torch.all(module.features[3].bias == 0)  # zero when new


def test_gradual_pruning_beside_constant_pruning_keeps_both() -> None:
    module = net()
    with torch.no_grad():
        module.features[2].weight.view(-1)[::2] = 0
    held = module.features[2].weight == 0
    modifiers = [ConstantPruningModifier(params="__ALL__"), GMPruningModifier(**GRADUAL)]
    _manager, optimizer = attach(modifiers, module, sgd(module))

    def look(step: int) -> None:
        assert torch.all(module.features[2].weight[held] == 0)

    train(module, optimizer, batches(12), look)
    assert sparsity(module.features[2].weight) == pytest.approx(0.7, abs=0.01)


def test_rigl_after_gradual_pruning_takes_the_weights_over() -> None:
    module = net()
    first = GMPruningModifier(**{**GRADUAL, "start_epoch": 0, "end_epoch": 1, "final_sparsity": 0.6})
    second = RigLPruningModifier(
        final_sparsity=0.6,
        start_epoch=1,
        end_epoch=3,
        update_frequency=0.25,
        params="__ALL_PRUNABLE__",
        sparsity_strategy="uniform",
    )
    manager, optimizer = attach([first, second], module, sgd(module))
    train(module, optimizer, batches(6))
    before = manager.masks["features.2.weight"]
    train(module, optimizer, batches(8))
    after = manager.masks["features.2.weight"]
    assert (after & ~before).any()  # weights that the first had dropped have grown
    assert sparsity(module.features[2].weight) >= 0.6 - 1e-3


def test_acdc_alternates_and_ends_compressed() -> None:
    module = net()
    options = ACDCPruningModifier(
        compression_sparsity=0.75, start_epoch=1, end_epoch=6, update_frequency=1, params="__ALL_PRUNABLE__"
    )
    manager, optimizer = attach([options], module, sgd(module), steps_per_epoch=2)
    seen: list[bool] = []
    train(module, optimizer, batches(14), lambda step: seen.append(bool(manager.masks)))
    #      epoch 0, dense 1, compressed 2, dense 3, compressed 4, 5 (the last phase), and after
    assert seen == [False] * 4 + [True] * 2 + [False] * 2 + [True] * 6
    both = torch.cat([module.get_parameter(name).detach().flatten() for name in PRUNABLE])
    assert int((both == 0).sum()) == round(0.75 * both.numel())


def test_a_schedule_that_ends_with_the_run_is_finished_by_finalize() -> None:
    module = net()
    manager, optimizer = attach([GMPruningModifier(**{**GRADUAL, "end_epoch": 3})], module, sgd(module))
    train(module, optimizer, batches(3 * STEPS))
    assert sparsity(module.features[2].weight) < 0.7
    manager.finalize(module)
    assert sparsity(module.features[2].weight) == pytest.approx(0.7, abs=0.01)
    assert not module._forward_hooks


def test_an_average_of_the_weights_gets_the_zeros() -> None:
    module = net()
    manager, optimizer = attach([GMPruningModifier(**GRADUAL)], module, sgd(module))
    average = copy.deepcopy(module)

    @torch.no_grad()
    def look(step: int) -> None:
        for mean, value in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 0.3)

    train(module, optimizer, batches(14), look)
    assert sparsity(average.features[2].weight) == 0
    manager.apply_masks(average)
    assert torch.equal(average.features[2].weight == 0, module.features[2].weight == 0)


def test_copies_and_pickles_of_the_module_are_free_of_the_run() -> None:
    module = net()
    _manager, optimizer = attach([GMPruningModifier(**GRADUAL)], module, sgd(module))
    copied = copy.deepcopy(module)
    copied.train()(batches(1)[0][0])
    assert optimizer.run.loop.forward.outputs is None
    torch.save(module, io.BytesIO())


def test_default_selection_is_that_of_one_shot() -> None:
    """First, last and depthwise layers are spared; so are weights that two layers share."""
    assert prunable_names(net()) == list(PRUNABLE)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied_a, self.tied_b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied_b.weight = self.tied_a.weight
            self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.tied_b(self.tied_a(self.middle(self.left(x) + self.right(x))))
            return self.one(x), self.two(x)

    assert prunable_names(Branches()) == ["middle.weight"]

    class Untraceable(Branches):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x) if x.sum() > 0 else None

    assert prunable_names(Untraceable()) == ["right.weight", "middle.weight", "one.weight"]


def test_wrapped_modules_have_the_names_of_bare_ones() -> None:
    module = net()
    manager, optimizer = attach([GMPruningModifier(**GRADUAL)], nn.DataParallel(module), sgd(module))
    train(module, optimizer, batches(4))
    assert set(manager.masks) == set(PRUNABLE)


def test_movement_is_not_magnitude() -> None:
    first, second = net(), net()
    for module, kind in ((first, MovementPruningModifier), (second, MagnitudePruningModifier)):
        _manager, optimizer = attach([kind(**GRADUAL)], module, sgd(module))
        train(module, optimizer, batches(12))
    assert not torch.equal(first.features[2].weight == 0, second.features[2].weight == 0)


@pytest.mark.parametrize("clip", [False, True])
def test_gradient_accumulation_is_a_larger_batch(clip: bool) -> None:
    """Steps count, not batches: two halves accumulated are one whole."""
    results = []
    for halves in (1, 2):
        module = net().double()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        _manager, optimizer = attach([GMPruningModifier(**GRADUAL)], module, sgd(module))
        for inputs, targets in batches(12):
            for part, wanted in zip(inputs.double().chunk(halves), targets.chunk(halves), strict=True):
                (optimizer.loss_update(cross_entropy(module(part), wanted)) / halves).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            module.train()
            module.features[3].eval()
        results.append(weights(module))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name])


def test_autocast() -> None:
    module = net()
    modifiers = [GMPruningModifier(**GRADUAL), EpochRangeModifier(start_epoch=0, end_epoch=3), *EVERY["distillation"]]
    manager, optimizer = attach(modifiers, module, sgd(module))
    for inputs, targets in batches(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = optimizer.loss_update(cross_entropy(module(inputs), targets))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    manager.finalize(module)
    assert sparsity(module.features[2].weight) == pytest.approx(0.7, abs=0.01)


def test_grad_scaler_in_both_forms() -> None:
    """scaler.step(wrapped optimizer) and wrap_optim=scaler unscale once, and go on where a step is skipped."""
    plain = net()
    _, optimizer = attach([*EVERY["movement"]], plain, sgd(plain))
    train(plain, optimizer, batches(12))
    for wrap in (False, True):
        module = net()
        inner = sgd(module)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        _manager, given = attach([*EVERY["movement"]], module, inner, wrap_optim=scaler if wrap else None)
        stepper, stepped = (given, inner) if wrap else (scaler, given)
        for inputs, targets in batches(12):
            stepper.scale(given.loss_update(cross_entropy(module(inputs), targets))).backward()
            stepper.unscale_(stepped)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1e6)
            stepper.step(stepped)
            stepper.update()
            inner.zero_grad()
        for name, value in weights(plain).items():
            torch.testing.assert_close(value, module.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_a_skipped_step_advances_the_epoch_with_wrap_optim() -> None:
    module = net()
    inner = sgd(module)
    scaler = torch.amp.GradScaler("cpu")
    manager, given = attach([GMPruningModifier(**GRADUAL)], module, inner, wrap_optim=scaler)
    scaler.scale(module(batches(1)[0][0]).sum()).backward()
    module.head.weight.grad[0, 0] = torch.inf
    before = weights(module)
    given.step(inner)
    assert torch.equal(before["head.weight"], module.head.weight)
    assert manager.state_dict()["steps"] == 1
