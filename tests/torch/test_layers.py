"""Whole blocks become their shortcuts, layers of equal shapes nothing."""

from __future__ import annotations

import copy
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import RequestError
from sparsify_torch.block_search import answers, least, one_apart, rank_blocks, search, settle_batch_norms
from sparsify_torch.channels import macs
from sparsify_torch.layers import Block, drift, find_blocks
from sparsify_torch.removal import apply_step, apply_structure, remap_optimizer
from sparsify_torch.thinning import thin
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from thinnable import IMAGES, Blocks, Encoder, Ready, settled


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(3)]
        self.layers, self.last = nn.Sequential(*layers), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(x).mean(1))


def test_residual_blocks_are_found_with_what_their_shortcut_needs() -> None:
    found = find_blocks(settled(Blocks()), IMAGES)
    assert [(block.path, block.keep, block.activation) for block in found] == [
        ("body.0", (), None),
        ("body.1", ("way",), "relu"),
        ("body.2", (), None),
    ]
    assert found[2].parameters == sum(p.numel() for p in Blocks().body[2].parameters())


@pytest.mark.parametrize("path", ["body.0", "body.1", "body.2"])
def test_a_block_taken_out_is_a_block_whose_branch_is_zero(path: str) -> None:
    module = settled(Blocks())
    block = next(block for block in find_blocks(module, IMAGES) if block.path == path)
    silent = copy.deepcopy(module)
    for value in (silent.get_submodule(path).last.weight, silent.get_submodule(path).last.bias):
        value.data.zero_()
    silent.get_submodule(path).last.running_mean.zero_()
    apply_step(module, block.step())
    torch.testing.assert_close(module(*IMAGES), silent(*IMAGES), rtol=1e-5, atol=1e-6)


def test_a_transformer_layer_taken_out_is_one_whose_branches_are_zero() -> None:
    module, inputs = settled(Layered()), (torch.randn(2, 6, 32),)
    found = find_blocks(module, inputs)
    assert [block.path for block in found] == ["layers.0", "layers.1", "layers.2"]
    silent = copy.deepcopy(module)
    for part in (silent.layers[1].self_attn.out_proj, silent.layers[1].linear2):
        part.weight.data.zero_()
        part.bias.data.zero_()
    apply_step(module, found[1].step())
    torch.testing.assert_close(module(*inputs), silent(*inputs), rtol=1e-5, atol=1e-5)


def test_transformer_layers_lose_heads_and_still_run_without_gradients() -> None:
    module, inputs = settled(Layered()), (torch.randn(2, 6, 32),)
    report = thin(module, inputs, target=0.6)
    assert report.widths["layers.0.self_attn"][1] < 96
    with torch.no_grad():  # where nn.TransformerEncoderLayer would take its fused path
        torch.testing.assert_close(module(*inputs), module(*inputs).detach())
    fresh = settled(Layered())
    apply_structure(fresh, report.structure)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(*inputs), module(*inputs))


def test_plain_layers_of_equal_shapes_are_found_when_asked_for() -> None:
    module = settled(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert find_blocks(module, IMAGES) == []
    (block,) = find_blocks(module, IMAGES, plain=True)
    assert (block.path, block.residual) == ("1", False)
    apply_step(module, block.step())
    assert module(*IMAGES).shape == (2, 4, 8, 8)
    assert len(list(module.parameters())) == 4


def test_blocks_and_channels_in_one_structure() -> None:
    module = settled(Blocks())
    dense = copy.deepcopy(module)
    found = find_blocks(module, IMAGES)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    count = len(optimizer.param_groups[0]["params"])
    report = thin(module, IMAGES, target=0.4, blocks=[found[1]])
    remap_optimizer(optimizer, report.removed)
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.parameters())) < count
    assert report.blocks == ("body.1",)
    assert "body.1: taken out" in str(report)
    assert report.macs[1] <= 0.4 * report.macs[0]
    apply_structure(dense, json.loads(json.dumps(report.structure)))
    assert torch.equal(dense(*IMAGES), module(*IMAGES))


def quieten(block: Any) -> None:
    """Let a block's branch do next to nothing."""
    block.last.weight.data *= 1e-4
    block.last.bias.data *= 1e-4
    block.last.running_mean.zero_()


def test_blocks_that_do_little_come_first() -> None:
    module = settled(Blocks())
    quieten(module.body[2])
    assert rank_blocks(module, IMAGES, macs, 1)[0].path == "body.2"
    quieten(module.body[0])
    ranked = [block.path for block in rank_blocks(module, IMAGES, macs, 8)]
    assert set(ranked[:2]) == {"body.0", "body.2"}
    assert sorted(ranked) == sorted(block.path for block in find_blocks(module, IMAGES))


def test_samples_say_what_a_block_does_where_there_are_any() -> None:
    """Example inputs are zeros, where a trainer makes them for their shape."""
    module, data = settled(Blocks()), [(IMAGES[0], None)]
    assert rank_blocks(module, IMAGES, macs, 8, data) == rank_blocks(
        module, (torch.zeros_like(IMAGES[0]),), macs, 8, data
    )


@pytest.mark.parametrize("target", [0.4, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_the_mix_found_is_the_best_of_all(target: float, seed: int) -> None:
    torch.manual_seed(seed)
    module, data = settled(Blocks()), [(IMAGES[0], None)]
    options = {"score": "l2", "multiple": 8, "data": data}
    ranked = rank_blocks(module, IMAGES, macs, 8, data)
    weighed = search(module, IMAGES, ranked, target, macs, options)
    changes = []
    for count in range(len(ranked) + 1):
        for blocks in combinations(ranked, count):
            thinner = copy.deepcopy(module)
            try:
                thin(thinner, IMAGES, target=target, blocks=blocks, **options)
            except RequestError:
                continue
            settle_batch_norms(thinner, data)
            changes.append(drift(answers(thinner, IMAGES, data), answers(module, IMAGES, data)))
    assert weighed[least(weighed)] == pytest.approx(min(changes))


def test_one_apart_is_one_more_one_less_or_one_exchanged() -> None:
    ranked = [Block(name, (), None, 1) for name in "abcd"]
    found = ["".join(block.path for block in blocks) for blocks in one_apart(tuple(ranked[:2]), ranked)]
    assert sorted(found) == sorted(["abc", "abd", "b", "a", "bc", "bd", "ac", "ad"])


def test_attention_that_returns_two_values_is_no_block() -> None:
    assert find_blocks(settled(Encoder(Ready())), (torch.arange(12).reshape(2, 6) % 11,)) == []


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match=r"takes out 'body\.7', which this module lacks"):
        apply_structure(settled(Blocks()), [{"blocks": [{"path": "body.7", "keep": [], "activation": None}]}])


def test_batch_norms_are_measured_anew() -> None:
    module = settled(Blocks())
    settle_batch_norms(module, [(IMAGES[0], None)] * 3)
    seen: list[torch.Tensor] = []
    module.body[0].one.register_forward_hook(lambda part, reads, makes: seen.append(makes))
    module(*IMAGES)
    torch.testing.assert_close(module.body[0].norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert module.body[0].norm.momentum == 0.1
    assert not module.body[0].norm.training
