"""Put the measurements of a run into metrics.json and judge them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.contracts import Data, Description, Metric, Model
from sparsify.errors import ExitCode
from sparsify.evaluation import Evaluation, Pair
from sparsify.levels import parse_budget
from sparsify.recipe import Recipe
from sparsify.timing import Timing, gzip_size, time_ratio

if TYPE_CHECKING:
    from sparsify.pipeline import Loaded
    from sparsify.resolve import Plan

SLOWER = 1.02  # lower 95 % bound of the time ratio to the best float configuration
CHANCE_FACTOR = 1.5


def build_metrics(
    plan: Plan,
    loaded: Loaded,
    recipe: Recipe,
    model: Model,
    baseline: Evaluation,
    pair: Pair,
    timings: Mapping[str, Mapping[str, Timing]],
    errors: Mapping[str, float],
    stages: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Build what metrics.json holds (DESIGN §6), and a few keys more for the report."""
    after = plan.model_format.describe(model)
    artefact = plan.folder.deployment / "model.onnx"
    deciding, scores = judged(plan.metrics, pair)
    given = parse_budget(plan.experiment.max_drop, agreement=deciding == "agreement")
    facts = (plan, loaded.description, after, timings)
    before = _side(plan.model_path, pair.baseline, "baseline", *facts)
    optimized = _side(artefact, pair.candidate, "optimized", *facts)
    if deciding == "agreement":
        before["metrics"], optimized["metrics"] = {deciding: scores[0]}, {deciding: scores[1]}
    ratio = time_ratio(
        timings[plan.experiment.runtime[0]]["optimized"], timings[plan.experiment.runtime[0]]["baseline"]
    )
    return {
        "schema": 1,
        "kind": plan.experiment.kind,
        "use_case": plan.use_case_name,
        "optim_level": plan.experiment.optim_level,
        "seed": plan.experiment.seed,
        "verdict": judge(
            changed=bool(recipe.steps),
            verified=loaded.splits.verified and not near_chance(baseline, loaded.data, plan.metrics),
            drop=_drop(scores, deciding, plan.metrics),
            budget=given.resolved(scores[0]),
            slower=ratio.low > SLOWER,
        ),
        "metric": deciding,
        "budget": {"points": given.resolved(scores[0]), "given": given.given},
        "baseline": before,
        "optimized": {
            **optimized,
            "sparsity": _sparsity(after, eligible=True),
            "sparsity_file": _ratio(after.zeros, after.parameters),
            "quantized": {
                "int8": sum(layer.precision == "int8" for layer in after.layers),
                "of": loaded.description.computing,
            },
        },
        "agreement": pair.agreement,
        "drop": {"points": _drop(scores, deciding, plan.metrics), "interval": pair.drop_interval},
        "samples": loaded.splits.counts(),
        "unreadable": dict(loaded.splits.test.unreadable),
        "layers": _layers(loaded.description, after, errors, model),
        "stages": list(stages),
        "speedup": {
            name: round(1 / time_ratio(pair_["optimized"], pair_["baseline"]).value, 3)
            for name, pair_ in timings.items()
        },
        "speedup_interval": [round(1 / ratio.high, 3), round(1 / ratio.low, 3)],
        "compression": round(before["bytes"] / optimized["bytes"], 3),
        "environment": environment(),
        "notes": list(notes),
        "files": {"folder": str(plan.folder.path), "model": str(artefact)},
    }


def judged(metrics: Sequence[Metric], pair: Pair) -> tuple[str, tuple[float, float]]:
    """Name the deciding metric and its value before and after; agreement where there are no labels."""
    if pair.baseline.values:
        name = metrics[0].name
        return name, (pair.baseline.values[name], pair.candidate.values[name])
    top1 = pair.agreement["top1"]
    return "agreement", (100.0, top1 if top1 is not None else 100 * (pair.agreement["cosine"] or 0.0))


def judge(*, changed: bool, verified: bool, drop: float, budget: float | None, slower: bool) -> str:
    """Give the verdict; a result that could not be verified is never called met."""
    if not changed:
        return "baseline"
    if not verified:
        return "unverified"
    if budget is not None and drop > budget + 1e-9:
        return "missed"
    if slower:
        return "slower"
    return "unbounded" if budget is None else "met"


def exit_code(verdict: str) -> ExitCode:
    """Map a verdict to the exit code of DESIGN §5."""
    return ExitCode.OK if verdict in ("met", "unbounded", "baseline") else ExitCode.MISSED


def near_chance(baseline: Evaluation, data: Data, metrics: Sequence[Metric]) -> bool:
    """Say whether the baseline is statistically no better than guessing, or hardly."""
    if not metrics or metrics[0].name not in baseline.values or data.chance is None:
        return False
    name = metrics[0].name
    return baseline.intervals[name][0] <= data.chance or baseline.values[name] < CHANCE_FACTOR * data.chance


def _drop(scores: tuple[float, float], deciding: str, metrics: Sequence[Metric]) -> float:
    rising = deciding == "agreement" or metrics[0].higher_is_better
    return round(scores[0] - scores[1] if rising else scores[1] - scores[0], 6)


def _side(
    path: Path,
    evaluation: Evaluation,
    side: str,
    plan: Plan,
    dense: Description,
    after: Description,
    timings: Mapping[str, Mapping[str, Timing]],
) -> dict[str, Any]:
    del after
    return {
        "model": str(path),
        "bytes": _bytes(path),
        "compressed_bytes": gzip_size(path),
        "metrics": {name: round(value, 4) for name, value in evaluation.values.items()},
        "intervals": {name: [round(bound, 4) for bound in pair] for name, pair in evaluation.intervals.items()},
        "latency": {runtime: _latency(both[side], dense.computing) for runtime, both in timings.items()},
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size


def _latency(timing: Timing, computing: int) -> dict[str, Any]:
    return {
        "batch": timing.batch,
        "threads": timing.threads,
        "p50_ms": round(timing.p50_ms, 4),
        "p95_ms": round(timing.p95_ms, 4),
        "throughput": round(timing.throughput, 2),
        "precision": timing.facts.get("precision"),
        "int8_executed": timing.facts.get("int8_executed"),
        "of": computing,
    }


def _sparsity(description: Description, *, eligible: bool) -> float:
    layers = [layer for layer in description.layers if layer.eligible or not eligible]
    zeros = sum(layer.sparsity * layer.parameters for layer in layers)
    return _ratio(zeros, sum(layer.parameters for layer in layers))


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


def _layers(dense: Description, after: Description, errors: Mapping[str, float], model: Model) -> list[dict[str, Any]]:
    now = {layer.name: layer for layer in after.layers}
    why_float = model.facts.get("quantized", {})
    rows = []
    for layer in dense.layers:
        current = now.get(layer.name, layer)
        rows.append(
            {
                "name": layer.name,
                "op": layer.op,
                "shape": list(layer.shape),
                "sparsity": round(current.sparsity, 6),
                "precision": current.precision,
                "sqnr_db": errors.get(layer.name),
                "drop_if_alone": None,
                "macs": layer.macs,
                "kept_dense": layer.reason,
                "kept_float": "" if current.precision == "int8" else str(why_float.get(layer.name, "")),
            }
        )
    return rows


def environment() -> dict[str, Any]:
    """Say where the figures were measured, without naming the machine."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {
            name: found for name in ("sparsify-core", "onnx", "onnxruntime", "numpy") if (found := _version(name))
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """Read the CPU's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
