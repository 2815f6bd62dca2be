"""The best mix of whole blocks and channels for a speed asked for, judged by measured time and by what changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from sparsify import RequestError
from torch import nn

from sparsify_torch.channels import Cost
from sparsify_torch.coupling import couple
from sparsify_torch.importance import Data, Loss, Score
from sparsify_torch.layers import Block, drift, find_blocks
from sparsify_torch.removal import apply_step
from sparsify_torch.speed import measured_cost, speedups
from sparsify_torch.thinning import Thinned, cost_of, thin
from sparsify_torch.tracing import evaluating

ROUNDS = 3  # of asking for more where the model is slower than the sum of its operators


@dataclass(frozen=True)
class Mixed:
    """Report a mix: what was thinned, how many times as fast it was measured, and the mixes that were weighed.

    weighed: by number of blocks taken out, the change of the outputs (share of their size) at the same predicted time.
    """

    thinned: Thinned
    speedup: float
    weighed: tuple[tuple[int, float], ...]


def thin_to_speed(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    speedup: float,
    score: Score = "l2",
    multiple: int = 16,
    ignore: Sequence[str] = (),
    data: Data | None = None,
    loss: Loss | None = None,
    threads: int = 1,
    most_blocks: int = 8,
) -> Mixed:
    """Take out blocks and channels in place until ONNX Runtime runs the module `speedup` times as fast.

    Blocks are ranked by time saved per change of the outputs; with 0, 1, 2 … of them gone, channels make up the rest,
    and the mix whose outputs change least on `data` (batch norms set anew on it), else on the example inputs, is kept.
    Raises RequestError where no mix reaches it.
    """
    if speedup <= 1:
        raise RequestError(f"speedup {speedup} asks for nothing", fix="give a speedup above 1, e.g. 1.6")
    cost = measured_cost(threads)
    ranked = rank_blocks(module, example_inputs, cost)[:most_blocks]
    options: dict[str, Any] = {"score": score, "multiple": multiple, "ignore": ignore, "data": data, "loss": loss}
    asked, best = speedup, 0.0
    for _ in range(ROUNDS):
        tried = list(_mixes(module, example_inputs, ranked, 1 / asked, cost, options))
        if not tried:
            break
        _, blocks, thinner, _ = min(tried, key=lambda one: one[0])
        got = speedups({"dense": module, "thin": thinner}, example_inputs, threads=threads)["thin"].value
        best = max(best, got)
        if got >= speedup:
            report = thin(module, example_inputs, target=1 / asked, blocks=blocks, cost=cost, **options)
            return Mixed(report, got, tuple((len(taken), changed) for changed, taken, _, _ in tried))
        asked *= speedup / got * 1.02
    reached = f"{best:.2f} x was measured" if best else "no mix of channels and blocks is predicted to reach it"
    raise RequestError(
        f"{speedup:.2f} x as fast cannot be reached: {reached}",
        fix="ask for less, pass a smaller multiple, or ignore fewer layers",
    )


def _mixes(
    module: nn.Module,
    inputs: tuple[Any, ...],
    ranked: Sequence[Block],
    target: float,
    cost: Cost,
    options: dict[str, Any],
) -> Iterable[tuple[float, Sequence[Block], nn.Module, Thinned]]:
    data = options["data"]
    for count in range(len(ranked) + 1):
        thinner = deepcopy(module)
        try:
            report = thin(thinner, inputs, target=target, blocks=ranked[:count], cost=cost, **options)
        except RequestError as error:
            if "cannot be reached" not in error.problem:
                raise
            continue
        if data is not None:
            settle_batch_norms(thinner, data)
        yield change(module, thinner, inputs, data), ranked[:count], thinner, report
        if not report.structure or "cuts" not in report.structure[-1]:
            return  # blocks alone reach it


def rank_blocks(module: nn.Module, example_inputs: tuple[Any, ...], cost: Cost) -> list[Block]:
    """Return the blocks that can be taken out, that with the most cost saved per change of the outputs first.

    The change is that of each block alone (a block's influence: Men et al. 2024, arXiv:2403.03853).
    """
    whole = cost_of(couple(module, example_inputs), cost)
    gains = []
    for block in find_blocks(module, example_inputs):
        shorter = deepcopy(module)
        apply_step(shorter, block.step())
        saved = whole - cost_of(couple(shorter, example_inputs), cost)
        gains.append((saved / max(change(module, shorter, example_inputs), 1e-9), block))
    return [block for gain, block in sorted(gains, key=lambda pair: -pair[0]) if gain > 0]


@torch.no_grad()
def change(module: nn.Module, other: nn.Module, inputs: tuple[Any, ...], data: Data | None = None) -> float:
    """Return how far two modules' outputs are apart, on data's first batch where there is one."""
    if data is not None:
        first = next(iter(data), None)
        inputs = inputs if first is None else first[0] if isinstance(first[0], tuple) else (first[0],)
    with evaluating(module), evaluating(other):
        return drift(other(*inputs), module(*inputs))


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
