"""Hold the masks of one training loop: whatever modifier made them, they are enforced in one place, at every step.

Gradients of dropped weights are zeroed before the optimizer's step and the weights themselves after it, so that they
are exactly zero whatever momentum, second moments or weight decay would have done. Masks come from rank 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsify_torch.weights import Weight


class Masks:
    """Keep for each modifier (`owner`) and weight which values stay; a value must stay for all of them.

    A mask is a bool tensor of the weight's shape, True where the weight stays.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._dropped: dict[str, Tensor] = {}  # what each step applies

    def put(self, owner: str, masks: Iterable[tuple[Weight, Tensor]]) -> None:
        """Replace an owner's masks of these weights, by those of rank 0 where there are several, and apply them."""
        for weight, kept in masks:
            self._kept.setdefault(owner, {})[weight.name] = from_rank_0(kept.to(weight.parameter.device))
            self._parameters[weight.name] = weight.parameter
            self._refresh([weight.name])
            zero_(weight.parameter, self._dropped[weight.name])

    def release(self, names: Iterable[str], owner: str | None = None) -> None:
        """Let weights go that this owner, or any, holds."""
        freed = list(names)
        for held in [self._kept.get(owner, {})] if owner is not None else self._kept.values():
            for name in freed:
                held.pop(name, None)
        self._refresh(freed)

    def kept(self, name: str, default: Tensor | None = None) -> Tensor:
        """Return which values of a weight stay; all where nothing holds it."""
        found = [held[name] for held in self._kept.values() if name in held]
        if not found:
            return default if default is not None else torch.ones_like(self._parameters[name], dtype=torch.bool)
        kept = found[0]
        for other in found[1:]:
            kept = kept & other
        return kept

    def by_name(self) -> dict[str, Tensor]:
        """Return the masks in force by parameter name."""
        names = dict.fromkeys(name for held in self._kept.values() for name in held)
        return {name: self.kept(name) for name in names}

    def mask_gradients(self) -> None:
        """Zero the gradients of dropped weights."""
        for name, dropped in self._dropped.items():
            gradient = self._parameters[name].grad
            if gradient is not None and not gradient.is_sparse:
                zero_(gradient, dropped)

    def mask_weights(self) -> None:
        """Zero the dropped weights."""
        for name, dropped in self._dropped.items():
            zero_(self._parameters[name], dropped)

    def apply_to(self, module: nn.Module) -> None:
        """Zero the same weights, by name, in another module: an average of the weights (EMA), a copy."""
        parameters = dict(module.named_parameters())
        for name, kept in self.by_name().items():
            if name in parameters:
                zero_(parameters[name], ~kept.to(parameters[name].device))

    def swap(self, old: nn.Parameter, new: nn.Parameter | None, carry: Any) -> None:
        """Follow a parameter that was replaced: `carry` cuts a tensor of the old shape to the new one."""
        for name in [name for name, parameter in self._parameters.items() if parameter is old]:
            for held in self._kept.values():
                if name in held and new is None:
                    del held[name]
                elif name in held:
                    held[name] = carry(held[name])
            if new is None:
                del self._parameters[name]
            else:
                self._parameters[name] = new
            self._refresh([name])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return every owner's masks."""
        return {owner: dict(held) for owner, held in self._kept.items() if held}

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take masks over and apply them."""
        names = {name for held in state.values() for name in held}
        self._parameters = {name: parameters[name] for name in names}
        self._kept = {
            owner: {name: kept.to(self._parameters[name].device) for name, kept in held.items()}
            for owner, held in state.items()
        }
        self._dropped = {}
        self._refresh(names)
        self.mask_weights()

    def _refresh(self, names: Iterable[str]) -> None:
        """Work out what is dropped of these weights."""
        for name in names:
            if any(name in held for held in self._kept.values()):
                self._dropped[name] = ~self.kept(name)
            else:
                self._dropped.pop(name, None)


@torch.no_grad()
def zero_(tensor: Tensor, dropped: Tensor) -> None:
    """Write zeros in place; unlike a product this also clears infinities, and leaves no negative zeros."""
    tensor.masked_fill_(dropped, 0)


def from_rank_0(tensor: Tensor) -> Tensor:
    """Return rank 0's tensor on every rank, where torch.distributed runs."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.clone()
    dist.broadcast(sent, 0)
    return sent.to(tensor.dtype)
