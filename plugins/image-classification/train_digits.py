"""Train the demo's network and write both of its files: `python train_digits.py` (torch, scikit-learn, onnx).

The data are the 1,797 handwritten digits of scikit-learn (UCI ML hand-written digits, E. Alpaydin and C. Kaynak, 1998,
CC BY 4.0), kept as they are, 0..16. Every third digit of a seeded order, class by class, is held out and never trained
on. The graph is written node by node, so that the layers have names a report can show, batch norm is folded and
nothing of the training machine is in the file.
"""

# ruff: noqa: T201, TID253 - a script, run by hand
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

HERE = Path(__file__).resolve().parent / "src" / "sparsify_image_classification" / "digits"
SEED = 0
WIDTHS = (64, 64, 128, 128)  # 260,000 parameters: narrower nets gain too little from INT8 to outweigh its overhead
EPOCHS = 60
BATCH = 64
MEAN, STD = 0.3056, 0.3760  # of the train part, pixels in 0..1; `demo.py` has the same


def main() -> None:
    """Split, train, test, write."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    held_out = split(labels)
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "digits.npz", images=images, labels=labels, held_out=held_out)
    inputs, targets = tensors(images), torch.from_numpy(labels.astype(np.int64))
    train_part = torch.from_numpy(~held_out)
    print(f"mean {images[~held_out].mean() / 16:.4f}, std {images[~held_out].std() / 16:.4f}")
    network = train(inputs[train_part], targets[train_part])
    with torch.no_grad():
        hits = network(inputs[~train_part]).argmax(1) == targets[~train_part]
    print(f"held out: {hits.float().mean() * 100:.2f} % of {len(hits)}")
    onnx.save(to_onnx(network), HERE / "digits.onnx")


def split(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark a third of each class as held out."""
    held_out = np.zeros(len(labels), dtype=np.bool_)
    order = np.random.default_rng(SEED).permutation(len(labels))
    for label in range(10):
        held_out[order[labels[order] == label][::3]] = True
    return held_out


def tensors(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn 0..16 into what the demo's preprocessing makes of the 8-bit images it writes."""
    pixels = np.round(images * (255 / 16)).astype(np.float32) / np.float32(255)
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD))[:, None]


def build() -> nn.Sequential:
    """Stack convolutions at full resolution, an average over the image, and one linear layer."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTHS[-1], 10))


def train(inputs: torch.Tensor, targets: torch.Tensor) -> nn.Sequential:
    """Train with AdamW, one-cycle, shifts of up to one pixel and label smoothing."""
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    steps = -(-len(inputs) // BATCH) * EPOCHS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    lossy = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(inputs)).split(BATCH):
            loss = lossy(network(shifted(inputs[chosen])), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1}: {total / len(inputs):.4f}", flush=True)
    return network.eval()


def shifted(batch: torch.Tensor) -> torch.Tensor:
    """Move each image by -1, 0 or 1 pixels both ways; what comes in is background."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1), value=-MEAN / STD)
    moves = torch.randint(0, 3, (len(batch), 2))
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves.tolist(), strict=True)])


def to_onnx(network: nn.Sequential) -> onnx.ModelProto:
    """Write the graph with batch norm folded into the convolutions, for any batch size."""
    constants, nodes, tensor = [], [], "input"
    for index in range(len(WIDTHS)):
        folded = fuse_conv_bn_eval(network[3 * index], network[3 * index + 1])
        name = f"conv{index + 1}"
        constants += [constant(f"{name}.weight", folded.weight), constant(f"{name}.bias", folded.bias)]
        read = [tensor, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", read, [f"{name}_out"], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        tensor = f"relu{index + 1}_out"
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [tensor], f"relu{index + 1}"))
    constants += [constant("fc.weight", network[-1].weight), constant("fc.bias", network[-1].bias)]
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pool_out"], "pool"),
        helper.make_node("Flatten", ["pool_out"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="train_digits.py")
    onnx.checker.check_model(model, full_check=True)
    return model


def constant(name: str, values: torch.Tensor) -> TensorProto:
    """Name a weight."""
    return numpy_helper.from_array(values.detach().numpy(), name)


if __name__ == "__main__":
    main()
