"""Export a module to ONNX: as float, or where it was quantized while training, as the INT8 model that it simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sparsify import Model, RequestError, StageError
from sparsify_onnx import FORMAT, Grid, Weight, channel_axis, from_matrix, write_int8
from torch import Tensor, nn

from sparsify_torch.export_graph import OPSET, Form, Inputs, clean_copy, example_of, export_float, split_inputs
from sparsify_torch.fake_quant import round_weight
from sparsify_torch.qat import CHILD, FakeQuantization
from sparsify_torch.qat_calls import Call, Site
from sparsify_torch.qat_plan import Placed, Plan, Rounding, WeightRounding, layer_factors, make_plan, place_again


def export(
    module: nn.Module,
    example_inputs: Any,
    path: Path | None = None,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    opset: int = OPSET,
    free_batch: bool = True,
) -> Model:
    """Return a module as an ONNX model, and write it to `path` where given, in one file up to 1.5 GB of weights.

    example_inputs: a tensor, tuple or mapping as the module takes them. A module that `qat.begin` quantized becomes
    QDQ with its grids and the integers its weights were rounded to; any other becomes float. The module itself is not
    changed. Raises RequestError where torch cannot trace it, StageError where a quantized one is not what it was when
    quantization began.
    """
    form = Form(tuple(input_names), tuple(output_names), opset, free_batch)
    inputs = example_of(split_inputs(example_inputs))
    state = dict(module.named_children()).get(CHILD)
    clean = clean_copy(module, CHILD if isinstance(state, FakeQuantization) else "")
    if isinstance(state, FakeQuantization):
        model = _export_quantized(clean, state, inputs, form)
    else:
        model = export_float(clean, inputs, form)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        FORMAT.save(model, path)
    return model


def export_model(model: Model) -> Model:
    """Turn a `torch` model into ONNX, for the exporter `torch-onnx`.

    facts: `example_inputs`, which every torch model must come with; `input_names` and `output_names` where wanted.
    """
    example = model.facts.get("example_inputs")
    if example is None:
        raise RequestError(
            "this PyTorch model says nothing of its inputs, and exporting has to run it once",
            fix="put `example_inputs` into the model's facts, or save an exported program: "
            "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')",
        )
    names = {key: model.facts[key] for key in ("input_names", "output_names") if key in model.facts}
    exported = export(model.value, example, **names)
    kept = {key: value for key, value in model.facts.items() if key not in ("example_inputs", *names)}
    return Model("onnx", exported.value, {**kept, **exported.facts})


def _export_quantized(clean: nn.Module, state: FakeQuantization, inputs: Inputs, form: Form) -> Model:
    options = state.options
    placed = place_again(state.plan, clean, inputs, form)
    if placed is None:
        placed = make_plan(clean, inputs, options.ignored(clean), strict=options.strict, form=form)
    grids = _learned_grids(placed.plan, state)
    calls = {call.site: call for call in placed.recording.calls}
    scales = {item.site: state.weight_scale[item.start : item.start + item.channels] for item in state.plan.weights}
    weights: dict[str, Weight] = {}
    for item in placed.plan.weights:
        layer = next(layer for layer in placed.placement.layers if layer.name == item.layer)
        if item.site not in scales:
            raise _changed(item.site)
        weights[layer.weight] = _integers(placed, item, calls[item.site], scales[item.site].cpu(), state.most)
    return write_int8(placed.value, placed.placement, grids, weights, placed.model)


def _learned_grids(plan: Plan, state: FakeQuantization) -> dict[str, Grid]:
    """Give each activation of the graph the grid that was learned at the same place of the module."""

    def key(item: Rounding) -> tuple[Site, tuple[int, int], bool]:
        return item.site, item.place, item.output

    learned = {key(item): item.grid for item in state.plan.roundings}
    fresh = {key(item): item.grid for item in plan.roundings}
    odd = sorted(learned.keys() ^ fresh.keys())
    if odd:
        raise _changed(odd[0][0])
    places = {fresh[place]: learned[place] for place in fresh}
    scales, zero_points = state.scale.cpu().numpy(), state.zero_point.cpu().numpy()
    return {
        name: Grid(np.float32(scales[places[index]]), np.uint8(zero_points[places[index]]))
        for index, name in enumerate(plan.grids)
    }


def _integers(placed: Placed, item: WeightRounding, call: Call, scales: Tensor, most: int) -> Weight:
    """Take the integers that training rounded to, and what folding made of their scales.

    A channel multiplied by a negative factor has its integers negated; one that folding made zero is zero.
    """
    layer = next(layer for layer in placed.placement.layers if layer.name == item.layer)
    factors = layer_factors(placed.value, layer, call)
    if factors is None:
        raise _changed(item.site)
    steps = scales.numpy()
    rows = round_weight(torch.from_numpy(call.rows), scales, 0, most).numpy() / steps[:, None]
    integers = np.rint(rows) * np.sign(factors)[:, None]
    folded = (steps.astype(np.float64) * np.abs(factors)).astype(np.float32)
    live = folded > np.finfo(np.float32).tiny
    middle = np.float32(np.median(folded[live])) if live.any() else np.float32(1.0 / most)
    stored = from_matrix(layer, integers.astype(np.float32)).astype(np.int8)
    return Weight(stored, np.where(live, folded, middle).astype(np.float32), channel_axis(layer))


def _changed(site: Site) -> StageError:
    return StageError(
        f"the model's places to round have changed since quantization began, first at '{site.function}' of module "
        f"'{site.path or '(root)'}'",
        fix="begin quantization after all modifiers that remove channels or layers, or that put hooks on them",
    )
