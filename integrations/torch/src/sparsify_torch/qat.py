"""Quantize while training: simulate in the forward pass the INT8 model that export will write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from sparsify import RequestError, StageError
from sparsify_onnx import Histogram
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsify_torch.bn_folding import NORM_ARGUMENTS, round_bias, round_norm_bias, use_running_statistics
from sparsify_torch.export_graph import clean_copy, example_of, split_inputs
from sparsify_torch.fake_quant import LARGEST, REDUCED, make_grids, round_activation, round_weight, weight_scales
from sparsify_torch.masks import from_rank_0
from sparsify_torch.observers import Ranges, add_counts, chosen_shares, extremes, follow
from sparsify_torch.qat_calls import Calls, Site, module_paths
from sparsify_torch.qat_options import QuantizationOptions
from sparsify_torch.qat_plan import Plan, Rounding, WeightRounding, make_plan
from sparsify_torch.tracing import evaluating

CHILD = "fake_quantization"  # under this name the state lies in the module's state_dict


class FakeQuantization(nn.Module):
    """Round the weights and activations of the module that this is a child of, as its plan says.

    Buffers: `low` and `high`, the moving averages of each grid's range; `low_share` and `high_share`, what the chosen
    range is of it; `scale` and `zero_point`; `weight_scale`, of all layers' channels in a row.
    """

    low: Tensor
    high: Tensor
    low_share: Tensor
    high_share: Tensor
    scale: Tensor
    zero_point: Tensor
    weight_scale: Tensor

    def __init__(self, plan: Plan, options: QuantizationOptions) -> None:
        super().__init__()
        self.plan, self.options = plan, options
        self.steps = 0  # training forwards observed
        self.observing, self.norms_frozen = True, False
        self.measuring = False  # ranges are taken, and nothing is rounded
        self.counted: dict[int, Histogram] | None = None
        grids, channels = len(plan.grids), sum(item.channels for item in plan.weights)
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(grids))
        for name in ("low_share", "high_share", "scale"):
            self.register_buffer(name, torch.ones(grids))
        self.register_buffer("zero_point", torch.zeros(grids, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.ones(channels))
        self._index()

    def _index(self) -> None:
        self._inputs: dict[Site, list[Rounding]] = {}
        self._outputs: dict[Site, list[Rounding]] = {}
        for item in self.plan.roundings:
            (self._outputs if item.output else self._inputs).setdefault(item.site, []).append(item)
        self._weights = {item.site: item for item in self.plan.weights}
        self._biases = {item.bias_site: item for item in self.plan.weights if item.bias_site is not None}
        self._sites = {*self._inputs, *self._outputs, *self._weights, *self._biases}
        self._calls: Calls | None = None
        self._scales: tuple[Tensor, ...] = ()
        self._zero_points: tuple[Tensor, ...] = ()

    @property
    def most(self) -> int:
        """Return the largest integer that a weight may become."""
        return REDUCED if self.options.reduce_range else LARGEST

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor, of types that `weights_only` loads."""
        flags = {"steps": self.steps, "observing": self.observing, "norms_frozen": self.norms_frozen}
        return {**flags, "plan": json.dumps(asdict(self.plan)["grids"])}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `get_extra_state` gave; raises RequestError for the state of a model quantized elsewhere."""
        if json.loads(state["plan"]) != list(self.plan.grids):
            raise RequestError(
                "the checkpoint was quantized at other places than this model: its architecture or `ignore` differ",
                fix="load it into the model and with the recipe that it was saved with",
            )
        self.steps, self.observing, self.norms_frozen = state["steps"], state["observing"], state["norms_frozen"]

    def forward(self, values: Any) -> Any:
        """Return what is given: a Sequential calls each of its children, this one too."""
        return values

    def start(self, module: nn.Module, args: object) -> None:
        """Begin a forward of the module: watch its calls."""
        if self._calls is not None:  # an earlier one was stopped where no hook saw it
            self._calls.__exit__(None, None, None)
        if self.norms_frozen:
            use_running_statistics(module)
        self._observes = self.measuring or (self.observing and module.training)
        self._rounds = not self.measuring and not (self._observes and not self.steps)  # the first step knows nothing
        self._seen: dict[int, list[Ranges]] = {}
        self._met: set[Site] = set()
        self._added: dict[Site, Tensor | None] = {}  # biases of layers that a batch norm follows
        self._scales, self._zero_points = self.scale.unbind(), self.zero_point.unbind()
        self._calls = Calls(module_paths(module), self.act)
        self._calls.__enter__()

    def stop(self, module: nn.Module, args: object, output: object) -> None:
        """End a forward: move the ranges, and look whether every place was met."""
        calls, self._calls, self._scales, self._zero_points = self._calls, None, (), ()
        if calls is not None:
            calls.__exit__(None, None, None)
        self._added = {}
        if output is None or calls is None:  # the forward raised, or quantization began in it
            return
        self._require_all(module)
        if self._observes and self._seen and not self.measuring:
            follow(self.low, self.high, self._seen, first=not self.steps)
            self.update_grids()
            self.steps += 1

    def update_grids(self) -> None:
        """Span the ranges followed so far by integers."""
        scale, zero_point = make_grids(self.low * self.low_share, self.high * self.high_share)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def act(self, site: Site, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call with what it takes and gives rounded as planned."""
        if site not in self._sites:
            return func(*args, **kwargs)
        self._met.add(site)
        given = list(args)
        for item in self._inputs.get(site, ()):
            first, second = item.place
            if second < 0:
                given[first] = self._activation(given[first], item.grid)
            else:
                parts = list(given[first])
                parts[second] = self._activation(parts[second], item.grid)
                given[first] = parts
        layer = self._weights.get(site)
        if layer is not None:
            given[1] = self._weight(given[1], layer)
            self._added[site] = given[2] if len(given) > 2 else None
        biased = self._biases.get(site)
        if biased is not None and self._rounds:
            given, kwargs = self._bias(site, given, kwargs, biased)
        output = func(*given, **kwargs)
        for item in self._outputs.get(site, ()):
            output = self._output(output, item)
        return output

    def _output(self, output: Any, item: Rounding) -> Any:
        if isinstance(output, Tensor):
            return self._activation(output, item.grid)
        parts = list(output)
        parts[item.place[0]] = self._activation(parts[item.place[0]], item.grid)
        return type(output)(parts) if type(output) in (list, tuple) else tuple(parts)

    def _activation(self, values: Tensor, grid: int) -> Tensor:
        if self._observes:
            self._seen.setdefault(grid, []).append(extremes(values))
        if self.counted is not None:
            self.counted[grid] = add_counts(self.counted.get(grid), values)
        return round_activation(values, self._scales[grid], self._zero_points[grid]) if self._rounds else values

    def _weight(self, weight: Tensor, layer: WeightRounding) -> Tensor:
        scales = self.weight_scale[layer.start : layer.start + layer.channels]
        if self._observes:
            fresh = weight_scales(weight, layer.axis, self.most)
            scales.copy_(fresh)
            scales = fresh
        return round_weight(weight, scales, layer.axis, self.most) if not self.measuring else weight

    def _bias(
        self, site: Site, given: list[Any], kwargs: dict[str, Any], layer: WeightRounding
    ) -> tuple[list[Any], dict[str, Any]]:
        steps = self._scales[layer.input_grid] * self.weight_scale[layer.start : layer.start + layer.channels]
        if site == layer.site:
            return round_bias(given, steps), kwargs
        named = {**dict(zip(NORM_ARGUMENTS, given, strict=False)), **kwargs}
        return [], round_norm_bias(named, steps, self._added[layer.site])

    def _require_all(self, module: nn.Module) -> None:
        missed = sorted(self._sites - self._met)
        if missed:
            site = missed[0]
            raise StageError(
                f"{type(module).__name__} did not call '{site.function}' (number {site.number}) in module "
                f"'{site.path or '(root)'}', where it did when quantization began; {len(missed)} places were not "
                "rounded",
                fix=f"add `ignore: ['{site.path}']` to QuantizationModifier, or make forward() call the same functions "
                "in training as in inference",
            )


