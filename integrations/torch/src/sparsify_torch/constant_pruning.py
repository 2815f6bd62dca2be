"""Offer ConstantPruningModifier, which keeps the zeros that weights have."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel
from torch import nn

from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.options import FROZEN, Epoch, EveryStep, Names
from sparsify_torch.weights import select_weights

NAME = "ConstantPruningModifier"


class ConstantPruningModifier(BaseModel):
    """Keep weights that are zero at start_epoch at zero, until end_epoch where one is set (Iofinova et al. 2022).

    `__ALL__` and `__ALL_PRUNABLE__` mean the weights of all layers here, first, last and depthwise ones and embeddings
    included: a transferred model's zeros are kept wherever they are. Biases and norms, often zero when new, are free.
    """

    model_config = FROZEN

    params: Names
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    update_frequency: EveryStep = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return ConstantPart(self, loop)


class ConstantPart(Part):
    """Take the masks once."""

    def __init__(self, options: ConstantPruningModifier, loop: Loop) -> None:
        self.loop = loop
        self.weights = select_weights(loop.module, options.params, NAME, every=True)
        self.needs = frozenset(f"zeros of {weight.name}" for weight in self.weights)

    def start(self, epoch: float) -> None:
        """Hold what is zero now."""
        self.loop.masks.put(NAME, [(weight, weight.parameter.detach() != 0) for weight in self.weights])

    def end(self, epoch: float) -> None:
        """Let the zeros go."""
        self.loop.masks.release([weight.name for weight in self.weights], NAME)

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        held = [(weight, new if weight.parameter is old else weight.parameter) for weight in self.weights]
        self.weights = tuple(replace(weight, parameter=one) for weight, one in held if one is not None)
