"""Offer ACDCPruningModifier: training in turns dense and compressed."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from pydantic import BaseModel, field_validator, model_validator
from torch import nn

from sparsify_torch.loop import Carry, Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, MaskType, Names, Share
from sparsify_torch.pruned_groups import Group, check_final, follow_weights, prune
from sparsify_torch.schedule import NEAR
from sparsify_torch.structures import parse_mask_type
from sparsify_torch.weights import check_finite, select_weights

NAME = "ACDCPruningModifier"
MOMENTA = ("momentum_buffer", "exp_avg")


class ACDCPruningModifier(BaseModel):
    """Train in phases of update_frequency epochs, dense and compressed in turns: AC/DC (Peste et al. 2021).

    The first phase is dense, the last one compressed. Each compressed phase keeps the largest weights at its start.
    momentum_buffer_reset: forget the optimizer's momentum when weights come back.
    """

    model_config = FROZEN

    compression_sparsity: Share
    start_epoch: Epoch
    end_epoch: Ending
    update_frequency: float
    params: Names
    global_sparsity: bool = True
    leave_enabled: bool = True
    momentum_buffer_reset: bool = True
    mask_type: MaskType = "unstructured"

    @field_validator("update_frequency")
    @classmethod
    def _check_frequency(cls, value: float) -> float:
        if value < 1 or value != int(value):
            raise ValueError("a phase lasts a whole number of epochs, at least 1")
        return value

    @model_validator(mode="after")
    def _check_share(self) -> ACDCPruningModifier:
        check_final(self.compression_sparsity, self.params, self.mask_type)
        return self

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for params without match."""
        return ACDCPart(self, loop)

    def compressed(self, epoch: float) -> bool:
        """Say whether a phase is a compressed one."""
        begin = max(self.start_epoch, 0.0)
        phases = ceil((self.end_epoch - begin) / self.update_frequency - NEAR)
        phase = int((epoch - begin) / self.update_frequency + NEAR)
        return phase % 2 == 1 or phase >= phases - 1


class ACDCPart(Part):
    """Switch between the phases."""

    def __init__(self, options: ACDCPruningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        self.structure = parse_mask_type(options.mask_type)
        weights = select_weights(loop.module, options.params, NAME)
        self.group = Group(weights, 0.0, options.compression_sparsity)
        self.claims = frozenset(f"{what} of {weight.name}" for weight in weights for what in ("pruning", "zeros"))
        self.is_compressed = False

    def start(self, epoch: float) -> None:
        """Free the weights of earlier masks."""
        self.loop.masks.release([weight.name for weight in self.group.weights])

    def update(self, epoch: float) -> None:
        """Enter the phase of this epoch; raises StageError for weights that are not finite."""
        compressed = self.options.compressed(epoch)
        if compressed and not self.is_compressed:
            self._compress(epoch)
        if self.is_compressed and not compressed:
            self._decompress()
        self.is_compressed = compressed
        self.loop.log(f"{NAME}/compressed", float(compressed), epoch)

    def end(self, epoch: float) -> None:
        """Let the masks go, where they are not to stay."""
        if not self.options.leave_enabled:
            self.loop.masks.release([weight.name for weight in self.group.weights], NAME)

    def state_dict(self) -> dict[str, Any]:
        """Return the phase."""
        return {"compressed": self.is_compressed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over."""
        self.is_compressed = state["compressed"]

    def swapped(self, old: nn.Parameter, new: nn.Parameter | None, carry: Carry) -> None:
        """Follow."""
        follow_weights([self.group], old, new)

    def _compress(self, epoch: float) -> None:
        weights, sparsity = self.group.weights, self.options.compression_sparsity
        for weight in weights:
            check_finite(weight, NAME, epoch)
        for some in [weights] if self.options.global_sparsity else [(weight,) for weight in weights]:
            prune(self.loop, NAME, some, [weight.magnitudes() for weight in some], sparsity, self.structure)

    def _decompress(self) -> None:
        self.loop.masks.release([weight.name for weight in self.group.weights], NAME)
        if self.options.momentum_buffer_reset:
            for weight in self.group.weights:
                state = self.loop.optimizer.state.get(weight.parameter, {})
                for name in MOMENTA:
                    if state.get(name) is not None:
                        state[name].zero_()