def begin(module: nn.Module, options: QuantizationOptions, example_inputs: Any) -> FakeQuantization:
    """Start to simulate INT8 in a module, in place; its parameters and their names stay.

    example_inputs: a tensor, tuple or mapping as the module takes them, or a pair of tuple and mapping; real ones if
    possible: they set the first ranges. The state joins the module's state_dict under `fake_quantization`. Raises
    RequestError where the module cannot be exported, or nothing in it can run in INT8.
    """
    if CHILD in dict(module.named_children()):
        raise RequestError(
            "the model is quantized already", fix="remove one of the two QuantizationModifiers from the recipe"
        )
    with torch.autocast(_device(module).type, enabled=False):  # what is exported computes in float32
        return _begin(module, options, example_inputs)


def _begin(module: nn.Module, options: QuantizationOptions, example_inputs: Any) -> FakeQuantization:
    inputs = split_inputs(example_inputs)
    placed = make_plan(clean_copy(module), example_of(inputs), options.ignored(module), strict=options.strict)
    if not placed.plan.weights:
        reasons = ", ".join(sorted(set(placed.placement.reasons.values()))) or "it has none"
        raise RequestError(
            f"no layer of {type(module).__name__} can run in INT8: {reasons}",
            fix="remove QuantizationModifier from the recipe, or shorten its `ignore`",
        )
    state = FakeQuantization(placed.plan, options).to(_device(module))
    state.training = module.training
    module.add_module(CHILD, state)
    module.register_forward_pre_hook(state.start)
    module.register_forward_hook(state.stop, always_call=True)
    _initialize(module, state, [example_inputs])
    return state


