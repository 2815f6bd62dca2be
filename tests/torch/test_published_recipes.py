"""Recipes in the grammar as the field published them load, check, and run on a model with the names they use.

Written here from what is known of the corpus (its modifiers, fields, spellings and quirks), not copied from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from sparsify import RequestError, check_recipe, load_plugins, load_recipe
from sparsify.recipe import parse_recipe
from sparsify_torch import ScheduledModifierManager
from torch import nn
from torch.nn.functional import cross_entropy

from tests.torch.loops import sampler, sparsity


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class ResNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.input = nn.Sequential()
        self.input.add_module("conv", nn.Conv2d(2, width, 3, padding=1))
        self.sections = nn.Sequential(nn.Sequential(Block(width), Block(width)), nn.Sequential(Block(width)))
        self.classifier = nn.Sequential()
        self.classifier.add_module("fc", nn.Linear(width, 3))

    def forward(self, x: Any) -> Any:
        return self.classifier(self.sections(self.input(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Any) -> Any:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return self.dense(scores.softmax(-1) @ self.value(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = Attention(), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(x)
        return x + self.output(self.intermediate(x).relu())


class Bert(nn.Module):
    """bert.encoder.layer.N, as Hugging Face names it; takes images so that one loop trains all models."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.Linear(2, 8)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList([Layer(), Layer()])
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = self.bert.embeddings(x.flatten(2).transpose(1, 2))
        for layer in self.bert.encoder.layer:
            x = layer(x)
        return self.classifier(x.mean(1))


