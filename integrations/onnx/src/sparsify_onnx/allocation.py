"""Spread an overall sparsity over the layers where it costs least, from measured error curves.

Each layer's error at several sparsities is that of SparseGPT on its own calibration inputs. What such an error does to
the model's outputs is measured by pruning the layer alone. Errors of different layers are taken to add up, as in SPDY
(Frantar & Alistarh 2022) and CHITA (Benbaki et al. 2023), and the spread is the exact optimum of that model: a
knapsack, solved by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import log, prod

import numpy as np
import onnx
from numpy.typing import NDArray
from sparsify import Context, NoCheckpoint

from sparsify_onnx.affine import read_matrix, write_affine
from sparsify_onnx.calibration import Shapes, measure
from sparsify_onnx.columns import outputs
from sparsify_onnx.drift import Drift, affordable, drift_from, spread
from sparsify_onnx.graph import Floats, WeightLayer
from sparsify_onnx.hessian import damped_problem
from sparsify_onnx.joint import Options, layer_pattern
from sparsify_onnx.layer_times import layer_times
from sparsify_onnx.layerwise import solve
from sparsify_onnx.macs import count_macs
from sparsify_onnx.masks import Structure, choose
from sparsify_onnx.memory import share
from sparsify_onnx.sparsegpt import sweep

KNOTS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96)  # sparsities at which a layer's error is measured
OPTIONS = np.round(np.arange(0.0, 0.9801, 0.01), 2)  # sparsities that a layer may get
BINS = 20_000  # the knapsack's resolution
DAMPENING = 0.001
SWEPT_BYTES = 256 << 20  # of the copies of a layer's weights that are pruned at once
TRIAL = (64, 128)  # samples, the fewest and most, that a proposal is solved on; as many others judge it
TRIAL_MACS = 64e9  # multiplications of one model over them, where that takes no fewer
Curve = NDArray[np.float64]


def allocate(
    model: onnx.ModelProto, layers: Sequence[WeightLayer], options: Options, cost: str, context: Context, shapes: Shapes
) -> dict[str, float]:
    """Spread the sparsity that `options` give every layer: it holds over the summed cost, and outputs drift least.

    cost: `parameters`, `macs`, or `time`, the layers' measured latency. What the model of additive errors proposes is
    tried by solving, then half of it, then the uniform spread, as long as the next is better.
    """
    held = context.checkpoint.load("allocation")
    if held is None:
        costs = layer_costs(model, layers, cost, context, shapes)
        found = _best(model, layers, options, costs, context, shapes)
        held = {"sparsities": np.array([found[layer.name] for layer in layers])}
        context.checkpoint.save("allocation", held)
    shares = {layer.name: float(share) for layer, share in zip(layers, held["sparsities"], strict=True)}
    if len(set(shares.values())) > 1:
        least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        context.note(
            f"sparsity spread over {len(layers)} layers by measured sensitivity, from {100 * shares[least]:.0f} % "
            f"({least}) to {100 * shares[most]:.0f} % ({most})"
        )
    return shares


def layer_costs(
    model: onnx.ModelProto, layers: Sequence[WeightLayer], kind: str, context: Context, shapes: Shapes
) -> dict[str, float]:
    """Return each layer's parameters, MACs, or milliseconds at batch 1."""
    if kind == "parameters":
        return {layer.name: float(prod(layer.shape)) for layer in layers}
    found = (
        {layer.name: float(count_macs(layer, shapes)) for layer in layers}
        if kind == "macs"
        else layer_times(model, [layer.name for layer in layers], context)
    )
    least = min((value for value in found.values() if value), default=1.0)
    return {layer.name: found.get(layer.name) or least for layer in layers}  # what is unknown counts as cheap


