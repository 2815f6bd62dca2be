from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sparsify import Model, RequestError, StageError
from sparsify_onnx import Grid
from sparsify_onnx.ranges import grid
from sparsify_torch import qat, qat_plan
from sparsify_torch.bn_folding import round_bias, round_norm_bias
from sparsify_torch.export_graph import clean_copy
from sparsify_torch.export_onnx import export_model
from sparsify_torch.fake_quant import make_grids, round_activation, round_weight, weight_scales
from sparsify_torch.observers import extremes, follow
from torch import Tensor, nn

from tests.torch.qat_nets import Block, Swish, Toy

OPTIONS = qat.QuantizationOptions()


def images(samples: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(samples, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def train(module: nn.Module, steps: int, optimizer: torch.optim.Optimizer | None = None, first: int = 0) -> None:
    optimizer = optimizer or torch.optim.SGD(module.parameters(), 0.05)
    module.train()
    for step in range(first, first + steps):
        optimizer.zero_grad()
        batch = images(seed=step)
        F.cross_entropy(module(batch), torch.arange(len(batch)) % 4).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def begun() -> nn.Module:
    torch.manual_seed(0)
    module = Toy()
    qat.begin(module, OPTIONS, images())
    return module


def quantized(begun: nn.Module) -> nn.Module:
    return copy.deepcopy(begun)


def test_gradient_of_rounding_is_the_straight_through_estimators() -> None:
    scale, zero_point = torch.tensor(0.1), torch.tensor(50, dtype=torch.int32)
    values = torch.linspace(-8, 25, 1001).requires_grad_()
    round_activation(values, scale, zero_point).backward(torch.full((1001,), 3.0))
    inside = (values >= -50.5 * 0.1) & (values <= 205.5 * 0.1)
    assert values.grad is not None
    assert torch.equal(values.grad, torch.where(inside, 3.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_equals_torchs_own(dtype: torch.dtype) -> None:
    values = torch.randn(4096).to(dtype)
    scale, zero_point = torch.tensor(0.03), torch.tensor(100, dtype=torch.int32)
    found = round_activation(values, scale, zero_point)
    wanted = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
    assert found.dtype == dtype
    step = 0.05 if dtype == torch.bfloat16 else 1e-6  # bfloat16 itself has eight bits: a step, and its own rounding
    assert (found.float() - wanted.float()).abs().max() <= step


def test_weights_round_as_one_shot_rounds_them() -> None:
    from sparsify_onnx.rounding import channel_scales, round_nearest

    weight = torch.randn(8, 6, 3, 3)
    weight[2] = 0
    for most in (127, 64):
        scales = weight_scales(weight, 0, most)
        rows = weight.flatten(1).numpy()
        wanted = channel_scales(rows, "max", most=most)
        live = np.arange(8) != 2
        np.testing.assert_array_equal(scales.numpy()[live], wanted[live])
        integers = (round_weight(weight, scales, 0, most) / scales.reshape(-1, 1, 1, 1)).round().flatten(1).numpy()
        np.testing.assert_array_equal(integers, round_nearest(rows, scales.numpy(), most))
        assert np.abs(integers).max() == most


def test_gradient_of_a_weight_stops_where_a_frozen_scale_cuts_it_off() -> None:
    weight = torch.tensor([[0.5, -2.0, 1.0, 1.003]]).requires_grad_()
    round_weight(weight, torch.tensor([1 / 127]), 0).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 0.0, 1.0, 1.0]]


def test_grids_equal_one_shots() -> None:
    generator = np.random.default_rng(0)
    low, high = -generator.random(200).astype(np.float32) * 9, generator.random(200).astype(np.float32) * 9
    low[:50], high[50:60], low[60:70], high[60:70] = 0, 0, 0, 0
    scale, zero_point = make_grids(torch.from_numpy(low), torch.from_numpy(high))
    found = [Grid(np.float32(s), np.uint8(z)) for s, z in zip(scale.numpy(), zero_point.numpy(), strict=True)]
    assert found == [grid((float(a), float(b))) for a, b in zip(low, high, strict=True)]


def test_ranges_follow_the_moving_average_and_join_what_shares_a_grid() -> None:
    low, high = torch.zeros(2), torch.zeros(2)
    first, second = extremes(torch.tensor([-1.0, 4.0])), extremes(torch.tensor([-3.0, 2.0]))
    follow(low, high, {0: [first, second]}, first=True)
    assert (low.tolist(), high.tolist()) == ([-3.0, 0.0], [4.0, 0.0])
    follow(low, high, {0: [extremes(torch.tensor([1.0, 14.0]))]}, first=False)
    torch.testing.assert_close(low, torch.tensor([-3.0 * 0.99, 0.0]))
    torch.testing.assert_close(high, torch.tensor([4.1, 0.0]))


def test_biases_are_rounded_as_folding_makes_them() -> None:
    torch.manual_seed(0)
    conv, norm, steps = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4).eval(), torch.tensor([0.1, 0.02, 0.3, 0.05])
    with torch.no_grad():
        for part in (norm.weight, norm.bias, norm.running_mean):
            part.copy_(torch.randn(4))
    given = {"input": torch.zeros(1, 4, 1, 1), "running_mean": norm.running_mean, "running_var": norm.running_var}
    given |= {"weight": norm.weight, "bias": norm.bias, "training": False, "momentum": 0.1, "eps": norm.eps}
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    rounded = F.batch_norm(**round_norm_bias(given, steps, conv.bias)).flatten() + factor * conv.bias
    exact = F.batch_norm(**given).flatten() + factor * conv.bias
    unit = steps * factor.abs()
    torch.testing.assert_close(rounded, (exact / unit).round() * unit, atol=1e-6, rtol=0)
    rounded.sum().backward()
    assert norm.bias.grad is not None
    assert torch.equal(norm.bias.grad, torch.ones(4))
    assert round_norm_bias({**given, "training": True}, steps, None)["bias"] is norm.bias
    (bias,) = round_bias([None, None, conv.bias], steps)[2:]
    torch.testing.assert_close(bias, (conv.bias / steps).round() * steps)


def test_a_finished_module_adds_the_biases_of_the_file(begun: nn.Module) -> None:
    module = quantized(begun)
    train(module, 2)
    qat.finish(module)
    state, seen = qat.quantization_of(module), dict[str, Tensor]()
    run = state.act

    def spy(site: Any, func: Any, args: Any, kwargs: Any) -> Any:
        def look(*given: Any, **named: Any) -> Any:
            if site.function == "batch_norm":
                seen[site.path] = named["bias"]
            return func(*given, **named)

        return run(site, look, args, kwargs)

    state.act = spy  # type: ignore[method-assign]
    module.eval()(images())
    assert seen.keys() == {"stem.1", "norm"}
    assert not torch.equal(seen["norm"], module.norm.bias)


def test_branches_of_a_concat_share_its_grid(begun: nn.Module) -> None:
    plan = qat.quantization_of(begun).plan
    grid_of = {(item.site.path, item.site.visit, item.site.function): item.grid for item in plan.roundings}
    assert grid_of["relu", 0, "relu"] == grid_of["relu", 1, "relu"] == grid_of["", 0, "cat"]
    assert {item.site.path for item in plan.weights} == {*("stem.0", "left", "right", "mix", "skip", "hidden", "head")}


def test_rounded_tensors_lie_on_their_grids_and_pruned_weights_stay_zero(begun: nn.Module) -> None:
    module = quantized(begun)
    pruned = torch.rand_like(module.mix.weight) < 0.7
    with torch.no_grad():
        module.mix.weight[pruned] = 0
    seen: dict[str, Tensor] = {}
    original = F.conv2d

    def spy(inputs: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if weight.shape == module.mix.weight.shape:
            seen.update(inputs=inputs.detach(), weight=weight.detach())
        return original(inputs, weight, *rest)

    state = qat.quantization_of(module)
    run = state.act
    state.act = lambda site, func, args, kwargs: run(site, spy if func is original else func, args, kwargs)  # type: ignore[method-assign]
    module.train()
    for seed in range(2):  # the first rounds no activations
        module(images(seed=seed))
    assert (seen["weight"][pruned] == 0).all()
    for channel in seen["weight"].flatten(1):
        assert len(channel.unique()) <= 255
    assert len(seen["inputs"].unique()) <= 256


def test_first_training_step_only_observes(begun: nn.Module) -> None:
    module = quantized(begun)
    plain = clean_copy(module, qat.CHILD)
    state = qat.quantization_of(module)
    for weight in (part.weight for part in (*module.modules(), *plain.modules()) if hasattr(part, "weight")):
        nn.init.ones_(weight)  # on any grid, so that rounding weights changes nothing
    module.drop.p = plain.drop.p = 0.0
    torch.testing.assert_close(module.train()(images(seed=7)), plain.train()(images(seed=7)))
    assert state.steps == 1
    low = min(float(images(seed=7).min()), 0.0)
    assert float(state.low[state.plan.grids.index("x")]) == low


def test_evaluation_moves_nothing(begun: nn.Module) -> None:
    module = quantized(begun)
    before = copy.deepcopy(module.state_dict())
    module.eval()
    module(images(seed=3))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]


def test_frozen_observers_and_batch_norms_stay(begun: nn.Module) -> None:
    module = quantized(begun)
    train(module, 2)
    qat.finish(module)
    names = ("low", "high", "scale", "zero_point", "weight_scale")
    state = qat.quantization_of(module)
    before = {name: getattr(state, name).clone() for name in names}
    mean = module.norm.running_mean.clone()
    train(module, 2)
    assert all(torch.equal(getattr(state, name), before[name]) for name in names)
    assert torch.equal(module.norm.running_mean, mean)
    module.train()
    assert module.norm.training  # train() sets it, the next forward takes it back
    module(images())
    assert not module.norm.training


def test_trained_and_evaluated_modules_agree_once_finished(begun: nn.Module) -> None:
    module = quantized(begun)
    train(module, 2)
    qat.finish(module)
    module.drop.p = 0.0
    module.train()
    trained = module(images())
    module.eval()
    torch.testing.assert_close(module(images()), trained)


def test_resume_is_bit_identical(begun: nn.Module) -> None:
    torch.manual_seed(1)
    whole = quantized(begun)
    whole.drop.p = 0.0
    resumed = quantized(begun)
    resumed.drop.p = 0.0
    optimizer = torch.optim.SGD(whole.parameters(), 0.05, momentum=0.9)
    train(whole, 3, optimizer)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    held = torch.load(file, weights_only=True)
    resumed.load_state_dict(held["model"])
    other = torch.optim.SGD(resumed.parameters(), 0.05, momentum=0.9)
    other.load_state_dict(held["optimizer"])
    train(whole, 3, optimizer, first=3)
    train(resumed, 3, other, first=3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]) if isinstance(value, Tensor) else True
    assert qat.quantization_of(resumed).steps == 6