class Yolo(nn.Module):
    """model.N.conv, with three parameter groups: norms, weights, biases."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential() for _ in range(4)]
        for index, layer in enumerate(layers):
            layer.add_module("conv", nn.Conv2d(8 if index else 2, 8, 3, padding=1))
            layer.add_module("bn", nn.BatchNorm2d(8))
        self.model = nn.Sequential(*layers, nn.Conv2d(8, 3, 1))

    def forward(self, x: Any) -> Any:
        return self.model(x).mean((2, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "wide resnet": partial(ResNet, 32),
    "bert": Bert,
    "yolo": Yolo,
}
RECIPES: dict[str, tuple[str, str, str]] = {  # name: (model, suffix, text)
    "resnet50-pruned": ("resnet", ".md", """
        <!--
        a licence, as published files begin
        -->

        ---
        # Epoch hyperparams
        num_epochs: &num_epochs 4.0
        pruning_start: &pruning_start 0.5
        pruning_end: &pruning_end 2.5
        training_modifiers:
          - !EpochRangeModifier
            start_epoch: 0.0
            end_epoch: *num_epochs
          - !LearningRateModifier
            constant_logging: False
            end_epoch: -1.0
            init_lr: 0.01
            log_types: __ALL__
            lr_class: MultiStepLR
            lr_kwargs: {'gamma': 0.1, 'milestones': [2, 3]}
            start_epoch: 0.0
            update_frequency: -1.0
        pruning_modifiers:
          - !GMPruningModifier
            end_epoch: *pruning_end
            final_sparsity: 0.8
            init_sparsity: 0.05
            inter_func: cubic
            leave_enabled: True
            log_types: __ALL__
            mask_type: unstructured
            params: ['sections.0.0.conv1.weight', 'sections.0.0.conv2.weight', 'sections.1.0.conv2.weight']
            start_epoch: *pruning_start
            update_frequency: 0.5
        ---
        # The model card
        """),
    "mobilenet-pruned": ("resnet", ".yaml", """
        version: 0.1.0
        modifiers:
            - !EpochRangeModifier
                start_epoch: 0.0
                end_epoch: 4.0
            - !GMPruningModifier
                params: ["sections.0.0.conv1.weight"]
                init_sparsity: &init 0.0
                final_sparsity: 0.6
                start_epoch: &start 0.0
                end_epoch: &end 2.0
                update_frequency: &every 0.5
            - !GMPruningModifier {params: ["sections.0.1.conv1.weight"], init_sparsity: *init, final_sparsity: 0.75,
                start_epoch: *start, end_epoch: *end, update_frequency: *every}
            - !GMPruningModifier {params: ["sections.1.0.conv1.weight"], init_sparsity: *init, final_sparsity: 0.85,
                start_epoch: *start, end_epoch: *end, update_frequency: *every}
            - !LearningRateModifier
                start_epoch: 0.0
                lr_class: ExponentialLR
                lr_kwargs: {gamma: 0.9}
                init_lr: 1e-2
        """),
    "resnet50-pruned_quant": ("resnet", ".md", """
        +++
        quantization_epochs: 1
        num_epochs: eval(3 + quantization_epochs)
        training_modifiers:
          - !EpochRangeModifier
            end_epoch: eval(num_epochs)
            start_epoch: 0.0
          - !LearningRateModifier {init_lr: 0.01, lr_class: StepLR, lr_kwargs: {gamma: 0.5, step_size: 1},
              start_epoch: 0, end_epoch: 2}
          - !SetLearningRateModifier {start_epoch: eval(num_epochs - quantization_epochs), learning_rate: 5e-5}
        pruning_modifiers:
          - !GMPruningModifier
            params: __ALL_PRUNABLE__
            init_sparsity: 0.05
            final_sparsity: 0.7
            start_epoch: 0
            end_epoch: 2
            update_frequency: 0.25
        quantization_modifiers:
          - !QuantizationModifier
            start_epoch: eval(num_epochs - quantization_epochs)
            submodules: [input, sections]
            disable_quantization_observer_epoch: eval(num_epochs - 0.5)
            freeze_bn_stats_epoch: eval(num_epochs - 0.5)
          - !SetWeightDecayModifier
            start_epoch: eval(num_epochs - quantization_epochs)
            weight_decay: 0.0
        +++
        """),
    "resnet50-transfer_learn": ("resnet", ".md", """
        ---
        training_modifiers:
          - !EpochRangeModifier
            end_epoch: 2.0
            start_epoch: 0.0
          - !LearningRateModifier
            init_lr: 0.005
            lr_class: StepLR
            lr_kwargs:
              gamma: 0.1
              step_size: 1.0
            start_epoch: 0.0
        constant_modifiers:
          - !ConstantPruningModifier
            params: __ALL__
            start_epoch: 0.0
        ---
        """),
    "vit_base.85": ("bert", ".yaml", """
        modifiers:
          - !EpochRangeModifier
            end_epoch: 4
            start_epoch: 0.0
          - !LearningRateModifier
            init_lr: 5e-5
            lr_class: CosineAnnealingWarmRestarts
            lr_kwargs: {lr_min: 1e-5, cycle_epochs: 2}
            start_epoch: 0
            end_epoch: 3
          - !SetLearningRateModifier
            learning_rate: 1e-6
            start_epoch: 3
          - !GMPruningModifier
            params: ["re:bert.encoder.layer.*weight"]
            init_sparsity: 0.05
            final_sparsity: 0.85
            start_epoch: 0
            end_epoch: 3
            update_frequency: 0.5
            mask_type: [1, 4]
        """),
    "yolov3-spp.pruned": ("yolo", ".md", """
        ---
        modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
          - !GMPruningModifier
            params: [model.1.conv.weight]
            init_sparsity: 0.05
            final_sparsity: 0.6
            start_epoch: 0.0
            end_epoch: 2.0
            update_frequency: 1.0
            mask_type: unstructured
          - !GMPruningModifier {params: [model.2.conv.weight], init_sparsity: 0.05, final_sparsity: 0.8,
              start_epoch: 0.0, end_epoch: 2.0, update_frequency: 1.0, mask_type: unstructured}
        ---
        """),
    "yolov3-spp.transfer_learn_pruned": ("yolo", ".yaml", """
        modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
          - !ConstantPruningModifier {params: ['re:model[.][01][.].*'], start_epoch: 0}
          - !GMPruningModifier {params: ['model.3.conv.weight'], init_sparsity: 0.05, final_sparsity: 0.6,
              start_epoch: 0.0, end_epoch: 2.0, update_frequency: 1.0}
        """),
    "resnet50-beans-pruning": ("resnet", ".yaml", """
        num_epochs: 4
        init_lr: 0.01
        warmup_epochs: 1
        pruning_start_epoch: 0.5
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(num_epochs)}
          - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: eval(warmup_epochs), lr_func: linear,
              init_lr: 1e-7, final_lr: eval(init_lr)}
          - !LearningRateFunctionModifier {start_epoch: eval(warmup_epochs), end_epoch: 3, lr_func: cosine,
              init_lr: eval(init_lr), final_lr: eval(init_lr * 0.1)}
          - !SetLearningRateModifier {start_epoch: 3, learning_rate: eval(init_lr / 100)}
        pruning_modifiers:
          - !GlobalMagnitudePruningModifier
            init_sparsity: 0.05
            final_sparsity: 0.85
            start_epoch: eval(pruning_start_epoch)
            end_epoch: 3
            update_frequency: 0.5
            params: ["re:sections.*conv.*weight"]
            leave_enabled: True
            inter_func: cubic
            mask_type: unstructured
        """),
    "beans-dense": ("resnet", ".yaml", """
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2}
          - !LearningRateFunctionModifier {start_epoch: 0.0, end_epoch: 2, lr_func: cosine, init_lr: 0.01,
              final_lr: 1e-6}
        """),
    "doc2query-90sparse": ("bert", ".yaml", "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}\n"
        + "".join(f"""  - !GMPruningModifier
    params: [bert.encoder.layer.{index}.{part}.weight]
    init_sparsity: 0.0
    final_sparsity: 0.9
    start_epoch: 0.0
    end_epoch: 2.0
    update_frequency: 0.01
