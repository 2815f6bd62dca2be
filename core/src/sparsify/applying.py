"""Apply a recipe's post-training modifiers one at a time, with finished pieces kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from sparsify.contracts import Context, Data, Model, Training
from sparsify.data import spool
from sparsify.errors import RequestError
from sparsify.formats import convert
from sparsify.modifiers import resolve_modifiers
from sparsify.recipe import Recipe, Step
from sparsify.resolve import Loaded, Plan
from sparsify.talk import Talk


def make_context(plan: Plan, loaded: Loaded, talk: Talk) -> Context:
    """Give modifiers what they work with; calibration samples are decoded once, onto disk."""
    return Context(
        calibration=spool(loaded.splits.calibration, plan.folder.state / "calibration"),
        selection=loaded.splits.selection,
        batch_size=loaded.batch_size,
        seed=plan.experiment.seed,
        threads=plan.experiment.threads,
        memory=loaded.memory,
        kept=plan.folder.measurements,
        progress=talk.progress,
        note=talk.note,
    )


def digest(steps: Sequence[Step]) -> str:
    """Name steps after what they do."""
    text = json.dumps([[step.name, dict(step.options)] for step in steps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def apply(plan: Plan, loaded: Loaded, recipe: Recipe, context: Context, talk: Talk, known: dict[str, Model]) -> Model:
    """Apply every step; finished layers survive a kill in the run folder, under the digest of the steps so far.

    known: models by digest, from which a recipe that begins alike goes on. Only the one before the last step is left
    there: one model more than a run needs, not one for each recipe tried.
    """
    steps, marks = resolve_modifiers(recipe, plan.plugins, plan.experiment.kind), [""]
    marks += [digest(recipe.steps[: index + 1]) for index in range(len(steps))]
    trained = sum(1 for _ in takewhile(lambda pair: pair[0].phase == "training", steps))
    begin = max((place for place, mark in enumerate(marks[:-1]) if mark in known), default=0)
    model = known.get(marks[begin], loaded.model)
    if begin < trained:
        taught = train(plan, loaded.source, loaded.data, [modifier for _, modifier in steps[:trained]], talk)
        model, begin = convert(taught, ("onnx",), plan.plugins), trained
    for index in range(begin, len(steps)):
        step, modifier = steps[index]
        if index == len(steps) - 1:
            known.clear()
            known[marks[index]] = model
        talk.say(f"{step.name} ({index + 1} of {len(steps)})")
        model = convert(model, plan.plugins.find("modifiers", step.name, step.phase).entry.accepts, plan.plugins)
        place = plan.folder.checkpoint(f"{index}-{step.name}-{marks[index + 1]}")
        model = modifier.apply(model, replace(context, checkpoint=place))
    return model


def train(plan: Plan, source: Model | None, data: Data, modifiers: Sequence[Any], talk: Talk, place: str = "") -> Model:
    """Run the use case's trainer with these modifiers; it works in `place` below training_artifacts/."""
    if plan.trainer is None or source is None:  # one-shot has refused such recipes
        raise RequestError("there is no trainer for these modifiers", fix="use `sparsify run training-aware`")
    training = Training(plan.experiment, data, plan.folder.training / place, plan.resume, talk.progress, talk.note)
    return plan.trainer.train(source, modifiers, training)
