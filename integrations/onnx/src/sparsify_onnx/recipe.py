"""Write the recipe that `--optim-level` asks for, in the one-shot modifiers of this package."""

from __future__ import annotations

from sparsify import Description, Experiment, Recipe, Step, target_sparsity

GROUP = "post_training_modifiers"


def write(experiment: Experiment, description: Description) -> Recipe:
    """Write nothing at level 0, INT8 below 0.3, and from 0.3 on pruning at 40-80 % before INT8."""
    steps: list[Step] = []
    sparsity = round(target_sparsity(experiment.optim_level, experiment.kind), 4)
    if sparsity and any(layer.eligible for layer in description.layers):
        options = {"sparsity": sparsity, "targets": ["__ALL_PRUNABLE__"]}
        if experiment.sparsity != "unstructured":
            options["mask_structure"] = experiment.sparsity
        steps.append(Step("SparseGPTModifier", "post-training", options, GROUP))
    if experiment.optim_level > 0:
        steps.append(Step("QuantizationModifier", "post-training", {}, GROUP))
    notes = ("no layer is eligible for pruning: INT8 only",) if sparsity and len(steps) == 1 else ()
    return Recipe(tuple(steps), notes)
