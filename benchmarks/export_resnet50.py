#!/usr/bin/env python3
"""Write torchvision's ResNet-50 with random weights as ONNX: python benchmarks/export_resnet50.py FILE.onnx.

Needs torch and torchvision. Batch norms see noise first, so that random weights keep activations in a usual range.
"""

from __future__ import annotations

import sys

import torch
import torchvision

SIDE = 224


def main(path: str) -> None:
    """Export with a free batch axis, opset 18, by the newer exporter."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, SIDE, SIDE))
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, SIDE, SIDE),),
        path,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: batch}},
        opset_version=18,
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main(sys.argv[1])
