"""Decide where a module is rounded: place INT8 on its exported graph, and find the graph's tensors in the module.

Everything follows from the ONNX graph and the rules of one-shot, so that what training simulates is what is written.
A tensor of the graph is found in the module by its value: both compute the same on the same inputs, in the same order.
Names would not do: exporters rename freely, and folding a batch norm leaves none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from sparsify import Model
from sparsify_onnx import Placement, WeightLayer, open_model, prepare_int8, to_matrix
from torch import nn
from torch.utils import _pytree as pytree

from sparsify_torch.bn_folding import row_factors
from sparsify_torch.export_graph import PLAIN, Form, Inputs, export_float
from sparsify_torch.qat_calls import Call, Place, Recording, Ref, Site, record
from sparsify_torch.qat_scope import matching_nodes

CLOSE = 1e-3  # of the largest value: float32 kernels differ by a hundredth of it
SAMPLED = 512  # values compared first
HOPS = 4  # from a layer's output back to the call that has its weight
MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Resize")
ADDING = ("batch_norm", "conv1d", "conv2d", "conv3d", "linear")  # functions that may add a layer's bias
# functions that an operator comes from, to choose among equal values
ORIGINS = {
    "Conv": ("batch_norm", "conv"),
    "Gemm": ("batch_norm", "linear"),
    "MatMul": ("linear", "matmul"),
    "Add": ("add",),
    "Relu": ("relu",),
    "Clip": ("relu6", "hardtanh", "clamp"),
    "Concat": ("cat",),
    "MaxPool": ("max_pool",),
    "AveragePool": ("avg_pool",),
    "GlobalAveragePool": ("avg_pool", "mean"),
    "Mul": ("mul",),
}


@dataclass(frozen=True)
class Rounding:
    """Round one value: an operand of a call, or with `output` what it gives; `grid` is an index of Plan.grids."""

    site: Site
    place: Place
    output: bool
    grid: int


@dataclass(frozen=True)
class WeightRounding:
    """Round the weight of one call; channels of `axis` have a scale each, from `start` in one row of all scales.

    bias_site: the call that adds the bias, a batch norm or the layer itself, where the file holds it as int32 in steps
    of the grid `input_grid` times the channel's scale.
    """

    site: Site
    axis: int
    start: int
    channels: int
    layer: str
    input_grid: int
    bias_site: Site | None


@dataclass(frozen=True)
class Plan:
    """Say what is rounded where; grids are named after tensors of the graph, notes are lines for the report.

    floats: nodes of the graph that stay float, by `ignore` or because no call shows their tensors.
    """

    grids: tuple[str, ...]
    roundings: tuple[Rounding, ...]
    weights: tuple[WeightRounding, ...]
    notes: tuple[str, ...]
    floats: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Placed:
    """Hold a plan with what it was made from: the float model, its graph as the writer takes it, and the recording."""

    plan: Plan
    model: Model
    value: onnx.ModelProto
    placement: Placement
    recording: Recording


@dataclass(frozen=True)
class _View:
    value: onnx.ModelProto
    recording: Recording
    matches: Mapping[str, Ref]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, Sequence[onnx.NodeProto]]

    def call_of(self, name: str) -> Call | None:
        ref = self.matches.get(name)
        return self.recording.calls[ref[0]] if ref is not None and ref[0] >= 0 else None


def make_plan(
    module: nn.Module, inputs: Inputs, ignore: Sequence[str] = (), *, strict: bool = True, form: Form = PLAIN
) -> Placed:
    """Export a clean float module, place INT8 on the graph, and find each rounded tensor in the module's calls.

    ignore: modules by path, class name or `re:` pattern. Nodes whose tensors no call gives, those inside a fused
    function, stay float here as in what is exported.
    """
    model = export_float(module, inputs, form)
    recording = record(module, *inputs)
    value, placement = prepare_int8(model)
    view = _view(value, recording, inputs)
    ignored = matching_nodes(module, ignore, _owners(view, placement), strict=strict)
    placement = prepare_int8(model, ignored)[1]
    unseen: dict[str, str] = {}
    while lost := _lost(view, placement):
        unseen |= lost
        placement = prepare_int8(model, {*ignored, *unseen})[1]
    plan = replace(_plan(view, placement, unseen), floats=frozenset({*ignored, *unseen}))
    return Placed(plan, model, value, placement, recording)


def place_again(plan: Plan, module: nn.Module, inputs: Inputs, form: Form) -> Placed | None:
    """Export a clean float module whose plan was made before, or return None where the graph is another.

    Nothing is looked for in the calls again: values that tell places apart when quantization begins, such as those of
    norms that have seen few batches, may be alike later.
    """
    model = export_float(module, inputs, form)
    value, placement = prepare_int8(model, plan.floats)
    grids, named_anew = tuple(placement.tensors), {item.name for item in value.graph.input}
    same = len(grids) == len(plan.grids) and all(
        fresh == known or fresh in named_anew for fresh, known in zip(grids, plan.grids, strict=True)
    )
    if not same or [layer.name for layer in placement.layers] != [item.layer for item in plan.weights]:
        return None
    return Placed(replace(plan, grids=grids), model, value, placement, record(module, *inputs))


def _view(value: onnx.ModelProto, recording: Recording, inputs: Inputs) -> _View:
    makers = {name: node for node in value.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in value.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return _View(value, recording, _match(value, recording, inputs), makers, readers)


def _match(value: onnx.ModelProto, recording: Recording, inputs: Inputs) -> dict[str, Ref]:
    """Find the call whose value each tensor of the graph has; of equal ones the first that no tensor took."""
    arrays = [item.numpy() for item in pytree.tree_leaves(inputs) if hasattr(item, "numpy")]
    feeds = {item.name: array for item, array in zip(value.graph.input, arrays, strict=True)}
    names = [name for node in value.graph.node for name in node.output if name]
    session = open_model(value, expose=names)
    found = dict(zip(names, session.run(names, feeds), strict=True))
    operators = {name: node.op_type for node in value.graph.node for name in node.output}
    matches: dict[str, Ref] = {item.name: (-1, place) for place, item in enumerate(value.graph.input)}
    by_shape: dict[tuple[int, ...], list[Ref]] = {}
    for ref, array in recording.values.items():
        by_shape.setdefault(array.shape, []).append(ref)
    taken: set[Ref] = set()
    for name in names:
        array = found[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            continue
        alike = [ref for ref in by_shape.get(array.shape, ()) if ref[0] >= 0 and ref not in taken]
        alike = [ref for ref in alike if _close(array, recording.values[ref])]
        if alike:
            origins = ORIGINS.get(operators[name], ())
            matches[name] = min(alike, key=lambda ref: (_rank(recording, ref, origins), ref))
            taken.add(matches[name])
    return matches


def _rank(recording: Recording, ref: Ref, origins: tuple[str, ...]) -> int:
    function = recording.calls[ref[0]].site.function
    return next((place for place, origin in enumerate(origins) if origin in function), len(origins))


def _close(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    step = max(left.size // SAMPLED, 1)
    for a, b in ((left.reshape(-1)[::step], right.reshape(-1)[::step]), (left, right)):
        if not np.abs(a - b).max(initial=0.0) <= CLOSE * np.abs(b).max(initial=0.0) + np.finfo(np.float32).tiny:
            return False
    return True


def _layer_call(view: _View, layer: WeightLayer) -> Call | None:
    """Find the call that multiplies by a layer's weight, going back over a batch norm or factors that were folded."""
    names = [layer.output, *(name for node in view.readers.get(layer.output, ()) for name in node.output)]
    call = next((call for name in names if (call := view.call_of(name)) is not None), None)
    for _ in range(HOPS):
        if call is None or layer_factors(view.value, layer, call) is not None:
            return call
        ref = call.operands.get((0, -1), (-1, 0))
        call = view.recording.calls[ref[0]] if ref[0] >= 0 else None
    return None


