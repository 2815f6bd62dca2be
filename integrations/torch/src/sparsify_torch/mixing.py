"""The best mix of whole blocks and channels for a speed asked for, judged by measured time and by what changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from sparsify import Checkpoint, RequestError
from torch import nn

from sparsify_torch.channels import Cost, macs
from sparsify_torch.coupling import couple
from sparsify_torch.importance import Data, Loss, Score
from sparsify_torch.layers import Block, drift, find_blocks
from sparsify_torch.removal import Structure, apply_step
from sparsify_torch.speed import measured_cost, speedups
from sparsify_torch.thinning import Thinned, cost_of, thin
from sparsify_torch.tracing import evaluating

Measure = Callable[[nn.Module], float]
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
    measure: Measure | None = None,
    already: float = 1.0,
    kept: Checkpoint | None = None,
) -> Mixed:
    """Take out blocks and channels in place until it runs `speedup` times as fast as the module given.

    Blocks are ranked by time saved per change of the outputs; with 0, 1, 2 … of them gone, channels make up the rest,
    and the mix whose outputs change least on `data` (batch norms set anew on it), else on the example inputs, is kept.
    measure: says how many times as fast a thinner module is, by default in ONNX Runtime in float; already: what it says
    of the module given. kept: keeps what was measured, so that the same mix is chosen again. Raises RequestError where
    no mix reaches it.
    """
    if speedup <= already:
        problem = f"speedup {speedup:g} asks for nothing: {already:.2f} x is there already"
        raise RequestError(problem, fix=f"give a speedup above {already:.2f}, e.g. {already * 1.6:.1f}")
    cost = measured_cost(threads, kept=kept)
    ranked = rank_blocks(module, example_inputs, cost, most_blocks, data)
    options: dict[str, Any] = {"score": score, "multiple": multiple, "ignore": ignore, "data": data, "loss": loss}
    measured = _keeping(measure or partial(_in_float, module, example_inputs, threads), kept)
    asked, best = speedup / already, 0.0
    for _ in range(ROUNDS):
        tried = list(_mixes(module, example_inputs, ranked, 1 / asked, cost, options))
        if not tried:
            break
        _, blocks, thinner, planned = min(tried, key=lambda one: one[0])
        got = measured(thinner, planned.structure)
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


def thin_to_share(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    target: float,
    score: Score = "l2",
    multiple: int = 16,
    data: Data | None = None,
    most_blocks: int = 8,
) -> Thinned:
    """Take out blocks and channels in place until at most `target` (0-1) of the MACs are left.

    As in `thin_to_speed`, the mix is kept whose outputs change least; nothing is timed. Raises RequestError where no
    mix reaches it.
    """
    ranked = rank_blocks(module, example_inputs, macs, most_blocks, data)
    options: dict[str, Any] = {"score": score, "multiple": multiple, "data": data}
    tried = list(_mixes(module, example_inputs, ranked, target, macs, options))
    if not tried:
        problem = f"no mix of blocks and channels in multiples of {multiple} leaves {target:.0%} of the MACs or less"
        raise RequestError(problem, fix="ask for less, or pass a smaller multiple")
    _, blocks, _, _ = min(tried, key=lambda one: one[0])
    return thin(module, example_inputs, target=target, blocks=blocks, **options)


def _in_float(module: nn.Module, inputs: tuple[Any, ...], threads: int, thinner: nn.Module) -> float:
    return speedups({"dense": module, "thin": thinner}, inputs, threads=threads)["thin"].value


def _keeping(measure: Measure, kept: Checkpoint | None) -> Callable[[nn.Module, Structure], float]:
    """Measure each structure once."""

    def measured(thinner: nn.Module, structure: Structure) -> float:
        said = json.dumps(structure, sort_keys=True)
        name = f"speedup-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
        held = kept.load(name) if kept else None
        if held is None:
            held = {"speedup": np.array(measure(thinner))}
            if kept:
                kept.save(name, held)
        return float(held["speedup"])

    return measured


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


def rank_blocks(
    module: nn.Module, example_inputs: tuple[Any, ...], cost: Cost, most: int, data: Data | None = None
) -> list[Block]:
    """Return up to `most` blocks in the order in which they go, that with the most cost saved per change first.

    The change of the outputs is beside those that went before (a block's influence: Men et al. 2024, arXiv:2403.03853),
    with batch norms set anew. A block rarely matters less when others are gone, so only the first of the list is
    judged anew each time (lazy greedy: Minoux 1978).
    """
    seen = data and list(islice(data, 1))
    whole = cost_of(couple(module, example_inputs), cost)

    def gain(block: Block, gone: Sequence[Block]) -> float:
        shorter = deepcopy(module)
        for one in (*gone, block):
            apply_step(shorter, one.step())
        saved = whole - cost_of(couple(shorter, example_inputs), cost)
        if seen:
            settle_batch_norms(shorter, seen)
        return saved / max(change(module, shorter, example_inputs, seen), 1e-9)

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
