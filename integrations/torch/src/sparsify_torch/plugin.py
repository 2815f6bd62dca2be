"""Offer what this package adds to Sparsify."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl

TORCH = ("torch",)


@hookimpl
def modifiers() -> Iterable[Entry]:
    return ()


@hookimpl
def model_loaders() -> Iterable[Entry]:
    return (
        Entry(
            "torch",
            "sparsify_torch.export_loader:FORMAT",
            "PyTorch checkpoints that name a torchvision architecture, exported first",
            accepts=(".pt", ".pth", ".pt2"),
        ),
    )


@hookimpl
def exporters() -> Iterable[Entry]:
    return (
        Entry(
            "torch-onnx",
            "sparsify_torch.export_onnx:export_model",
            "ONNX from a PyTorch module, QDQ where it was quantized while training",
            accepts=TORCH,
            returns="onnx",
        ),
    )
