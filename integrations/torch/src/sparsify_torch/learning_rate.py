"""Offer the learning rate modifiers: set it once, schedules by class, and functions of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from sparsify_torch.interpolation import progress
from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, EveryStep, Groups
from sparsify_torch.parameter_groups import claim_groups

Rate = Annotated[float, Field(ge=0, le=1)]
InitialRate = Annotated[float, Field(gt=0, le=1)]
RateAt = Callable[[float], float]

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "StepLR": ("step_size", "gamma"),
    "MultiStepLR": ("milestones", "gamma"),
    "ExponentialLR": ("gamma",),
    "CosineAnnealingWarmRestarts": ("lr_min", "cycle_epochs"),
}


class SetLearningRateModifier(BaseModel):
    """Set the learning rate once, at start_epoch."""

    model_config = FROZEN

    learning_rate: InitialRate
    param_groups: Groups = None
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    constant_logging: bool = False

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for parameter groups that the optimizer lacks."""
        rate = self.learning_rate
        part = RatePart(loop, self.param_groups, "SetLearningRateModifier", lambda epoch: rate, self.constant_logging)
        part.once = True
        return part


class LearningRateFunctionModifier(BaseModel):
    """Move the learning rate from init_lr to final_lr, at every step.

    linear; cosine (half a period, Loshchilov & Hutter 2017); cyclic_linear: linear again in each cycle_epochs, then
    rewound to init_lr (Renda et al. 2020).
    """

    model_config = FROZEN

    lr_func: Literal["linear", "cosine", "cyclic_linear"]
    init_lr: Rate
    final_lr: Rate
    start_epoch: Epoch
    end_epoch: Ending
    cycle_epochs: float = Field(1.0, gt=0)
    param_groups: Groups = None
    update_frequency: EveryStep = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for parameter groups that the optimizer lacks."""
        return RatePart(loop, self.param_groups, "LearningRateFunctionModifier", self.rate)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at an epoch."""
        done = progress(epoch, self.start_epoch, self.end_epoch)
        if self.lr_func == "cosine":
            return self.final_lr + (self.init_lr - self.final_lr) * (1 + math.cos(math.pi * done)) / 2
        if self.lr_func == "cyclic_linear" and done < 1:
            passed = (epoch - max(self.start_epoch, 0.0)) / self.cycle_epochs + 1e-9  # 0.3 / 0.1 is 2.9999999999999996
            done = max(passed % 1.0 - 1e-9, 0.0)
        return self.init_lr + (self.final_lr - self.init_lr) * done


class LearningRateModifier(BaseModel):
    """Schedule the learning rate as PyTorch's classes of these names do, in epochs.

    StepLR(step_size, gamma), ExponentialLR(gamma) and CosineAnnealingWarmRestarts(lr_min, cycle_epochs) count from
    start_epoch; MultiStepLR(milestones, gamma) takes milestones as epochs of the recipe. The cosine moves at every
    step, the others by whole steps.
    """

    model_config = FROZEN

    lr_class: Literal["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts"]
    lr_kwargs: Mapping[str, float | tuple[float, ...]]
    init_lr: InitialRate
    start_epoch: Epoch
    end_epoch: Epoch = -1
    update_frequency: EveryStep = -1
    constant_logging: bool = False

    @model_validator(mode="after")
    def _check_keywords(self) -> LearningRateModifier:
        expected = KEYWORDS[self.lr_class]
        if set(self.lr_kwargs) != set(expected):
            found = ", ".join(self.lr_kwargs) or "nothing"
            raise ValueError(f"lr_kwargs of {self.lr_class} are {' and '.join(expected)}, found {found}")
        for name, value in self.lr_kwargs.items():
            if isinstance(value, tuple) != (name == "milestones"):
                raise ValueError(f"lr_kwargs: {name} is {'a list' if name == 'milestones' else 'one number'}")
            if name in ("step_size", "cycle_epochs", "gamma") and not float(value) > 0:  # type: ignore[arg-type]
                raise ValueError(f"lr_kwargs: {name} must be above 0")
        return self

    def attach(self, loop: Loop) -> Part:
        """Never refuse; it sets all parameter groups."""
        return RatePart(loop, None, "LearningRateModifier", self.rate, self.constant_logging)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at an epoch."""
        given: Any = self.lr_kwargs
        passed = max(epoch - max(self.start_epoch, 0.0), 0.0) + 1e-9
        if self.lr_class == "CosineAnnealingWarmRestarts":
            turn = max(passed % given["cycle_epochs"] - 1e-9, 0.0) / given["cycle_epochs"]
            return float(given["lr_min"] + (self.init_lr - given["lr_min"]) * (1 + math.cos(math.pi * turn)) / 2)
        if self.lr_class == "MultiStepLR":
            drops = sum(epoch + 1e-9 >= milestone for milestone in given["milestones"])
        else:
            drops = int(passed // given.get("step_size", 1.0))
        return float(self.init_lr * given["gamma"] ** drops)


class RatePart(Part):
    """Write a learning rate into parameter groups; with `once`, never again after the start.

    Rates are logged when they change, or at every step with `constant`.
    """

    yields = True

    def __init__(
        self, loop: Loop, groups: tuple[int, ...] | None, modifier: str, rate: RateAt, constant: bool = False
    ) -> None:
        self.loop, self.groups, self.rate, self.constant = loop, groups, rate, constant
        self.logged = -1.0
        self.claims = claim_groups(loop, groups, "learning rate", modifier)

    def release(self, claims: frozenset[str]) -> None:
        """Keep to the other groups."""
        self.claims -= claims
        self.groups = tuple(int(claim.rpartition(" ")[2]) for claim in self.claims)

    def start(self, epoch: float) -> None:
        """Write the only rate, with `once`."""
        if self.once:
            self._write(self.rate(epoch))

    def update(self, epoch: float) -> None:
        """Write the rate of this epoch, and log it."""
        rate = self.rate(epoch)
        if not self.once:
            self._write(rate)
        if self.constant or rate != self.logged:
            self.loop.log("learning_rate", rate, epoch)
        self.logged = rate

    def _write(self, rate: float) -> None:
        for group in self.loop.groups(self.groups):
            if isinstance(group["lr"], Tensor):  # capturable optimizers
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