def test_state_of_another_model_is_refused(begun: nn.Module) -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    qat.begin(other, OPTIONS, images())
    with pytest.raises(RequestError, match="quantized at other places"):
        qat.quantization_of(other).set_extra_state(qat.quantization_of(begun).get_extra_state())


def test_copies_round_by_themselves(begun: nn.Module) -> None:
    module = quantized(begun)
    average = copy.deepcopy(module)
    train(module, 2)
    assert qat.quantization_of(average).steps == 0
    average.train()
    average(images())
    assert (qat.quantization_of(average).steps, qat.quantization_of(module).steps) == (1, 2)


def test_works_under_autocast(begun: nn.Module) -> None:
    module = quantized(begun)
    module.train()
    for seed in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(module(images(seed=seed)), torch.arange(16) % 4)
        loss.backward()
    assert qat.quantization_of(module).scale.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_calibration_chooses_one_shots_ranges(begun: nn.Module) -> None:
    module = quantized(begun)
    assert qat.calibrate(module, (images(seed=seed) for seed in range(9)), 4) == 4
    state = qat.quantization_of(module)
    from sparsify_onnx import choose_range, count, merge

    histogram = count(images(seed=0).numpy())
    for seed in (1, 2, 3):
        histogram = merge(histogram, count(images(seed=seed).numpy()))
    wanted = grid(choose_range(histogram, "mse", 100.0))
    place = state.plan.grids.index("x")
    np.testing.assert_allclose(state.scale[place].item(), wanted.scale, rtol=1e-5)
    assert int(state.zero_point[place]) == wanted.zero_point
    with pytest.raises(RequestError, match="no batches to calibrate with"):
        qat.calibrate(module, [])


