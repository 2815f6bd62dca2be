"""Offer LayerPruningModifier: take whole layers and residual blocks out of the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import BaseModel
from sparsify import RequestError
from torch import nn

from sparsify_torch.layers import Block, Shortcut, find_blocks
from sparsify_torch.loop import Loop, Part
from sparsify_torch.options import FROZEN, Epoch, Frequency, Names
from sparsify_torch.restructuring import followed, restructure
from sparsify_torch.weights import matching, no_match

NAME = "LayerPruningModifier"


class LayerPruningModifier(BaseModel):
    """Replace layers by what goes around them: a residual block by its shortcut, a layer of equal shapes by nothing.

    layers: names or `re:` patterns. All go at start_epoch, or with an update_frequency one every so many epochs, in the
    order in which they are named (dropping layers: Sajjad et al. 2020, arXiv:2004.03844). They do not come back: an
    end_epoch can only be the recipe's own.
    """

    model_config = FROZEN

    layers: Names
    start_epoch: Epoch = -1
    end_epoch: Epoch = -1
    update_frequency: Frequency = -1

    def attach(self, loop: Loop) -> Part:
        """Raise RequestError for layers that do not exist or have no way around them."""
        return LayersPart(self, loop)


class LayersPart(Part):
    """Take the layers out that are still there."""

    between_steps: ClassVar[bool] = True

    def __init__(self, options: LayerPruningModifier, loop: Loop) -> None:
        self.options, self.loop = options, loop
        module, inputs = followed(loop, NAME)
        blocks = {block.path: block for block in find_blocks(module, inputs, plain=True)}
        gone = [name for name, part in module.named_modules() if isinstance(part, Shortcut)]
        self.blocks = [blocks[name] for name in named(options.layers, blocks, gone, module) if name in blocks]
        self.claims = frozenset(f"place of {block.path}" for block in self.blocks)

    def update(self, epoch: float) -> None:
        """Take out all, or the next."""
        due = self.blocks if self.options.update_frequency < 0 else self.blocks[:1]
        for block in due:
            restructure(self.loop, block.step())
        self.blocks = self.blocks[len(due) :]
        self.loop.log(f"{NAME}/left", len(self.blocks), epoch)


def named(patterns: Sequence[str], blocks: Mapping[str, Block], gone: Sequence[str], module: nn.Module) -> list[str]:
    """Return the layers that patterns mean, in their order; raises RequestError for one that cannot be taken out."""
    found: list[str] = []
    able = [*blocks, *gone]
    for pattern in patterns:
        fits = matching(pattern, able, NAME, "layers")
        if not fits and pattern in dict(module.named_modules()):
            problem = f"{NAME}, field 'layers': nothing goes around '{pattern}'"
            possible = ", ".join(able[:3]) or "none in this model"
            raise RequestError(problem, fix=f"name blocks with a shortcut or layers of equal shapes: {possible}")
        if not fits:
            raise no_match("layers", pattern, able, NAME)
        found += [name for name in able if name in fits and name not in found]
    return found
