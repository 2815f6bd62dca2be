"""Let the dense model teach its features beside its answers, where a generated recipe prunes."""

from __future__ import annotations

from dataclasses import replace

from sparsify import Recipe, Search, Step

from sparsify_torch.prunable import prunable_names
from sparsify_torch.spreading import SPREAD
from sparsify_torch.stages import find_holders

# of the distance of all features together: layers that learn from layers mend what pruning lost (Xia et al. 2022,
# arXiv:2204.00408); ResNet-20 gains 0.5 points at 90 % zeros, and more than that at half of its MACs
# (docs/figures/training-aware.md)
GAIN = 15.0


def teach_features(search: Search, stages: list[str]) -> list[Step]:
    """Return the step that teaches what parts give; another teacher than the dense model has no such parts."""
    if not stages or search.plan.experiment.teacher not in (None, "self"):
        return []
    options = {"student_layer_names": stages, "gain": round(GAIN / len(stages), 4)}
    return [Step("PerLayerDistillationModifier", "training", options, "distillation_modifiers")]


def teach_what_is_pruned(search: Search, recipe: Recipe) -> Recipe:
    """Teach the parts that a generated recipe writes zeros into; a user's own recipe stays."""
    source, names = search.loaded.source, {step.name for step in recipe.steps}
    if search.plan.recipe is not None or source is None or not {SPREAD, "DistillationModifier"} <= names:
        return recipe
    stages = find_holders(source.value, prunable_names(source.value), tuple(source.facts["example_inputs"]))
    return replace(recipe, steps=(*recipe.steps, *teach_features(search, stages)))