def layer_factors(value: onnx.ModelProto, layer: WeightLayer, call: Call) -> NDArray[np.float64] | None:
    """Return by how much a layer's weight is a call's, row by row, or None where it is another weight."""
    held = next(item for item in value.graph.initializer if item.name == layer.weight)
    return row_factors(to_matrix(layer, numpy_helper.to_array(held)), call.rows) if call.rows.size else None


def _owners(view: _View, placement: Placement) -> dict[str, str]:
    """Map nodes to the path of the module that calls them."""
    found: dict[str, str] = {}
    layers = {layer.name: layer for layer in placement.layers}
    for node in view.value.graph.node:
        call = _layer_call(view, layers[node.name]) if node.name in layers else view.call_of(node.output[0])
        if call is not None:
            found[node.name] = call.site.path
    return found


def _lost(view: _View, placement: Placement) -> dict[str, str]:
    """Name the nodes to leave in float because the module shows their tensors, or their weights, nowhere."""
    chosen = set(placement.nodes)
    lost = {layer.name: layer.name for layer in placement.layers if _layer_call(view, layer) is None}
    for name in (*placement.tensors, *placement.same):
        if name not in view.matches:
            near = [*view.readers.get(name, ()), *([view.makers[name]] if name in view.makers else [])]
            lost |= {node.name: name for node in near if node.name in chosen}
    return lost


