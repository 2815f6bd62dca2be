"""Offer what this package adds to Sparsify."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl

ONNX = ("onnx",)
AFTER = "post-training"


@hookimpl
def model_loaders() -> Iterable[Entry]:
    return (Entry("onnx", "sparsify_onnx.model_format:FORMAT", "ONNX models, opset 11 and up", accepts=(".onnx",)),)


@hookimpl
def modifiers() -> Iterable[Entry]:
    return (
        Entry(
            "MagnitudePruningModifier",
            "sparsify_onnx.pruning:MagnitudePruningModifier",
            "zero the smallest weights",
            accepts=ONNX,
            returns="onnx",
            phase=AFTER,
        ),
        Entry(
            "EqualizationModifier",
            "sparsify_onnx.equalization:EqualizationModifier",
            "even out the channels that will share an INT8 grid; the function stays",
            accepts=ONNX,
            returns="onnx",
            phase=AFTER,
        ),
        Entry(
            "SparseGPTModifier",
            "sparsify_onnx.pruning:SparseGPTModifier",
            "zero the weights whose loss the others can make up for, and refit them (Frantar & Alistarh 2023)",
            accepts=ONNX,
            returns="onnx",
            phase=AFTER,
        ),
        Entry(
            "SmoothQuantModifier",
            "sparsify_onnx.smoothing:SmoothQuantModifier",
            "move outliers behind normalisations into the weights of the INT8 layers there (Xiao et al. 2022)",
            accepts=ONNX,
            returns="onnx",
            phase=AFTER,
        ),
        Entry(
            "QuantizationModifier",
            "sparsify_onnx.quantization:QuantizationModifier",
            "static INT8: weights per channel, activations from calibration data",
            accepts=ONNX,
            returns="onnx",
            phase=AFTER,
        ),
    )


@hookimpl
def recipe_generators() -> Iterable[Entry]:
    return (Entry("one-shot", "sparsify_onnx.recipe:GENERATOR", "the recipe that --optim-level asks for"),)


@hookimpl
def exporters() -> Iterable[Entry]:
    return (
        Entry(
            "integer-onnx",
            "sparsify_onnx.integer_form:export",
            "ConvInteger and MatMulInteger instead of QDQ, opset 17: what DeepSparse runs",
            accepts=ONNX,
            returns="onnx-integer",
        ),
    )


@hookimpl
def runtimes() -> Iterable[Entry]:
    return (Entry("onnxruntime", "sparsify_onnx.runtime:open_session", "ONNX Runtime on the CPU", accepts=ONNX),)


@hookimpl
def commands() -> Iterable[Entry]:
    return (
        Entry("analyze", "sparsify_onnx.analyze:app", "parameters, MACs, sparsity and precision per layer"),
        Entry("benchmark", "sparsify_onnx.benchmark:app", "Time models and runtimes side by side"),
        Entry(
            "doctor",
            "sparsify_onnx.doctor:app",
            "Check CPU, runtimes and packages, with the fix for each",
            aliases=("check-environment",),
        ),
        Entry("eval", "sparsify_onnx.evaluate:app", "Measure a deployment folder on a dataset"),
        Entry("explain", "sparsify_onnx.explain:app", "Say which layers cost accuracy or time, and why"),
        Entry("recipe", "sparsify_onnx.recipe_command:app", "Show, check or write a recipe"),
        Entry("reproduce", "sparsify_onnx.reproduce:app", "Run a recorded experiment again and compare"),
    )
