"""Movement, OBS, RigL and AC/DC against the formulas of their papers, written here once more in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify_torch import ScheduledModifierManager
from sparsify_torch.acdc_pruning import ACDCPruningModifier
from sparsify_torch.fisher import block_scores, correction, inverse_fisher, single_scores
from sparsify_torch.gradual_pruning import MovementPruningModifier
from sparsify_torch.obs_pruning import OBSPruningModifier
from sparsify_torch.rigl_pruning import RigLPruningModifier, densities, drop_and_grow, renew
from torch import nn

from tests.torch.loops import STEPS, adam, attach, batches, net, sgd, train


def line(weights: list[float]) -> nn.Module:
    """Return one linear layer; its gradient is what the test writes."""
    module = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([weights]))
    return module


# ------------------------------------------------------------------------------------------------------------ movement


def test_movement_scores_are_the_sum_of_gradient_times_weight() -> None:
    """S = −α Σ ∂L/∂W · W (Sanh et al. 2020, equation 3): what moved away from zero stays."""
    module = line([1.0, -1.0, 0.1, 2.0])
    options = MovementPruningModifier(
        init_sparsity=0.0, final_sparsity=0.5, start_epoch=0, end_epoch=1, update_frequency=1, params="__ALL__"
    )
    manager = ScheduledModifierManager([options])
    optimizer = manager.modify(module, torch.optim.SGD(module.parameters(), lr=0.1), steps_per_epoch=3)
    gradients = [[1.0, 1.0, -1.0, 0.5], [0.5, -1.0, -1.0, 0.5], [1.0, 1.0, -0.5, -3.0], [0.0, 0.0, 0.0, 0.0]]
    w, score = np.array([1.0, -1.0, 0.1, 2.0]), np.zeros(4)
    for step, gradient in enumerate(gradients):
        module.weight.grad = torch.tensor([gradient])
        optimizer.step()
        score += -0.01 * np.array(gradient) * w
        w -= 0.1 * np.array(gradient)
        if step < 3:
            np.testing.assert_allclose(module.weight.detach().numpy()[0], w, rtol=1e-6)
    kept = np.argsort(score)[2:]
    assert np.flatnonzero(module.weight.detach().numpy()[0]).tolist() == sorted(kept.tolist())


# ----------------------------------------------------------------------------------------------------------------- OBS


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 6), count=st.integers(1, 8), damp=st.floats(1e-3, 1))
def test_inverse_fisher_is_the_inverse(seed: int, size: int, count: int, damp: float) -> None:
    gradients = np.random.default_rng(seed).standard_normal((count, 3, size))
    found = inverse_fisher(([torch.tensor(one)] for one in gradients), count, damp)[0]
    for block in range(3):
        fisher = damp * np.eye(size) + sum(np.outer(g[block], g[block]) for g in gradients) / count
        np.testing.assert_allclose(found[block].numpy(), np.linalg.inv(fisher), rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_scores_and_corrections_solve_the_constrained_problem(seed: int) -> None:
    """Minimise ½ δᵀFδ subject to w + δ = 0 on P, by its KKT system; the cost of one group is its minimum."""
    random = np.random.default_rng(seed)
    root = random.standard_normal((8, 8))
    fisher = root @ root.T + np.eye(8)
    w = random.standard_normal(8)
    inverse = torch.tensor(np.linalg.inv(fisher))[None]
    values = torch.tensor(w)[None]

    def solve(gone: list[int]) -> np.ndarray[Any, Any]:
        picked = np.eye(8)[gone]
        system = np.block([[fisher, picked.T], [picked, np.zeros((len(gone), len(gone)))]])
        return np.linalg.solve(system, np.concatenate([np.zeros(8), -w[gone]]))[:8]

    gone = sorted(random.choice(8, size=int(random.integers(1, 8)), replace=False).tolist())
    dropped = torch.zeros(1, 8, dtype=torch.bool)
    dropped[0, gone] = True
    np.testing.assert_allclose(correction(values, dropped, inverse)[0].numpy(), solve(gone), rtol=1e-6, atol=1e-9)
    for index in range(8):
        step = solve([index])
        assert float(single_scores(values, inverse)[0, index]) == pytest.approx(0.5 * step @ fisher @ step)
    for index in range(0, 8, 4):
        step = solve(list(range(index, index + 4)))
        assert float(block_scores(values, inverse, 4)[0, index]) == pytest.approx(0.5 * step @ fisher @ step)


def test_obs_finds_the_weight_that_others_can_replace() -> None:
    """Two inputs are always equal: the larger of their weights costs nothing to prune, its partner takes it over."""
    torch.manual_seed(0)
    module = line([1.0, 0.9, 0.3, 0.2]).double()
    inputs = torch.randn(64, 4, dtype=torch.float64)
    inputs[:, 1] = inputs[:, 0]
    # gradients of outputs themselves: their Fisher matrix is that of the inputs
    sampler = {
        "data_loader_builder": lambda: ((one[None], torch.zeros(1)) for one in inputs),
        "loss_function": lambda outputs, target: outputs.sum(),
    }
    options = OBSPruningModifier(
        init_sparsity=0.25,
        final_sparsity=0.25,
        start_epoch=0,
        end_epoch=0,
        update_frequency=-1,
        params="weight",
        num_grads=64,
        fisher_block_size=4,
        damp=1e-8,
    )
    manager = ScheduledModifierManager([options])
    optimizer = manager.modify(module, torch.optim.SGD(module.parameters(), lr=0.0), 1, grad_sampler=sampler)
    before = module(inputs).detach()
    optimizer.emulated_step()
    assert sorted(module.weight.detach()[0].tolist()) == pytest.approx([0.0, 0.2, 0.3, 1.9], abs=1e-5)
    torch.testing.assert_close(module(inputs), before, atol=1e-4, rtol=1e-4)


def test_obs_with_blocks_of_one_is_the_diagonal() -> None:
    module = net().double()
    data = batches(4)
    gradients = []
    weight = module.features[2].weight
    for inputs, targets in data:
        module.eval()
        loss = nn.functional.cross_entropy(module(inputs.double()), targets)
        gradients.append(torch.autograd.grad(loss, weight)[0].numpy())
    fisher = 1e-3 + np.mean(np.square(gradients), 0)
    expected = np.argsort((weight.detach().numpy() ** 2 * fisher / 2).ravel(), kind="stable")[: weight.numel() // 2]
    module.train()
    options = OBSPruningModifier(
        init_sparsity=0.5,
        final_sparsity=0.5,
        start_epoch=0,
        end_epoch=1,
        update_frequency=1,
        params="features.2",
        num_grads=4,
        damp=1e-3,
    )
    sampler = {
        "data_loader_builder": lambda: ((inputs.double(), targets) for inputs, targets in data),
        "loss_function": nn.functional.cross_entropy,
    }
    _manager, optimizer = attach([options], module, torch.optim.SGD(module.parameters(), lr=0.0), grad_sampler=sampler)
    modes = [layer.training for layer in module.modules()]
    optimizer.emulated_step()
    assert [layer.training for layer in module.modules()] == modes
    assert set(np.flatnonzero(weight.detach().numpy().ravel() == 0)) == set(expected)


# ---------------------------------------------------------------------------------------------------------------- RigL


@given(sparsity=st.floats(0.1, 0.95), kernel=st.booleans())
def test_erdos_renyi_densities(sparsity: float, kernel: bool) -> None:
    """Together exactly the density asked for; in proportion to (Σ sides) / (Π sides) where not full."""
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (10, 64)]
    found = densities(shapes, sparsity, "erdos_renyi_kernel" if kernel else "erdos_renyi")
    counts = [math.prod(shape) for shape in shapes]
    assert sum(d * n for d, n in zip(found, counts, strict=True)) == pytest.approx((1 - sparsity) * sum(counts))
    sides = [shape if kernel else shape[:2] for shape in shapes]
    scale = {round(d / (sum(s) / math.prod(s)), 9) for d, s in zip(found, sides, strict=True) if d < 1}
    assert len(scale) == 1
    assert all(0 <= d <= 1 for d in found)


def test_uniform_densities() -> None:
    assert densities([(2, 3), (4, 5)], 0.7, "uniform") == pytest.approx([0.3, 0.3])


@given(seed=st.integers(0, 999), fraction=st.floats(0, 1), share=st.floats(0.1, 0.9))
def test_drop_and_grow(seed: int, fraction: float, share: float) -> None:
    random = np.random.default_rng(seed)
    sizes, gradients = random.random(40), random.random(40)
    kept = random.random(40) < share
    found = drop_and_grow(torch.tensor(sizes), torch.tensor(gradients), torch.tensor(kept), fraction).numpy()
    count = round(fraction * kept.sum())
    active = [index for index in np.argsort(sizes) if kept[index]]
    stay = set(active[count:])
    grown = [index for index in np.argsort(-gradients) if index not in stay][:count]
    assert set(np.flatnonzero(found)) == stay | set(grown)
    assert found.sum() == kept.sum()


def test_rigl_moves_by_its_cosine() -> None:
    module = net()
    options = RigLPruningModifier(
        final_sparsity=0.5,
        start_epoch=0,
        end_epoch=4,
        update_frequency=1,
        params="features.2",
        sparsity_strategy="uniform",
        init_update_fraction=0.4,
    )
    assert [options.fraction(epoch) for epoch in (0, 2, 4)] == pytest.approx([0.4, 0.2, 0.0])
    manager, optimizer = attach([options], module, sgd(module))
    masks: list[torch.Tensor] = []
    train(module, optimizer, batches(5 * STEPS), lambda step: masks.append(manager.masks["features.2.weight"]))
    alive = int(masks[0].sum())
    assert all(int(mask.sum()) == alive for mask in masks)
    for epoch in range(1, 5):
        before, after = masks[epoch * STEPS - 1], masks[epoch * STEPS]
        assert int((before & ~after).sum()) <= round(options.fraction(epoch) * alive)
    assert not torch.equal(masks[0], masks[STEPS])
    assert torch.equal(masks[4 * STEPS], masks[-1])


def test_new_weights_take_a_gentle_first_step_with_adam() -> None:
    """After many steps, a second moment of zero would make the first update three times the learning rate."""
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([weight], lr=0.1, amsgrad=True, eps=1e-12)
    for _ in range(50):
        weight.grad = torch.tensor([1.0, 2.0, 0.0, 0.0])
        optimizer.step()
    gradient = torch.tensor([1.0, 2.0, 3.0, -0.5])
    old, state = weight.detach().clone(), optimizer.state[weight]
    kept = state["exp_avg_sq"][:2].clone()
    renew(optimizer, weight, torch.tensor([False, False, True, True]), gradient)
    corrected = state["exp_avg_sq"] / (1 - 0.999**50)
    torch.testing.assert_close(corrected[2:], gradient[2:] ** 2)
    assert torch.equal(state["exp_avg_sq"][:2], kept)
    weight.grad = gradient
    optimizer.step()
    first = (weight.detach() - old)[2:]
    expected = -0.1 * (1 - 0.9) / (1 - 0.9**51) * torch.sign(gradient[2:])
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-7)


def test_rigl_renews_only_grown_weights_and_only_where_asked_to() -> None:
    for reset in (True, False):
        module = net()
        options = RigLPruningModifier(
            final_sparsity=0.5,
            start_epoch=0,
            end_epoch=9,
            update_frequency=1,
            params="features.2",
            momentum_buffer_reset=reset,
        )
        inner = adam(module)
        manager, optimizer = attach([options], module, inner)
        train(module, optimizer, batches(STEPS))
        before = manager.masks["features.2.weight"]
        inputs, targets = batches(1, seed=5)[0]
        nn.functional.cross_entropy(module(inputs), targets).backward()
        moments = inner.state[module.features[2].weight]
        held = moments["exp_avg"].clone()
        optimizer.run.update()
        grown = manager.masks["features.2.weight"] & ~before
        assert grown.any()
        changed = moments["exp_avg"] != held
        assert not changed[~grown].any()
        assert bool((moments["exp_avg"][grown] == 0).all()) == (reset or bool((held[grown] == 0).all()))


# --------------------------------------------------------------------------------------------------------------- AC/DC


@pytest.mark.parametrize(
    ("start", "end", "every", "compressed"),
    [(0, 6, 1, "010101"), (0, 5, 1, "01011"), (1, 7, 2, "-001111"), (0, 1, 2, "1"), (0, 10, 5, "0000011111")],
)
def test_acdc_phases(start: int, end: int, every: int, compressed: str) -> None:
    options = ACDCPruningModifier(
        compression_sparsity=0.5, start_epoch=start, end_epoch=end, update_frequency=every, params="x"
    )
    found = "".join("-" if epoch < start else "01"[options.compressed(epoch)] for epoch in range(end))
    assert found == compressed
    assert options.compressed(end)


@pytest.mark.parametrize("reset", [True, False])
def test_acdc_forgets_momentum_when_weights_come_back(reset: bool) -> None:
    module = net()
    options = ACDCPruningModifier(
        compression_sparsity=0.5,
        start_epoch=0,
        end_epoch=4,
        update_frequency=1,
        params="features.2",
        momentum_buffer_reset=reset,
    )
    inner = sgd(module)
    manager, optimizer = attach([options], module, inner)
    train(module, optimizer, batches(2 * STEPS))
    assert manager.masks
    optimizer.run.update()
    momentum = inner.state[module.features[2].weight]["momentum_buffer"]
    assert not manager.masks
    assert bool((momentum == 0).all()) == reset
