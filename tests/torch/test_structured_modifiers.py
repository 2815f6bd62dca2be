"""Channels and layers leave a module while it trains: exactly as many, everything follows, and a resume repeats it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sparsify import RequestError, StageError, load_plugins
from sparsify_torch import ScheduledModifierManager, apply_structure
from sparsify_torch.channels import macs
from sparsify_torch.coupling import couple
from sparsify_torch.epochs import EpochRangeModifier
from sparsify_torch.gradual_pruning import GMPruningModifier
from sparsify_torch.layer_distillation import PerLayerDistillationModifier
from sparsify_torch.layer_pruning import LayerPruningModifier
from sparsify_torch.layer_thinning import LayerThinningModifier
from sparsify_torch.quantization import QuantizationModifier
from sparsify_torch.structured_pruning import StructuredPruningModifier
from sparsify_torch.thinning import cost_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.torch.test_resume import reloaded, same
from tests.torch.thinnable import Blocks

STEPS = 4
EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
GRADUAL: dict[str, Any] = {"init_sparsity": 0.0, "start_epoch": 0.0, "end_epoch": 2.0, "update_frequency": 0.5}
INNER = ("body.0.one", "body.1.one", "body.2.one")


def net(seed: int = 0) -> Blocks:
    torch.manual_seed(seed)
    return Blocks()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, 8, 8, generator=made), torch.randint(0, 5, (6,), generator=made)) for _ in range(count)]


def pruning(share: float = 0.5, **given: Any) -> StructuredPruningModifier:
    return StructuredPruningModifier(**{**GRADUAL, "final_sparsity": share, "params": INNER, "multiple": 4, **given})


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01, amsgrad=True)


def attach(modifiers: Any, module: nn.Module, make: Any = sgd, **given: Any) -> tuple[Any, Any]:
    manager = ScheduledModifierManager(modifiers)
    return manager, manager.modify(module, make(module), STEPS, **{"example_inputs": EXAMPLE, **given})


def train(module: nn.Module, optimizer: Any, data: Any) -> None:
    module.train()
    for images, targets in data:
        cross_entropy(module(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def widths(module: nn.Module) -> list[int]:
    return [module.get_submodule(name).out_channels for name in INNER]


def test_the_widths_follow_the_cubic_schedule_in_whole_blocks() -> None:
    module = net()
    _, optimizer = attach([pruning()], module)
    seen = []
    for batch in batches(9):
        seen.append(widths(module))
        train(module, optimizer, [batch])
    shares = [0.5 * (1 - (1 - min(step, 8) // 2 / 4) ** 3) for step in range(9)]  # every half epoch
    assert seen == [[full - int(full * share / 4 + 1e-9) * 4 for full in (32, 64, 64)] for share in shares]
    assert seen[-1] == [16, 32, 32]


def test_the_first_block_is_what_lies_beyond_a_multiple() -> None:
    """From 32 channels in multiples of 24 only 8 can go, which a quarter is: MobileNet's 24 and 40 lose 8 of 16."""
    module = net()
    _, optimizer = attach([pruning(0.25, params=INNER[:1], multiple=24)], module)
    train(module, optimizer, batches(9))
    assert widths(module) == [24, 64, 64]


def test_the_optimizer_holds_what_the_module_holds_and_its_momentum_is_cut_alike() -> None:
    module = net()
    manager, optimizer = attach(
        [pruning(update_frequency=1.0), LayerPruningModifier(layers=("body.2",), start_epoch=1.5)], module
    )
    train(module, optimizer, batches(3))
    before = {name: optimizer.state[value]["momentum_buffer"].clone() for name, value in module.named_parameters()}
    inner = dict(module.named_parameters())["body.0.one.weight"].detach().clone()
    train(module, optimizer, batches(4)[3:])
    kept = [step for step in manager.structure if "body.0.one.weight" in step.get("cuts", {})][-1]
    rows = torch.tensor(kept["kept"][kept["cuts"]["body.0.one.weight"]["0"]])
    now = optimizer.state[module.body[0].one.weight]["momentum_buffer"]
    assert now.shape == module.body[0].one.weight.shape == (len(rows), 32, 3, 3)
    assert before["body.0.one.weight"].shape == inner.shape
    train(module, optimizer, batches(9)[4:])
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    assert held == {id(parameter) for parameter in module.parameters()}
    assert {id(one) for one in optimizer.state} == held
    assert all(state["momentum_buffer"].shape == one.shape for one, state in optimizer.state.items())


def test_of_macs_it_reaches_the_share_over_all_layers() -> None:
    module = net()
    whole = cost_of(couple(module, (EXAMPLE,)), macs)
    _, optimizer = attach([pruning(0.4, of="macs", params=("__ALL__",), multiple=8)], module)
    train(module, optimizer, batches(9))
    left = cost_of(couple(module, (EXAMPLE,)), macs) / whole
    assert 0.5 < left <= 0.6
    assert all(width % 8 == 0 for width in widths(module))


