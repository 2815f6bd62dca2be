"""Offer RigLPruningModifier: training sparse from the start, dropping small weights and growing promising ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from sparsify_torch.gradients import check_sampler, sample_gradients
from sparsify_torch.interpolation import progress
from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, Frequency, MaskType, Names, Share
from sparsify_torch.pruned_groups import Group, check_final, follow_weights, prune
from sparsify_torch.structures import expand_units, parse_mask_type, unit_scores
from sparsify_torch.weights import Weight, check_finite, select_weights

NAME = "RigLPruningModifier"
Strategy = Literal["uniform", "erdos_renyi", "erdos_renyi_kernel"]


class RigLPruningModifier(BaseModel):
    """Train at a fixed sparsity, moving it: RigL (Evci et al. 2020).

    Every update_frequency epochs the smallest init_update_fraction/2·(1 + cos πt) of each layer's weights go, and as
    many with the largest gradients come, from zero. Begins with the largest weights. sparsity_strategy: how layers
    share it; Erdős–Rényi leaves small layers denser (Mocanu et al. 2018). num_grads: above 1, average that many of
    grad_sampler. momentum_buffer_reset: give new weights fresh optimizer state.
    """

    model_config = FROZEN

    final_sparsity: Share
    start_epoch: Epoch
    end_epoch: Ending
    update_frequency: Frequency
    params: Names
    num_grads: int = Field(1, ge=1)
    leave_enabled: bool = True
    global_sparsity: bool = False
    momentum_buffer_reset: bool = True
    mask_type: MaskType = "unstructured"
    sparsity_strategy: Strategy = "erdos_renyi_kernel"
    init_update_fraction: Share = 0.3
    grad_sampler_kwargs: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RigLPruningModifier:
        check_final(self.final_sparsity, self.params, self.mask_type)
        if parse_mask_type(self.mask_type).keep:
            raise ValueError(f"mask_type {self.mask_type}: weights cannot grow within N:M; give unstructured or [r, c]")
        return self

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match, and where several gradients have no grad_sampler."""
        if self.num_grads > 1:
            check_sampler(loop, NAME)
        return RigLPart(self, loop)

    def fraction(self, epoch: float) -> float:
        """Return the share of the weights that stay which an update moves."""
        done = progress(epoch, self.start_epoch, self.end_epoch)
        return self.init_update_fraction / 2 * (1 + math.cos(math.pi * done))


