"""Check that a recipe fits a module and the epochs asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sparsify import Experiment, Model, RequestError, load_plugins, load_recipe, resolve_modifiers
from torch.nn.functional import cross_entropy

from sparsify_image_classification.training.options import TrainOptions, read_options
from sparsify_image_classification.training.stepping import make_optimizer

EPOCHS = 15  # where neither the recipe nor --train-kwargs says how many: as many as a generated recipe has


def check_recipe(experiment: Experiment, model: Model) -> None:
    """Refuse a recipe of the user's own that does not fit the module, before anything is trained or measured."""
    from sparsify_torch import ScheduledModifierManager

    if experiment.recipe is None:
        return
    recipe = load_recipe(Path(experiment.recipe), experiment.recipe_args)
    steps = resolve_modifiers(recipe, load_plugins(), experiment.kind)
    manager = ScheduledModifierManager(options for step, options in steps if step.phase == "training")
    options, tried = read_options(experiment.train_kwargs), copy.deepcopy(model.value)
    epochs_of(manager, options)
    manager.check(
        tried,
        make_optimizer(tried, options, 1.0),
        grad_sampler={"data_loader_builder": list, "loss_function": cross_entropy},
        example_inputs=model.facts["example_inputs"],
    )


def epochs_of(manager: Any, options: TrainOptions) -> int:
    """Return how long to train; raises RequestError where that ends within the recipe."""
    if options.epochs is not None and options.epochs < manager.max_epochs:
        problem = f"--train-kwargs: {options.epochs} epochs, the recipe runs to epoch {manager.max_epochs}"
        raise RequestError(problem, fix="leave epochs out, or shorten the recipe with --recipe-args")
    return int(options.epochs or manager.max_epochs or EPOCHS)
