"""Inputs that stay make up for those that go: NumPy's least squares, and less is missed than without."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sparsify_torch import ScheduledModifierManager
from sparsify_torch.compensation import DAMPING, Moments, refit
from sparsify_torch.structured_pruning import StructuredPruningModifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), (50, 6)),
    "linear without a bias": (lambda: nn.Linear(6, 3, bias=False), (10, 5, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=(1, 0), dilation=(1, 2)), (9, 6, 7, 8)),
    "convolution without a bias": (lambda: nn.Conv2d(6, 4, 2, bias=False), (9, 6, 5, 5)),
}
KEPT = [0, 2, 3]


def patches(layer: Any, given: Tensor) -> NDArray[np.float64]:
    """Return, a row an output, the numbers that a layer multiplies its weights with; read off by its own gradient."""
    rows = []
    for sample in given if isinstance(layer, nn.Conv2d) else given.reshape(-1, given.shape[-1]):
        copied = copy.deepcopy(layer)
        for output in copied(sample[None]).flatten(2 if isinstance(layer, nn.Conv2d) else 1)[0, 0].reshape(-1):
            (slope,) = torch.autograd.grad(output, copied.weight, retain_graph=True)
            rows.append(slope[0].flatten().double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_refitted_as_numpy_would(name: str) -> None:
    """The least-squares problem with its damping as further rows, solved by lstsq."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer: Any = make()
    given = torch.randn(shape) @ torch.randn(shape[-1], shape[-1]) + 0.5
    rows, dense = patches(layer, given), layer.weight.detach().flatten(1).double().numpy()
    moments = Moments(layer)
    for part in given.split(3):
        moments.see(layer, (part,))
    assert moments.rows == len(rows)
    bias = None if layer.bias is None else layer.bias.detach().double().numpy()
    refit(moments, KEPT)

    stays = np.isin(np.arange(6), KEPT).repeat(layer.weight[0, 0].numel())
    mean = rows.mean(0) if bias is not None else np.zeros(rows.shape[1])
    centred = rows - mean
    damp = np.sqrt(DAMPING * (centred[:, stays] ** 2).mean() * len(rows))
    left = np.vstack([centred[:, stays], damp * np.eye(int(stays.sum()))])
    right = np.vstack([centred[:, ~stays] @ dense[:, ~stays].T, np.zeros((int(stays.sum()), len(dense)))])
    more = np.linalg.lstsq(left, right, rcond=None)[0].T
    weight = layer.weight.detach().flatten(1).numpy()
    np.testing.assert_allclose(weight[:, stays], dense[:, stays] + more, rtol=1e-3, atol=1e-4)
    if bias is not None:
        shift = dense[:, ~stays] @ mean[~stays] - more @ mean[stays]
        np.testing.assert_allclose(layer.bias.detach().numpy(), bias + shift, rtol=1e-3, atol=1e-4)


class Net(nn.Module):
    """Two convolutions, a depthwise one, and a linear layer that reads channels flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm, self.deep = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.norm(self.two(self.one(x).relu())).relu())
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def batches(**given: Any) -> Iterator[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    for _ in range(3):  # fewer than are asked for: they are taken again
        yield torch.randn(32, 3, 8, 8, generator=made), torch.randint(0, 5, (32,), generator=made)


def thinned(module: nn.Module, sampler: dict[str, Any] | None, **options: Any) -> nn.Module:
    """Take half of the channels of two layers out at once, and learn nothing."""
    work = copy.deepcopy(module)
    whole: Any = {"init_sparsity": 0.5, "final_sparsity": 0.5, "start_epoch": 0.0, "end_epoch": 1.0}
    whole |= {"update_frequency": 1.0, "params": ("one", "two"), "multiple": 1, **options}
    manager = ScheduledModifierManager([StructuredPruningModifier(**whole)])
    optimizer = manager.modify(
        work, torch.optim.SGD(work.parameters(), lr=0.0), 1, example_inputs=torch.ones(1, 3, 8, 8), grad_sampler=sampler
    )
    optimizer.step()
    manager.finalize(work)
    assert work.get_submodule("one").weight.shape[0] == work.get_submodule("two").weight.shape[0] == 8
    return work.eval()


def test_less_is_missed_on_other_data_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    module = Net().eval()
    sampler = {"data_loader_builder": batches, "loss_function": cross_entropy}
    images = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        dense = module(images)
        off = {
            name: float((thinned(module, given, compensate=refits)(images) - dense).norm() / dense.norm())
            for name, given, refits in (("on", sampler, True), ("off", sampler, False), ("no data", None, True))
        }
    assert off["on"] < 0.7 * off["off"]
    assert off["no data"] == off["off"]
    on, without = thinned(module, sampler).state_dict(), thinned(module, sampler, compensate=False).state_dict()
    changed = {name for name, value in on.items() if not torch.equal(value, without[name])}
    assert changed == {"two.weight", "head.weight", "head.bias"}  # what loses inputs; not the depthwise


def test_what_is_pruned_stays_zero() -> None:
    """The first removal is before the first step, when ConstantPruningModifier has not looked for zeros yet."""
    module = Net().eval()
    with torch.no_grad():
        module.two.weight[:, :, 0] = 0.0
    sampler = {"data_loader_builder": batches, "loss_function": cross_entropy}
    on, without = (thinned(module, sampler, compensate=refits).get_parameter("two.weight") for refits in (True, False))
    assert not on[:, :, 0].any()
    assert not torch.equal(on[:, :, 1:], without[:, :, 1:])


def test_a_channel_that_others_can_replace_is_not_missed() -> None:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        for layer in (module.one, module.two):
            layer.weight[8:] = layer.weight[:8] * 0.5  # smaller copies: those go
        module.one.bias[8:] = module.one.bias[:8] * 0.5
        module.norm.running_mean.zero_()
        module.deep.weight[8:], module.deep.bias[8:] = module.deep.weight[:8], module.deep.bias[:8]
        images = torch.randn(16, 3, 8, 8)
        dense = module(images)
        sampler = {"data_loader_builder": batches, "loss_function": cross_entropy}
        got = thinned(module, sampler)(images)
    assert float((got - dense).norm() / dense.norm()) < 0.03