def begin_at_first_call(module: nn.Module, options: QuantizationOptions) -> RemovableHandle:
    """Begin with what the module is next called with, for loops that show their data no earlier; that call is float.

    The handle takes the wish back.
    """

    def start(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        begin(part, options, (args, kwargs) if args and kwargs else kwargs or args)

    handle = module.register_forward_pre_hook(start, with_kwargs=True)
    return handle


def calibrate(module: nn.Module, batches: Iterable[Any], steps: int | None = None) -> int:
    """Choose ranges of least rounding error on batches of inputs, as one-shot does; returns how many were used.

    Later the moving averages keep the ratio of these ranges to a batch's extremes.
    """
    state = quantization_of(module)
    counted: dict[int, Histogram] = {}
    state.counted = counted
    try:
        taken = _initialize(module, state, islice(batches, steps))
    finally:
        state.counted = None
    low, high = chosen_shares(counted, state.low.cpu(), state.high.cpu())
    state.low_share.copy_(from_rank_0(low.to(state.low.device)))
    state.high_share.copy_(from_rank_0(high.to(state.high.device)))
    state.update_grids()
    state.steps = max(state.steps, 1)
    return taken


def _initialize(module: nn.Module, state: FakeQuantization, batches: Iterable[Any]) -> int:
    """Set ranges to the mean extremes of these batches, with nothing rounded and batch norms left alone; count them."""
    lows, highs = [], []
    state.measuring = True
    try:
        with evaluating(module), torch.no_grad():
            for batch in batches:
                args, kwargs = split_inputs(batch)
                low, high = torch.zeros_like(state.low), torch.zeros_like(state.high)
                module(*args, **kwargs)
                follow(low, high, state._seen, first=True)
                lows.append(low)
                highs.append(high)
    finally:
        state.measuring = False
    if not lows:
        fix = "give a data loader, or set num_calibration_steps above 0"
        raise RequestError("there are no batches to calibrate with", fix=fix)
    state.low.copy_(torch.stack(lows).mean(0))
    state.high.copy_(torch.stack(highs).mean(0))
    state.update_grids()
    return len(lows)


def quantization_of(module: nn.Module) -> FakeQuantization:
    """Return the state that `begin` gave a module; raises RequestError where it did not."""
    state = dict(module.named_children()).get(CHILD)
    if not isinstance(state, FakeQuantization):
        raise RequestError(
            f"{type(module).__name__} is not quantized", fix="call sparsify_torch.qat.begin(module, …) first"
        )
    return state


def freeze_observers(module: nn.Module) -> None:
    """Leave grids and weight scales as they are from here on."""
    quantization_of(module).observing = False


def freeze_batch_norms(module: nn.Module) -> None:
    """Normalize by running statistics from here on, in training too, as the exported model does."""
    quantization_of(module).norms_frozen = True
    use_running_statistics(module)


def finish(module: nn.Module) -> None:
    """End quantization-aware training: nothing moves any more, and the module computes what export will write."""
    freeze_observers(module)
    freeze_batch_norms(module)


def _device(module: nn.Module) -> torch.device:
    return next((item.device for item in (*module.parameters(), *module.buffers())), torch.device("cpu"))
