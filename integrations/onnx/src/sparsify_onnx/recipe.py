"""Write the recipe that `--optim-level` asks for, in the one-shot modifiers of this package."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sparsify import Description, Experiment, Recipe, RecipeGenerator, Step, target_sparsity

from sparsify_onnx.cpu import cpu_features, saturates
from sparsify_onnx.foresight import foresee
from sparsify_onnx.ladder import rescue

GROUP = "post_training_modifiers"


def write(experiment: Experiment, description: Description, cpu: Collection[str] | None = None) -> Recipe:
    """Write nothing at level 0, INT8 below 0.3, and from 0.3 on pruning at 40-80 % onto INT8 grids.

    cpu: its features, by default those of this machine; where INT8 would saturate there, weights are kept smaller.
    """
    steps: list[Step] = []
    sparsity = round(target_sparsity(experiment.optim_level, experiment.kind), 4)
    grid = {"reduce_range": True} if saturates(cpu_features() if cpu is None else cpu) else {}
    if sparsity and any(layer.eligible for layer in description.layers):
        steps.append(_step("EqualizationModifier", {}))
        steps.append(_step("SparseGPTModifier", {**_pruning(experiment, sparsity), **grid}))
    if experiment.optim_level > 0:
        steps.append(_step("QuantizationModifier", grid))
    notes = ("no layer is eligible for pruning: INT8 only",) if sparsity and len(steps) == 1 else ()
    return Recipe(tuple(steps), notes)


def _pruning(experiment: Experiment, sparsity: float) -> dict[str, Any]:
    options: dict[str, Any] = {"sparsity": sparsity, "targets": ["__ALL_PRUNABLE__"]}
    if experiment.sparsity != "unstructured":
        options["mask_structure"] = experiment.sparsity
    if ":" not in experiment.sparsity:  # N:M leaves no choice of how much
        options["allocation"] = experiment.allocation
    return {**options, "round_weights": True}


def _step(name: str, options: dict[str, Any]) -> Step:
    return Step(name, "post-training", options, GROUP)


GENERATOR = RecipeGenerator(write, rescue, foresee)
