"""Removing channels leaves the function that is left when nothing reads them, whatever couples them."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify import RequestError, StageError
from sparsify_torch.channels import choose, macs, steps
from sparsify_torch.coupling import couple
from sparsify_torch.importance import score_groups
from sparsify_torch.removal import apply_step, apply_structure, describe_removal, remap_optimizer
from sparsify_torch.thinning import check_removal, cost_of, silenced, thin
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from thinnable import IMAGES, KINDS, TOKENS, Attention, Encoder, Residual, settled

GROUPS = {  # by kind: units of each group, in the order of the layers
    "residual": {"stem+two": 32, "one": 48},
    "joined": {"stem": 32, "left": 32, "right": 48},
    "grouped": {"stem": 16},
    "flat": {"stem": 32, "hidden": 32},
    "squeezed": {"stem": 64, "up+large": 64, "small": 16, "gate": 32},
    "shuffled": {"stem": 32},
    "attention": {"attention.query+attention.key+attention.value": 4, "hidden": 64},
    "packed": {"attention.qkv": 8, "hidden": 64},
    "ready": {"attention.inner": 4, "hidden": 64},
    "length first": {"attention.inner": 4, "hidden": 64},
    "blocks": {
        "stem+body.0.two": 32,
        "body.0.one": 32,
        "body.1.one": 64,
        "body.1.two+body.1.way.0+body.2.two": 64,
        "body.2.one": 64,
    },
}


def made(kind: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(3)
    make, inputs = KINDS[kind]
    return settled(make()), inputs


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_together(kind: str) -> None:
    module, inputs = made(kind)
    assert {group.name: len(group.units) for group in couple(module, inputs).groups} == GROUPS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_removal_leaves_the_function_of_the_silenced_module(kind: str) -> None:
    module, inputs = made(kind)
    coupling = couple(module, inputs)
    for group in coupling.groups:
        units = group.units[1::2]
        silent = silenced(module, coupling, units)
        thinner = copy.deepcopy(module)
        apply_step(thinner, describe_removal(module, coupling, units))
        torch.testing.assert_close(thinner(*inputs), silent(*inputs), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(silent(*inputs), module(*inputs), rtol=1e-4, atol=1e-5), "the units did something"


@pytest.mark.parametrize("kind", KINDS)
def test_thin_reaches_its_target_and_its_structure_loads(kind: str) -> None:
    module, inputs = made(kind)
    dense = copy.deepcopy(module)
    report = thin(module, inputs, target=0.75, multiple=1)
    assert report.macs[1] <= 0.75 * report.macs[0]
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (dense, module))
    again, fresh = copy.deepcopy(dense), settled(KINDS[kind][0](), 9)
    structure = json.loads(json.dumps(report.structure))
    apply_structure(again, structure)
    assert torch.equal(again(*inputs), module(*inputs)), "the dense weights, cut"
    apply_structure(fresh, structure)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(*inputs), module(*inputs)), "a checkpoint"
    assert repr(fresh) == repr(module)
    assert couple(module, inputs).groups, "it can be traced again"


@pytest.mark.parametrize("kind", ["residual", "ready", "grouped"])
def test_thinning_goes_on_in_steps(kind: str) -> None:
    module, inputs = made(kind)
    dense, structure = copy.deepcopy(module), []
    for share in (0.9, 0.8, 0.7):
        structure += thin(module, inputs, target=share, multiple=1).structure
    apply_structure(dense, structure)
    assert torch.equal(dense(*inputs), module(*inputs))


def test_widths_stay_multiples_and_keep_a_block() -> None:
    module, inputs = made("residual")
    report = thin(module, inputs, target=0.3)
    assert report.widths == {"stem": (32, 16), "one": (48, 16), "two": (32, 16), "head": (5, 5)}
    assert (module.stem.out_channels, module.one.in_channels, module.norm.num_features) == (16, 16, 16)
    assert report.kept == {"head": "the module returns them"}
    assert "one: 48 -> 16 channels" in str(report)


def test_a_width_that_is_no_multiple_becomes_one_first() -> None:
    module = settled(Residual(40))
    assert thin(module, IMAGES, target=0.99).widths["stem"] in {(40, 32), (40, 40)}
    module = settled(Residual(40))
    assert thin(module, IMAGES, target=0.85, ignore=["one"]).widths["stem"] == (40, 32)


@pytest.mark.parametrize("score", ["l2", "l1", "bn"])
def test_the_channels_of_least_worth_go(score: str) -> None:
    module, inputs = made("residual")
    weak = [3, 17, 30]
    module.one.weight.data[weak] *= 1e-3
    module.norm.weight.data[weak] = 1e-4
    module.two.weight.data[:, weak] *= 1e-3
    before = module(*inputs)
    report = thin(module, inputs, target=0.94, multiple=1, score=score, ignore=["stem", "two"])
    kept = report.structure[0]["kept"][report.structure[0]["cuts"]["one.weight"]["0"]]
    assert set(range(48)) - set(kept) == set(weak)
    torch.testing.assert_close(module(*inputs), before, rtol=1e-2, atol=1e-2)


def test_taylor_removes_what_the_loss_does_not_feel() -> None:
    module, inputs = made("residual")
    module.two.weight.data[:, :16] *= 1e-3  # their own weights are as large as any
    module.norm.bias.data.fill_(3.0)  # and none of the others is dead
    batches = [(inputs[0] + shift, torch.tensor([1, 3])) for shift in (0.0, 0.1)]
    report = thin(
        module,
        inputs,
        target=0.7,
        score="taylor",
        data=batches,
        loss=nn.functional.cross_entropy,
        ignore=["stem", "two"],
    )
    kept = report.structure[0]["kept"][report.structure[0]["cuts"]["one.weight"]["0"]]
    assert len(set(range(16)) & set(kept)) <= 2, "a sum over a unit may cancel by chance"


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.01)]
)
def test_training_goes_on_as_with_the_cut_state(make) -> None:  # type: ignore[no-untyped-def]
    module, inputs = made("residual")
    module.train()
    optimizer = make(module.parameters())
    train(module, optimizer, inputs)
    module.zero_grad()
    module(*inputs).square().sum().backward()  # a gradient is there, too
    report = thin(module, inputs, target=0.5)
    remap_optimizer(optimizer, report.removed)
    assert all(p.grad is None or p.grad.shape == p.shape for p in module.parameters())
    twin = copy.deepcopy(module)
    other = make(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        train(module, optimizer, inputs)
        train(twin, other, inputs)
    for (name, one), (_, two) in zip(module.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim > 1]
    assert moments
    assert any(float(moment.abs().sum()) > 0 for moment in moments)


def test_the_cut_momentum_is_that_of_the_kept_channels() -> None:
    module, inputs = made("residual")
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    train(module, optimizer, inputs)
    before = optimizer.state[module.one.weight]["momentum_buffer"].clone()
    report = thin(module, inputs, target=0.5)
    remap_optimizer(optimizer, report.removed)
    cut = report.structure[0]["cuts"]["one.weight"]
    for dim, number in cut.items():
        before = before.index_select(int(dim), torch.tensor(report.structure[0]["kept"][number]))
    assert torch.equal(optimizer.state[module.one.weight]["momentum_buffer"], before)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[torch.Tensor, ...]) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(*inputs), torch.tensor([1, 2])).backward()
    optimizer.step()


def test_modes_and_values_survive_tracing() -> None:
    module, inputs = made("ready")
    module.train()
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    couple(module, inputs)
    assert module.training
    assert not module.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_forward_with_fixed_sizes_is_left_alone_and_named() -> None:
    module = settled(Encoder(Attention(fixed=True)))
    report = thin(module, TOKENS, target=0.8, multiple=1)
    assert report.widths["attention.query"] == (32, 32)
    assert report.widths["hidden"][1] < 64
    assert report.kept["attention.query"].startswith("its forward does not follow: ")
    assert report.kept["attention.out"] == "layer_norm reads them" or report.kept["attention.out"]
    coupling = couple(module, TOKENS)
    heads = next(group for group in coupling.groups if "query" in group.name)
    with pytest.raises(StageError) as caught:
        check_removal(module, coupling, heads.units[1:], TOKENS)
    assert "ignore" in caught.value.fix


def test_wrong_numbers_are_seen_even_where_shapes_fit() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.stem(x)) / self.stem.out_features

    with pytest.raises(StageError, match="off by"):
        thin(settled(Half()), (torch.randn(2, 4),), target=0.6, multiple=1)


def test_a_target_out_of_reach_says_the_least() -> None:
    module, inputs = made("residual")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        RequestError, match=r"10.00% cannot be reached.*multiples of 16.*1\d\.\d\d% is the least"
    ) as caught:
        thin(module, inputs, target=0.1)
    assert "find_blocks" in caught.value.fix
    least = float(caught.value.fix.split("target=")[1].split(",")[0])
    assert thin(copy.deepcopy(module), inputs, target=least).macs[1] > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_patterns() -> None:
    module, inputs = made("residual")
    with pytest.raises(RequestError, match="'stemm' matches no layer") as caught:
        thin(module, inputs, target=0.5, ignore=["stemm"])
    assert "stem" in caught.value.fix
    assert thin(module, inputs, target=0.8, ignore=["re:o.e$"]).kept["one"] == "is ignored"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target 0.0 is no share"),
        ({"target": 1.5}, "target 1.5 is no share"),
        ({"target": 0.5, "multiple": 0}, "multiple 0 is no width"),
        ({"target": 0.5, "score": "taylor"}, "needs gradients"),
        ({"target": 0.5, "score": "taylor", "data": [], "loss": torch.nn.functional.mse_loss}, "got no batch"),
    ],
)
def test_impossible_requests(options: dict, message: str) -> None:  # type: ignore[type-arg]
    module, inputs = made("residual")
    with pytest.raises(RequestError, match=message):
        thin(module, inputs, **options)


def test_a_module_that_branches_on_data_is_refused() -> None:
    class Branching(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(RequestError, match="Branching cannot be traced") as caught:
        couple(Branching(), IMAGES)
    assert "branches" in caught.value.fix


def test_a_structure_of_another_module_is_refused() -> None:
    module, inputs = made("residual")
    structure = thin(module, inputs, target=0.5).structure
    with pytest.raises(RequestError, match="which this module lacks"):
        apply_structure(made("flat")[0], structure)
    with pytest.raises(RequestError, match=r"of shape \(48, 32, 3, 3\), here it is \(48, 4, 3, 3\)"):
        apply_structure(settled(Residual(4)), structure)


class Grown(nn.Module):
    """A random network of residual and concatenating layers."""

    def __init__(self, plan: list[tuple[str, int]]) -> None:
        super().__init__()
        self.stem, width = nn.Conv2d(3, 8, 1), 8
        self.plan, self.layers, self.norms = plan, nn.ModuleList(), nn.ModuleList()
        for kind, size in plan:
            makes = size if kind in ("plain", "join") else width
            groups = width if kind == "deep" else 1
            self.layers.append(nn.Conv2d(width, makes, 3, padding=1, groups=groups))
            width = width + makes if kind == "join" else makes
            self.norms.append(nn.BatchNorm2d(width))
        self.last = nn.Linear(width * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for (kind, _), layer, norm in zip(self.plan, self.layers, self.norms, strict=True):
            y = torch.relu(layer(x))
            x = norm(x + y if kind == "add" else torch.cat([x, y], 1) if kind == "join" else y)
        return self.last(x.flatten(1))


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(["plain", "add", "join", "deep"]), st.integers(2, 9)), min_size=1, max_size=6
    ),
    seed=st.integers(0, 99),
)
def test_random_networks(plan: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    module, inputs = settled(Grown(plan), seed), (torch.randn(2, 3, 2, 2),)
    coupling = couple(module, inputs)
    units = {unit for group in coupling.groups for unit in group.units[seed % 2 : -1 : 2]}
    silent = silenced(module, coupling, units)
    apply_step(module, describe_removal(module, coupling, units))
    torch.testing.assert_close(module(*inputs), silent(*inputs), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(st.tuples(st.sampled_from(["plain", "add", "join"]), st.integers(4, 16)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    share=st.floats(0.4, 0.95),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_nothing_goes_that_the_target_does_not_need(
    plan: list[tuple[str, int]], seed: int, share: float, multiple: int
) -> None:
    torch.manual_seed(seed)
    module, inputs = settled(Grown(plan), seed), (torch.randn(2, 3, 2, 2),)
    coupling = couple(module, inputs)
    worths = score_groups(module, coupling)
    choice = choose(coupling, worths, share, multiple=multiple)
    target = max(share, choice.least) * cost_of(coupling, macs)
    assert cost_of(coupling, macs, choice.units) == pytest.approx(choice.cost * cost_of(coupling, macs))
    assert cost_of(coupling, macs, choice.units) <= target * (1 + 1e-6)
    for group, worth in zip(coupling.groups, worths, strict=True):
        gone = [step for step in steps(group, coupling, worth, multiple) if choice.units.issuperset(step)]
        if gone:
            assert cost_of(coupling, macs, choice.units - set(gone[-1])) > target