def test_of_channels_that_their_readers_name() -> None:
    module = net()
    _, optimizer = attach([pruning(mask_type="channel", params=("body.0.two", "body.2.two"))], module)
    train(module, optimizer, batches(9))
    assert widths(module) == [16, 64, 32]


def test_taylor_scores_sample_gradients() -> None:
    module = net()
    sampler = {"data_loader_builder": lambda **_: iter(batches(3)), "loss_function": cross_entropy}
    _, optimizer = attach([pruning(score="taylor")], module, grad_sampler=sampler)
    train(module, optimizer, batches(9))
    assert widths(module) == [16, 32, 32]
    with pytest.raises(RequestError, match="there is no grad_sampler"):
        attach([pruning(score="taylor")], net())


def test_layers_go_at_once_or_one_by_one() -> None:
    module = net()
    attach([LayerPruningModifier(layers=("body.2", "body.0"))], module)
    assert not list(module.body[0].parameters())
    assert not list(module.body[2].parameters())
    module = net()
    _, optimizer = attach(
        [LayerPruningModifier(layers=("body.2", "body.0"), start_epoch=0.5, update_frequency=1.0)], module
    )
    left = []
    for batch in batches(8):
        left.append([bool(list(block.parameters())) for block in module.body])
        train(module, optimizer, [batch])
    assert left[:2] == [[True, True, True]] * 2
    assert left[2:6] == [[True, True, False]] * 4
    assert left[6:] == [[False, True, False]] * 2


def test_filters_of_zeros_are_taken_out() -> None:
    module = net().eval()
    with torch.no_grad():
        module.body[0].one.weight[5:9] = 0
        module.body[0].norm.bias.zero_()
    expected = module(EXAMPLE).detach()
    attach([LayerThinningModifier()], module)
    assert widths(module) == [28, 64, 64]
    torch.testing.assert_close(module.eval()(EXAMPLE).detach(), expected, rtol=1e-4, atol=1e-5)


def test_zeros_that_come_later_go_at_the_epochs_named() -> None:
    module = net()
    _, optimizer = attach([LayerThinningModifier(start_epoch=0.0, update_epochs=(1.0,))], module)
    train(module, optimizer, batches(2))
    with torch.no_grad():
        module.body[1].one.weight[:6] = 0
        optimizer.state[module.body[1].one.weight]["momentum_buffer"][:6] = 0
    assert widths(module) == [32, 64, 64]
    module.body[1].norm.weight.requires_grad_(False)
    module.body[1].norm.weight.data[:6] = 0
    train(module, optimizer, batches(4)[2:])
    assert widths(module) == [32, 58, 64]


RECIPES: dict[str, Any] = {
    "channels": [pruning()],
    "macs": [pruning(0.4, of="macs", params=("__ALL__",))],
    "layers": [LayerPruningModifier(layers=("body.2", "body.0"), update_frequency=1.0)],
    "all": [
        pruning(),
        LayerPruningModifier(layers=("body.2",), start_epoch=0.5),
        LayerThinningModifier(start_epoch=1.0),
        GMPruningModifier(
            init_sparsity=0.1,
            final_sparsity=0.6,
            start_epoch=0.5,
            end_epoch=2.5,
            update_frequency=0.25,
            params=("body.1.two",),
        ),
        QuantizationModifier(start_epoch=2.5),
    ],
}


@pytest.mark.parametrize(
    ("name", "stop", "make", "layout"),
    [
        ("channels", 1, sgd, torch.contiguous_format),
        ("channels", 5, adam, torch.channels_last),
        ("macs", 5, sgd, torch.channels_last),
        ("layers", 2, sgd, torch.contiguous_format),
        ("all", 3, adam, torch.contiguous_format),
        ("all", 5, sgd, torch.channels_last),
        ("all", 11, sgd, torch.channels_last),
    ],
)
def test_resume_is_undisturbed(name: str, stop: int, make: Any, layout: Any) -> None:
    data = [(images.contiguous(memory_format=layout), targets) for images, targets in batches(14)]
    module = net().to(memory_format=layout)
    manager, optimizer = attach(RECIPES[name], module, make)
    train(module, optimizer, data[:stop])
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "manager": manager.state_dict()}
    saved = reloaded(copy.deepcopy(state))
    train(module, optimizer, data[stop:])
    manager.finalize(module)

    again = net(seed=9)
    other = ScheduledModifierManager(RECIPES[name])
    other.load_state_dict(saved["manager"])
    other.apply_structure(again, stop / STEPS, EXAMPLE)
    again.load_state_dict(saved["module"])
    again = again.to(memory_format=layout)
    resumed = other.modify(again, make(again), STEPS, example_inputs=EXAMPLE)
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, data[stop:])
    other.finalize(again)
    assert same(module.state_dict(), again.state_dict())
    assert same(optimizer.state_dict(), resumed.state_dict())
    assert same(manager.state_dict(), other.state_dict())


