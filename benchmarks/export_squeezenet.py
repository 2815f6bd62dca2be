"""Export a SqueezeNet 1.1 checkpoint to ONNX with a dynamic batch axis (needs torch and torchvision).

python benchmarks/export_squeezenet.py CHECKPOINT.pth squeezenet1_1.onnx
python benchmarks/export_squeezenet.py CHECKPOINT.pth squeezenet1_1_dynamo.onnx --exporter dynamo --opset 18
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision


def export(checkpoint: Path, target: Path, opset: int, dynamo: bool) -> None:
    """Write the checkpoint's network as ONNX: input `input` (N, 3, 224, 224), output `logits` (N, classes)."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = torchvision.models.squeezenet1_1(num_classes=weights["classifier.1.bias"].numel())
    network.load_state_dict(weights)
    network.eval()
    names = {"input_names": ["input"], "output_names": ["logits"], "opset_version": opset}
    sample = (torch.zeros(2, 3, 224, 224),)  # two samples: the exporter takes a batch of one for a constant
    if dynamo:
        dimensions = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(network, sample, target, dynamo=True, dynamic_shapes=dimensions, external_data=False, **names)
    else:
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(network, sample, target, dynamo=False, dynamic_axes=axes, **names)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    parser.add_argument("--opset", type=int, default=17)
    options = parser.parse_args()
    export(options.checkpoint, options.target, options.opset, options.exporter == "dynamo")
    print(f"{options.target}: {options.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
