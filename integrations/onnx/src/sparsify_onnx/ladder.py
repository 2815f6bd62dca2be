"""Mend a recipe that misses the budget: try one thing after another, and keep what pays on the selection samples.

Structural exclusions, equalization, bias correction and the repair of means are in every recipe from the start. The
rungs that follow go from what costs nothing at run time to what gives compression back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparsify import Model, Recipe, Search, Step

from sparsify_onnx.alone import drifts_alone
from sparsify_onnx.attempts import Attempt, attempt, drop, keep
from sparsify_onnx.smoothing import needs_nodes

PRUNING, INT8 = "SparseGPTModifier", "QuantizationModifier"
KL_GAIN = 0.98  # a rung pays that leaves less of the divergence than this
FLOAT_SHARES = (0.05, 0.1, 0.2)  # of the layers, tried in float
HALVINGS = 4  # of the interval in which the highest sparsity within budget lies
DENSER = 0.25  # share of the pruned layers that the denser rung relieves
Rung = Callable[[Search, Attempt], Attempt]


def rescue(search: Search, recipe: Recipe) -> tuple[Recipe, Model]:
    """Climb rung by rung until an attempt meets the budget or the time is up; returns the best recipe and its model."""
    best = attempt(search, "as asked", "the recipe for the level", recipe)
    keep(search, best, "within budget" if best.meets else "the start")
    for rung in (ranges, smoothing, learned_rounding, denser, in_float, lower_level):
        if best.meets or search.expired(best.seconds):
            break
        best = rung(search, best)
    return best.recipe, best.model


def ranges(search: Search, best: Attempt) -> Attempt:
    """Choose activation ranges, and the scales of weights, in other ways."""
    edits = [
        ("percentile 99.99", {"ranges": "percentile"}),
        ("entropy", {"ranges": "entropy"}),
        ("minmax", {"ranges": "minmax"}),
    ]
    for what, options in edits:
        best = _try(search, best, "ranges", f"activation ranges by {what}", edit(best.recipe, INT8, options))
        if best.meets or search.expired(best.seconds):
            break
    return best


def smoothing(search: Search, best: Attempt) -> Attempt:
    """Move the outliers of normalised activations into weights where that takes nodes of its own."""
    if "SmoothQuantModifier" in {step.name for step in best.recipe.steps} or not needs_nodes(search.loaded.model.value):
        return best
    step = Step("SmoothQuantModifier", "post-training", {}, best.recipe.steps[0].group)
    recipe = replace(best.recipe, steps=(step, *best.recipe.steps))
    return _try(search, best, "smoothing", "outliers of normalised activations moved into weights", recipe)


def learned_rounding(search: Search, best: Attempt) -> Attempt:
    """Search each layer's integers by coordinate descent on its Hessian."""
    recipe = edit(best.recipe, INT8, {"learned_rounding": True})
    return _try(search, best, "learned rounding", "weights rounded by coordinate descent", recipe)


def denser(search: Search, best: Attempt) -> Attempt:
    """Halve the sparsity of the layers whose pruning moves the outputs most."""
    pruned: Mapping[str, Mapping[str, float]] = best.model.facts.get("pruned", {})
    if not pruned:
        return best
    worst = _worst(search, best, list(pruned))[: max(round(DENSER * len(pruned)), 1)]
    shares = {name: round(pruned[name]["sparsity"] / 2, 4) for name in worst}
    what = f"half the sparsity in {_listed(worst)}"
    return _try(search, best, "denser", what, edit(best.recipe, PRUNING, {"layer_sparsity": shares}))


def in_float(search: Search, best: Attempt) -> Attempt:
    """Leave the most sensitive layers in float, a few at a time."""
    int8 = [name for name, why in best.model.facts.get("quantized", {}).items() if why == "int8"]
    worst = _worst(search, best, int8)
    for count in sorted({max(round(share * len(worst)), 1) for share in FLOAT_SHARES}):
        names = worst[:count]
        recipe = edit(best.recipe, INT8, {"ignore": names})
        found = _try(search, best, "in float", f"{_listed(names)} in float", recipe, worth=_worth_its_time)
        best = found
        if found.meets or search.expired(best.seconds):
            break
    return best


