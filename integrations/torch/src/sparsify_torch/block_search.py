"""Which blocks go: ranked by what they are worth, then searched beside the channels that make up the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from sparsify import RequestError
from torch import nn

from sparsify_torch.channels import Cost
from sparsify_torch.coupling import couple
from sparsify_torch.importance import Data
from sparsify_torch.layers import Block, drift, find_blocks
from sparsify_torch.removal import apply_step
from sparsify_torch.thinning import cost_of, thin
from sparsify_torch.tracing import evaluating

Blocks = tuple[Block, ...]
MOST_WEIGHED = 40  # mixes; of the 99 that halve ResNet-20's MACs the best one is found with 35


def rank_blocks(
    module: nn.Module, example_inputs: tuple[Any, ...], cost: Cost, most: int, data: Data | None = None
) -> list[Block]:
    """Return up to `most` blocks in the order in which they go, that with the most cost saved per change first.

    The change of the outputs is beside those that went before (a block's influence: Men et al. 2024, arXiv:2403.03853),
    with batch norms set anew. A block rarely matters less when others are gone, so only the first of the list is
    judged anew each time (lazy greedy: Minoux 1978).
    """
    seen = data and list(islice(data, 1))
    whole, expected = cost_of(couple(module, example_inputs), cost), answers(module, example_inputs, data)

    def gain(block: Block, gone: Sequence[Block]) -> float:
        shorter = deepcopy(module)
        for one in (*gone, block):
            apply_step(shorter, one.step())
        saved = whole - cost_of(couple(shorter, example_inputs), cost)
        if seen:
            settle_batch_norms(shorter, seen)
        return saved / max(drift(answers(shorter, example_inputs, data), expected), 1e-9)

    waiting = [(gain(block, ()), 0, block) for block in find_blocks(module, example_inputs)]
    ranked: list[Block] = []
    while waiting and len(ranked) < most:
        best = max(waiting, key=lambda one: one[0])
        waiting.remove(best)
        found, beside, block = best
        if found <= 0:
            break
        if beside == len(ranked):
            ranked.append(block)
        else:
            waiting.append((gain(block, ranked), len(ranked), block))
    return ranked


def search(
    module: nn.Module,
    inputs: tuple[Any, ...],
    ranked: Sequence[Block],
    target: float,
    cost: Cost,
    options: Mapping[str, Any],
) -> dict[Blocks, float]:
    """Weigh mixes that reach the target: with the first 0, 1, 2 … blocks gone, then what is one block from the best.

    A step exchanges one block, takes one more or one less, until nothing is better. Returns by blocks the change of the
    outputs; channels make up the rest of each.
    """
    weighed: dict[Blocks, float] = {}
    expected = answers(module, inputs, options["data"])

    def weigh(blocks: Blocks) -> None:
        if blocks not in weighed and len(weighed) < MOST_WEIGHED:
            thinner = _thinned(module, inputs, blocks, target, cost, options)
            weighed[blocks] = (
                math.inf if thinner is None else drift(answers(thinner, inputs, options["data"]), expected)
            )

    for count in range(len(ranked) + 1):
        weigh(tuple(ranked[:count]))
    best: Blocks | None = None
    while best != least(weighed):
        best = least(weighed)
        for blocks in one_apart(best, ranked):
            weigh(blocks)
    return {blocks: changed for blocks, changed in weighed.items() if changed < math.inf}


def least(weighed: Mapping[Blocks, float]) -> Blocks:
    """Return the blocks of the mix that changes the outputs least."""
    return min(weighed, key=lambda blocks: weighed[blocks])


def one_apart(blocks: Blocks, ranked: Sequence[Block]) -> Iterable[Blocks]:
    """Yield what one exchange makes of some blocks, one block more, or one less, each in the order of the ranking."""
    for gone in (None, *blocks):
        for new in (None, *(block for block in ranked if block not in blocks)):
            if gone is not new:
                yield tuple(one for one in ranked if one is new or (one in blocks and one is not gone))


def _thinned(
    module: nn.Module, inputs: tuple[Any, ...], blocks: Blocks, target: float, cost: Cost, options: Mapping[str, Any]
) -> nn.Module | None:
    """Return what a mix leaves, its batch norms set anew; None where no channels make up the rest."""
    thinner = deepcopy(module)
    try:
        thin(thinner, inputs, target=target, blocks=blocks, cost=cost, **options)
    except RequestError as error:
        if "cannot be reached" not in error.problem:
            raise
        return None
    if options["data"] is not None:
        settle_batch_norms(thinner, options["data"])
    return thinner


@torch.no_grad()
def answers(module: nn.Module, inputs: tuple[Any, ...], data: Data | None = None) -> Any:
    """Return a module's outputs for data's first batch where there is one, else for the inputs."""
    first = next(iter(data or ()), None)
    if first is not None:
        inputs = first[0] if isinstance(first[0], tuple) else (first[0],)
    with evaluating(module):
        return module(*inputs)


@torch.no_grad()
def settle_batch_norms(module: nn.Module, data: Data, batches: int = 16) -> None:
    """Measure the statistics of batch norms anew on data: after thinning they are those of another network."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for inputs, _ in islice(data, batches):
            module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
