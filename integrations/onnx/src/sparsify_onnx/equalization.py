"""Offer equalization as a step of its own, to come before pruning: it changes weights, not the function."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from pydantic import BaseModel, ConfigDict
from sparsify import Context, Model

from sparsify_onnx.calibration import Shapes, measure_peaks
from sparsify_onnx.equalize import equalize, find_channels
from sparsify_onnx.graph import Floats
from sparsify_onnx.placement import Placement, place
from sparsify_onnx.preparation import own_constants


class EqualizationModifier(BaseModel):
    """Even out the channels that will share one activation grid, before weights are pruned and rounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def apply(self, model: Model, context: Context) -> Model:
        """Return a float model of the same function.

        facts: `channel_scales`, what each layer's output channels were divided by. Raises StageError for NaN
        activations.
        """
        shapes: Shapes = model.facts.get("shapes", {})
        value = own_constants(model.value)
        placement = place(value, (), shapes)
        divided = equalize_layers(value, placement, {layer.name for layer in placement.layers}, context, shapes)
        if divided:
            context.note(f"equalized the channels of {len(divided)} layers")
        return Model("onnx", value, {**model.facts, "channel_scales": divided})


def equalize_layers(
    model: onnx.ModelProto, placement: Placement, free: Collection[str], context: Context, shapes: Shapes
) -> dict[str, Floats]:
    """Rescale the layers named in `free` in place; returns what each one's output channels were divided by."""
    channels = find_channels(model, shapes, free)
    rounded = [name for name in (*placement.tensors, *placement.same) if name in channels.numbers]
    loose = [name for name in rounded if set(channels.numbers[name].tolist()) - channels.frozen]
    return equalize(model, channels, measure_peaks(model, loose, context, shapes), loose) if loose else {}
