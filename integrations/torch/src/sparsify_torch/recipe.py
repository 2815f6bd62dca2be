"""Write the recipe that `--optim-level` and `--sparsity` ask for in training-aware experiments."""

from __future__ import annotations

from typing import Any

from sparsify import Description, Experiment, Recipe, RecipeGenerator, RequestError, Search, Step, target_sparsity

from sparsify_torch.spreading import SPREAD, spread

EPOCHS = 15
# of the epochs: what stays has the higher rates of a cosine to settle at (docs/figures/training-aware.md)
PRUNED_BY, QUANTIZED_FROM, FROZEN_FROM = 0.4, 0.8, 0.93
FIRST_SPARSITY, UPDATES = 0.05, 30
PRUNED_FROM = 0.3  # below it INT8 only
HARDNESS, TEMPERATURE = 1.0, 4.0  # what the dense model says of a sample teaches more than its label
STRUCTURED = "structured"
THINNED_BY, THINNINGS = 0.1, 4  # of the epochs; channels leave in so many steps
MACS_LEFT = 0.6, 0.25  # at level 0.3 and at 1; in between 0.5 leaves half


def write(experiment: Experiment, description: Description) -> Recipe:
    """Write nothing at level 0, QAT below 0.3, and from 0.3 on gradual pruning to 60-95 % before it.

    With `--sparsity structured` channels go instead, until 60-25 % of the MACs are left (half of them at 0.5). `epochs`
    of --train-kwargs says how long (15). The dense model teaches, unless --teacher names another or none.
    """
    if experiment.optim_level == 0:
        return Recipe(())
    epochs = epochs_of(experiment)
    steps = [_step("training", "EpochRangeModifier", start_epoch=0.0, end_epoch=epochs)]
    sparsity = round(target_sparsity(experiment.optim_level, experiment.kind), 4)
    if sparsity and experiment.sparsity == STRUCTURED:
        steps.append(thinning(epochs, round(1 - macs_left(experiment.optim_level), 4), ["__ALL__"], of="macs"))
    elif sparsity and any(layer.eligible for layer in description.layers):
        steps.append(_pruning(experiment, sparsity, epochs))
    steps.append(_step("quantization", "QuantizationModifier", **quantizing(epochs)))
    if experiment.teacher != "disable":
        steps.append(_step("distillation", "DistillationModifier", hardness=HARDNESS, temperature=TEMPERATURE))
    notes = ("no layer is eligible for pruning: INT8 only",) if sparsity and steps[1].name.startswith("Quant") else ()
    return Recipe(tuple(steps), notes)


def epochs_of(experiment: Experiment) -> float:
    """Return how long a generated recipe is; raises RequestError for `epochs` of --train-kwargs that is no number."""
    found = (experiment.train_kwargs or {}).get("epochs", EPOCHS)
    if not isinstance(found, int | float) or isinstance(found, bool) or found <= 0:
        raise RequestError(f"--train-kwargs: epochs is {found!r}", fix="give a number above 0, such as 15")
    return float(found)


def quantizing(epochs: float) -> dict[str, float]:
    """Return when INT8 is simulated, and from when its ranges and the norms' statistics stay."""
    frozen = part(epochs, FROZEN_FROM)
    return {
        "start_epoch": part(epochs, QUANTIZED_FROM),
        "disable_quantization_observer_epoch": frozen,
        "freeze_bn_stats_epoch": frozen,
    }


def part(epochs: float, share: float) -> float:
    """Return a share of the epochs as people write it: 1.2, where multiplying leaves 1.2000000000000002."""
    return float(f"{epochs * share:.6g}")


def _pruning(experiment: Experiment, sparsity: float, epochs: float) -> Step:
    """Prune each layer by magnitude; how much of each is measured once the model is there, see `spread`."""
    structure, share = experiment.sparsity, sparsity
    if ":" in structure:  # N of M stay
        kept, among = map(int, structure.split(":"))
        share = 1 - kept / among
    options: dict[str, Any] = {
        "params": ["__ALL_PRUNABLE__"],
        "init_sparsity": FIRST_SPARSITY,
        "final_sparsity": share,
        "start_epoch": 0.0,
        "end_epoch": part(epochs, PRUNED_BY),
        "update_frequency": part(epochs, PRUNED_BY / UPDATES),
    }
    if structure != "unstructured":
        options["mask_type"] = structure if ":" in structure else [int(side) for side in structure.split("x")]
    return _step("pruning", SPREAD, **options)


def macs_left(level: float) -> float:
    """Return the share of the MACs that a level leaves: 60 % at 0.3, half at 0.5, 25 % at 1."""
    most, least = MACS_LEFT
    return round(most + (level - PRUNED_FROM) / (1 - PRUNED_FROM) * (least - most), 4)


def thinning(epochs: float, share: float, params: list[str], **options: Any) -> Step:
    """Take so much of the channels out of these layers in the first part of the epochs."""
    return _step(
        "pruning",
        "StructuredPruningModifier",
        params=params,
        init_sparsity=0.0,
        final_sparsity=share,
        start_epoch=0.0,
        end_epoch=part(epochs, THINNED_BY),
        update_frequency=part(epochs, THINNED_BY / THINNINGS),
        **options,
    )


def foresee(search: Search, recipe: Recipe) -> Recipe:
    """Choose blocks and channels by name where structure is asked for or pays alone, else a sparsity for each layer."""
    # torch is imported where something has to be chosen
    from sparsify_torch.structured_recipe import choose
    from sparsify_torch.teaching import teach_what_is_pruned

    return teach_what_is_pruned(search, spread(search, choose(search, recipe)))


def _step(group: str, name: str, **options: Any) -> Step:
    return Step(name, "training", options, f"{group}_modifiers")


GENERATOR = RecipeGenerator(write, foresee=foresee)
