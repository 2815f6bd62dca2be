"""Put the measurements of a run into metrics.json and judge them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.confidence import summarise_confidence
from sparsify.contracts import Data, Description, Metric, Model
from sparsify.errors import ExitCode
from sparsify.evaluation import Evaluation, Pair
from sparsify.levels import parse_budget
from sparsify.recipe import Recipe
from sparsify.resolve import Loaded, Plan
from sparsify.timing import Ratio, Timing, gzip_size, time_ratio

SLOWER = 1.02  # lower 95 % bound of the time ratio to the best float configuration
CHANCE_FACTOR = 1.5
LAYER_FIGURES = ("sqnr_db", "isolated_db", "saturation", "drop_if_alone", "kl_if_alone")


@dataclass(frozen=True)
class Measured:
    """Hold what verify measured: timings by runtime, then `baseline` and `optimized`; errors by layer."""

    pair: Pair
    examples: Sequence[Mapping[str, Any]]
    timings: Mapping[str, Mapping[str, Timing]]
    errors: Mapping[str, Mapping[str, float]]

    def ratio(self, runtime: str) -> Ratio:
        """Return the time of the optimized model ÷ the baseline's on a runtime."""
        return time_ratio(self.timings[runtime]["optimized"], self.timings[runtime]["baseline"])


