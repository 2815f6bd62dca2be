"""Offer equalization as a step of its own, to come before pruning: it changes weights, not the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sparsify import Context, Model

from sparsify_onnx.calibration import Shapes, measure_peaks
from sparsify_onnx.coverage import look_at_samples
from sparsify_onnx.equalize import choose_factors, equalize, find_channels
from sparsify_onnx.graph import Floats
from sparsify_onnx.placement import place
from sparsify_onnx.preparation import own_constants
from sparsify_onnx.smoothing import smooth_for_free
from sparsify_onnx.solution import fingerprint

Factors = dict[str, Floats]


class EqualizationModifier(BaseModel):
    """Even out the channels that will share one activation grid, before weights are pruned and rounded.

    Those that a normalisation gives to a MatMul or Gemm are evened out too where its own constants can take the
    factors, which costs no time later; SmoothQuantModifier does so everywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def apply(self, model: Model, context: Context) -> Model:
        """Return a float model of the same function.

        facts: `channel_scales` and `input_scales`, what each layer's output and input channels were divided by. Raises
        StageError for NaN activations.
        """
        model = smooth_for_free(look_at_samples(model, context), context)
        shapes: Shapes = model.facts.get("shapes", {})
        value = own_constants(model.value)
        name = f"equalize-{fingerprint(model.value, '', context)}"
        held = context.checkpoint.load(name)
        if held is None:
            held = _pack(_measure(value, context, shapes))
            context.checkpoint.save(name, held)
        outputs, inputs = _unpack(held)
        equalize(value, outputs, inputs)
        if outputs:
            context.note(f"equalized the channels of {len(outputs)} layers")
        inputs = multiplied(model.facts.get("input_scales", {}), inputs)
        return Model("onnx", value, {**model.facts, "channel_scales": outputs, "input_scales": inputs})


def multiplied(first: Mapping[str, Floats], second: Mapping[str, Floats]) -> Factors:
    """Join factors by name; what has some in both is scaled by both."""
    return {**first, **{name: first.get(name, np.float32(1)) * factors for name, factors in second.items()}}


def _measure(model: onnx.ModelProto, context: Context, shapes: Shapes) -> tuple[Factors, Factors]:
    placement = place(model, (), shapes)
    channels = find_channels(model, shapes, {layer.name for layer in placement.layers})
    rounded = [name for name in (*placement.tensors, *placement.same) if name in channels.numbers]
    loose = [name for name in rounded if set(channels.numbers[name].tolist()) - channels.frozen]
    return choose_factors(model, channels, measure_peaks(model, loose, context, shapes), loose) if loose else ({}, {})


def _pack(factors: tuple[Factors, Factors]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for side, found in enumerate(factors):
        arrays[f"names{side}"] = np.array(list(found), dtype=np.str_)
        arrays |= {f"{side}-{index}": values for index, values in enumerate(found.values())}
    return arrays


def _unpack(arrays: Mapping[str, NDArray[Any]]) -> list[Factors]:
    return [
        {str(name): arrays[f"{side}-{index}"] for index, name in enumerate(arrays[f"names{side}"])} for side in (0, 1)
    ]
