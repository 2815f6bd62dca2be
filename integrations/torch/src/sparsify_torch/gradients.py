"""Sample gradients outside the training step: what OBS and RigL ask for.

grad_sampler holds two functions. `data_loader_builder(**grad_sampler_kwargs)` gives batches, either (input, target) or
(positional inputs, named inputs, target); `loss_function(outputs, target)` gives the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from sparsify import RequestError
from torch import Tensor, nn

from sparsify_torch.loop import Loop
from sparsify_torch.tracing import evaluating

KEYS = ("data_loader_builder", "loss_function")
FIX = 'give manager.modify(…, grad_sampler={"data_loader_builder": …, "loss_function": …})'


def check_sampler(loop: Loop, modifier: str) -> None:
    """Raise RequestError where the loop has no complete grad_sampler."""
    given = loop.grad_sampler
    if given is None:
        raise RequestError(f"{modifier} needs gradients of single batches, and there is no grad_sampler", fix=FIX)
    missing = [key for key in KEYS if not callable(given.get(key))]
    if missing:
        raise RequestError(f"{modifier}: grad_sampler lacks a function '{missing[0]}'", fix=FIX)


def sample_gradients(
    loop: Loop, parameters: Sequence[nn.Parameter], count: int, keywords: Mapping[str, Any], modifier: str
) -> Iterator[list[Tensor]]:
    """Yield the gradients of `count` batches; the module is in evaluation mode, so that no statistics move."""
    sampler = loop.grad_sampler or {}
    with evaluating(loop.module):
        for arguments, named, target in sample_batches(sampler["data_loader_builder"], keywords, count, modifier):
            with torch.enable_grad():
                loss = sampler["loss_function"](loop.module(*arguments, **named), target)
                found = torch.autograd.grad(loss, [one for one in parameters if one.requires_grad], allow_unused=True)
            grads = iter(found)
            gradients = [next(grads) if one.requires_grad else None for one in parameters]
            yield [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def sample_batches(
    build: Callable[..., Iterable[Any]], keywords: Mapping[str, Any], count: int, modifier: str
) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any], Any]]:
    """Yield positional inputs, named inputs and targets of `count` batches, from the start again where they end."""
    given = 0
    while given < count:
        before = given
        for batch in build(**keywords):
            yield _parts(batch, modifier)
            given += 1
            if given == count:
                return
        if given == before:
            raise RequestError(f"{modifier}: the data_loader_builder of grad_sampler gives no batch", fix=FIX)


def _parts(batch: Any, modifier: str) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
    if len(batch) == 3:
        arguments, named, target = batch
        return tuple(arguments), named, target
    if len(batch) == 2:
        return (batch[0],), {}, batch[1]
    problem = f"{modifier}: the data_loader_builder of grad_sampler gives batches of {len(batch)} parts"
    raise RequestError(problem, fix="give (input, target) or (positional inputs, named inputs, target)")