def test_a_forward_that_raises_leaves_nothing_behind(begun: nn.Module) -> None:
    module = quantized(begun)
    with pytest.raises(RuntimeError):
        module(torch.randn(2, 3, 16, 16))
    module.train()
    module(images())
    assert qat.quantization_of(module).steps == 1


def test_a_forward_that_calls_something_else_is_refused(begun: nn.Module) -> None:
    module = quantized(begun)
    module.skip = nn.Identity()
    with pytest.raises(StageError, match=r"did not call 'conv2d' \(number 0\) in module 'skip'"):
        module(images())


def test_quantization_begins_with_what_the_module_is_called_with() -> None:
    torch.manual_seed(0)
    module = Toy()
    plain = copy.deepcopy(module)
    qat.begin_at_first_call(module, OPTIONS)
    module.drop.p = plain.drop.p = 0.0
    torch.testing.assert_close(module.train()(images()), plain.train()(images()))
    state = qat.quantization_of(module)
    assert state.steps == 0
    module(images())
    assert state.steps == 1
    handle = qat.begin_at_first_call(plain, OPTIONS)
    handle.remove()
    plain(images())
    assert qat.CHILD not in dict(plain.named_children())


def test_quantizing_twice_is_refused(begun: nn.Module) -> None:
    with pytest.raises(RequestError, match="quantized already"):
        qat.begin(quantized(begun), OPTIONS, images())


