"""The best mix of whole blocks and channels for a speed asked for, judged by measured time and by what changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sparsify import Checkpoint, RequestError
from torch import nn

from sparsify_torch.block_search import least, rank_blocks, search
from sparsify_torch.channels import macs
from sparsify_torch.importance import Data, Loss, Score
from sparsify_torch.removal import Structure
from sparsify_torch.speed import measured_cost, speedups
from sparsify_torch.thinning import Thinned, thin

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
    margin: float = 1.0,
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

    Blocks go as `search` chooses, channels make up the rest, and the mix whose outputs change least on `data` (batch
    norms set anew on it), else on the example inputs, is kept.
    margin: is reached on top, for the noise of a later timing. A smaller multiple and fewer ignored layers reach more.
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
    aim = speedup * margin
    asked, best = aim / already, 0.0
    for _ in range(ROUNDS):
        tried = search(module, example_inputs, ranked, 1 / asked, cost, options)
        if not tried:
            break
        blocks, thinner = least(tried), deepcopy(module)
        planned = thin(thinner, example_inputs, target=1 / asked, blocks=blocks, cost=cost, **options)
        got = measured(thinner, planned.structure)
        best = max(best, got)
        if got >= aim:
            report = thin(module, example_inputs, target=1 / asked, blocks=blocks, cost=cost, **options)
            return Mixed(report, got, tuple((len(taken), changed) for taken, changed in tried.items()))
        asked *= aim / got * 1.02
    reached = f"{best:.2f} x was measured" if best else "no mix of channels and blocks is predicted to reach it"
    fix = f"ask for {best / margin:.2f} x or less" if best > margin else "ask for less"
    raise RequestError(f"{speedup:.2f} x as fast cannot be reached: {reached}", fix=fix)


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
    tried = search(module, example_inputs, ranked, target, macs, options)
    if not tried:
        problem = f"no mix of blocks and channels in multiples of {multiple} leaves {target:.0%} of the MACs or less"
        raise RequestError(problem, fix="ask for less, or pass a smaller multiple")
    return thin(module, example_inputs, target=target, blocks=least(tried), **options)


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
