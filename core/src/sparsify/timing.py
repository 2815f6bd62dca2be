"""Time models honestly: interleaved blocks, one live session at a time, ratios paired by block."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from time import perf_counter
from typing import Any

from sparsify.contracts import Arrays, Progress, Session, silent
from sparsify.intervals import student

BLOCKS = 7
BLOCK_S = 0.2
BLOCK_RUNS = 5
WARM_UP = 0.25  # share of a block
WARM_UP_RUNS = 3  # the first runs allocate memory and wake threads


@dataclass(frozen=True)
class Candidate:
    """Name a model and how to open it; `open` is called once a block, `inputs` replace the common ones."""

    name: str
    open: Callable[[], Session]
    inputs: Arrays | None = None


@dataclass(frozen=True)
class Timing:
    """Hold how fast a model ran: milliseconds a batch, items a second, and what the timed session said it executed.

    runs_ms: of every run, in ascending order.
    """

    batch: int
    threads: int
    p50_ms: float
    p95_ms: float
    throughput: float
    block_ms: tuple[float, ...]
    facts: Mapping[str, Any]
    runs_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """Hold a ratio of times with its 95 % interval; below 1 the candidate is faster."""

    value: float
    low: float
    high: float


def time_interleaved(
    candidates: Sequence[Candidate],
    inputs: Arrays,
    *,
    batch: int,
    threads: int,
    blocks: int = BLOCKS,
    min_seconds: float = BLOCK_S,
    progress: Progress = silent,
) -> dict[str, Timing]:
    """Time every candidate on the same inputs, in blocks whose order rotates so that drift hits all alike.

    A block opens its session, warms it up, runs for `min_seconds` and at least 5 times, and closes it: an idle
    session's threads spin and slow the others down.
    """
    runs: dict[str, list[list[float]]] = {candidate.name: [] for candidate in candidates}
    facts: dict[str, Mapping[str, Any]] = {}
    with progress("time", blocks * len(candidates)) as advance:
        for block in range(blocks):
            first = block % len(candidates)
            for candidate in (*candidates[first:], *candidates[:first]):
                own = inputs if candidate.inputs is None else candidate.inputs
                with closing(candidate.open()) as session:
                    _run_for(session, own, WARM_UP * min_seconds, WARM_UP_RUNS)
                    runs[candidate.name].append(_run_for(session, own, min_seconds, BLOCK_RUNS))
                    facts[candidate.name] = dict(session.facts)
                advance()
    return {name: _timing(runs[name], facts[name], batch, threads) for name in runs}


def _run_for(session: Session, inputs: Arrays, seconds: float, least: int) -> list[float]:
    """Run until both the time and the count are reached; return each run's milliseconds."""
    took: list[float] = []
    started = now = perf_counter()
    while now - started < seconds or len(took) < least:
        before = perf_counter()
        session.run(inputs)
        now = perf_counter()
        took.append(1000 * (now - before))
    return took


def _timing(blocks: Sequence[Sequence[float]], facts: Mapping[str, Any], batch: int, threads: int) -> Timing:
    runs = sorted(run for block in blocks for run in block)
    p95, throughput = runs[math.ceil(0.95 * len(runs)) - 1], 1000 * batch / fmean(runs)
    return Timing(batch, threads, median(runs), p95, throughput, tuple(map(median, blocks)), facts, tuple(runs))


def time_ratio(candidate: Timing, baseline: Timing) -> Ratio:
    """Return candidate's time ÷ baseline's: the geometric mean over blocks, with Student's interval on the logs.

    The two must come from one `time_interleaved` of at least 2 blocks; with one block nothing bounds the ratio.
    """
    logs = [math.log(new / old) for new, old in zip(candidate.block_ms, baseline.block_ms, strict=True)]
    middle = fmean(logs)
    half = student(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def gzip_size(*paths: Path) -> int:
    """Return the bytes that `gzip -9` would need for these files, compressed piece by piece and never stored."""
    size = 0
    for path in paths:
        press = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        with path.open("rb") as file:
            size += sum(len(press.compress(piece)) for piece in iter(partial(file.read, 2**20), b""))
        size += len(press.flush())
    return size
