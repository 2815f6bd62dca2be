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
