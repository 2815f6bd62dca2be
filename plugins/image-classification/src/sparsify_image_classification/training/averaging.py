"""Average the weights over the steps of a training run (EMA; Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var")


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Copy a module's state; what is no tensor is a module's own extra state, as fake quantization has."""
    return {name: copied(value) for name, value in module.state_dict().items()}


def copied(value: Any) -> Any:
    """Copy one value of a state."""
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


class Average:
    """Hold an exponential moving average of a module's parameters and norm statistics; other buffers are copied.

    Early on the decay is (1 + steps) / (10 + steps), so that the first weights are soon forgotten. What changes its
    shape or comes new begins anew.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors: dict[str, Any] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's weights of this step in."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averaged = {name for name, _ in module.named_parameters()}
        state = module.state_dict()
        for name, value in state.items():
            held = self.tensors.get(name)
            moves = isinstance(value, Tensor) and value.is_floating_point()
            moves = moves and (name in averaged or name.endswith(STATISTICS))
            if moves and isinstance(held, Tensor) and held.shape == value.shape:
                held.lerp_(value, 1 - decay)
            else:
                self.tensors[name] = copied(value)
        for name in self.tensors.keys() - state.keys():
            del self.tensors[name]
        self.steps += 1

    @contextmanager
    def inside(self, module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the average into the module for a `with` block; what is pruned now is zero in it, too."""
        if not self.tensors:
            yield
            return
        own = snapshot(module)
        # what changed since the last step is the module's: quantization and structure may begin between two epochs
        averaged = {**own, **{name: held for name, held in self.tensors.items() if _alike(held, own.get(name))}}
        for name, kept in masks.items():
            averaged[name] = averaged[name].masked_fill(~kept, 0)
        module.load_state_dict(averaged)
        try:
            yield
        finally:
            # quantization that is due begins with the next call, which may be one in here
            module.load_state_dict({**module.state_dict(), **own})
