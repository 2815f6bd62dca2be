"""Small models, data and one training loop for the tests of modifiers; one example of every modifier's options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sparsify_torch import ScheduledModifierManager
from sparsify_torch.acdc_pruning import ACDCPruningModifier
from sparsify_torch.constant_pruning import ConstantPruningModifier
from sparsify_torch.distillation import DistillationModifier
from sparsify_torch.epochs import EpochRangeModifier, SparsificationLoggingModifier
from sparsify_torch.gradual_pruning import (
    GlobalMagnitudePruningModifier,
    GMPruningModifier,
    MagnitudePruningModifier,
    MovementPruningModifier,
)
from sparsify_torch.layer_distillation import PerLayerDistillationModifier
from sparsify_torch.learning_rate import LearningRateFunctionModifier, LearningRateModifier, SetLearningRateModifier
from sparsify_torch.obs_pruning import OBSPruningModifier
from sparsify_torch.parameter_groups import SetWeightDecayModifier
from sparsify_torch.parameters import GradualParamModifier, SetParamModifier, TrainableParamsModifier
from sparsify_torch.rigl_pruning import RigLPruningModifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

STEPS = 4
PRUNABLE = ("features.2.weight", "features.5.weight")


class Net(nn.Module):
    """First and last layer, two convolutions between, a depthwise one, norms."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 12, 1),
        )
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def net(seed: int = 0, **given: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**given)


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 2, 5, 5, generator=made), torch.randint(0, 3, (6,), generator=made)) for _ in range(count)]


def sampler() -> dict[str, Any]:
    def build(**keywords: Any) -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(5, seed=keywords.get("seed", 7))

    return {"data_loader_builder": build, "loss_function": cross_entropy}


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=1e-2, amsgrad=True)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {"sgd": sgd, "adam": adam, "adamw": adamw}


def attach(modifiers: list[Any], module: nn.Module, optimizer: torch.optim.Optimizer, **modify: Any) -> Any:
    """Return manager and wrapped optimizer."""
    manager = ScheduledModifierManager(modifiers)
    modify = {"grad_sampler": sampler(), "distillation_teacher": "self"} | modify
    return manager, manager.modify(module, optimizer, modify.pop("steps_per_epoch", STEPS), **modify)


def train(
    module: nn.Module,
    optimizer: Any,
    data: list[tuple[Tensor, Tensor]],
    each: Callable[[int], None] = lambda step: None,
) -> None:
    """Train one step a batch; `each` looks after every step."""
    for step, (inputs, targets) in enumerate(data):
        loss = optimizer.loss_update(cross_entropy(module(inputs), targets))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        each(step)


def sparsity(parameter: Tensor) -> float:
    return float((parameter.detach() == 0).double().mean())


SPAN: dict[str, Any] = {"start_epoch": 0.5, "end_epoch": 2.5, "update_frequency": 0.5}
GRADUAL: dict[str, Any] = {**SPAN, "init_sparsity": 0.1, "final_sparsity": 0.7, "params": ["__ALL_PRUNABLE__"]}
EVERY: dict[str, list[Any]] = {
    "epoch_range": [EpochRangeModifier(start_epoch=0, end_epoch=3)],
    "set_lr": [SetLearningRateModifier(learning_rate=0.02, start_epoch=1)],
    "lr": [
        LearningRateModifier(lr_class="StepLR", lr_kwargs={"step_size": 1, "gamma": 0.5}, init_lr=0.1, start_epoch=0)
    ],
    "lr_milestones": [
        LearningRateModifier(
            lr_class="MultiStepLR", lr_kwargs={"milestones": [1, 2], "gamma": 0.1}, init_lr=0.1, start_epoch=0
        )
    ],
    "lr_function": [
        LearningRateFunctionModifier(lr_func="cosine", init_lr="1e-1", final_lr="1e-7", start_epoch=0, end_epoch=3)
    ],
    "weight_decay": [SetWeightDecayModifier(weight_decay=0.0, start_epoch=1.25)],
    "trainable": [TrainableParamsModifier(params="re:features.0.*", trainable=False, start_epoch=0.5, end_epoch=1.5)],
    "set_param": [SetParamModifier(params="head.bias", val=[0.1, 0.2, 0.3], start_epoch=1)],
    "gradual_param": [
        GradualParamModifier(params=["head.bias"], init_val=0.0, final_val=1.0, inter_func="cubic", **SPAN)
    ],
    "constant": [ConstantPruningModifier(params="__ALL__", start_epoch=0.0)],
    "gm": [GMPruningModifier(**GRADUAL)],
    "gm_mapping": [
        GMPruningModifier(
            **{**GRADUAL, "params": [], "final_sparsity": {0.5: [PRUNABLE[0]], 0.75: [PRUNABLE[1], "head"]}}
        )
    ],
    "gm_from_param": [GMPruningModifier(**{**GRADUAL, "init_sparsity": "__FROM_PARAM__"}, global_sparsity=True)],
    "magnitude": [MagnitudePruningModifier(**GRADUAL, mask_type="block4", inter_func="linear")],
    "global_magnitude": [GlobalMagnitudePruningModifier(**GRADUAL, leave_enabled=False)],
    "movement": [MovementPruningModifier(**GRADUAL, mask_type=[1, 2])],
    "obs": [OBSPruningModifier(**GRADUAL, num_grads=6, fisher_block_size=8, damp="1e-4", num_recomputations=2)],
    "obs_block4": [OBSPruningModifier(**GRADUAL, num_grads=6, fisher_block_size=8, damp=1e-4, mask_type="block4")],
    "acdc": [
        ACDCPruningModifier(
            compression_sparsity=0.7, start_epoch=0, end_epoch=3, update_frequency=1, params=["__ALL_PRUNABLE__"]
        )
    ],
    "rigl": [RigLPruningModifier(**{**SPAN, "final_sparsity": 0.6, "params": ["__ALL_PRUNABLE__"]})],
    "rigl_sampled": [
        RigLPruningModifier(
            **{**SPAN, "final_sparsity": 0.6, "params": ["__ALL_PRUNABLE__"]},
            num_grads=3,
            global_sparsity=True,
            sparsity_strategy="uniform",
            grad_sampler_kwargs={"seed": 3},
        )
    ],
    "distillation": [DistillationModifier(hardness=0.5, temperature=3.0, start_epoch=1)],
    "layer_distillation": [PerLayerDistillationModifier(gain=1.0, start_epoch=0.5, end_epoch=2.5)],
    "logging": [SparsificationLoggingModifier(start_epoch=0)],
}
