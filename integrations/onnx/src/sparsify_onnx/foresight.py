"""Say before the work what cannot pay: zeros that a runtime makes nothing of, and a speed that is out of its reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sparsify import Ratio, Recipe, RequestError, Search, Step, installed_runtimes, time_ratio

SAMPLES = 8  # to calibrate a model whose answers nobody reads
SCATTERED = "unstructured"
# what makes weights better and not faster
QUICKER = {
    "SparseGPTModifier": ("MagnitudePruningModifier", ("sparsity", "targets", "ignore", "mask_structure")),
    "QuantizationModifier": ("QuantizationModifier", ("ignore", "reduce_range")),
}
ROUGH = {"feedback": False, "bias_correction": False, "equalize": False, "ranges": "minmax"}


def foresee(search: Search, recipe: Recipe) -> Recipe:
    """Note zeros that bring no speed; raises RequestError for a --target-speedup that the recipe cannot reach."""
    asked = search.plan.experiment
    runtime, target = asked.runtime[0], asked.target_speedup
    if scatters(recipe) and search.facts().get("uses_zeros") is False:
        search.talk.note(
            f"{runtime} computes with unstructured zeros as with any other weight: they make the compressed file "
            "smaller, not the model faster; what is faster there is INT8"
        )
    if target is None:
        return recipe
    if not recipe.steps:
        raise RequestError("--target-speedup has no effect at --optim-level 0", fix="give a level above 0")
    rough = rehearse(search, recipe)
    reached = _ratios(search, rough, [runtime])[runtime]
    if reached.low > 1 / target:
        raise _out_of_reach(search, rough, target, reached)
    search.talk.note(f"rehearsed: {1 / reached.value:.2f} × as fast as float on {runtime}, {target:g} asked for")
    return recipe


def _out_of_reach(search: Search, rough: Path, target: float, reached: Ratio) -> RequestError:
    runtime = search.plan.experiment.runtime[0]
    installed = (name for name in installed_runtimes(search.plan.plugins) if name != runtime)
    others = _ratios(search, rough, [name for name in installed if search.runs(rough, name)])
    speeds = {name: 1 / ratio.value for name, ratio in others.items()}
    best = max(speeds, key=speeds.__getitem__, default="")
    least = 1 / reached.value - 0.05
    fix = f"ask for --target-speedup {least:.2f} or less" if least > 1 else "leave --target-speedup out"
    if speeds.get(best, 0.0) >= target:
        fix = f"use --runtime {best}, where it runs {speeds[best]:.2f} × as fast as its float model; or {fix}"
    problem = f"--target-speedup {target:g}: on {runtime} this recipe reaches {1 / reached.value:.2f} × here"
    return RequestError(problem, fix=fix)


def scatters(recipe: Recipe) -> bool:
    """Say whether a recipe zeroes weights without any structure."""
    return any(
        "sparsity" in step.options and step.options.get("mask_structure", SCATTERED) == SCATTERED
        for step in recipe.steps
    )


def rehearsal(recipe: Recipe) -> Recipe:
    """Give a recipe whose model is as fast, with the same zeros and the same layers in INT8, and made in seconds."""
    steps = []
    for step in recipe.steps:
        name, kept = QUICKER.get(step.name, ("", ()))
        if name:
            options = {key: value for key, value in step.options.items() if key in kept}
            options |= ROUGH if name == "QuantizationModifier" else {}
            steps.append(Step(name, step.phase, options, step.group))
    return Recipe(tuple(steps))


def rehearse(search: Search, recipe: Recipe) -> Path:
    """Write a model that is as fast as the recipe's."""
    few = search.context.calibration
    context = replace(search.context, calibration=few.take(few.keys[:SAMPLES]), selection=None, note=lambda line: None)
    path = search.plan.folder.state / "rehearsal.onnx"
    trial = replace(search, context=context, known={})
    search.plan.model_format.save(trial.apply(rehearsal(recipe)), path)
    return path


def _ratios(search: Search, rough: Path, runtimes: Sequence[str]) -> Mapping[str, Ratio]:
    timed = search.time(rough, runtimes) if runtimes else {}
    return {name: time_ratio(both["optimized"], both["baseline"]) for name, both in timed.items()}
