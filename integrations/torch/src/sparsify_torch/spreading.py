"""Give each layer the sparsity that one-shot pruning would: where zeros cost the outputs least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsify import Recipe, Search, Step

if TYPE_CHECKING:
    from torch import nn

SPREAD = "MagnitudePruningModifier"


def spread(search: Search, recipe: Recipe) -> Recipe:
    """Replace one sparsity for all layers by one for each, as `--allocation` says; a user's own recipe stays.

    Layers are named by their weights, which an export keeps; one whose weight has another name there keeps the
    overall sparsity.
    """
    asked = search.plan.experiment
    if search.plan.recipe is not None or asked.allocation == "uniform" or search.loaded.source is None:
        return recipe
    module: nn.Module = search.loaded.source.value
    return replace(recipe, steps=tuple(_spread(search, step, module) for step in recipe.steps))


def _spread(search: Search, step: Step, module: nn.Module) -> Step:
    from sparsify_onnx import layer_shares

    from sparsify_torch.prunable import prunable_names

    overall = step.options.get("final_sparsity")
    if step.name != SPREAD or not isinstance(overall, float) or _keeps_n_of_m(step):
        return step
    context = replace(search.context, checkpoint=search.context.kept)
    cost, structure = search.plan.experiment.allocation, search.plan.experiment.sparsity
    found = layer_shares(search.loaded.model, overall, cost, context, structure)
    return replace(step, options=by_layer(step.options, found, prunable_names(module)))


def _keeps_n_of_m(step: Step) -> bool:
    return ":" in str(step.options.get("mask_type", ""))


def by_layer(options: Mapping[str, Any], shares: Mapping[str, float], names: list[str]) -> dict[str, Any]:
    """Write options whose `final_sparsity` holds the names of the weights for each share."""
    groups: defaultdict[float, list[str]] = defaultdict(list)
    for name in names:
        share = round(float(shares.get(name, options["final_sparsity"])), 4)
        if share:
            groups[share].append(name)
    first = min(options["init_sparsity"], *groups)
    return {**options, "params": [], "init_sparsity": first, "final_sparsity": dict(sorted(groups.items()))}
