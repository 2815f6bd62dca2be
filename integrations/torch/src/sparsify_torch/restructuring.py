"""What modifiers that change a module's structure share: the change itself, followed by the optimizer and all parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from sparsify import RequestError, StageError
from torch import nn

from sparsify_torch.export_graph import clean_copy, split_inputs
from sparsify_torch.loop import Loop
from sparsify_torch.masks import from_rank_0
from sparsify_torch.qat import CHILD
from sparsify_torch.removal import apply_step, select


def restructure(loop: Loop, step: Mapping[str, Any]) -> None:
    """Carry out one step of a structure in a loop's module, and note it: a checkpoint holds all of them.

    Raises StageError in a module that is quantized already.
    """
    if CHILD in dict(loop.module.named_children()):
        problem = f"the module would change at epoch {loop.epoch:g}, and its quantization has begun"
        raise StageError(problem, fix="let what takes channels and layers out end before QuantizationModifier starts")
    removed = apply_step(loop.module, step)
    for cut in removed.cuts:
        if isinstance(cut.old, nn.Parameter) and isinstance(cut.new, nn.Parameter):
            loop.swap(cut.old, cut.new, partial(select, kept=cut.kept))
    for dropped in removed.dropped:
        if isinstance(dropped, nn.Parameter):
            loop.swap(dropped, None, lambda tensor: tensor)
    loop.structure.append(dict(step))


def followed(loop: Loop, modifier: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return what channels are followed on: the module, a float copy where it is quantized, and its example inputs.

    Raises RequestError where there are none.
    """
    if loop.example_inputs is None:
        fix = "give them: manager.modify(…, example_inputs=images[:2])"
        raise RequestError(f"{modifier} follows the module's channels on example inputs, and has none", fix=fix)
    positional, named = split_inputs(loop.example_inputs)
    if named:
        fix = "give a tuple: manager.modify(…, example_inputs=(tokens, mask))"
        raise RequestError(f"{modifier} takes example inputs by position, not by name ({', '.join(named)})", fix=fix)
    device = next((one.device for one in loop.module.parameters()), torch.device("cpu"))
    quantized = CHILD in dict(loop.module.named_children())
    module = clean_copy(loop.module, CHILD).to(device) if quantized else loop.module
    inputs = tuple(one.to(device) if isinstance(one, torch.Tensor) else one for one in positional)
    return module, inputs


def agreed(units: Collection[int], device: torch.device) -> list[int]:
    """Return rank 0's choice on every rank: scores that differ in the last bit must not make other modules."""
    count = from_rank_0(torch.tensor([max(units, default=-1) + 1], device=device))
    chosen = torch.zeros(int(count), dtype=torch.bool, device=device)
    chosen[[unit for unit in units if unit < len(chosen)]] = True
    found: list[int] = from_rank_0(chosen).nonzero().flatten().tolist()
    return found