def features(module: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _, __, made, name=name: seen.update({name: made}))
        for name in names
    ]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_features_of_layers_that_are_gone_are_learnt_no_more() -> None:
    """Those of the layers that stay are, and a teacher keeps its own layers."""
    module, teacher = net(), net(1).eval()
    layers = ("body.0.two", "body.1.two", "body.2.two")
    modifiers = [
        PerLayerDistillationModifier(gain=0.5, normalize=False, student_layer_names=layers),
        LayerPruningModifier(layers=("body.1",), start_epoch=0.25),
    ]
    _, optimizer = attach(modifiers, module, distillation_teacher=teacher)
    module.train()
    for images, targets in batches(3):
        loss = cross_entropy(module(images), targets)
        left = [name for name in layers if name in dict(module.named_modules())]
        whole = optimizer.loss_update(loss)
        own, other = features(module, left, images), features(teacher, left, images)
        taught = sum(float((own[name] - other[name]).square().mean()) for name in left)
        assert whole.item() == pytest.approx(loss.item() + 0.5 * taught, rel=1e-4)
        whole.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert left == ["body.0.two", "body.2.two"]


def test_the_structure_makes_a_fresh_module_alike() -> None:
    module = net()
    manager, optimizer = attach(RECIPES["channels"], module)
    train(module, optimizer, batches(9))
    fresh = net(seed=4)
    apply_structure(fresh, manager.structure)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.eval()(EXAMPLE), module.eval()(EXAMPLE))


def test_a_state_does_not_fit_a_module_of_another_structure() -> None:
    module = net()
    manager, optimizer = attach([pruning()], module)
    train(module, optimizer, batches(5))
    other, _ = attach([pruning()], net())
    with pytest.raises(RequestError, match="fewer channels or layers") as caught:
        other.load_state_dict(manager.state_dict())
    assert "apply_structure" in caught.value.fix


@pytest.mark.parametrize(
    ("modifiers", "problem"),
    [
        ([pruning(params=("body.9.one",))], "'body.9.one' matches none"),
        ([pruning(params=("last",))], "no channels of these layers can go .'last': the module returns them"),
        ([pruning(multiple=64)], "no layer is wide enough to lose 0.5 of its channels in steps of 64"),
        ([pruning(0.99, of="macs")], "at most 0.* of the MACs can go with widths in multiples of 4"),
        ([pruning(), pruning(0.75)], "both set the width of body"),
        ([LayerPruningModifier(layers=("body.7",))], "'body.7' matches none"),
        ([LayerPruningModifier(layers=("stem",))], "nothing goes around 'stem'"),
        ([pruning(), QuantizationModifier(start_epoch=1.0)], "still changes the module at epoch 2, .* begins at 1"),
    ],
)
def test_what_cannot_be_is_refused(modifiers: Any, problem: str) -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RequestError, match=problem):
        attach(modifiers, module)
    assert same(before, module.state_dict())


def test_example_inputs_are_asked_for() -> None:
    with pytest.raises(RequestError, match="example inputs, and has none"):
        attach([pruning()], net(), example_inputs=None)
    with pytest.raises(RequestError, match="by position, not by name"):
        attach([pruning()], net(), example_inputs={"x": EXAMPLE})


def test_layers_that_go_one_by_one_are_gone_before_quantization() -> None:
    module = net()
    late = LayerPruningModifier(layers=("body.2", "body.0"), update_frequency=1.0)
    _, optimizer = attach([late, QuantizationModifier(start_epoch=0.5)], module)
    with pytest.raises(StageError, match="its quantization has begun"):
        train(module, optimizer, batches(5))


def test_recipes_say_it_in_yaml_and_back() -> None:
    for options in (pruning(), LayerPruningModifier(layers=("a",)), LayerThinningModifier(update_epochs=(1.0, 2.0))):
        manager = ScheduledModifierManager([options])
        assert type(options).model_validate(options.model_dump(mode="json")) == options
        assert type(options).__name__ in str(manager)
        entry = load_plugins().find("modifiers", type(options).__name__, "training").entry
        assert entry.target.endswith(type(options).__name__)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: pruning(end_epoch=-1), "greater than or equal to 0"),
        (lambda: pruning(0.1, init_sparsity=0.5), "init_sparsity 0.5 is above final_sparsity 0.1"),
        (lambda: pruning(mask_type="block4"), "'filter' or 'channel'"),
        (lambda: pruning(leave_enabled=False), "channels that are gone do not come back"),
        (
            lambda: ScheduledModifierManager([LayerPruningModifier(layers=("a",), end_epoch=2)]),
            "layers that were taken out do not come back at 2",
        ),
    ],
)
def test_contradictions_are_refused(made: Any, message: str) -> None:
    with pytest.raises((ValueError, RequestError), match=message):
        made()


def test_layers_may_stay_out_until_the_recipe_ends_and_quantization_may_follow_at_once() -> None:
    """MobileBERT's published recipes write it so."""
    made = [
        EpochRangeModifier(start_epoch=0, end_epoch=2),
        LayerPruningModifier(layers=("a",), start_epoch=0, end_epoch=2),
        QuantizationModifier(start_epoch=0),
    ]
    assert ScheduledModifierManager(made).max_epochs == 2
