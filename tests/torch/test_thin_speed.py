"""Thinned modules in ONNX Runtime: they agree, and their time is measured."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from sparsify import RequestError
from sparsify_torch.channels import macs
from sparsify_torch.coupling import couple
from sparsify_torch.mixing import thin_to_speed
from sparsify_torch.removal import apply_structure
from sparsify_torch.speed import measured_cost, write_onnx
from sparsify_torch.thinning import cost_of, thin

sys.path.insert(0, str(Path(__file__).parent))
from thinnable import IMAGES, KINDS, Blocks, settled


@pytest.mark.parametrize("kind", ["residual", "grouped", "squeezed", "packed", "ready"])
def test_a_thinned_module_exports_and_agrees(kind: str, tmp_path: Path) -> None:
    module, inputs = settled(KINDS[kind][0]()), KINDS[kind][1]
    thin(module, inputs, target=0.7, multiple=1)
    write_onnx(module, inputs, tmp_path / "m.onnx")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    made = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})[0]
    np.testing.assert_allclose(made, module(*inputs).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_measured_cost_knows_convolutions_and_products() -> None:
    cost = measured_cost(runs=3)
    works = [work for kind in ("grouped", "packed") for work in couple(settled(KINDS[kind][0]()), KINDS[kind][1]).works]
    for work in works:
        whole = tuple(map(len, work.channels))
        assert cost(work, whole) > 0
        assert cost(work, whole) == cost(work, whole), "remembered"


def test_a_mix_is_chosen_for_the_speed_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsify_torch.mixing as mixing

    def by_macs(modules, inputs, **_):  # type: ignore[no-untyped-def]
        costs = {name: cost_of(couple(module, inputs), macs) for name, module in modules.items()}
        return {name: mixing_ratio(costs["dense"] / value) for name, value in costs.items()}

    def mixing_ratio(value: float):  # type: ignore[no-untyped-def]
        from sparsify import Ratio

        return Ratio(value, value, value)

    monkeypatch.setattr(mixing, "measured_cost", lambda threads, kept: macs)
    monkeypatch.setattr(mixing, "speedups", by_macs)
    module = settled(Blocks())
    dense = copy.deepcopy(module)
    module.body[2].last.weight.data *= 1e-4
    report = thin_to_speed(module, IMAGES, speedup=1.5, data=[(IMAGES[0], None)])
    assert report.speedup >= 1.5
    assert {count for count, _ in report.weighed} >= {0, 1, 2}
    count, _ = min(report.weighed, key=lambda one: one[1])
    assert count == len(report.thinned.blocks)
    apply_structure(dense, report.thinned.structure)
    dense.load_state_dict(module.state_dict())
    assert torch.equal(dense(*IMAGES), module(*IMAGES))
    with pytest.raises(RequestError, match=r"500\.00 x as fast cannot be reached: no mix"):
        thin_to_speed(settled(Blocks()), IMAGES, speedup=500)
    with pytest.raises(RequestError, match=r"1\.50 x as fast cannot be reached: 1\.20 x was measured") as caught:
        thin_to_speed(settled(Blocks()), IMAGES, speedup=1.5, margin=1.05, measure=lambda thinner: 1.2)
    assert caught.value.fix == "ask for 1.14 x or less"
    with pytest.raises(RequestError, match=r"1\.50 x was measured"):  # reached, but not by the margin
        thin_to_speed(settled(Blocks()), IMAGES, speedup=1.5, margin=1.05, measure=lambda thinner: 1.5)
    with pytest.raises(RequestError, match="asks for nothing"):
        thin_to_speed(settled(Blocks()), IMAGES, speedup=1.0)
