"""Timing under a clock of our own: order, one live session, calibration, ratios, and sizes."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsify.timing import Candidate, Timing, gzip_size, time_interleaved, time_ratio


class Clock:
    """Tell a time that only runs move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Lab:
    """Open fake sessions whose runs take the seconds that `pace` gives, and record what happens."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.live, self.log, self.runs = clock, 0, [], {}  # type: ignore[var-annotated]

    def candidate(self, name: str, pace: Callable[[int], float], facts: Mapping[str, Any] | None = None) -> Candidate:
        lab = self

        class Fake:
            def __init__(self) -> None:
                lab.live += 1
                assert lab.live == 1, "a second live session slows the first"
                lab.log.append(name)
                self.count = 0
                self.facts: Mapping[str, Any] = {**(facts or {}), "opened": len(lab.log)}

            def run(self, inputs: Any) -> dict[str, Any]:
                lab.clock.now += pace(self.count)
                self.count += 1
                return {}

            def close(self) -> None:
                lab.live -= 1
                lab.runs.setdefault(name, []).append(self.count)

        return Candidate(name, Fake)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    clock = Clock()
    monkeypatch.setattr("sparsify.timing.perf_counter", clock)
    return Lab(clock)


def test_order_rotates_and_one_session_lives_at_a_time(lab: Lab) -> None:
    names = ["a", "b", "c"]
    time_interleaved([lab.candidate(name, lambda _: 0.01) for name in names], {}, batch=1, threads=1, blocks=4)
    assert lab.log == [*"abc", *"bca", *"cab", *"abc"]
    assert lab.live == 0


def test_a_session_that_fails_is_closed(lab: Lab) -> None:
    def pace(count: int) -> float:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_interleaved([lab.candidate("a", pace)], {}, batch=1, threads=1)
    assert lab.live == 0


@pytest.mark.parametrize(("run_s", "timed", "warm"), [(0.01, 20, 5), (1.0, 5, 3)])
def test_blocks_last_long_enough(lab: Lab, run_s: float, timed: int, warm: int) -> None:
    time_interleaved([lab.candidate("a", lambda _: run_s)], {}, batch=1, threads=1, blocks=2, min_seconds=0.2)
    assert all(abs(count - timed - warm) <= 1 for count in lab.runs["a"])


def test_warm_up_runs_are_not_counted(lab: Lab) -> None:
    slow_start = lab.candidate("a", lambda count: 1.0 if count < 3 else 0.01)
    timing = time_interleaved([slow_start], {}, batch=4, threads=2)["a"]
    assert timing.p50_ms == pytest.approx(10)
    assert timing.p95_ms == pytest.approx(10)
    assert timing.throughput == pytest.approx(400)
    assert (timing.batch, timing.threads) == (4, 2)
    assert timing.block_ms == pytest.approx([10] * 7)


def test_percentiles_are_of_all_runs(lab: Lab) -> None:
    paces = [0.010] * 18 + [0.030, 0.050]
    timing = time_interleaved(
        [lab.candidate("a", lambda count: paces[count % 20])], {}, batch=1, threads=1, blocks=3, min_seconds=20.0
    )["a"]
    assert timing.p50_ms == pytest.approx(10)
    assert 10 < timing.p95_ms <= 50
    assert timing.throughput == pytest.approx(1000 / 13, rel=0.01)


def test_facts_are_those_of_the_timed_session(lab: Lab) -> None:
    facts = {"precision": "int8", "int8_executed": 3}
    timing = time_interleaved([lab.candidate("a", lambda _: 0.1, facts)], {}, batch=1, threads=1, blocks=2)["a"]
    assert timing.facts == {**facts, "opened": 2}


def test_progress_counts_blocks(lab: Lab) -> None:
    from contextlib import contextmanager

    told: list[tuple[str, int]] = []
    steps: list[int] = []

    @contextmanager
    def progress(label: str, total: int) -> Any:
        told.append((label, total))
        yield lambda: steps.append(1)

    both = [lab.candidate(name, lambda _: 0.1) for name in "ab"]
    time_interleaved(both, {}, batch=1, threads=1, blocks=3, progress=progress)
    assert told == [("time", 6)]
    assert len(steps) == 6


def timing_of(blocks: list[float]) -> Timing:
    return Timing(1, 1, 1.0, 1.0, 1.0, tuple(blocks), {})


def test_drift_cancels_in_a_paired_ratio() -> None:
    drift = [1.0, 1.5, 2.0, 4.0, 3.0, 2.5, 9.0]
    ratio = time_ratio(timing_of([0.5 * one for one in drift]), timing_of(drift))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_ratios_of_identical_candidates_bracket_one() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        old, new = np.exp(0.1 * generator.normal(size=(2, 7)))
        ratio = time_ratio(timing_of(new.tolist()), timing_of(old.tolist()))
        assert ratio.low < ratio.value < ratio.high
        inside += ratio.low <= 1 <= ratio.high
    assert 0.92 <= inside / 300 <= 0.98


def test_one_block_bounds_nothing() -> None:
    ratio = time_ratio(timing_of([2.0]), timing_of([1.0]))
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 0.0, math.inf)


def test_gzip_size_is_that_of_gzip(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 9, 300_000, dtype=np.uint8).tobytes()
    file, other = tmp_path / "a.bin", tmp_path / "b.bin"
    file.write_bytes(content)
    other.write_bytes(b"")
    expected = len(gzip.compress(content, 9))
    assert abs(gzip_size(file) - expected) <= 32  # gzip.compress may write another header
    assert gzip_size(file, other) == gzip_size(file) + gzip_size(other)
