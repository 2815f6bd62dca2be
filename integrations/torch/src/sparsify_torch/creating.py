"""Write a recipe for a training loop of one's own, from a level."""

from __future__ import annotations

from typing import Any

from sparsify import RequestError, target_sparsity
from torch import nn
from torch.optim import Optimizer

from sparsify_torch.distillation import DistillationModifier
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.gradual_pruning import GlobalMagnitudePruningModifier, MagnitudePruningModifier
from sparsify_torch.learning_rate import LearningRateFunctionModifier
from sparsify_torch.manager import ScheduledModifierManager
from sparsify_torch.quantization import QuantizationModifier
from sparsify_torch.recipe import FIRST_SPARSITY, HARDNESS, PRUNED_BY, TEMPERATURE, UPDATES, part, quantizing
from sparsify_torch.structures import parse_mask_type


def create(
    model: nn.Module,
    optimizer: Optimizer,
    steps_per_epoch: int,
    optim_level: float = 0.5,
    *,
    epochs: int = 20,
    mask_type: str = "unstructured",
    quantization: bool = True,
    distillation_teacher: nn.Module | str = "disable",
    **modify: Any,
) -> tuple[Any, ScheduledModifierManager]:
    """Return the wrapped optimizer and the manager of a recipe that is written for this level.

    optim_level: 0–1; below 0.3 nothing is pruned, then 60 % to 95 % of the prunable weights (0.5 → 70 %), gradually
    over the first 40 % of the epochs. quantization: the last fifth simulates INT8, but at level 0. The learning rate
    falls linearly from the optimizer's own to zero. With a teacher (a module or "self") it distils. modify: further
    arguments of manager.modify. Raises RequestError for a level outside 0–1 and for a model without prunable weights.
    """
    if not 0 <= optim_level <= 1:
        raise RequestError(f"optim_level {optim_level:g} is no level", fix="give 0 to 1, such as 0.5")
    if epochs < 1:
        raise RequestError(f"epochs is {epochs}", fix="give how many epochs to train, at least 1")
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    modifiers: list[Any] = [EpochRangeModifier(start_epoch=0, end_epoch=epochs)]
    modifiers += [
        LearningRateFunctionModifier(
            lr_func="linear", init_lr=rate, final_lr=0.0, start_epoch=0, end_epoch=epochs, param_groups=(index,)
        )
        for index, rate in enumerate(rates)
        if rate <= 1
    ]
    sparsity = target_sparsity(optim_level, "training-aware")
    if sparsity > 0:
        modifiers.append(_pruning(sparsity, epochs, steps_per_epoch, mask_type))
    if quantization and optim_level > 0:
        modifiers.append(QuantizationModifier(**quantizing(epochs)))
    if distillation_teacher != "disable":
        modifiers.append(DistillationModifier(hardness=HARDNESS, temperature=TEMPERATURE))
    manager = ScheduledModifierManager(modifiers)
    wrapped = manager.modify(model, optimizer, steps_per_epoch, distillation_teacher=distillation_teacher, **modify)
    return wrapped, manager


def _pruning(sparsity: float, epochs: int, steps_per_epoch: int, mask_type: str) -> Any:
    share = parse_mask_type(mask_type).share
    fields = {
        "init_sparsity": FIRST_SPARSITY,
        "final_sparsity": sparsity if share is None else share,
        "start_epoch": 0.0,
        "end_epoch": part(epochs, PRUNED_BY),
        "update_frequency": max(part(epochs, PRUNED_BY / UPDATES), 1 / steps_per_epoch),
        "params": ("__ALL_PRUNABLE__",),
        "mask_type": mask_type,
    }
    kind = GlobalMagnitudePruningModifier if share is None else MagnitudePruningModifier
    return kind(**fields)
