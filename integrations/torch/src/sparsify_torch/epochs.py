"""Offer EpochRangeModifier, which says how long to train, and SparsificationLoggingModifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel

from sparsify_torch.conflicts import check_names
from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Ending, Epoch, Frequency
from sparsify_torch.prunable import weighted_layers


class EpochRangeModifier(BaseModel):
    """Say from which epoch to which the recipe trains."""

    model_config = FROZEN

    start_epoch: Epoch
    end_epoch: Ending

    def check_beside(self, modifiers: Sequence[tuple[str, Any]]) -> None:
        """Raise RequestError where the recipe's modifiers, with their names, contradict one another in any model."""
        check_names(modifiers)

    def attach(self, loop: Loop) -> Part:
        """Do nothing; the manager reads the epochs."""
        return Part()


class SparsificationLoggingModifier(BaseModel):
    """Log the sparsity and the precision of each Linear and Conv."""

    model_config = FROZEN

    start_epoch: Epoch
    end_epoch: Epoch = -1
    update_frequency: Frequency = 1.0

    def attach(self, loop: Loop) -> Part:
        """Never refuse."""
        return LoggingPart(loop)


class LoggingPart(Part):
    """Read the layers."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def update(self, epoch: float) -> None:
        """Write the share of zeros (0–1) and the data type of each layer's weight."""
        for name, layer in weighted_layers(self.loop.module).items():
            weight: Any = layer.weight
            self.loop.log(f"sparsity/{name}", 1 - int(torch.count_nonzero(weight)) / weight.numel(), epoch)
            self.loop.log(f"precision/{name}", str(weight.dtype).removeprefix("torch."), epoch)
