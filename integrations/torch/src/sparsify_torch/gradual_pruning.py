"""Offer the gradual pruning modifiers: magnitude by layer or over all, and movement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, model_validator
from torch import Tensor, nn

from sparsify_torch.interpolation import Curve, interpolate, progress
from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.options import FROZEN, AlwaysTrue, Ending, Epoch, First, Frequency, MaskType, Names, Shares
from sparsify_torch.pruned_groups import Group, check_final, check_init, follow_weights, prune, resolve_groups
from sparsify_torch.structures import parse_mask_type
from sparsify_torch.weights import Weight, check_finite

MOVEMENT_RATE = 0.01  # scales all scores alike and so chooses the same weights; the field's recipes mean this one


class Gradual(BaseModel):
    """Raise the sparsity from init_sparsity to final_sparsity along inter_func, every update_frequency epochs.

    init_sparsity: 0–1, or `__FROM_PARAM__` for each weight's own. final_sparsity: 0–1, or {sparsity: [params]} with
    `params: []`. leave_enabled: whether the masks hold after end_epoch.
    """

    model_config = FROZEN

    init_sparsity: First
    final_sparsity: Shares
    start_epoch: Epoch
    end_epoch: Ending
    update_frequency: Frequency
    params: Names
    leave_enabled: bool = True
    inter_func: Curve = "cubic"
    mask_type: MaskType = "unstructured"

    @model_validator(mode="after")
    def _check_shares(self) -> Gradual:
        check_init(self.init_sparsity, self.final_sparsity)
        check_final(self.final_sparsity, self.params, self.mask_type)
        return self


class GMPruningModifier(Gradual):
    """Prune the smallest weights gradually (Zhu & Gupta 2017), of each weight or, with global_sparsity, of all."""

    leave_enabled: AlwaysTrue = True
    global_sparsity: bool = False
    phased: Literal[False] = False
    score_type: Literal["magnitude"] = "magnitude"

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return GradualPart(self, loop, together=self.global_sparsity)


class MagnitudePruningModifier(Gradual):
    """Prune the smallest weights of each layer gradually (Zhu & Gupta 2017)."""

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return GradualPart(self, loop)


class GlobalMagnitudePruningModifier(Gradual):
    """Prune the smallest weights of all layers taken together, gradually (Zhu & Gupta 2017; Blalock et al. 2020)."""

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return GradualPart(self, loop, together=True)


class MovementPruningModifier(Gradual):
    """Prune the weights that move towards zero: the score is −Σ gradient · weight (Sanh et al. 2020).

    The paper keeps pruned weights and may take them back; here they are zero, so that masks only grow, as in the
    field's recipes. Where no step was seen yet, the gradient at hand decides.
    """

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return GradualPart(self, loop, movement=True)


class GradualPart(Part):
    """Choose masks by score. scores: of movement, by weight name."""

    def __init__(self, options: Gradual, loop: Loop, *, together: bool = False, movement: bool = False) -> None:
        self.options, self.loop, self.together, self.movement = options, loop, together, movement
        self.name = type(options).__name__
        self.structure = parse_mask_type(options.mask_type)
        self.groups: list[Group] = resolve_groups(loop.module, options, self.name)
        self.claims = frozenset(f"pruning of {weight.name}" for group in self.groups for weight in group.weights)
        self.scores: dict[str, Tensor] = {}
        self.counted = False  # whether the scores hold this step's gradients already

    def update(self, epoch: float) -> None:
        """Prune to the sparsity of this epoch; raises StageError for weights that are not finite."""
        if self.movement and not self.scores:
            self._accumulate()
        done = progress(epoch, self.options.start_epoch, self.options.end_epoch)
        for group in self.groups:
            for weights in [group.weights] if self.together else [(weight,) for weight in group.weights]:
                first = group.first(weights)
                sparsity = interpolate(self.options.inter_func, done, first, group.final)
                scores = [self._score(weight, epoch) for weight in weights]
                prune(self.loop, self.name, weights, scores, sparsity, self.structure)
        self.loop.log(f"{self.name}/progress", done, epoch)

    def before_step(self) -> None:
        """Add this step's movement."""
        if self.movement and not self.counted:
            self._accumulate()
        self.counted = False

    def end(self, epoch: float) -> None:
        """Let the masks go, where they are not to stay."""
        if not self.options.leave_enabled:
            self.loop.masks.release([weight.name for group in self.groups for weight in group.weights], self.name)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores of movement, and where `__FROM_PARAM__` began."""
        return {"scores": dict(self.scores), "first": [dict(group.measured) for group in self.groups]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them over."""
        devices = {weight.name: weight.parameter.device for group in self.groups for weight in group.weights}
        self.scores = {name: score.to(devices[name]) for name, score in state["scores"].items()}
        for group, measured in zip(self.groups, state["first"], strict=True):
            group.measured.update(measured)

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        for name in follow_weights(self.groups, old, new):
            if name in self.scores:
                self.scores[name] = carry(self.scores[name])

    def _score(self, weight: Weight, epoch: float) -> Tensor:
        check_finite(weight, self.name, epoch)
        return weight.to_matrix(self.scores[weight.name]) if self.movement else weight.magnitudes()

    @torch.no_grad()
    def _accumulate(self) -> None:
        for group in self.groups:
            for weight in group.weights:
                gradient, value = weight.parameter.grad, weight.parameter
                moved = torch.zeros_like(value) if gradient is None else -MOVEMENT_RATE * gradient * value
                self.scores[weight.name] = self.scores[weight.name].add_(moved) if weight.name in self.scores else moved
        self.counted = True
