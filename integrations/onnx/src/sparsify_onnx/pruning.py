"""Offer the pruning modifiers: magnitude, and SparseGPT with least-squares repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from sparsify import Context, Model, RequestError

from sparsify_onnx.affine import write_affine
from sparsify_onnx.allocation import allocate
from sparsify_onnx.calibration import in_order
from sparsify_onnx.coverage import look_at_samples
from sparsify_onnx.graph import WeightLayer
from sparsify_onnx.joint import Options, group_slices, layer_pattern, sparsity_of
from sparsify_onnx.layerwise import Pruned, finite_matrix, solve
from sparsify_onnx.masks import Structure, choose, parse_structure
from sparsify_onnx.rounding import LARGEST, REDUCED
from sparsify_onnx.targets import PRUNABLE, as_names, select_layers
from sparsify_onnx.threads import solver_threads


def _structure(text: str) -> str:
    parse_structure(text)
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(as_names)]
Share = Annotated[float, Field(ge=0, le=1)]
MaskStructure = Annotated[str, AfterValidator(_structure)]


class MagnitudePruningModifier(BaseModel):
    """Zero each layer's smallest weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: Share
    targets: Names = (PRUNABLE,)
    ignore: Names = ()
    mask_structure: MaskStructure = "unstructured"

    def apply(self, model: Model, context: Context) -> Model:
        """Return a pruned copy; reads no data. Raises RequestError for targets that match nothing."""
        structure = parse_structure(self.mask_structure)
        _note_structure(structure, self.mask_structure, self.sparsity, context)
        pruned = _copy(model.value)
        found: dict[str, Pruned] = {}
        for layer in select_layers(pruned, self.targets, self.ignore):
            matrix = finite_matrix(pruned, layer)
            for rows, zeros in group_slices(layer, structure.zeros(self.sparsity, matrix.size)):
                matrix[rows] = np.where(
                    choose(layer_pattern(layer, structure), np.abs(matrix[rows]), zeros), matrix[rows], 0
                )
            write_affine(pruned, layer, matrix)
            found[layer.name] = Pruned(sparsity_of(matrix))
        return _result(model, pruned, found)


class SparseGPTModifier(BaseModel):
    """Zero the weights whose loss the others can make up for, and refit those against the dense model's outputs.

    allocation: one sparsity for all layers, or spread by measured sensitivity so that it holds over all parameters, all
    MACs or all layer time; layer_sparsity: that of single layers, over either. round_weights: put the weights that stay
    onto QuantizationModifier's int8 grid in the same solve, so that later layers make up for rounding too;
    reduce_range: as given to QuantizationModifier, which else rounds them again. With `refit` off this is SparseGPT as
    published: each layer stays near its own original weights, and biases stay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: Share
    targets: Names = (PRUNABLE,)
    ignore: Names = ()
    mask_structure: MaskStructure = "unstructured"
    block_size: int = Field(128, ge=1)
    dampening_frac: float = Field(0.001, ge=0)
    refit: bool = True
    preserve_sparsity_mask: bool = True
    allocation: Literal["uniform", "parameters", "macs", "time"] = "uniform"
    layer_sparsity: Mapping[str, Share] = Field(default_factory=dict)
    round_weights: bool = False
    reduce_range: bool = False

    def apply(self, model: Model, context: Context) -> Model:
        """Return a pruned copy, solved layer by layer on the inputs that the layers pruned before it give.

        facts: `pruned`, by layer; `weight_scales`, the int8 grids that layers were rounded to. Finished layers are kept
        in `context.checkpoint`. Raises RequestError for targets that match nothing or where there are no calibration
        samples, StageError for NaN or infinite weights or activations.
        """
        structure = parse_structure(self.mask_structure)
        layers = select_layers(model.value, self.targets, self.ignore)
        if layers and not len(context.calibration):
            raise RequestError(
                "SparseGPTModifier has no calibration samples", fix="give at least one, with --calibration-samples"
            )
        _refuse_unknown(self.layer_sparsity, layers)
        context = in_order(context)
        model = look_at_samples(model, context)
        _note_structure(structure, self.mask_structure, self.sparsity, context)
        options = self._options(structure, {layer.name: self.sparsity for layer in layers}, model)
        with solver_threads(context.threads):
            pruned, found = self._solve(model, layers, options, context)
        _note_dead(found, context)
        scales = {name: outcome.scales for name, outcome in found.items() if outcome.scales is not None}
        result = _result(model, pruned, found)
        return replace(
            result, facts={**result.facts, "weight_scales": {**model.facts.get("weight_scales", {}), **scales}}
        )

    def _solve(
        self, model: Model, layers: Sequence[WeightLayer], options: Options, context: Context
    ) -> tuple[onnx.ModelProto, dict[str, Pruned]]:
        """Spread the sparsity where asked to, and prune."""
        if self.allocation != "uniform" and not options.structure.keep and len(layers) > 1:
            shapes = model.facts.get("shapes", {})
            options = replace(
                options, sparsity=allocate(model.value, layers, options, self.allocation, context, shapes)
            )
        options = replace(options, sparsity={**options.sparsity, **self.layer_sparsity})
        return solve(model.value, layers, options, context)

    def _options(self, structure: Structure, sparsity: Mapping[str, float], model: Model) -> Options:
        return Options(
            structure=structure,
            sparsity=sparsity,
            block_size=self.block_size,
            dampening=self.dampening_frac,
            refit=self.refit,
            keep_zeros=self.preserve_sparsity_mask,
            rounded=self.round_weights,
            most=REDUCED if self.reduce_range else LARGEST,
            units=model.facts.get("channel_scales", {}),
        )


def _refuse_unknown(shares: Mapping[str, float], layers: Sequence[WeightLayer]) -> None:
    known = [layer.name for layer in layers]
    for name in shares:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
            raise RequestError(
                f"layer_sparsity: '{name}' is none of the {len(known)} layers that are pruned",
                fix=f"use a layer's name, such as {', '.join(near)}" if near else "remove `layer_sparsity`",
            )


def _note_dead(found: Mapping[str, Pruned], context: Context) -> None:
    dead = {name: outcome.dead for name, outcome in found.items() if outcome.dead}
    if dead:
        context.note(
            f"{sum(dead.values())} inputs of {len(dead)} layers are zero on every calibration sample, "
            f"most of them in {max(dead, key=lambda name: dead[name])}: their weights went first"
        )


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _note_structure(structure: Structure, text: str, sparsity: float, context: Context) -> None:
    if structure.keep and abs(1 - structure.keep / structure.columns - sparsity) > 1e-9:
        share = 100 * (1 - structure.keep / structure.columns)
        context.note(f"{text} zeros {share:.4g} % of the weights, not the {100 * sparsity:.4g} % asked for")


def _result(model: Model, pruned: onnx.ModelProto, found: Mapping[str, Pruned]) -> Model:
    facts: dict[str, Any] = {name: outcome.facts() for name, outcome in found.items()}
    return Model(model.format, pruned, {**model.facts, "pruned": {**model.facts.get("pruned", {}), **facts}})