""" for index in range(2) for part in ("attention.query", "attention.key", "intermediate", "output"))),
    "mfac-one_shot-magnitude": ("resnet", ".md", """
        ---
        modifiers:
          - !GMPruningModifier
            params: __ALL__
            init_sparsity: 0.75
            final_sparsity: 0.75
            start_epoch: 0.0
            end_epoch: 1.0
            update_frequency: 1.0
            global_sparsity: True
        ---
        """),
    "mfac-short-95": ("resnet", ".yaml", """
        pruning_modifiers:
          - !MFACPruningModifier
            params: __ALL_PRUNABLE__
            init_sparsity: 0.05
            final_sparsity: 0.95
            start_epoch: 0
            end_epoch: 2
            update_frequency: 0.5
            mfac_options: {num_grads: 64, fisher_block_size: 200, available_gpus: ["cuda:0"]}
        """),
    "30epochs_4block80_squad": ("bert", ".yaml", """
        modifiers:
          - !EpochRangeModifier
              end_epoch: 4
              start_epoch: 0.0
          - !LearningRateFunctionModifier
              start_epoch: 0
              end_epoch: 2
              lr_func: cyclic_linear
              cycle_epochs: 1
              init_lr: 8e-5
              final_lr: 8e-6
          - !LearningRateFunctionModifier
              start_epoch: 2
              end_epoch: 4
              lr_func: cyclic_linear
              cycle_epochs: 2
              init_lr: 5e-5
              final_lr: 5e-6
          - !OBSPruningModifier
              params: [
                "re:bert.encoder.layer.*.attention.query.weight",
                "re:bert.encoder.layer.*.intermediate.weight",
              ]
              init_sparsity: 0.3
              final_sparsity: 0.8
              start_epoch: 1
              end_epoch: 2
              update_frequency: 0.5
              inter_func: cubic
              global_sparsity: True
              mask_type: block4
              num_grads: 8
              damp: 1e-7
              fisher_block_size: 4
              grad_sampler_kwargs:
                batch_size: 16
          - !DistillationModifier
              hardness: 1.0
              temperature: 5.5
              distill_output_keys: [output]
        """),
    "8epochs_sparse_transfer_squad": ("bert", ".yaml", """
        num_epochs: &num_epochs 2
        modifiers:
          - !EpochRangeModifier {end_epoch: *num_epochs, start_epoch: 0.0}
          - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: *num_epochs, lr_func: linear, init_lr: 1.5e-4,
              final_lr: 1.5e-6}
          - !ConstantPruningModifier {params: __ALL_PRUNABLE__, start_epoch: 0.0}
          - !DistillationModifier {hardness: 1.0, temperature: 5.5}
        """),
    "bert-6layers": ("bert", ".yaml", """
        layer_modifiers:
          - !LayerPruningModifier {layers: ['bert.encoder.layer.1'], start_epoch: -1, end_epoch: -1}
        training_modifiers:
          - !EpochRangeModifier {end_epoch: 2, start_epoch: 0.0}
        """),
    "resnet-thinned": ("wide resnet", ".yaml", """
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
        pruning_modifiers:
          - !StructuredPruningModifier
            params: ['re:sections.*conv1.weight']
            param_groups: [['sections.0.0.conv1.weight'], ['sections.0.1.conv1.weight', 'sections.1.0.conv1.weight']]
            mask_type: filter
            init_sparsity: 0.05
            final_sparsity: 0.5
            start_epoch: 0.0
            end_epoch: 2.0
            update_frequency: 0.5
            inter_func: cubic
            leave_enabled: True
          - !LayerThinningModifier
            param_group_dependency_map: '{"sections.0.0.conv1": ["sections.0.0.conv2", "sections.0.0.bn1"]}'
            structure_type: filter
            start_epoch: 2.0
            update_epochs: [2.0]
            strict: True
            end_epoch: -1.0
        """),
    "resnet_test_acdc": ("resnet", ".yaml", """
        - !ACDCPruningModifier
            compression_sparsity: 0.9
            start_epoch: 0
            end_epoch: 4
            update_frequency: 1
            params: __ALL_PRUNABLE__
            global_sparsity: True
        """),
    "yolov5-from-scratch": ("yolo", ".yaml", """
        num_epochs: 3
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(num_epochs)}
          - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 1, lr_func: linear, init_lr: 0.0, final_lr: 0.01,
              param_groups: [0, 1]}
          - !LearningRateFunctionModifier {start_epoch: 1, end_epoch: 3, lr_func: cosine, init_lr: 0.01, final_lr: 1e-4,
              param_groups: [0, 1]}
          - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 3, lr_func: linear, init_lr: 0.1, final_lr: 0.01,
              param_groups: [2]}
        pruning_modifiers:
          - !GMPruningModifier {params: ['model.1.conv.weight', 'model.3.conv.weight'], init_sparsity: 0.05,
              final_sparsity: 0.75, start_epoch: 0.5, end_epoch: 2, update_frequency: 0.25}
        distillation_modifiers:
          - !PerLayerDistillationModifier
            gain: 0.7
            student_layer_names: ["re:model[.][12][.]conv$"]
            teacher_layer_names: ["re:model[.][12][.]conv$"]
        """),
    "recipe_short_prune_quant": ("resnet", ".md", """
        ---
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
          - !SetLearningRateModifier {start_epoch: 0, learning_rate: 0.01}
          - !LearningRateFunctionModifier {start_epoch: 1, end_epoch: 3, lr_func: linear, init_lr: 0.01, final_lr: 0}
          - !SetWeightDecayModifier {start_epoch: 2, weight_decay: 0.0}
        pruning_modifiers:
          - !MagnitudePruningModifier {params: __ALL_PRUNABLE__, init_sparsity: 0.05, final_sparsity: 0.6,
              start_epoch: 0, end_epoch: 2, update_frequency: 0.5}
        ---
        """),
    "mapping_of_sparsities": ("resnet", ".yaml", """
        pruning_modifiers:
          - !GMPruningModifier
            params: []
            init_sparsity: 0.05
            final_sparsity:
              0.5: [sections.0.0.conv1.weight]
              0.75: ["re:sections.1.*conv.*weight"]
            start_epoch: 0
            end_epoch: 2
            update_frequency: 0.5
        """),
    "head_only": ("resnet", ".yaml", """
        modifiers:
          - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}
          - !TrainableParamsModifier {params: ["re:input", "re:sections"], trainable: False, params_strict: False,
              start_epoch: 0, end_epoch: 1}
        """),
    "openpifpaf": ("resnet", ".yaml", """
        modifiers:
          - !EpochRangeModifier
            start_epoch: 0.0
            end_epoch: 3.0
          - !GMPruningModifier
            start_epoch: 0.0
            end_epoch: 2.0
            update_frequency: 1.0
            init_sparsity: 0.05
            final_sparsity: 0.8
            params:
              - re:.*conv1.weight
        """),
    "key_dialect": ("resnet", ".yaml", """
        train_stage:
          run_type: train
          pruning_modifiers:
            MagnitudePruningModifier:
              targets: ["re:sections.*conv1.weight"]
              init_sparsity: 0.05
              final_sparsity: 0.8
              start: 0
              end: 2
              update: 0.5
              update_scheduler: cubic
              mask_structure: unstructured
              leave_enabled: True
          constant_modifiers:
            ConstantPruningModifier:
              targets: [sections.0.0.conv2]
              start: 0
        """),
    "pytorch_tags": ("resnet", ".yaml", """
        !pytorch.GMPruningModifier
            params: __ALL_PRUNABLE__
            init_sparsity: __FROM_PARAM__
            final_sparsity: 0.5
            start_epoch: 0
            end_epoch: 2
            update_frequency: 0.5
            mask_type: "2:4"
        """),
}  # fmt: skip
PRUNED = {  # a weight, and what it must end with
    "resnet50-pruned": ("sections.1.0.conv2.weight", 0.8),
    "mobilenet-pruned": ("sections.1.0.conv1.weight", 0.85),
    "vit_base.85": ("bert.encoder.layer.1.output.weight", 0.85),
    "yolov3-spp.pruned": ("model.2.conv.weight", 0.8),
    "yolov3-spp.transfer_learn_pruned": ("model.3.conv.weight", 0.6),
    "doc2query-90sparse": ("bert.encoder.layer.0.attention.key.weight", 0.9),
    "yolov5-from-scratch": ("model.3.conv.weight", 0.75),
    "recipe_short_prune_quant": ("sections.0.1.conv1.weight", 0.6),
    "mapping_of_sparsities": ("sections.1.0.conv2.weight", 0.75),
    "openpifpaf": ("sections.0.1.conv1.weight", 0.8),
    "key_dialect": ("sections.1.0.conv1.weight", 0.8),
    "pytorch_tags": ("sections.0.1.conv1.weight", 0.5),
}
SMALLER = {"resnet-thinned": 0.52, "bert-6layers": 0.54}  # what is left of the parameters


def written(name: str, tmp_path: Path) -> tuple[Path, nn.Module]:
    model, suffix, text = RECIPES[name]
    path = tmp_path / f"recipe{suffix}"
    path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    torch.manual_seed(0)
    return path, MODELS[model]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_runs_or_says_what_cannot(name: str, tmp_path: Path) -> None:
    path, module = written(name, tmp_path)
    offered = {offer.entry.name for offer in load_plugins().offers("modifiers") if offer.entry.phase == "training"}
    absent = [step.name for step in load_recipe(path).steps if step.name not in offered]
    if absent:
        with pytest.raises(RequestError, match=absent[0]):
            ScheduledModifierManager.from_yaml(path)
        return
    manager = ScheduledModifierManager.from_yaml(path)
    assert ScheduledModifierManager.from_recipe(manager.recipe).modifiers == manager.modifiers
    parameters, before = list(module.parameters()), sum(one.numel() for one in module.parameters())
    groups = [{"params": parameters[index::3]} for index in range(3)]
    optimizer = manager.modify(
        module,
        torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4),
        steps_per_epoch=2,
        distillation_teacher="self",
        grad_sampler=sampler(),
        example_inputs=torch.zeros(2, 2, 4, 4),
    )
    made = torch.Generator().manual_seed(1)
    for _ in range(2 * manager.max_epochs):
        inputs, targets = torch.randn(4, 2, 4, 4, generator=made), torch.randint(0, 3, (4,), generator=made)
        optimizer.loss_update(cross_entropy(module(inputs), targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
    manager.finalize(module)
    if name in PRUNED:
        weight, share = PRUNED[name]
        assert sparsity(module.get_parameter(weight)) == pytest.approx(share, abs=0.02)
    if name in SMALLER:
        assert sum(one.numel() for one in module.parameters()) / before == pytest.approx(SMALLER[name], abs=0.02)


def test_those_that_cannot_run_are_few() -> None:
    """Whoever wires one in later finds here what it makes run."""
    assert len(RECIPES) >= 20


MARKED = {
    "params: ['re:*.block.weight']": "'re:*.block.weight' is no regular expression: nothing to repeat",
    "params: [a.weight], end_epoch: 8": "field 'end_epoch': epoch 8 is outside EpochRangeModifier's 0 to 4",
    "params: [b.weight], start_epoch: 3, end_epoch: 2": "start_epoch 3 is after end_epoch 2",
    "params: [c.weight]": "both set the pruning of c.weight at once",
    "params: [], final_sparsity: {0.9: [c.weight]}": "both set the pruning of c.weight at once",
}


@pytest.mark.parametrize("fields", MARKED)
def test_the_check_finds_without_a_model_what_no_model_can_run(fields: str) -> None:
    whole = "init_sparsity: 0.1, final_sparsity: 0.9, start_epoch: 0, end_epoch: 2, update_frequency: 0.5, params: [c]"
    given = {pair.partition(":")[0]: pair for pair in whole.split(", ")}
    given |= {pair.partition(":")[0]: pair for pair in fields.split(", ")}
    text = f"""
    modifiers:
    - !EpochRangeModifier {{start_epoch: 0, end_epoch: 4}}
    - !GMPruningModifier {{{whole.replace("[c]", "[c.weight]")}}}
    - !MagnitudePruningModifier {{{", ".join(given.values())}}}
    """
    findings = check_recipe(parse_recipe(dedent(text)), load_plugins())
    assert MARKED[fields] in " ".join(finding.why_not for finding in findings)


def test_legacy_fields_of_quantization_run_with_a_note_for_what_is_decided_here() -> None:
    """BERT's and YOLOv5's published recipes hold most of them."""
    recipe = parse_recipe(
        "modifiers:\n- !QuantizationModifier {start_epoch: 1, submodules: [a, b], quantize_embeddings: true, "
        "quantize_linear_activations: false, custom_quantizable_module_types: [SiLU], "
        "exclude_module_types: [LayerNorm], activation_bits: 8, weight_bits: 8, tensorrt: false, reduce_range: true}\n"
    )
    [options] = ScheduledModifierManager.from_recipe(recipe).modifiers
    assert (options.submodules, options.ignore, options.reduce_range) == (("a", "b"), ("LayerNorm",), True)
    assert [note.partition("'")[2].partition("'")[0] for note in recipe.notes] == [
        "quantize_embeddings",
        "quantize_linear_activations",
        "custom_quantizable_module_types",
    ]


@pytest.mark.parametrize("given", [{"rate": 0.5}, '{"rate": 0.5}'])
def test_variables_are_replaced_by_a_mapping_or_json(given: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("rate: 0.1\nmodifiers:\n- !SetLearningRateModifier {learning_rate: eval(rate)}\n")
    manager = ScheduledModifierManager.from_yaml(path, None, given)
    assert [one.learning_rate for one in manager.modifiers] == [0.5]
    with pytest.raises(RequestError, match=r"recipe_variables is 'rate=0\.5', no mapping"):
        ScheduledModifierManager.from_yaml(path, recipe_variables="rate=0.5")