def _plan(view: _View, placement: Placement, unseen: Mapping[str, str]) -> Plan:
    grids = {name: index for index, name in enumerate(placement.tensors)}
    weights: list[WeightRounding] = []
    start = 0
    for layer in placement.layers:
        call = _layer_call(view, layer)
        if call is not None:  # `_lost` has excluded the others
            given = view.call_of(layer.output)
            # the graph may have no bias yet: that of a fresh batch norm is zero, and dropped
            bias_site = given.site if given is not None and given.site.function in ADDING else None
            grid = grids[placement.grid_of(layer.input)]
            weights.append(
                WeightRounding(call.site, call.weight_axis, start, len(call.rows), layer.name, grid, bias_site)
            )
            start += len(call.rows)
    roundings = [
        Rounding(site, place, output, grids[placement.grid_of(name)])
        for name in (*placement.tensors, *placement.same)
        for site, place, output in _places(view, placement, name)
    ]
    left = f"left in float, for no module shows their tensors: {', '.join(unseen)}"
    return Plan(tuple(grids), tuple(dict.fromkeys(roundings)), tuple(weights), (left,) if unseen else ())


def _places(view: _View, placement: Placement, name: str) -> Iterator[tuple[Site, Place, bool]]:
    """Say where a tensor is rounded: where it is made, or where INT8 nodes alone read it if others do not see it."""
    chosen = set(placement.nodes)
    maker, readers = view.makers.get(name), view.readers.get(name, ())
    number, slot = view.matches[name]
    if maker is not None and (maker.name in chosen or all(node.name in chosen for node in readers)):
        if (
            maker.op_type in MOVING
            and maker.name in chosen
            and name in placement.same
            and _on_grid(view, maker, chosen)
        ):
            return  # moving values that lie on the grid leaves them there
        yield view.recording.calls[number].site, (slot, -1), True
        return
    yield from _reading_places(view, placement, [node for node in readers if node.name in chosen], (number, slot))


def _on_grid(view: _View, maker: onnx.NodeProto, chosen: Collection[str]) -> bool:
    source = view.makers.get(maker.input[0])
    readers = view.readers.get(maker.input[0], ())
    return source is not None and (source.name in chosen or all(node.name in chosen for node in readers))


def _reading_places(
    view: _View, placement: Placement, readers: Iterable[onnx.NodeProto], ref: Ref
) -> Iterator[tuple[Site, Place, bool]]:
    layers = {layer.name: layer for layer in placement.layers}
    for node in readers:
        call = _layer_call(view, layers[node.name]) if node.name in layers else view.call_of(node.output[0])
        if call is not None and node.name in layers:
            yield call.site, (0, -1), False
        elif call is not None:
            yield from ((call.site, place, False) for place, given in call.operands.items() if given == ref)