def test_a_module_that_is_not_quantized_is_refused() -> None:
    with pytest.raises(RequestError, match="Toy is not quantized"):
        qat.freeze_observers(Toy())


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(RequestError, match="no Conv, ConvTranspose, Gemm or MatMul"):
        qat.begin(nn.Sequential(nn.ReLU()), OPTIONS, images())


@pytest.mark.parametrize(
    ("ignore", "left"),
    [(("head",), {"head"}), (("Linear",), {"head", "hidden"}), (("re:(left|right)$",), {"left", "right"})],
)
def test_ignored_modules_stay_float(ignore: tuple[str, ...], left: set[str]) -> None:
    module = Toy()
    state = qat.begin(module, qat.QuantizationOptions(ignore=ignore), images())
    assert {"stem.0", "left", "right", "mix", "skip", "hidden", "head"} - {
        item.site.path for item in state.plan.weights
    } == left


def test_everything_ignored_is_refused() -> None:
    with pytest.raises(RequestError, match="no layer of Toy can run in INT8: ignored"):
        qat.begin(Toy(), qat.QuantizationOptions(ignore=("Conv2d", "Linear")), images())


@pytest.mark.parametrize(
    ("ignore", "said"), [("heat", "matches none of the model's .* modules"), ("re:(", "is no regular expression")]
)
def test_patterns_that_cannot_match_are_refused(ignore: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        qat.begin(Toy(), qat.QuantizationOptions(ignore=ignore), images())


def test_lenient_options_let_names_go() -> None:
    options = qat.QuantizationOptions(ignore=("Softmax",), strict=False)
    assert qat.begin(Toy(), options, images()).plan.weights


def test_submodules_are_the_only_ones_quantized() -> None:
    options = qat.QuantizationOptions(submodules=("stem", "mix"))
    state = qat.begin(Toy(), options, images())
    assert {item.site.path for item in state.plan.weights} == {"stem.0", "mix"}
    with pytest.raises(RequestError, match="no module 'stems'"):
        qat.QuantizationOptions(submodules=("stems",)).ignored(Toy())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scheme": "tensorrt"}, "'tensorrt' has symmetric int8 activations"),
        ({"scheme": {"weights": {"num_bits": 4}}}, "weights with num_bits: 4 cannot run here"),
        ({"scheme_overrides": {"head": {"input_activations": {"symmetric": True}}}}, "symmetric: True cannot run"),
        ({"scheme": {"weights": {"bits": 4}}}, "unknown key 'bits'"),
        ({"model_fuse_fn_name": "mine"}, "model_fuse_fn_name: 'mine'"),
    ],
)
def test_options_that_cannot_run_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        qat.QuantizationOptions(**fields)


