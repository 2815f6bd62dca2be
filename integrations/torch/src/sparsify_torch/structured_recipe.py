"""Choose what structured pruning takes out, and write it into the recipe by name: blocks at once, channels by layer."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sparsify import Model, Recipe, RequestError, Search, Step, time_ratio
from torch import nn

from sparsify_torch.export_onnx import export_model
from sparsify_torch.mixing import thin_to_share, thin_to_speed
from sparsify_torch.recipe import STRUCTURED, epochs_of, macs_left, thinning, write
from sparsify_torch.thinning import Thinned

SAMPLES, AT_ONCE = 256, 64  # that judge how much a mix changes
FEW = 8  # to calibrate a model whose answers nobody reads
MARGIN = 1.05  # above --target-speedup: the trained model is timed once more, with noise of its own
ROUGH = {"feedback": False, "bias_correction": False, "equalize": False, "ranges": "minmax"}


def choose(search: Search, recipe: Recipe) -> Recipe:
    """Return the recipe with names of blocks and layers where it prunes channels; a recipe of the user's own stays.

    Raises RequestError where the module cannot be followed, and for a --target-speedup out of reach.
    """
    asked = search.plan.experiment
    if search.plan.recipe is not None:
        if asked.target_speedup is not None:
            search.talk.note(f"--target-speedup {asked.target_speedup:g} is what the recipe's result is judged by")
        return recipe
    if asked.target_speedup is not None:
        return _for_speed(search, recipe, asked.target_speedup)
    if asked.sparsity != STRUCTURED or not macs_asked(recipe):
        return recipe
    module, inputs = _source(search)
    share = macs_left(asked.optim_level)
    found = thin_to_share(module, inputs, target=share, data=_data(search))
    return _named(search, recipe, found)


def macs_asked(recipe: Recipe) -> bool:
    """Say whether a recipe removes channels."""
    return any(step.name == "StructuredPruningModifier" for step in recipe.steps)


def _for_speed(search: Search, recipe: Recipe, target: float) -> Recipe:
    """Leave zeros to runtimes that use them, else choose what has to go beside INT8."""
    asked = search.plan.experiment
    runtime = asked.runtime[0]
    if not recipe.steps:
        raise RequestError("--target-speedup has no effect at --optim-level 0", fix="give a level above 0")
    if search.facts().get("uses_zeros") is not False and asked.sparsity != STRUCTURED:
        return recipe
    module, inputs = _source(search)
    measure = partial(_speedup, search)
    alone = _int8_alone(search, measure)
    if alone >= target * MARGIN:
        search.talk.note(f"INT8 alone is {alone:.2f} x as fast on {runtime}: no channels have to go for {target:g} x")
        return recipe
    if asked.sparsity != STRUCTURED:
        search.talk.note(
            f"{runtime} makes nothing of zeros, and INT8 alone is {alone:.2f} x as fast: for --target-speedup "
            f"{target:g} channels and blocks are taken out instead (--sparsity structured)"
        )
    mixed = thin_to_speed(
        module,
        inputs,
        speedup=target * MARGIN,
        data=_data(search),
        threads=asked.threads or 1,
        measure=measure,
        already=alone,
        kept=search.context.kept,
    )
    search.talk.note(f"rehearsed: {mixed.speedup:.2f} x as fast on {runtime}, {target:g} asked for")
    fresh = write(asked.model_copy(update={"sparsity": STRUCTURED}), search.loaded.description)
    return _named(search, fresh, mixed.thinned)


def _int8_alone(search: Search, measure: Any) -> float:
    kept = search.context.kept
    held = kept.load("speedup-int8")
    if held is None:
        import numpy as np

        held = {"speedup": np.array(measure(search.loaded.source.value))}
        kept.save("speedup-int8", held)
    return float(held["speedup"])


def _source(search: Search) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a copy of the dense module to try on, and its example inputs."""
    source = search.loaded.source
    assert source is not None  # noqa: S101 - kinds that train have one
    return deepcopy(source.value).eval(), tuple(source.facts["example_inputs"])


def _data(search: Search) -> list[tuple[tuple[torch.Tensor, ...], None]]:
    """Return calibration samples as the module takes them, by the position of its inputs."""
    names = [spec.name for spec in search.loaded.description.inputs]
    samples = search.context.calibration
    batches = samples.take(samples.keys[:SAMPLES]).batches(AT_ONCE)
    return [(tuple(torch.from_numpy(batch.inputs[name]) for name in names), None) for batch in batches]


def _speedup(search: Search, module: nn.Module) -> float:
    """Return how many times as fast as the dense float model a module is in INT8, on the deciding runtime."""
    source, asked = search.loaded.source, search.plan.experiment
    assert source is not None  # noqa: S101 - kinds that train have one
    exported = export_model(Model("torch", module, source.facts))
    few = search.context.calibration
    context = replace(search.context, calibration=few.take(few.keys[:FEW]), selection=None, note=lambda line: None)
    quantize = search.plan.plugins.load("modifiers", "QuantizationModifier", "post-training").model_validate(ROUGH)
    path = search.plan.folder.state / "rehearsal.onnx"
    search.plan.model_format.save(quantize.apply(exported, context), path)
    timed = search.time(path, [asked.runtime[0]])[asked.runtime[0]]
    return 1 / time_ratio(timed["optimized"], timed["baseline"]).value


def _named(search: Search, recipe: Recipe, found: Thinned) -> Recipe:
    """Put the blocks and the layers that were chosen in the place of the step that asks for a share."""
    epochs = epochs_of(search.plan.experiment)
    steps: list[Step] = []
    for step in recipe.steps:
        steps += _chosen(epochs, found) if step.name == "StructuredPruningModifier" else [step]
    before, after = found.macs
    blocks = f"{len(found.blocks)} blocks and " * bool(found.blocks)
    narrower = sum(wide != narrow for wide, narrow in found.widths.values())
    search.talk.note(
        f"structured: {blocks}channels of {narrower} layers go, {before / after:.2f} x fewer multiplications are left"
    )
    return Recipe(tuple(steps), recipe.notes)


def _chosen(epochs: float, found: Thinned) -> Iterable[Step]:
    if found.blocks:
        layers = {"layers": list(found.blocks), "start_epoch": 0.0}
        yield Step("LayerPruningModifier", "training", layers, "pruning_modifiers")
    shares: dict[float, list[str]] = {}
    for name, (wide, narrow) in found.widths.items():
        if narrow < wide:
            shares.setdefault(round(1 - narrow / wide, 4), []).append(name)
    for share, names in sorted(shares.items()):
        yield thinning(epochs, share, names)