def _best(
    model: onnx.ModelProto,
    layers: Sequence[WeightLayer],
    options: Options,
    costs: Mapping[str, float],
    context: Context,
    shapes: Shapes,
) -> dict[str, float]:
    names = [layer.name for layer in layers]
    even = options.sparsity[names[0]]
    curves = output_curves(model, layers, even, options.structure, context, shapes)
    # later layers are refitted against the dense model and take back part of an earlier one's error: measured on
    # ResNet-20 and SqueezeNet, a factor of e from the first layer to the last spreads best
    weights = np.exp(np.arange(len(names)) / len(names))
    scaled = [curves[name] * weight for name, weight in zip(names, weights, strict=True)]
    proposed = OPTIONS[knapsack(scaled, [costs[name] for name in names], even)]
    keys = context.calibration.keys
    macs = sum(count_macs(layer, shapes) for layer in layers)
    count = int(np.clip(TRIAL_MACS // max(macs, 1), *TRIAL))
    trial = replace(context, calibration=spread(context.calibration.take(keys[::2]), count), checkpoint=NoCheckpoint())
    drift = drift_from(model, spread(context.calibration.take(keys[1::2] or keys), count), context)
    best, least = dict.fromkeys(names, even), np.inf
    for part in (1.0, 0.5, 0.0):  # where less of the spread is worse, none of it is worse still
        shares = dict(zip(names, even + part * (proposed - even), strict=True))
        error = drift(solve(model, layers, replace(options.hasty(), sparsity=shares), trial)[0])
        if error > least:
            break
        best, least = shares, error
    return best


def output_curves(
    model: onnx.ModelProto,
    layers: Sequence[WeightLayer],
    sparsity: float,
    structure: Structure,
    context: Context,
    shapes: Shapes,
) -> dict[str, Curve]:
    """Measure the drift of the model's outputs over OPTIONS for each layer pruned alone."""
    macs = sum(count_macs(layer, shapes) for layer in layers)
    drift = drift_from(model, spread(context.calibration, affordable(macs, len(layers))), context)
    curves: dict[str, Curve] = {}
    nearest = int(np.argmin([abs(knot - sparsity) for knot in KNOTS]))
    with context.progress("measuring sensitivity", len(layers)) as advance:
        for layer, errors, weights in layer_errors(model, layers, structure, context, shapes, nearest):
            damage = _damage(model, layer, weights, drift)
            curves[layer.name] = _interpolate(errors * (damage / errors[nearest] if errors[nearest] else 0.0))
            advance()
    return curves


def layer_errors(
    model: onnx.ModelProto,
    layers: Sequence[WeightLayer],
    structure: Structure,
    context: Context,
    shapes: Shapes,
    kept: int,
) -> Iterator[tuple[WeightLayer, Curve, Floats]]:
    """Yield each layer's error over KNOTS, and its weights at the knot `kept`; Hessians take turns in memory."""
    due, most = {layer.name for layer in layers}, share(context, SWEPT_BYTES, 8)
    for statistics in measure(model, [], layers, context, shapes):
        for layer in layers:
            if layer.name in statistics.hessians:
                due.discard(layer.name)
                yield layer, *_errors(model, layer, statistics.hessians.pop(layer.name), structure, kept, most)
    for layer in layers:
        if layer.name in due:
            yield layer, *_magnitude_errors(model, layer, structure, kept)


def _errors(
    model: onnx.ModelProto,
    layer: WeightLayer,
    hessians: NDArray[np.floating],
    structure: Structure,
    kept: int,
    most: int,
) -> tuple[Curve, Floats]:
    weights = read_matrix(model, layer)
    rows = outputs(layer) // layer.group
    pattern = layer_pattern(layer, structure)
    totals = np.zeros(len(KNOTS))
    for index, hessian in enumerate(hessians):
        part = slice(index * rows, (index + 1) * rows)
        problem = damped_problem(hessian, weights[part].astype(np.float64), DAMPENING)
        counts = [structure.zeros(knot, problem.target.size) for knot in KNOTS]
        at_once = max(most // (2 * problem.target.nbytes), 1)
        for first in range(0, len(counts), at_once):
            swept = sweep(problem, pattern, counts[first : first + at_once], problem.target == 0)
            for place, (pruned, _) in enumerate(swept, first):
                totals[place] += problem.excess(pruned)
                if place == kept:
                    weights[part] = pruned
    return np.maximum.accumulate(totals), weights


def _magnitude_errors(
    model: onnx.ModelProto, layer: WeightLayer, structure: Structure, kept: int
) -> tuple[Curve, Floats]:
    """Take every input to count alike in a layer that is too wide for a Hessian."""
    matrix = read_matrix(model, layer)
    size, pattern = np.abs(matrix), layer_pattern(layer, structure)
    masks = (choose(pattern, size, structure.zeros(knot, matrix.size)) for knot in KNOTS)
    totals, found = np.zeros(len(KNOTS)), matrix
    for place, mask in enumerate(masks):
        totals[place] = float(np.square(size[~mask], dtype=np.float64).sum())
        found = matrix * mask if place == kept else found
    return np.maximum.accumulate(totals), found


def _damage(model: onnx.ModelProto, layer: WeightLayer, weights: Floats, drift: Drift) -> float:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    write_affine(changed, layer, weights)
    return drift(changed)


def _interpolate(errors: Curve) -> Curve:
    """Draw a curve through the knots: straight in its logarithm, and quadratic from zero below the first knot."""
    if not errors.any():
        return np.zeros(len(OPTIONS))
    floor = max(float(errors[errors > 0].min()), 1e-30)
    logs = np.interp(OPTIONS, KNOTS, np.log(np.maximum(errors, floor)))
    slope = (log(max(errors[-1], floor)) - log(max(errors[-2], floor))) / (KNOTS[-1] - KNOTS[-2])
    beyond = np.maximum(OPTIONS - KNOTS[-1], 0) * slope
    rise = np.minimum(OPTIONS / KNOTS[0], 1.0) ** 2
    return np.asarray(np.exp(logs + beyond) * rise)


def knapsack(curves: Sequence[Curve], costs: Sequence[float], sparsity: float) -> list[int]:
    """Choose one of OPTIONS for each layer: the least summed curve that removes `sparsity` of the summed cost.

    Exact but for rounding each layer's removed cost to one part in BINS of the whole.
    """
    gains = [np.rint(OPTIONS * cost / sum(costs) * BINS).astype(np.intp) for cost in costs]
    target = min(round(sparsity * BINS), sum(int(gain[-1]) for gain in gains))
    needs = np.arange(target + 1)
    rest = np.where(needs == 0, 0.0, np.inf)  # the least error with which the layers after this one meet a need
    picks: list[NDArray[np.intp]] = []
    for curve, gain in zip(reversed(curves), reversed(gains), strict=True):
        best, pick = np.full(target + 1, np.inf), np.zeros(target + 1, dtype=np.intp)
        for option, error in enumerate(curve):
            total = error + rest[np.maximum(needs - gain[option], 0)]
            better = total < best
            best[better], pick[better] = total[better], option
        rest = best
        picks.append(pick)
    chosen, need = [], target
    for pick, gain in zip(reversed(picks), gains, strict=True):
        chosen.append(int(pick[need]))
        need = max(need - int(gain[chosen[-1]]), 0)
    return chosen
