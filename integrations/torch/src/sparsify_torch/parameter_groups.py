"""Offer SetWeightDecayModifier, and look up the optimizer's parameter groups."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from sparsify import RequestError

from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Epoch, Groups


class SetWeightDecayModifier(BaseModel):
    """Set the optimizer's weight decay once, at start_epoch."""

    model_config = FROZEN

    weight_decay: float = Field(ge=0)
    start_epoch: Epoch = -1
    param_groups: Groups = None
    end_epoch: Epoch = -1
    constant_logging: bool = False

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for parameter groups that the optimizer lacks, or that know no weight decay."""
        return DecayPart(self, loop)


class DecayPart(Part):
    """Write a weight decay into parameter groups."""

    once = yields = True

    def __init__(self, options: SetWeightDecayModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.logged = False
        self.claims = claim_groups(loop, options.param_groups, "weight_decay", "SetWeightDecayModifier")

    def start(self, epoch: float) -> None:
        """Write it."""
        for group in self.loop.groups(self.options.param_groups):
            group["weight_decay"] = self.options.weight_decay

    def update(self, epoch: float) -> None:
        """Log it, with constant_logging at every step."""
        if self.options.constant_logging or not self.logged:
            self.loop.log("weight_decay", self.options.weight_decay, epoch)
        self.logged = True


def claim_groups(loop: Loop, wanted: tuple[int, ...] | None, what: str, modifier: str) -> frozenset[str]:
    """Return the claims on these parameter groups; raises RequestError where the optimizer lacks one."""
    groups: list[dict[str, Any]] = loop.optimizer.param_groups
    chosen = range(len(groups)) if wanted is None else wanted
    for index in chosen:
        if not 0 <= index < len(groups):
            problem = f"{modifier}, field 'param_groups': there is no group {index}, the optimizer has {len(groups)}"
            raise RequestError(problem, fix=f"give indices from 0 to {len(groups) - 1}")
        key = "lr" if what == "learning rate" else what
        if key not in groups[index]:
            problem = f"{modifier}: {type(loop.optimizer).__name__} has no {what}"
            raise RequestError(problem, fix=f"remove {modifier}, or use another optimizer")
    return frozenset(f"{what} of group {index}" for index in chosen)
