"""QuantizationModifier in a recipe: begins and freezes when it says, exports what was simulated, keeps zeros."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from sparsify import Recipe, RequestError, Step
from sparsify_torch import ScheduledModifierManager, export, qat
from torch import nn
from torch.nn import functional

STEPS = 8  # an epoch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def batch(seed: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes, told apart by where a bright patch lies."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (size,), generator=generator)
    images = 0.3 * torch.randn(size, 3, 8, 8, generator=generator)
    for row, label in enumerate(labels):
        images[row, label % 3, :, :] += 1.0 + float(label)
    return images, labels


def step(name: str, **options: object) -> Step:
    return Step(name, "training", options, "modifiers")


def train(module: nn.Module, recipe: Recipe, epochs: int) -> list[tuple[bool, bool, bool]]:
    """Train; returns for each epoch whether the module is quantized, observes, and has its batch norms frozen."""
    manager = ScheduledModifierManager.from_recipe(recipe)
    plain = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    optimizer = manager.modify(module, plain, steps_per_epoch=STEPS)
    seen = []
    for epoch in range(epochs):
        module.train()
        for index in range(STEPS):
            images, labels = batch(epoch * STEPS + index)
            loss = functional.cross_entropy(module(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = dict(module.named_children()).get(qat.CHILD)
        seen.append((state is not None, bool(state and state.observing), bool(state and state.norms_frozen)))
    manager.finalize(module)
    return seen


RECIPE = Recipe(
    (
        step("EpochRangeModifier", start_epoch=0, end_epoch=6),
        step(
            "MagnitudePruningModifier",
            params=["3.weight"],
            init_sparsity=0.1,
            final_sparsity=0.5,
            start_epoch=0,
            end_epoch=2,
            update_frequency=0.5,
        ),
        step("QuantizationModifier", start_epoch=2, disable_quantization_observer_epoch=4, freeze_bn_stats_epoch=5),
    )
)


def test_it_begins_and_freezes_at_its_epochs() -> None:
    seen = train(network(), RECIPE, 6)
    assert [row[0] for row in seen] == [False, False, True, True, True, True]
    assert [row[1] for row in seen[2:]] == [True, False, False, False]
    assert [row[2] for row in seen[2:]] == [False, False, True, True]


def test_the_export_is_the_int8_model_that_was_simulated(tmp_path: Path) -> None:
    module = network()
    train(module, RECIPE, 6)
    module.eval()
    images, labels = batch(999, 256)
    with torch.no_grad():
        simulated = module(images).numpy()
    export(module, images[:2], tmp_path / "model.onnx", input_names=["input"], output_names=["logits"])
    (found,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"input": images.numpy()})
    assert np.mean(found.argmax(1) == simulated.argmax(1)) >= 0.995
    assert np.mean(found.argmax(1) == labels.numpy()) >= 0.9
    assert abs(found - simulated).max() <= 0.05 * abs(simulated).max()
    weight = module[3].weight.detach()
    assert int((weight == 0).sum()) == weight.numel() // 2  # the zeros are those of the pruning, through QAT


def test_before_it_has_seen_data_it_begins_at_the_first_batch() -> None:
    module = network()
    train(module, Recipe((step("QuantizationModifier"),)), 1)
    assert qat.CHILD in dict(module.named_children())


def test_a_module_that_is_quantized_already_is_taken_as_it_is() -> None:
    module = network()
    options = ScheduledModifierManager.from_recipe(Recipe((step("QuantizationModifier"),))).modifiers[0]
    state = qat.begin(module, options, batch(0)[0])
    train(module, Recipe((step("QuantizationModifier"),)), 1)
    assert dict(module.named_children())[qat.CHILD] is state


@pytest.mark.parametrize("stop", [1.5, 2.0, 2.125, 3.5, 4.5, 5.5])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(stop: float) -> None:
    """Stop before quantization, right at its epoch, at its first batch, while observing, and with all frozen."""

    def attach(module: nn.Module) -> tuple[ScheduledModifierManager, torch.optim.Optimizer]:
        manager = ScheduledModifierManager.from_recipe(RECIPE)
        plain = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
        return manager, manager.modify(module, plain, steps_per_epoch=STEPS)

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        module.train()
        for index in range(first, last):
            images, labels = batch(index)
            loss = functional.cross_entropy(module(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    at, end = int(stop * STEPS), 6 * STEPS
    undisturbed = network()
    steps(undisturbed, attach(undisturbed)[1], 0, end)
    stopped = network()
    manager, optimizer = attach(stopped)
    steps(stopped, optimizer, 0, at)
    saved = copy.deepcopy((stopped.state_dict(), optimizer.state_dict(), manager.state_dict()))
    resumed = network()
    fresh = ScheduledModifierManager.from_recipe(RECIPE)
    fresh.apply_structure(resumed, stop, batch(0)[0][:2])
    resumed.load_state_dict(saved[0])
    plain = torch.optim.SGD(resumed.parameters(), 0.05, momentum=0.9)
    again = fresh.modify(resumed, plain, steps_per_epoch=STEPS, epoch=stop)
    again.load_state_dict(saved[1])
    fresh.load_state_dict(saved[2])
    steps(resumed, again, at, end)
    found, wanted = resumed.state_dict(), undisturbed.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name


def test_going_on_from_a_checkpoint_needs_example_inputs() -> None:
    manager = ScheduledModifierManager.from_recipe(Recipe((step("QuantizationModifier"),)))
    with pytest.raises(RequestError, match="needs example inputs") as caught:
        manager.apply_structure(network(), 1.0)
    assert "apply_structure(module, epoch, images)" in caught.value.fix


def test_calibration_steps_choose_the_first_ranges_on_the_loops_own_batches() -> None:
    """They are those of `calibrate` on the same batches, and there before the first step."""
    module, wanted = network(), network()
    manager = ScheduledModifierManager.from_recipe(Recipe((step("QuantizationModifier", num_calibration_steps=5),)))
    sampler = {"data_loader_builder": lambda: [batch(seed) for seed in range(3)]}
    manager.modify(module, torch.optim.SGD(module.parameters(), 0.05), steps_per_epoch=STEPS, grad_sampler=sampler)
    images = [batch(seed)[0] for seed in (0, 1, 2, 0, 1)]  # from the start again where the loader ends
    qat.begin(wanted, qat.QuantizationOptions(), images[0])
    assert qat.calibrate(wanted, images) == 5
    found = module.state_dict()
    for name, value in wanted.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name


def test_calibration_steps_need_data() -> None:
    with pytest.raises(RequestError, match=r"num_calibration_steps.*no data to calibrate with") as caught:
        train(network(), Recipe((step("QuantizationModifier", num_calibration_steps=8),)), 1)
    assert "grad_sampler" in caught.value.fix
    train(network(), Recipe((step("QuantizationModifier", num_calibration_steps=0),)), 1)


def test_quantization_begins_under_autocast_too() -> None:
    module = network()
    manager = ScheduledModifierManager.from_recipe(Recipe((step("QuantizationModifier", start_epoch=0),)))
    optimizer = manager.modify(module, torch.optim.SGD(module.parameters(), 0.05), steps_per_epoch=STEPS)
    losses = []
    for index in range(6 * STEPS):
        images, labels = batch(index)
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(images)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert qat.quantization_of(module).low.dtype == torch.float32
    assert sum(losses[-STEPS:]) < 0.5 * sum(losses[:STEPS])


def test_a_name_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing"):
        train(network(), Recipe((step("QuantizationModifier", ignore=["nothing"]),)), 1)
