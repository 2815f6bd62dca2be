"""Offer the pruning modifiers: magnitude, and SparseGPT with least-squares repair."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from sparsify import Context, Model, RequestError

from sparsify_onnx.affine import write_affine
from sparsify_onnx.layerwise import (
    Options,
    Pruned,
    finite_matrix,
    group_slices,
    layer_pattern,
    levels,
    prune_level,
    sparsity_of,
)
from sparsify_onnx.masks import Structure, choose, parse_structure
from sparsify_onnx.stream import Stream, upstream
from sparsify_onnx.targets import PRUNABLE, as_names, select_layers


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

    With `refit` off this is SparseGPT as published: each layer stays near its own original weights, and biases stay.
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

    def apply(self, model: Model, context: Context) -> Model:
        """Return a pruned copy, solved layer by layer on the inputs that the layers pruned before it give.

        Finished layers are kept in `context.checkpoint`. Raises RequestError for targets that match nothing or where
        there are no calibration samples, StageError for NaN or infinite weights or activations.
        """
        structure = parse_structure(self.mask_structure)
        pruned = _copy(model.value)
        layers = select_layers(pruned, self.targets, self.ignore)
        if layers and not len(context.calibration):
            raise RequestError(
                "SparseGPTModifier has no calibration samples", fix="give at least one, with --calibration-samples"
            )
        _note_structure(structure, self.mask_structure, self.sparsity, context)
        options = Options(
            structure, self.sparsity, self.block_size, self.dampening_frac, self.refit, self.preserve_sparsity_mask
        )
        found: dict[str, Pruned] = {}
        with (
            tempfile.TemporaryDirectory(prefix="sparsify-") as folder,
            context.progress("pruning", len(layers)) as advance,
        ):
            wanted = upstream(pruned, [layer.output for layer in layers])
            stream = Stream(model.value, pruned, context, Path(folder), wanted)
            for level in levels(pruned, layers):
                for layer, outcome in prune_level(stream, level, options):
                    found[layer.name] = outcome
                    advance()
        dead = {name: outcome.dead for name, outcome in found.items() if outcome.dead}
        if dead:
            context.note(
                f"{sum(dead.values())} inputs of {len(dead)} layers are zero on every calibration sample, "
                f"most of them in {max(dead, key=lambda name: dead[name])}: their weights went first"
            )
        return _result(model, pruned, found)


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
