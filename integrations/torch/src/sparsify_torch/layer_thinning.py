"""Offer LayerThinningModifier: take out of the module the filters and channels that are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from sparsify import StageError

from sparsify_torch.channels import macs
from sparsify_torch.coupling import Coupling, couple
from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Epoch
from sparsify_torch.removal import describe_removal
from sparsify_torch.restructuring import agreed, followed, restructure
from sparsify_torch.schedule import NEAR
from sparsify_torch.thinning import check_removal, cost_of, failing_groups

NAME = "LayerThinningModifier"


class LayerThinningModifier(BaseModel):
    """Take out the filters (structure_type `filter`) or channels whose weights are all zero, in every layer of theirs.

    It acts at start_epoch, at each of update_epochs, and at end_epoch. What biases and norms made of a zero goes with
    it, for training to make up. What depends on what is found by tracing: a param_group_dependency_map is not needed.
    strict: a layer whose zeros cannot go is an error, not left as it is.
    """

    model_config = FROZEN

    param_group_dependency_map: str | dict[str, Any] | None = None
    structure_type: Literal["filter", "channel"] = "filter"
    start_epoch: Epoch = -1
    update_epochs: tuple[float, ...] | None = None
    strict: bool = True
    end_epoch: Epoch = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError without example inputs."""
        return ThinningPart(self, loop)


class ThinningPart(Part):
    """Look for zeros when an epoch has come. acted: the latest epoch of the options that was acted on."""

    between_steps: ClassVar[bool] = True

    def __init__(self, options: LayerThinningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        _, self.inputs = followed(loop, NAME)
        ends = (options.end_epoch,) if options.end_epoch >= 0 else ()
        self.epochs = sorted({options.start_epoch, *(options.update_epochs or ()), *ends})
        self.acted = -2.0

    def update(self, epoch: float) -> None:
        """Take out what is zero, where an epoch has come; raises StageError where strict and something must stay."""
        due = max((one for one in self.epochs if one <= epoch + NEAR), default=-2.0)
        if due <= self.acted:
            return
        self.acted = due
        module = self.loop.module
        coupling = couple(module, self.inputs)
        dead = zero_units(dict(module.named_parameters()), coupling, self.options.structure_type)
        failing = failing_groups(module, coupling, self.inputs)
        units = [unit for place, found in dead.items() if place not in failing for unit in found]
        stuck = next((place for place in dead if place in failing), None)
        if self.options.strict and stuck is not None:
            problem = f"{NAME}: the zeros of '{coupling.groups[stuck].name}' cannot go: {failing[stuck]}"
            raise StageError(problem, fix="set `strict: false` to leave such layers as they are")
        units = agreed(units, next(module.parameters()).device)
        if units:
            check_removal(module, coupling, units, self.inputs)
            restructure(self.loop, describe_removal(module, coupling, units))
        self.loop.log(f"{NAME}/macs", cost_of(coupling, macs, units) / cost_of(coupling, macs), epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what was acted on."""
        return {"acted": self.acted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self.acted = state["acted"]


def zero_units(state: Mapping[str, torch.Tensor], coupling: Coupling, kind: str) -> dict[int, list[int]]:
    """Return by group the units whose weights are zero wherever they are made (`filter`) or read; one stays."""
    role, found = ("out" if kind == "filter" else "in"), {}
    for place, group in enumerate(coupling.groups):
        axes = [axis for axis in group.share if coupling.roles[axis] == role and state[axis[0]].ndim > 1]
        alive = {unit for axis in axes for unit in _alive(state[axis[0]], axis[1], coupling, axis)}
        dead = [unit for unit in group.units if unit not in alive] if axes else []
        if dead:
            found[place] = dead[len(dead) == len(group.units) :]
    return {place: dead for place, dead in found.items() if dead}


def _alive(weight: torch.Tensor, dim: int, coupling: Coupling, axis: tuple[str, int]) -> list[int]:
    whole = weight.detach().movedim(dim, 0).flatten(1).ne(0).any(1).cpu()
    living: list[int] = coupling.axes[axis][whole].tolist()
    return living
