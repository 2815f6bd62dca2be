"""Choose what structured pruning takes out, and write it into the recipe by name: blocks, channels, what is taught."""

from __future__ import annotations

import math
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
from sparsify_torch.prunable import has_norms
from sparsify_torch.recipe import STRUCTURED, epochs_of, macs_left, thinning
from sparsify_torch.removal import apply_structure
from sparsify_torch.stages import find_stages
from sparsify_torch.teaching import teach_features
from sparsify_torch.thinning import Thinned

SAMPLES, AT_ONCE = 256, 64  # that judge how much a mix changes
PRUNING = "pruning_modifiers"
FEW = 8  # to calibrate a model whose answers nobody reads
MARGIN = 1.05  # above --target-speedup: the trained model is timed once more, with noise of its own
ROUGH = {"feedback": False, "bias_correction": False, "equalize": False, "ranges": "minmax"}


def choose(search: Search, recipe: Recipe) -> Recipe:
    """Return the recipe with names of blocks and layers where it prunes channels; a recipe of the user's own stays.

    Raises RequestError where the module cannot be followed, and for a --target-speedup out of reach.
    """
    asked = search.plan.experiment
    if asked.target_speedup is not None and not recipe.steps:
        raise RequestError("--target-speedup has no effect at --optim-level 0", fix="give a level above 0")
    if search.plan.recipe is not None:
        return recipe
    found = _for_speed(search, asked.target_speedup) if asked.target_speedup is not None else None
    if found is None and any(step.name == "StructuredPruningModifier" for step in recipe.steps):
        module, inputs = _source(search)
        found = thin_to_share(module, inputs, target=macs_left(asked.optim_level), data=_data(search))
    return recipe if found is None else _named(search, recipe, found)


def _for_speed(search: Search, target: float) -> Thinned | None:
    """Choose what has to go beside INT8, where the runtime makes nothing of zeros; None where nothing has to."""
    asked, say = search.plan.experiment, search.talk.note
    runtime = asked.runtime[0]
    if search.facts().get("uses_zeros") is not False and asked.sparsity != STRUCTURED:
        return None
    measure = partial(_speedup, search)
    alone = _int8_alone(search, measure)
    if alone >= target * MARGIN:
        say(f"INT8 alone is {alone:.2f} x as fast on {runtime}: nothing has to be taken out for {target:g} x")
        return None
    if asked.sparsity != STRUCTURED:
        say(
            f"{runtime} makes nothing of zeros, and INT8 alone is {alone:.2f} x as fast: for --target-speedup "
            f"{target:g} channels and blocks are taken out, as --sparsity structured does"
        )
    module, inputs = _source(search)
    mixed = thin_to_speed(
        module,
        inputs,
        speedup=target,
        margin=MARGIN,
        data=_data(search),
        threads=asked.threads,
        measure=measure,
        already=alone,
        kept=search.context.kept,
    )
    say(f"rehearsed: {mixed.speedup:.2f} x as fast as float on {runtime}, {target:g} asked for")
    return mixed.thinned


def _int8_alone(search: Search, measure: Any) -> float:
    kept = search.context.kept
    held = kept.load("speedup-int8")
    if held is None:
        import numpy as np

        held = {"speedup": np.array(measure(_source(search)[0]))}
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
    """Put the blocks and the layers that were chosen in the place of what prunes, and teach features beside answers."""
    dense, inputs = _source(search)
    rest = [step for step in recipe.steps if step.group != PRUNING]
    if any(step.name == "DistillationModifier" for step in rest):
        rest += teach_features(search, _stages(dense, inputs, found))
    chosen = list(chosen_steps(epochs_of(search.plan.experiment), found, dense))
    before, after = found.macs
    blocks = f"{len(found.blocks)} block{'s' * (len(found.blocks) > 1)} and " * bool(found.blocks)
    narrower = sum(wide != narrow for wide, narrow in found.widths.values())
    search.talk.note(
        f"structured: {blocks}channels of {narrower} layers go, {before / after:.2f} x fewer multiplications are left"
    )
    return Recipe((rest[0], *chosen, *rest[1:]), ())


def _stages(dense: nn.Module, inputs: tuple[Any, ...], found: Thinned) -> list[str]:
    thinner = deepcopy(dense)
    apply_structure(thinner, found.structure)
    return find_stages(dense, thinner, inputs)


def share_of(wide: int, narrow: int) -> float:
    """Return what has to go from one width to another, rounded up: 0.3333 of 24 channels would not be 8."""
    return math.ceil(1e6 * (wide - narrow) / wide - 1e-3) / 1e6


def chosen_steps(epochs: float, found: Thinned, dense: nn.Module) -> Iterable[Step]:
    """Write what is to go as a recipe does."""
    # without norms a weight's size says little of what it does: by Taylor's criterion the divergence of SqueezeNet at
    # half of its MACs is a quarter less, that of ResNet-20, with norms, a quarter more (docs/figures/training-aware.md)
    score = {} if has_norms(dense) else {"score": "taylor"}
    if found.blocks:
        layers = {"layers": list(found.blocks), "start_epoch": 0.0}
        yield Step("LayerPruningModifier", "training", layers, PRUNING)
    shares: dict[float, list[str]] = {}
    for name, (wide, narrow) in found.widths.items():
        if narrow < wide:
            shares.setdefault(share_of(wide, narrow), []).append(name)
    for share, names in sorted(shares.items()):
        yield thinning(epochs, share, names, **score)