def build_metrics(
    plan: Plan,
    loaded: Loaded,
    recipe: Recipe,
    model: Model,
    measured: Measured,
    stages: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    rungs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build what metrics.json holds (DESIGN §6), and a few keys more for the report."""
    asked, pair = plan.experiment, measured.pair
    artefact, description = plan.folder.model, plan.model_format.describe(model)
    deciding, score, new_score, drop = drop_of(plan.metrics, pair)
    budget = parse_budget(asked.max_drop, agreement=deciding == "agreement")
    ratio = measured.ratio(asked.runtime[0])
    points, slower = budget.resolved(score), ratio.low > SLOWER
    verified = loaded.splits.verified and not near_chance(pair.baseline, loaded.data, plan.metrics)
    late = asked.target_speedup is not None and ratio.low > 1 / asked.target_speedup
    verdict = judge(changed=bool(recipe.steps), verified=verified, drop=drop, budget=points, slower=slower, late=late)
    files = plan.model_format.files
    before = _side(files(plan.model_path), "baseline", {deciding: score}, measured, loaded.description.computing)
    after = _side(files(artefact), "optimized", {deciding: new_score}, measured, description.computing)
    before["macs"], after["macs"] = (sum(one.macs for one in side.layers) for side in (loaded.description, description))
    return {
        "schema": 1,
        "kind": asked.kind,
        "use_case": plan.use_case_name,
        "optim_level": asked.optim_level,
        "seed": asked.seed,
        "verdict": verdict,
        "metric": deciding,
        "budget": {"points": points, "given": budget.given},
        "target_speedup": asked.target_speedup,
        "baseline": before,
        "optimized": {**after, **_compression(description, after, asked.runtime[0])},
        "agreement": pair.agreement,
        "confidence": summarise_confidence(pair.predictions),
        "examples": list(measured.examples),
        "drop": {"points": round(drop, 6), "interval": pair.drop_interval},
        "samples": loaded.splits.counts(),
        "unreadable": dict(loaded.splits.test.unreadable),
        "layers": _layers(loaded.description, description, measured.errors, model),
        "rungs": list(rungs),
        "training": list(model.facts.get("history", ())),
        "excluded": [{"name": name, "reason": reason} for name, reason in model.facts.get("excluded", {}).items()],
        "coverage": model.facts.get("coverage"),
        "stages": list(stages),
        "speedup": {name: round(1 / measured.ratio(name).value, 3) for name in measured.timings},
        "speedup_interval": [round(1 / ratio.high, 3), round(1 / ratio.low, 3)],
        "compression": round(before["bytes"] / after["bytes"], 3),
        "environment": environment(),
        "notes": list(notes),
        "files": {"folder": str(plan.folder.path), "model": str(artefact)},
    }


def _compression(after: Description, side: Mapping[str, Any], deciding_runtime: str) -> dict[str, Any]:
    latency = side["latency"][deciding_runtime]
    return {
        "sparsity": sparsity_of(after),
        "sparsity_file": round(after.zeros / after.parameters, 6) if after.parameters else 0.0,
        "quantized": {"int8": latency["int8_executed"], "of": latency["of"]},
    }


def drop_of(metrics: Sequence[Metric], pair: Pair) -> tuple[str, float, float, float]:
    """Name the deciding metric, agreement where there are no labels, its value before and after, and points lost."""
    if pair.baseline.values:
        name = metrics[0].name
        before, after = pair.baseline.values[name], pair.candidate.values[name]
        return name, before, after, before - after if metrics[0].higher_is_better else after - before
    top1 = pair.agreement["top1"]
    after = top1 if top1 is not None else 100 * (pair.agreement["cosine"] or 0.0)
    return "agreement", 100.0, after, 100.0 - after


def judge(*, changed: bool, verified: bool, drop: float, budget: float | None, slower: bool, late: bool) -> str:
    """Give the verdict; a result that could not be verified is never called met. late: behind --target-speedup."""
    if not changed:
        return "baseline"
    if not verified:
        return "unverified"
    if budget is not None and drop > budget + 1e-9:
        return "missed"
    if slower:
        return "slower"
    if late:
        return "missed"
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


def _side(
    files: Sequence[Path], name: str, deciding: Mapping[str, float], measured: Measured, computing: int
) -> dict[str, Any]:
    evaluation = measured.pair.baseline if name == "baseline" else measured.pair.candidate
    values = {**deciding, **evaluation.values}
    return {
        "model": str(files[0]),
        "bytes": sum(file.stat().st_size for file in files),
        "compressed_bytes": gzip_size(*files),
        "metrics": {metric: round(value, 4) for metric, value in values.items()},
        "intervals": {metric: [round(bound, 4) for bound in pair] for metric, pair in evaluation.intervals.items()},
        "latency": {runtime: _latency(both[name], computing) for runtime, both in measured.timings.items()},
    }


def _latency(timing: Timing, computing: int) -> dict[str, Any]:
    shown = ("batch", "threads", "p50_ms", "p95_ms", "throughput")
    return {
        **{name: round(getattr(timing, name), 4) for name in shown},
        "precision": timing.facts.get("precision"),
        "int8_executed": timing.facts.get("int8_executed"),
        "of": computing,
    }


def sparsity_of(description: Description) -> float:
    """Return zeros ÷ weights of the layers eligible for pruning."""
    layers = [layer for layer in description.layers if layer.eligible]
    weights = sum(layer.parameters for layer in layers)
    return round(sum(layer.sparsity * layer.parameters for layer in layers) / weights, 6) if weights else 0.0


def _layers(
    dense: Description, after: Description, errors: Mapping[str, Mapping[str, float]], model: Model
) -> list[dict[str, Any]]:
    now = {layer.name: layer for layer in after.layers}
    why_float = model.facts.get("quantized", {})
    return [
        {
            "name": layer.name,
            "op": layer.op,
            "shape": list(layer.shape),
            "shape_after": list(current.shape) if current else None,  # of a layer that was taken out
            "sparsity": round(current.sparsity, 6) if current else None,
            "precision": current.precision if current else None,
            **{key: errors.get(layer.name, {}).get(key) for key in LAYER_FIGURES},
            "ms": {side: errors.get(layer.name, {}).get(f"ms_{side}") for side in ("before", "after")},
            "macs": layer.macs,
            "kept_dense": layer.reason,
            "kept_float": "" if not current or current.precision == "int8" else str(why_float.get(layer.name, "")),
        }
        for layer, current in ((layer, now.get(layer.name)) for layer in dense.layers)
    ]


def environment() -> dict[str, Any]:
    """Say where the figures were measured, without naming the machine."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _cpu() -> str:
    """Read the CPU's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", path.read_text() if path.is_file() else "", re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