def lower_level(search: Search, best: Attempt) -> Attempt:
    """Find the highest sparsity within the budget by halving, from INT8 alone upwards."""
    step = next((step for step in best.recipe.steps if step.name == PRUNING), None)
    if step is None:
        return best
    base = Recipe(tuple(one for one in best.recipe.steps if one.name != PRUNING), best.recipe.notes)
    found = attempt(search, "lower level", "INT8 alone", base)
    if not found.meets:
        if not _better(found, best):
            drop(search, found, "INT8 alone misses the budget too")
            return best
        return keep(search, found, "INT8 alone misses the budget too, by less")
    best, low, high = keep(search, found, "within budget"), 0.0, float(step.options["sparsity"])
    for _ in range(HALVINGS):
        if search.expired(best.seconds):
            break
        middle = round((low + high) / 2, 4)
        options = {"sparsity": middle, "layer_sparsity": {}}
        found = attempt(
            search, "lower level", f"{100 * middle:.0f} % zeros", edit(base_with(base, step), PRUNING, options)
        )
        if found.meets:
            best, low = keep(search, found, "within budget, with more zeros"), middle
        else:
            drop(search, found, "over budget")
            high = middle
    return best


def base_with(recipe: Recipe, step: Step) -> Recipe:
    """Put the pruning step back before quantization."""
    steps = list(recipe.steps)
    place = next(index for index, one in enumerate(steps) if one.name == INT8)
    return replace(recipe, steps=(*steps[:place], step, *steps[place:]))


def edit(recipe: Recipe, name: str, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe with options of one modifier changed."""
    steps = (replace(one, options={**one.options, **options}) if one.name == name else one for one in recipe.steps)
    return replace(recipe, steps=tuple(steps))


def _try(
    search: Search,
    best: Attempt,
    name: str,
    what: str,
    recipe: Recipe,
    worth: Callable[[Attempt, Attempt], str] | None = None,
) -> Attempt:
    """Attempt a recipe, and return it if it pays, else the best so far."""
    if recipe == best.recipe:
        return best
    found = attempt(search, name, what, recipe)
    if not _better(found, best):
        drop(search, found, "it brings no accuracy")
        return best
    if not found.meets and worth and (why := worth(found, best)):
        drop(search, found, why)
        return best
    return keep(search, found, "within budget" if found.meets else "it brings accuracy")


def _better(found: Attempt, best: Attempt) -> bool:
    """Say whether an attempt is more accurate beyond noise: by its divergence, which sees more than hits do."""
    slack = best.noise / 2
    if found.figures["kl"] >= 0 and best.figures["kl"] >= 0:
        return (found.figures["kl"] < KL_GAIN * best.figures["kl"] and found.points <= best.points + slack) or (
            found.points < best.points - slack and found.figures["kl"] <= best.figures["kl"]
        )
    return found.points < best.points - slack


def _worth_its_time(found: Attempt, best: Attempt) -> str:
    """Say why an exclusion costs more speed than it brings accuracy, or nothing."""
    slower = (found.figures["ms"] - best.figures["ms"]) / best.figures["ms"]
    regained = (best.points - found.points) / max(best.points, best.noise, 1e-9)
    return (
        f"it costs {100 * slower:.0f} % of the time for {100 * regained:.0f} % of the loss"
        if slower > max(regained, 0.02)
        else ""
    )


def _worst(search: Search, best: Attempt, names: Sequence[str]) -> list[str]:
    alone = drifts_alone(search.loaded.model, best.model, search.context)
    return sorted((name for name in names if name in alone), key=lambda name: -alone[name])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
