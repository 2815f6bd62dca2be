"""Architectures as torchvision has them, with random weights: half of the MACs go, the function of the rest stays."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify_torch.removal import apply_structure
from sparsify_torch.thinning import thin

sys.path.insert(0, str(Path(__file__).parent))
from thinnable import settled

models = pytest.importorskip(
    "torchvision.models", reason="torchvision is not installed: its architectures are not tried"
)
SMALL: dict[str, Any] = {
    "vit": lambda: models.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=10),
    "densenet": lambda: models.DenseNet(32, (3, 3), 64, num_classes=10),
}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1", "resnext50_32x4d", *SMALL])
def test_half_of_the_macs_go(name: str) -> None:
    torch.manual_seed(0)
    make = SMALL.get(name) or (lambda: getattr(models, name)(weights=None))
    module, inputs = settled(make()), (torch.randn(1, 3, *(2 * [32 if name in SMALL else 64])),)
    dense = copy.deepcopy(module)
    report = thin(module, inputs, target=0.5)  # compares with the silenced module itself
    assert report.macs[1] <= 0.5 * report.macs[0]
    assert report.kept, "at least the classifier's classes stay"
    apply_structure(dense, json.loads(json.dumps(report.structure)))
    assert torch.equal(dense(*inputs), module(*inputs))
