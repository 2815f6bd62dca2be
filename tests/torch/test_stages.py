"""Parts of a thinner module that can learn a dense one's features: changed inside, and alike at their outputs."""

from __future__ import annotations

import copy

import torch
from sparsify_torch.layers import find_blocks
from sparsify_torch.prunable import prunable_names
from sparsify_torch.stages import find_holders, find_stages
from sparsify_torch.thinning import thin
from torch import nn

from tests.torch.thinnable import IMAGES, Blocks, settled


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = settled(Blocks())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def thinner(module: nn.Module, target: float, blocks: tuple[str, ...] = (), **given: object) -> nn.Module:
    copied = copy.deepcopy(module)
    found = {block.path: block for block in find_blocks(copied, IMAGES)}
    thin(copied, IMAGES, target=target, blocks=[found[name] for name in blocks], multiple=8, **given)  # type: ignore[arg-type]
    return copied


def output_shapes(module: nn.Module, names: list[str]) -> dict[str, torch.Size]:
    found: dict[str, torch.Size] = {}
    for name in names:
        hook = module.get_submodule(name).register_forward_hook(
            lambda _, __, made, name=name: found.update({name: made.shape})
        )
        module(*IMAGES)
        hook.remove()
    return found


def test_nothing_is_taught_where_nothing_changed() -> None:
    module = settled(Blocks())
    assert find_stages(module, copy.deepcopy(module), IMAGES) == []


def test_blocks_that_are_narrower_inside_are_taught_at_their_outputs() -> None:
    module = settled(Blocks())
    narrow = thinner(module, 0.7, ignore=["stem"])
    names = find_stages(module, narrow, IMAGES)
    assert names
    for name in names:
        before, after = module.get_submodule(name), narrow.get_submodule(name)
        assert sum(p.numel() for p in before.parameters()) > sum(p.numel() for p in after.parameters())


def test_what_holds_a_block_that_is_gone_makes_up_for_it() -> None:
    module = settled(Blocks())
    assert find_stages(module, thinner(module, 1.0, ("body.1",)), IMAGES) == ["body"]
    wrapped = Wrapped()
    assert find_stages(wrapped, thinner(wrapped, 1.0, ("backbone.body.1",)), IMAGES) == ["backbone.body"]


def test_outputs_of_other_widths_are_not_compared() -> None:
    """The residual stream itself is narrower: only what comes behind it is alike."""
    module = settled(Blocks())
    narrow = thinner(module, 0.2)
    names = find_stages(module, narrow, IMAGES)
    assert output_shapes(module, names) == output_shapes(narrow, names)


class Fire(nn.Module):
    """SqueezeNet's: two expansions side by side, of which one may lose channels."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.wide, self.plain = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.squeeze(x).relu()
        both: torch.Tensor = self.head(torch.cat([self.wide(inner), self.plain(inner)], 1).relu())
        return both.mean((2, 3))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.second(self.first(x).relu()).relu()
        return made


def test_inside_a_part_whose_outputs_are_narrower_what_keeps_its_width_is_taught() -> None:
    """All of SqueezeNet's parts give fewer channels: without what lies inside only the classifier would be taught."""
    module = nn.Sequential(Body(), nn.Conv2d(8, 3, 1), Fire())
    narrow = copy.deepcopy(module)
    narrow[0].first, narrow[0].second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
    narrow[2].squeeze, narrow[2].plain = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)
    narrow[2].wide, narrow[2].head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(24, 10, 1)
    assert find_stages(module, narrow, IMAGES) == ["0", "2"]
    narrow[0].second, narrow[1] = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
    assert find_stages(module, narrow, IMAGES) == ["1", "2"]
    narrow[1], narrow[2].squeeze = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 8, 1)
    narrow[2].head = nn.Conv2d(24, 9, 1)
    assert find_stages(module, narrow, IMAGES) == ["2.plain"]


def test_parts_that_hold_pruned_weights_lie_beside_one_another() -> None:
    module, wrapped = settled(Blocks()), Wrapped()
    names = prunable_names(module)
    first, second = ([name for name in names if name.startswith(f"body.{place}.")] for place in range(2))
    assert find_holders(module, [*second, *first], IMAGES) == ["body.0", "body.1"]
    assert find_holders(module, second[:1], IMAGES) == [second[0].removesuffix(".weight")]
    names = find_holders(module, names, IMAGES)
    assert len(names) > 1
    assert find_holders(wrapped, prunable_names(wrapped), IMAGES) == [f"backbone.{name}" for name in names]
    assert find_holders(module, [], IMAGES) == []