class RigLPart(Part):
    """Drop and grow."""

    def __init__(self, options: RigLPruningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.structure = parse_mask_type(options.mask_type)
        self.group = Group(select_weights(loop.module, options.params, NAME), 0.0, options.final_sparsity)
        self.claims = frozenset(
            f"{what} of {weight.name}" for weight in self.group.weights for what in ("pruning", "zeros")
        )
        self.began = -1.0

    def start(self, epoch: float) -> None:
        """Spread the sparsity over the layers and keep the largest weights of each."""
        self.began = epoch
        weights, options = self.group.weights, self.options
        self.loop.masks.release([weight.name for weight in weights])
        if options.global_sparsity:
            prune(self.loop, NAME, weights, [one.magnitudes() for one in weights], self.group.final, self.structure)
            return
        shapes = [tuple(weight.parameter.shape) for weight in weights]
        shares = densities(shapes, options.final_sparsity, options.sparsity_strategy)
        for weight, density in zip(weights, shares, strict=True):
            prune(self.loop, NAME, [weight], [weight.magnitudes()], 1 - density, self.structure)

    def update(self, epoch: float) -> None:
        """Move weights; raises StageError for weights that are not finite."""
        if epoch == self.began:
            return
        weights, gradients = self.group.weights, self._gradients()
        for weight in weights:
            check_finite(weight, NAME, epoch)
        before = {weight.name: self.loop.masks.kept(weight.name) for weight in weights}
        for some in [range(len(weights))] if self.options.global_sparsity else [[i] for i in range(len(weights))]:
            self._move([weights[i] for i in some], [gradients[i] for i in some], self.options.fraction(epoch))
        if self.options.momentum_buffer_reset:
            for weight, gradient in zip(weights, gradients, strict=True):
                grown = self.loop.masks.kept(weight.name) & ~before[weight.name]
                renew(self.loop.optimizer, weight.parameter, grown, gradient)

    def end(self, epoch: float) -> None:
        """Let the masks go, where they are not to stay."""
        if not self.options.leave_enabled:
            self.loop.masks.release([weight.name for weight in self.group.weights], NAME)

    def state_dict(self) -> dict[str, Any]:
        """Return when it began; the masks are the loop's."""
        return {"began": self.began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self.began = state["began"]

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        follow_weights([self.group], old, new)

    def _gradients(self) -> list[Tensor]:
        options, parameters = self.options, [weight.parameter for weight in self.group.weights]
        if options.num_grads == 1:
            return [torch.zeros_like(one) if one.grad is None else one.grad.detach().clone() for one in parameters]
        total = [torch.zeros_like(one) for one in parameters]
        for found in sample_gradients(self.loop, parameters, options.num_grads, options.grad_sampler_kwargs, NAME):
            for one, gradient in zip(total, found, strict=True):
                one.add_(gradient / options.num_grads)
        return total

    def _move(self, weights: Sequence[Weight], gradients: Sequence[Tensor], fraction: float) -> None:
        """Move within these weights taken together."""
        sizes = [unit_scores(weight.magnitudes(), self.structure) for weight in weights]
        kept = [unit_scores(weight.to_matrix(self.loop.masks.kept(weight.name)), self.structure) for weight in weights]
        wanted = [
            unit_scores(weight.to_matrix(gradient.abs()), self.structure)
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        moved = drop_and_grow(flat(sizes), flat(wanted), flat(kept) > 0, fraction)
        parts = torch.split(moved, [one.numel() for one in sizes])
        self.loop.masks.put(
            NAME,
            [
                (weight, weight.from_matrix(expand_units(part.view(one.shape), weight.magnitudes(), self.structure)))
                for weight, part, one in zip(weights, parts, sizes, strict=True)
            ],
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors end to end."""
    return torch.cat([one.flatten() for one in tensors])


def drop_and_grow(sizes: Tensor, gradients: Tensor, kept: Tensor, fraction: float) -> Tensor:
    """Return which stay: the smallest fraction of `kept` goes, as many with the largest gradients come.

    What just went may come back. Equal values go and come in their order.
    """
    count = round(fraction * int(kept.sum()))
    if not count:
        return kept
    after = kept.clone()
    after[sizes.masked_fill(~kept, torch.inf).argsort(stable=True)[:count]] = False
    able = gradients.masked_fill(after, -torch.inf)
    after[able.argsort(descending=True, stable=True)[:count]] = True
    return after


def densities(shapes: Sequence[tuple[int, ...]], sparsity: float, strategy: Strategy) -> list[float]:
    """Return each layer's share of weights that stay, together 1 − sparsity of all.

    Erdős–Rényi: in proportion to (inputs + outputs) ÷ (inputs · outputs), with the kernel's sides where that counts;
    layers that would need more than all their weights stay dense.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if strategy == "uniform":
        return [1 - sparsity] * len(shapes)
    sides = [shape if strategy == "erdos_renyi_kernel" else shape[:2] for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in sides]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        budget = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        scale = budget / sum(raw[i] * sizes[i] for i in free) if free else 0.0
        full = {i for i in free if raw[i] * scale > 1}
        if not full:
            return [1.0 if i in dense else raw[i] * scale for i in range(len(shapes))]
        dense |= full


@torch.no_grad()
def renew(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, grown: Tensor, gradient: Tensor) -> None:
    """Give new weights the optimizer state of a first step.

    Momentum is zero. Adam's second moment is not: with zeros, and its bias correction long over, the first update
    would be √(1/(1−β₂)) · (1−β₁), about three times the learning rate. It becomes what, corrected, is the square of
    the gradient at hand, (1 − β₂ᵗ) g².
    """
    state = optimizer.state.get(parameter, {})
    for name in ("momentum_buffer", "exp_avg"):
        if state.get(name) is not None:
            state[name][grown] = 0
    if state.get("exp_avg_sq") is None:
        return
    beta = next(
        (group["betas"][1] for group in optimizer.param_groups if any(one is parameter for one in group["params"])),
        0.999,
    )
    second = (1 - beta ** float(state.get("step", 1))) * gradient.to(state["exp_avg_sq"].dtype) ** 2
    for name in ("exp_avg_sq", "max_exp_avg_sq"):
        if state.get(name) is not None:
            state[name][grown] = second[grown]
