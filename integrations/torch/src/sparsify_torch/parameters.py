"""Offer the modifiers that set parameters: which train, a constant, a value that moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from sparsify import RequestError
from torch import nn

from sparsify_torch.interpolation import Curve, interpolate, progress
from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, Frequency, Names
from sparsify_torch.weights import select_parameters


class TrainableParamsModifier(BaseModel):
    """Switch training of parameters on or off; what they were comes back at end_epoch, where one is set."""

    model_config = FROZEN

    params: Names
    trainable: bool
    params_strict: bool = True
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for a pattern without match, unless params_strict is off."""
        name = "TrainableParamsModifier"
        return TrainablePart(self, select_parameters(loop.module, self.params, name, strict=self.params_strict))


class SetParamModifier(BaseModel):
    """Write a constant into parameters once, at start_epoch."""

    model_config = FROZEN

    params: Names
    val: float | tuple[float, ...]
    params_strict: bool = True
    start_epoch: Epoch = 0
    end_epoch: Epoch = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for a pattern without match, and for a list of another length than a parameter's."""
        name = "SetParamModifier"
        found = select_parameters(loop.module, self.params, name, strict=self.params_strict)
        for one, parameter in found.items():
            if isinstance(self.val, tuple) and len(self.val) != parameter.numel():
                problem = f"{name}, field 'val': {len(self.val)} values for '{one}', which has {parameter.numel()}"
                raise RequestError(problem, fix="give one number, or as many as the parameter has")
        return ValuePart(loop, found, lambda epoch: self.val, once=True)


class GradualParamModifier(BaseModel):
    """Move parameters from init_val to final_val, every update_frequency epochs."""

    model_config = FROZEN

    params: Names
    init_val: float
    final_val: float
    start_epoch: Epoch
    end_epoch: Ending
    update_frequency: Frequency
    inter_func: Curve = "linear"
    params_strict: bool = True

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for a pattern without match, unless params_strict is off."""
        found = select_parameters(loop.module, self.params, "GradualParamModifier", strict=self.params_strict)
        return ValuePart(loop, found, self.value)

    def value(self, epoch: float) -> float:
        """Return the value at an epoch."""
        done = progress(epoch, self.start_epoch, self.end_epoch)
        return interpolate(self.inter_func, done, self.init_val, self.final_val)


class TrainablePart(Part):
    """Remember what was trainable before."""

    between_steps = True
    yields = True

    def __init__(self, options: TrainableParamsModifier, parameters: Mapping[str, nn.Parameter]) -> None:
        self.options, self.parameters = options, dict(parameters)
        self.before: dict[str, bool] = {}
        self.claims = frozenset(f"training of {name}" for name in parameters)

    def start(self, epoch: float) -> None:
        """Switch; a gradient that is there already would still be applied, so it goes."""
        self.before = {name: parameter.requires_grad for name, parameter in self.parameters.items()}
        self._switch(dict.fromkeys(self.before, self.options.trainable))

    def end(self, epoch: float) -> None:
        """Switch back."""
        self._switch(self.before)

    def release(self, claims: frozenset[str]) -> None:
        """Leave these as another has switched them, at the end too."""
        for name in [name for name in self.parameters if f"training of {name}" in claims]:
            del self.parameters[name]
            self.before.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Return what was trainable before, and what is now."""
        now = {name: parameter.requires_grad for name, parameter in self.parameters.items()}
        return {"before": dict(self.before), "now": now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Switch as it was."""
        self.before = dict(state["before"])
        self._switch(state["now"])

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        follow(self.parameters, old, new)

    def _switch(self, trainable: Mapping[str, bool]) -> None:
        for name, on in trainable.items():
            if name in self.parameters:
                self.parameters[name].requires_grad_(on)
                if not on:
                    self.parameters[name].grad = None


class ValuePart(Part):
    """Write a value into parameters; with `once`, never again after the start."""

    yields = True

    def __init__(self, loop: Loop, parameters: Mapping[str, nn.Parameter], value: Any, *, once: bool = False) -> None:
        self.loop, self.parameters, self.value, self.once = loop, dict(parameters), value, once
        self.claims = frozenset(f"value of {name}" for name in parameters)

    def start(self, epoch: float) -> None:
        """Write the first value."""
        self._write(self.value(epoch))

    def update(self, epoch: float) -> None:
        """Write the value of this epoch."""
        if not self.once:
            self._write(self.value(epoch))

    def release(self, claims: frozenset[str]) -> None:
        """Write these no more."""
        for name in [name for name in self.parameters if f"value of {name}" in claims]:
            del self.parameters[name]

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        follow(self.parameters, old, new)

    @torch.no_grad()
    def _write(self, value: float | tuple[float, ...]) -> None:
        for parameter in self.parameters.values():
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand(parameter.numel()).view_as(parameter))
        self.loop.masks.mask_weights()


def follow(parameters: dict[str, nn.Parameter], old: nn.Parameter, new: nn.Parameter | None) -> None:
    """Replace a parameter in a mapping by name, or take it out."""
    for name in [name for name, parameter in parameters.items() if parameter is old]:
        if new is None:
            del parameters[name]
        else:
            parameters[name] = new
