"""Move outliers of the activations that normalisations give into the weights of the layers that read them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sparsify import Context, Model, RequestError

from sparsify_onnx.affine import read_matrix, write_affine
from sparsify_onnx.calibration import Shapes, measure_peaks
from sparsify_onnx.graph import Floats, initializers, producers
from sparsify_onnx.normalize import drop_dead
from sparsify_onnx.placement import place
from sparsify_onnx.preparation import ignored_nodes, own_constants
from sparsify_onnx.smooth_sites import Site, find_sites, group_sites
from sparsify_onnx.targets import as_names

# KL of MiniLM in INT8, in nats: 0.0061 without, 0.0051, 0.0045, 0.0043 and 0.0041 at 0.3, 0.5, 0.65 and 0.8
FREE = 0.65
WIDEST = 1e5  # of factors around their mean: float32 keeps what they scale


class SmoothQuantModifier(BaseModel):
    """Scale the channels that a normalisation gives, and the weights that read them inversely, before INT8.

    smoothing_strength: 1 evens out the activations alone, 0 the weights alone. ignore: names or `re:` patterns of
    layers whose inputs stay as they are. Which layers read a normalisation is found from the graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smoothing_strength: float = Field(default=0.5, ge=0, le=1)
    ignore: tuple[str, ...] = ()

    _names = field_validator("ignore", mode="before")(as_names)

    def apply(self, model: Model, context: Context) -> Model:
        """Return a float model of the same function.

        facts: `smoothed`, the layers whose inputs were scaled; `input_scales`, what they were divided by. Raises
        RequestError where there is nothing to smooth or a pattern has no match, StageError for NaN activations.
        """
        value = own_constants(model.value)
        groups = _find_groups(model, value, self.ignore)
        if not groups:
            raise RequestError(
                "SmoothQuantModifier finds no INT8 layer that reads a normalisation and has weights of its own",
                fix="remove it, put it before the modifier that rounds weights, or shorten its `ignore`",
            )
        if not len(context.calibration):
            raise RequestError(
                "SmoothQuantModifier has no calibration samples", fix="give at least one, with --calibration-samples"
            )
        return _smooth_groups(model, value, groups, context, self.smoothing_strength)


def smooth_for_free(model: Model, context: Context) -> Model:
    """Smooth where a normalisation's own constants take the factors, so that nothing is added to the graph."""
    value, done = own_constants(model.value), set(model.facts.get("smoothed", ()))
    groups = [
        group
        for group in _find_groups(model, value, ())
        if all(site.folds and done.isdisjoint(layer.name for layer in site.layers) for site in group)
    ]
    return _smooth_groups(model, value, groups, context, FREE) if groups and len(context.calibration) else model


def needs_nodes(model: onnx.ModelProto) -> bool:
    """Say whether SmoothQuantModifier would find more to do than `smooth_for_free`."""
    groups = group_sites(model, find_sites(model, place(model).layers))
    return any(not site.folds for group in groups for site in group)


def _find_groups(model: Model, value: onnx.ModelProto, ignore: Sequence[str]) -> list[list[Site]]:
    """Find the sites in layers whose weights are not rounded yet."""
    layers = place(value, ignored_nodes(value, ignore), model.facts.get("shapes", {})).layers
    rounded = model.facts.get("weight_scales", {})
    return group_sites(value, find_sites(value, [layer for layer in layers if layer.name not in rounded]))


def _smooth_groups(
    model: Model, value: onnx.ModelProto, groups: Sequence[Sequence[Site]], context: Context, strength: float
) -> Model:
    """Smooth groups in place."""
    shapes: Shapes = model.facts.get("shapes", {})
    tensors = [site.tensor for group in groups for site in group]
    peaks = measure_peaks(value, tensors, context, shapes, axis=-1)
    inserted, scales = dict[str, str](), dict[str, Floats](model.facts.get("input_scales", {}))
    for group in groups:
        added, factors = _smooth(value, group, peaks, strength)
        inserted |= added
        names = [layer.name for site in group for layer in site.layers]
        scales |= {name: factors * scales.get(name, np.float32(1)) for name in names}
    drop_dead(value)
    smoothed = tuple(layer.name for group in groups for site in group for layer in site.layers)
    how = f"{len(inserted)} by a Mul of their own" if inserted else "all within normalisations"
    context.note(f"smoothed the inputs of {len(smoothed)} layers: {len(tensors)} tensors, {how}")
    facts = {
        **model.facts,
        "smoothed": (*model.facts.get("smoothed", ()), *smoothed),
        "input_scales": scales,
        "shapes": {**shapes, **{new: shapes[old] for new, old in inserted.items() if old in shapes}},
    }
    return Model("onnx", value, facts)


def _smooth(
    model: onnx.ModelProto, group: Sequence[Site], peaks: Mapping[str, Floats], strength: float
) -> tuple[dict[str, str], Floats]:
    """Scale the weights of a group in place, and its tensors inversely.

    Returns the tensors that a Mul scales, by the name they have after it, and the factors.
    """
    by_weight = {layer.weight: layer for site in group for layer in site.layers}
    matrices = [(layer, read_matrix(model, layer)) for layer in by_weight.values()]
    columns = np.max([np.abs(matrix).max(axis=0) for _, matrix in matrices], axis=0)
    factors = find_factors(np.max([peaks[site.tensor] for site in group], axis=0), columns, strength)
    for layer, matrix in matrices:
        write_affine(model, layer, matrix * factors)
    for site in group:
        for node, index in site.folds:
            held = numpy_helper.to_array(initializers(model)[node.input[index]])
            node.input[index] = _add_constant(model, f"{node.input[index]}.smooth", (held / factors).astype(np.float32))
    added = {_insert(model, site, np.reciprocal(factors)): site.tensor for site in group if not site.folds}
    return added, factors


def find_factors(peaks: Floats, columns: Floats, strength: float) -> Floats:
    """Divide powers of each channel's largest activation and largest weight; 1 where either is zero throughout."""
    live = (peaks > 0) & (columns > 0)
    logs = strength * np.log(peaks, where=live, out=np.zeros(len(peaks)))
    logs -= (1 - strength) * np.log(columns, where=live, out=np.zeros(len(peaks)))
    logs -= logs[live].mean() if live.any() else 0.0
    factors = np.clip(np.exp(logs), 1 / WIDEST, WIDEST)
    return np.where(live, factors, 1.0).astype(np.float32)


def _insert(model: onnx.ModelProto, site: Site, scale: Floats) -> str:
    """Scale a tensor on its way to a site's layers only; returns its name there."""
    name = _fresh(model, f"{site.tensor}.smooth")
    constant = _add_constant(model, f"{name}.scale", scale)
    node = helper.make_node("Mul", [site.tensor, constant], [name], name=name)
    nodes = list(model.graph.node)
    model.graph.node.insert(1 + nodes.index(producers(model)[site.tensor]), node)
    for layer in site.layers:
        producers(model)[layer.output].input[0] = name
    return name


def _add_constant(model: onnx.ModelProto, name: str, values: Floats) -> str:
    name = _fresh(model, name)
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _fresh(model: onnx.ModelProto, name: str) -> str:
    taken = {*initializers(model), *producers(model), *(value.name for value in model.graph.input)}
    taken |= {node.name for node in model.graph.node}
    while name in taken:
        name += "_"
    return name
