"""Offer what this package adds to Sparsify."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl

TORCH = ("torch",)
TRAINING = (  # name, module, summary
    ("EpochRangeModifier", "epochs", "say from which epoch to which a recipe trains"),
    ("SetLearningRateModifier", "learning_rate", "set the learning rate once"),
    ("LearningRateModifier", "learning_rate", "schedule the learning rate as PyTorch's classes do"),
    ("LearningRateFunctionModifier", "learning_rate", "move the learning rate: linear, cosine, cyclic_linear"),
    ("SetWeightDecayModifier", "parameter_groups", "set the optimizer's weight decay"),
    ("TrainableParamsModifier", "parameters", "switch training of parameters on or off"),
    ("SetParamModifier", "parameters", "write a constant into parameters"),
    ("GradualParamModifier", "parameters", "move parameters from one value to another"),
    ("ConstantPruningModifier", "constant_pruning", "keep the zeros that weights have (Iofinova et al. 2022)"),
    ("GMPruningModifier", "gradual_pruning", "prune the smallest weights gradually (Zhu & Gupta 2017)"),
    ("MagnitudePruningModifier", "gradual_pruning", "prune the smallest weights of each layer gradually"),
    ("GlobalMagnitudePruningModifier", "gradual_pruning", "prune the smallest weights of all layers gradually"),
    ("MovementPruningModifier", "gradual_pruning", "prune weights that move towards zero (Sanh et al. 2020)"),
    ("OBSPruningModifier", "obs_pruning", "prune by the loss it costs and correct the rest (Kurtic et al. 2022)"),
    ("ACDCPruningModifier", "acdc_pruning", "train in turns dense and compressed (Peste et al. 2021)"),
    ("RigLPruningModifier", "rigl_pruning", "train sparse from the start, moving the zeros (Evci et al. 2020)"),
    ("DistillationModifier", "distillation", "learn a teacher's outputs (Hinton et al. 2015)"),
    ("PerLayerDistillationModifier", "layer_distillation", "learn a teacher's features, layer by layer"),
    (
        "QuantizationModifier",
        "quantization",
        "simulate INT8 while training, as it is then exported (Jacob et al. 2018)",
    ),
    ("SparsificationLoggingModifier", "epochs", "log the sparsity and the precision of each layer"),
)


@hookimpl
def modifiers() -> Iterable[Entry]:
    return tuple(
        Entry(name, f"sparsify_torch.{module}:{name}", summary, TORCH, TORCH, "torch", phase="training")
        for name, module, summary in TRAINING
    )


@hookimpl
def recipe_generators() -> Iterable[Entry]:
    return (Entry("training-aware", "sparsify_torch.recipe:GENERATOR", "the recipe that --optim-level asks for"),)


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