def test_null_overrides_leave_a_layer_float() -> None:
    assert qat.QuantizationOptions(scheme_overrides={"head": None}).ignored(Toy()) == ("head",)


def test_legacy_names_are_translated() -> None:
    given = {"start_epoch": 1, "submodules": ["stem"], "ignore": "head", "exclude_module_types": ["X"]}
    options = qat.QuantizationOptions.model_validate({**given, "activation_bits": 8, "tensorrt": False})
    assert (options.submodules, options.ignore, options.strict) == (("stem",), ("head", "X"), False)
    for wrong in ({"activation_bits": 4}, {"tensorrt": True}, {"weight_qconfig_kwargs": {"a": 1}}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            qat.QuantizationOptions.model_validate(wrong)


@pytest.mark.parametrize("make", [lambda: Block(1, 8), lambda: Toy()])
def test_calls_are_seen_alike_in_training_and_inference(make: Callable[[], nn.Module]) -> None:
    module = make()
    state = qat.begin(module, OPTIONS, images())
    for mode in (True, False):
        module.train(mode)
        module(images())
        assert state._met == set(state._sites)


class Squeezed(nn.Module):
    """Squeeze and excitation, as in MobileNetV3, EfficientNet and RegNetY."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        scaled: Tensor = x * self.up(self.down(self.pool(x)).relu()).sigmoid()
        made: Tensor = self.head(scaled.mean((2, 3)))
        return made


def test_channels_last_changes_nothing_of_what_is_rounded() -> None:
    """torch.export puts as_strided behind a pooling of channels-last tensors, which the exported file does not have."""
    torch.manual_seed(0)
    plain = Squeezed()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    given = torch.randn(4, 3, 8, 8)
    want = qat.begin(plain, OPTIONS, given).plan
    found = qat.begin(last, OPTIONS, given.to(memory_format=torch.channels_last)).plan
    assert found == want
    assert (len(found.weights), found.notes) == (5, ())
    qat.finish(last)
    written = export_model(Model("torch", last, {"example_inputs": (given,)})).value
    assert sum(node.op_type == "DequantizeLinear" for node in written.graph.node) > 8


def test_what_was_decided_when_quantization_began_is_what_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that told two places apart may be alike later, as where norms have seen few batches: none is looked at."""
    module = Swish()
    state = qat.begin(module, OPTIONS, images())
    qat.finish(module)

    def refuse(*given: Any) -> Any:
        raise AssertionError("places were looked for again")

    monkeypatch.setattr(qat_plan, "_match", refuse)
    facts = {"example_inputs": (images(),), "input_names": ["pixels"], "output_names": ["logits"]}
    graph = export_model(Model("torch", module, facts)).value.graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == len(state.plan.grids)
