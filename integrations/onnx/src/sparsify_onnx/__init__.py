"""ONNX models for Sparsify: one-shot pruning, INT8 quantization, ONNX Runtime, analysis."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify_onnx.graph import WeightLayer as WeightLayer
    from sparsify_onnx.graph import channel_axis as channel_axis
    from sparsify_onnx.graph import from_matrix as from_matrix
    from sparsify_onnx.graph import to_matrix as to_matrix
    from sparsify_onnx.graph import weight_layers as weight_layers
    from sparsify_onnx.histogram import Histogram as Histogram
    from sparsify_onnx.histogram import count as count
    from sparsify_onnx.histogram import merge as merge
    from sparsify_onnx.loader import load as load
    from sparsify_onnx.model_format import FORMAT as FORMAT
    from sparsify_onnx.opsets import lower as lower
    from sparsify_onnx.placement import Placement as Placement
    from sparsify_onnx.qdq import Weight as Weight
    from sparsify_onnx.ranges import Grid as Grid
    from sparsify_onnx.ranges import choose_range as choose_range
    from sparsify_onnx.runtime import open_session as open_session
    from sparsify_onnx.sessions import open_model as open_model
    from sparsify_onnx.spreading import layer_shares as layer_shares
    from sparsify_onnx.storage import write_atomic as write_atomic
    from sparsify_onnx.trained import prepare_int8 as prepare_int8
    from sparsify_onnx.trained import write_int8 as write_int8

_PUBLIC = {
    "graph": "WeightLayer channel_axis from_matrix to_matrix weight_layers",
    "histogram": "Histogram count merge",
    "loader": "load",
    "model_format": "FORMAT",
    "opsets": "lower",
    "placement": "Placement",
    "qdq": "Weight",
    "ranges": "Grid choose_range",
    "runtime": "open_session",
    "sessions": "open_model",
    "spreading": "layer_shares",
    "storage": "write_atomic",
    "trained": "prepare_int8 write_int8",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify_onnx' has no attribute '{name}'")
    return getattr(import_module(f"sparsify_onnx.{_HOME[name]}"), name)
