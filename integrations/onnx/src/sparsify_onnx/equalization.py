"""Offer equalization as a step of its own, to come before pruning: it changes weights, not the function."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sparsify import Context, Model

from sparsify_onnx.calibration import Shapes, measure_peaks
from sparsify_onnx.equalize import equalize, find_channels
from sparsify_onnx.placement import place
from sparsify_onnx.preparation import own_constants


class EqualizationModifier(BaseModel):
    """Even out the channels that will share one activation grid, before weights are pruned and rounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def apply(self, model: Model, context: Context) -> Model:
        """Return a float model of the same function.

        facts: `channel_scales` and `input_scales`, what each layer's output and input channels were divided by. Raises
        StageError for NaN activations.
        """
        shapes: Shapes = model.facts.get("shapes", {})
        value = own_constants(model.value)
        placement = place(value, (), shapes)
        channels = find_channels(value, shapes, {layer.name for layer in placement.layers})
        rounded = [name for name in (*placement.tensors, *placement.same) if name in channels.numbers]
        loose = [name for name in rounded if set(channels.numbers[name].tolist()) - channels.frozen]
        peaks = measure_peaks(value, loose, context, shapes)
        outputs, inputs = equalize(value, channels, peaks, loose) if loose else ({}, {})
        if outputs:
            context.note(f"equalized the channels of {len(outputs)} layers")
        return Model("onnx", value, {**model.facts, "channel_scales": outputs, "input_scales": inputs})
