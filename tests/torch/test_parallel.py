"""Under Accelerate, and in two processes: the same recipe, the same masks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.torch.loops import EVERY, attach, batches, net, sgd, sparsity, train


@pytest.mark.parametrize("parallel", ["ddp", "alone"])
def test_masks_are_the_same_on_every_rank(parallel: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ranks.py")
    meeting = tmp_path / "meeting"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", meeting, tmp_path, parallel],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, found in first.items():
        assert found["masks"].keys() == second[name]["masks"].keys()
        for weight, kept in found["masks"].items():
            assert torch.equal(kept, second[name]["masks"][weight]), (name, weight)
            assert torch.all(second[name]["weights"][weight][~kept] == 0)
        if parallel == "ddp":
            for key, value in found["weights"].items():
                if "running" not in key and "num_batches" not in key:
                    assert torch.equal(value, second[name]["weights"][key]), (name, key)


@pytest.mark.parametrize("order", ["modify first", "prepare first"])
def test_under_accelerate(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches accumulate to a step; the masks are those of the same loop without Accelerate."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    plain = net()
    expected, stepped = attach(EVERY["gm"], plain, sgd(plain))
    data = batches(12)
    halves: list[Any] = [
        pair for inputs, targets in data for pair in zip(inputs.chunk(2), targets.chunk(2), strict=True)
    ]
    for start in range(0, len(halves), 2):
        for inputs, targets in halves[start : start + 2]:
            (cross_entropy(plain(inputs), targets) / 2).backward()
        stepped.step()
        stepped.zero_grad()

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    module = net()
    inner = sgd(module)
    if order == "modify first":
        manager, optimizer = attach(EVERY["gm"], module, inner)
        module, optimizer = accelerator.prepare(module, optimizer)
    else:
        module, inner = accelerator.prepare(module, inner)
        manager, optimizer = attach(EVERY["gm"], module, inner)
    for inputs, targets in halves:
        with accelerator.accumulate(module):
            accelerator.backward(cross_entropy(module(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    assert manager.state_dict()["steps"] == 12
    for name, kept in expected.masks.items():
        assert torch.equal(kept, manager.masks[name])
        torch.testing.assert_close(plain.get_parameter(name), module.get_parameter(name))
    assert sparsity(module.features[2].weight) > 0.5


def test_compiled_modules_have_the_names_of_bare_ones() -> None:
    module = net()
    compiled = torch.compile(module, backend="eager")
    manager, optimizer = attach(EVERY["gm"], compiled, sgd(module))
    train(compiled, optimizer, batches(4))
    assert set(manager.masks) == {"features.2.weight", "features.5.weight"}
