"""Say how one-shot pruning would spread a sparsity over a model's layers; training recipes begin with it."""

from __future__ import annotations

from sparsify import Context, Model

from sparsify_onnx.allocation import allocate
from sparsify_onnx.calibration import in_order
from sparsify_onnx.coverage import look_at_samples
from sparsify_onnx.joint import Options
from sparsify_onnx.masks import parse_structure
from sparsify_onnx.targets import PRUNABLE, select_layers
from sparsify_onnx.threads import solver_threads


def layer_shares(model: Model, sparsity: float, cost: str, context: Context, structure: str) -> dict[str, float]:
    """Return the share of zeros for each layer by its weight's name, as SparseGPTModifier's `allocation` finds it.

    cost: `parameters`, `macs`, or `time`, what the sparsity is a share of. What is found is kept in
    `context.checkpoint`.
    """
    layers = select_layers(model.value, (PRUNABLE,), ())
    context = in_order(context)
    seen = look_at_samples(model, context)
    options = Options(structure=parse_structure(structure), sparsity={layer.name: sparsity for layer in layers})
    with solver_threads(context.threads):
        shares = allocate(model.value, layers, options, cost, context, seen.facts.get("shapes", {}))
    return {layer.weight: shares[layer.name] for layer in layers}
