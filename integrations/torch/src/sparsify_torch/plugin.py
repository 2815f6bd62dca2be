"""Offer what this package adds to Sparsify."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl

TORCH = ("torch",)
BOTH = TORCH, TORCH, "torch"  # requires, accepts, returns

PRUNING = (
    Entry(
        "ConstantPruningModifier",
        "sparsify_torch.constant_pruning:ConstantPruningModifier",
        "keep the zeros that weights have (Iofinova et al. 2022)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "GMPruningModifier",
        "sparsify_torch.gradual_pruning:GMPruningModifier",
        "prune the smallest weights gradually (Zhu & Gupta 2017)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "MagnitudePruningModifier",
        "sparsify_torch.gradual_pruning:MagnitudePruningModifier",
        "prune the smallest weights of each layer gradually",
        *BOTH,
        phase="training",
    ),
    Entry(
        "GlobalMagnitudePruningModifier",
        "sparsify_torch.gradual_pruning:GlobalMagnitudePruningModifier",
        "prune the smallest weights of all layers gradually",
        *BOTH,
        phase="training",
    ),
    Entry(
        "MovementPruningModifier",
        "sparsify_torch.gradual_pruning:MovementPruningModifier",
        "prune weights that move towards zero (Sanh et al. 2020)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "OBSPruningModifier",
        "sparsify_torch.obs_pruning:OBSPruningModifier",
        "prune by the loss it costs and correct the rest (Kurtic et al. 2022)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "ACDCPruningModifier",
        "sparsify_torch.acdc_pruning:ACDCPruningModifier",
        "train in turns dense and compressed (Peste et al. 2021)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "RigLPruningModifier",
        "sparsify_torch.rigl_pruning:RigLPruningModifier",
        "train sparse from the start, moving the zeros (Evci et al. 2020)",
        *BOTH,
        phase="training",
    ),
)
STRUCTURE = (
    Entry(
        "StructuredPruningModifier",
        "sparsify_torch.structured_pruning:StructuredPruningModifier",
        "take whole filters or channels out gradually (Fang et al. 2023)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "LayerThinningModifier",
        "sparsify_torch.layer_thinning:LayerThinningModifier",
        "take out the filters and channels that are zero",
        *BOTH,
        phase="training",
    ),
    Entry(
        "LayerPruningModifier",
        "sparsify_torch.layer_pruning:LayerPruningModifier",
        "replace layers and residual blocks by what goes around them",
        *BOTH,
        phase="training",
    ),
)
LOOP = (
    Entry(
        "EpochRangeModifier",
        "sparsify_torch.epochs:EpochRangeModifier",
        "say from which epoch to which a recipe trains",
        *BOTH,
        phase="training",
    ),
    Entry(
        "SetLearningRateModifier",
        "sparsify_torch.learning_rate:SetLearningRateModifier",
        "set the learning rate once",
        *BOTH,
        phase="training",
    ),
    Entry(
        "LearningRateModifier",
        "sparsify_torch.learning_rate:LearningRateModifier",
        "schedule the learning rate as PyTorch's classes do",
        *BOTH,
        phase="training",
    ),
    Entry(
        "LearningRateFunctionModifier",
        "sparsify_torch.learning_rate:LearningRateFunctionModifier",
        "move the learning rate: linear, cosine, cyclic_linear",
        *BOTH,
        phase="training",
    ),
    Entry(
        "SetWeightDecayModifier",
        "sparsify_torch.parameter_groups:SetWeightDecayModifier",
        "set the optimizer's weight decay",
        *BOTH,
        phase="training",
    ),
    Entry(
        "TrainableParamsModifier",
        "sparsify_torch.parameters:TrainableParamsModifier",
        "switch training of parameters on or off",
        *BOTH,
        phase="training",
    ),
    Entry(
        "SetParamModifier",
        "sparsify_torch.parameters:SetParamModifier",
        "write a constant into parameters",
        *BOTH,
        phase="training",
    ),
    Entry(
        "GradualParamModifier",
        "sparsify_torch.parameters:GradualParamModifier",
        "move parameters from one value to another",
        *BOTH,
        phase="training",
    ),
)
TEACHING = (
    Entry(
        "DistillationModifier",
        "sparsify_torch.distillation:DistillationModifier",
        "learn a teacher's outputs (Hinton et al. 2015)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "PerLayerDistillationModifier",
        "sparsify_torch.layer_distillation:PerLayerDistillationModifier",
        "learn a teacher's features, layer by layer",
        *BOTH,
        phase="training",
    ),
    Entry(
        "QuantizationModifier",
        "sparsify_torch.quantization:QuantizationModifier",
        "simulate INT8 while training, as it is then exported (Jacob et al. 2018)",
        *BOTH,
        phase="training",
    ),
    Entry(
        "SparsificationLoggingModifier",
        "sparsify_torch.epochs:SparsificationLoggingModifier",
        "log the sparsity and the precision of each layer",
        *BOTH,
        phase="training",
    ),
)


@hookimpl
def modifiers() -> Iterable[Entry]:
    return (*LOOP, *PRUNING, *STRUCTURE, *TEACHING)


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
