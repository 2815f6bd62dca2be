"""Offer ONNX as a model format."""

from __future__ import annotations

from pathlib import Path

from sparsify import Model, ModelFormat

from sparsify_onnx.compare import compare
from sparsify_onnx.describe import describe
from sparsify_onnx.loader import common_ir, load
from sparsify_onnx.storage import write_atomic


def save(model: Model, path: Path) -> None:
    """Write a model atomically, with external data above 1.5 GB; the same model gives the same bytes."""
    model.value.ir_version = common_ir(model.value)
    write_atomic(model.value, path)


FORMAT = ModelFormat(load=load, save=save, describe=describe, compare=compare)
