"""Quantize a ResNet-20 while training it further: python benchmarks/qat_resnet20.py CIFAR_FOLDER WEIGHTS [STEPS].

CIFAR_FOLDER holds `train/` and `val/` with a folder a class. Prints top-1 in float, after calibration, after training,
of the exported file in ONNX Runtime, and how often file and module say the same class.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "torch"))

from qat_nets import ResNet20
from sparsify_torch import export, qat

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BATCH, RATE = 128, 0.01


def read(folder: Path, every: int = 1) -> tuple[Tensor, Tensor]:
    """Read every n-th image of each class, normalized."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())[::every]]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    images = (torch.from_numpy(pixels).float() / 255 - MEAN) / STD
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor([label for _, label in files])


def predict(module: nn.Module, images: Tensor) -> Tensor:
    """Return the classes that a module says."""
    module.eval()
    with torch.no_grad():
        return torch.cat([module(part).argmax(1) for part in images.split(250)])


def main(folder: Path, weights: Path, steps: int) -> None:
    """Train and print."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images, labels = read(folder / "train", 2)
    val, truth = read(folder / "val")
    module = ResNet20()
    module.load_state_dict(torch.load(weights, weights_only=True))

    def say(what: str) -> Tensor:
        found = predict(module, val)
        print(f"{what:32s} {100 * (found == truth).float().mean():.2f} %", flush=True)
        return found

    say("float")
    order = torch.randperm(len(images))
    started = time.perf_counter()
    qat.begin(module, qat.QuantizationOptions(), images[order[:BATCH]])
    print(f"begin: {time.perf_counter() - started:.1f} s")
    say("ranges of one batch, extremes")
    qat.calibrate(module, (images[part] for part in order[: 8 * BATCH].split(BATCH)))
    say("calibrated on 8 batches")
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    for step in range(steps):
        if step == steps * 2 // 3:
            qat.finish(module)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        part = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        batch = images[part].flip(3) if step % 2 else images[part]
        module.train()
        optimizer.zero_grad()
        functional.cross_entropy(module(batch), labels[part]).backward()
        optimizer.step()
    found = say(f"after {steps} steps")
    export(module, val[:2], Path("/tmp/qat_resnet20.onnx"), input_names=["input"], output_names=["logits"])
    session = ort.InferenceSession("/tmp/qat_resnet20.onnx", providers=["CPUExecutionProvider"])
    said = torch.cat(
        [torch.from_numpy(session.run(None, {"input": part.numpy()})[0]).argmax(1) for part in val.split(250)]
    )
    print(f"{'the file in ONNX Runtime':32s} {100 * (said == truth).float().mean():.2f} %")
    print(f"{'file and module agree':32s} {100 * (said == found).float().mean():.2f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 300)
