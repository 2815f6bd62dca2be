"""The manager: what it reads and writes, the order, every refusal, what it tells, NaN, loggers, `create`."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from sparsify import RequestError, StageError, load_plugins, load_recipe, resolve_modifiers
from sparsify_torch import Loop, Part, ScheduledModifierManager, create
from sparsify_torch.constant_pruning import ConstantPruningModifier
from sparsify_torch.distillation import DistillationModifier
from sparsify_torch.epochs import EpochRangeModifier, SparsificationLoggingModifier
from sparsify_torch.gradual_pruning import GMPruningModifier, MagnitudePruningModifier
from sparsify_torch.learning_rate import LearningRateFunctionModifier, LearningRateModifier, SetLearningRateModifier
from sparsify_torch.obs_pruning import OBSPruningModifier
from sparsify_torch.parameter_groups import SetWeightDecayModifier
from sparsify_torch.parameters import SetParamModifier, TrainableParamsModifier
from sparsify_torch.rigl_pruning import RigLPruningModifier
from torch import nn
from torch.nn.functional import cross_entropy

from tests.torch.loops import EVERY, GRADUAL, STEPS, attach, batches, net, sampler, sgd, sparsity, train


def from_text(tmp_path: Path, text: str, **given: Any) -> ScheduledModifierManager:
    path = tmp_path / "recipe.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return ScheduledModifierManager.from_yaml(path, **given)


# ------------------------------------------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("name", EVERY)
def test_every_modifier_round_trips_through_yaml(name: str, tmp_path: Path) -> None:
    manager = ScheduledModifierManager(EVERY[name])
    path = tmp_path / "recipe.yaml"
    manager.save(path)
    again = ScheduledModifierManager.from_yaml(path)
    assert again.modifiers == manager.modifiers
    assert str(again) == str(manager)
    full = [type(one).model_validate(one.model_dump()) for one in EVERY[name]]
    assert full == list(EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_options_are_frozen_and_know_their_fields(name: str) -> None:
    options = EVERY[name][0]
    with pytest.raises(ValueError, match="frozen"):
        options.start_epoch = 3
    with pytest.raises(ValueError, match="Extra inputs"):
        type(options).model_validate({**options.model_dump(exclude_unset=True), "start_epok": 1})


def test_every_modifier_of_the_plugin_is_tested() -> None:
    offered = [offer.entry.name for offer in load_plugins().offers("modifiers") if offer.plugin.name == "torch"]
    tested = {type(one).__name__ for modifiers in EVERY.values() for one in modifiers}
    assert tested <= set(offered)
    ours = {name for name in offered if not name.startswith(("Quantization", "Structured", "Layer"))}
    assert ours <= tested


def test_variables_and_what_is_written(tmp_path: Path) -> None:
    manager = from_text(
        tmp_path,
        """
        num_epochs: 10
        init_lr: 5e-3
        training_modifiers:
          - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(num_epochs)}
          - !LearningRateFunctionModifier
            start_epoch: 0
            end_epoch: eval(num_epochs)
            lr_func: linear
            init_lr: eval(init_lr)
            final_lr: "1e-7"
        """,
        recipe_variables={"num_epochs": 4},
    )
    assert manager.max_epochs == 4
    assert manager.named("LearningRate")[0].final_lr == 1e-7
    assert "training_modifiers:\n- !EpochRangeModifier\n  start_epoch: 0\n  end_epoch: 4\n" in str(manager)


def test_epochs_and_order(tmp_path: Path) -> None:
    modifiers = [
        ConstantPruningModifier(params="__ALL__"),
        EpochRangeModifier(start_epoch=0, end_epoch=7.5),
        SetWeightDecayModifier(weight_decay=0, start_epoch=2),
        MagnitudePruningModifier(**{**GRADUAL, "params": ["features.5"]}),
        MagnitudePruningModifier(**{**GRADUAL, "params": ["features.2"]}),
        LearningRateModifier(
            lr_class="ExponentialLR", lr_kwargs={"gamma": 0.9}, init_lr=0.1, start_epoch=2, end_epoch=2.5
        ),
    ]
    manager = ScheduledModifierManager(modifiers)
    assert manager.max_epochs == 8
    assert manager.min_epochs == 0
    names = [type(one).__name__ for one in manager.iter_modifiers()]
    assert names[2:] == [
        "LearningRateModifier",
        "EpochRangeModifier",
        "ConstantPruningModifier",
        "SetWeightDecayModifier",
    ]
    assert list(ScheduledModifierManager(modifiers[::-1]).iter_modifiers()) == list(manager.iter_modifiers())
    assert [one.start_epoch for one in ScheduledModifierManager([modifiers[5]]).modifiers] == [2]
    assert ScheduledModifierManager([modifiers[5]]).min_epochs == 2
    assert len(manager.named("Pruning")) == 3


def test_a_third_partys_modifier_runs_beside_ours() -> None:
    """The example of `loop.py`."""

    class NoiseModifier(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        start_epoch: float = -1
        end_epoch: float = -1
        update_frequency: float = -1
        scale: float = 0.01

        def attach(self, loop: Loop) -> Part:
            return Noise(loop)

    class Noise(Part):
        def __init__(self, loop: Loop) -> None:
            self.loop, self.epochs = loop, []

        def update(self, epoch: float) -> None:
            self.epochs.append(epoch)

    module = net()
    modifiers = [NoiseModifier(start_epoch=1, end_epoch=2), GMPruningModifier(**GRADUAL)]
    _, optimizer = attach(modifiers, module, sgd(module))
    train(module, optimizer, batches(12))
    (part,) = [turn.part for turn in optimizer.run.turns if turn.name == "NoiseModifier"]
    assert part.epochs == [1.0, 1.25, 1.5, 1.75, 2.0]


def test_a_part_that_replaces_parameters_takes_masks_momentum_and_scores_along() -> None:
    """What removing channels does: here the last four outputs of one convolution."""
    for name in ("movement", "rigl", "acdc", "obs", "constant"):
        module = net()
        inner = sgd(module)
        manager, optimizer = attach(EVERY[name], module, inner)
        train(module, optimizer, batches(6))
        layer, head = module.features[5], module.head
        for owner, cut in ((layer, lambda one: one[:8]), (head, lambda one: one[:, :8] if one.dim() == 2 else one)):
            for key, old in list(owner.named_parameters()):
                new = nn.Parameter(cut(old.detach()).clone())
                setattr(owner, key, new)
                optimizer.run.loop.swap(old, new, cut)
        assert all(any(one is held for held in inner.param_groups[0]["params"]) for one in module.parameters())
        assert inner.state[layer.weight]["momentum_buffer"].shape == layer.weight.shape
        train(module, optimizer, batches(8))
        manager.finalize(module)
        for one, kept in manager.masks.items():
            assert torch.all(module.get_parameter(one)[~kept] == 0)
        if name == "movement":
            assert sparsity(layer.weight) > 0.3


# ------------------------------------------------------------------------------------------------------------- refusals

RANGE = EpochRangeModifier(start_epoch=1, end_epoch=2)
CLOSED = {"lr_func": "linear", "init_lr": 0.1, "final_lr": 0.0}


@pytest.mark.parametrize(
    ("modifiers", "match"),
    [
        ([EpochRangeModifier(start_epoch=3, end_epoch=2)], "EpochRangeModifier: start_epoch 3 is after end_epoch 2"),
        (
            [RANGE, GMPruningModifier(**{**GRADUAL, "start_epoch": 0})],
            "GMPruningModifier, field 'start_epoch': epoch 0 is",
        ),
        ([RANGE, GMPruningModifier(**{**GRADUAL, "start_epoch": 1})], "field 'end_epoch': epoch 2.5 is outside"),
        ([RANGE, ConstantPruningModifier(params="__ALL__", start_epoch=5)], "field 'start_epoch': epoch 5 is outside"),
    ],
)
def test_epochs_that_contradict_one_another(modifiers: list[Any], match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        ScheduledModifierManager(modifiers)
    assert caught.value.fix


SAME = [
    [
        LearningRateFunctionModifier(**CLOSED, start_epoch=0, end_epoch=2),
        LearningRateFunctionModifier(**CLOSED, start_epoch=1, end_epoch=3),
    ],
    [
        LearningRateFunctionModifier(**CLOSED, start_epoch=0, end_epoch=2),
        SetLearningRateModifier(learning_rate=0.2, start_epoch=0),
    ],
    [SetWeightDecayModifier(weight_decay=0), SetWeightDecayModifier(weight_decay=1)],
    [GMPruningModifier(**GRADUAL), MagnitudePruningModifier(**GRADUAL)],
    [
        ConstantPruningModifier(params="__ALL__"),
        RigLPruningModifier(final_sparsity=0.5, start_epoch=0, end_epoch=2, update_frequency=1, params="features.2"),
    ],
    [DistillationModifier(), DistillationModifier(hardness=0.1, start_epoch=-1)],
    [TrainableParamsModifier(params="head", trainable=True), TrainableParamsModifier(params="head", trainable=False)],
    [
        TrainableParamsModifier(params="__ALL__", trainable=True),
        TrainableParamsModifier(params="head", trainable=False, end_epoch=1),
    ],
]


@pytest.mark.parametrize("modifiers", SAME)
def test_two_that_set_the_same_thing_at_once(modifiers: list[Any]) -> None:
    module = net()
    with pytest.raises(RequestError, match=r"both set the .* at once") as caught:
        attach(modifiers, module, sgd(module))
    assert "remove one of them" in caught.value.fix
    assert not module._forward_hooks


def test_adjacent_and_agreeing_modifiers_are_no_contradiction() -> None:
    module = net()
    _, optimizer = attach(
        [
            SetLearningRateModifier(learning_rate=0.1, start_epoch=0),
            LearningRateFunctionModifier(**CLOSED, start_epoch=0, end_epoch=2),
            LearningRateFunctionModifier(**CLOSED, start_epoch=2, end_epoch=3),
            TrainableParamsModifier(params="head", trainable=False, end_epoch=1),
            TrainableParamsModifier(params="head", trainable=True, start_epoch=1),
            ConstantPruningModifier(params="__ALL__"),
            ConstantPruningModifier(params="features.2"),
        ],
        module,
        sgd(module),
    )
    assert len(optimizer.run.turns) == 7


def test_a_rate_that_is_set_ends_a_function_before_its_time() -> None:
    """YOLOv5's published recipes set the rate of quantization while a cosine has two epochs to go."""
    module = net()
    function = LearningRateFunctionModifier(**CLOSED, start_epoch=0, end_epoch=2)
    manager, optimizer = attach(
        [function, SetLearningRateModifier(learning_rate=0.7, start_epoch=1)], module, sgd(module)
    )
    rates: list[float] = []
    train(module, optimizer, batches(2 * STEPS), lambda step: rates.append(optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.1 * (1 - step / 8) for step in range(4)] + [0.7] * 4)
    assert manager.max_epochs == 2


def test_a_rate_that_is_set_for_one_group_leaves_the_others_to_the_function() -> None:
    module = net()
    optimizer = torch.optim.SGD([{"params": module.features.parameters()}, {"params": module.head.parameters()}], lr=1)
    function = LearningRateFunctionModifier(**CLOSED, start_epoch=0, end_epoch=2)
    setting = SetLearningRateModifier(learning_rate=0.7, start_epoch=1, param_groups=1)
    _, wrapped = attach([function, setting], module, optimizer)
    rates: list[list[float]] = []
    train(module, wrapped, batches(2 * STEPS), lambda step: rates.append([one["lr"] for one in wrapped.param_groups]))
    falling = [0.1 * (1 - step / 8) for step in range(8)]
    assert [first for first, _ in rates] == pytest.approx(falling)
    assert [second for _, second in rates] == pytest.approx([*falling[:4], *[0.7] * 4])


@pytest.mark.parametrize("begin", [0.0, 1.0])
@pytest.mark.parametrize("end", [2.0, -1.0])
def test_a_part_that_is_switched_on_stays_on_in_what_is_frozen(begin: float, end: float) -> None:
    """Freeze all, then let the head learn: written so in recipes for transfer learning."""
    module = net()
    everything = TrainableParamsModifier(params="__ALL__", trainable=False, start_epoch=0, end_epoch=end)
    head = TrainableParamsModifier(params="re:head.*", trainable=True, start_epoch=begin)
    _, optimizer = attach([EpochRangeModifier(start_epoch=0, end_epoch=3), everything, head], module, sgd(module))
    seen: list[tuple[bool, bool]] = []

    def look(step: int) -> None:
        seen.append((module.head.weight.requires_grad, module.features[2].weight.requires_grad))

    for batch in batches(3 * STEPS):
        look(0)
        loss = cross_entropy(module(batch[0]), batch[1])
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    frozen = [epoch < 2 or end < 0 for epoch in range(3) for _ in range(STEPS)]
    learning = [step >= begin * STEPS for step in range(3 * STEPS)]
    assert [features for _, features in seen] == [not one for one in frozen]
    assert [trains for trains, _ in seen] == learning


def test_names_that_the_model_lacks() -> None:
    module = net()
    for modifier, match, near in [
        (
            GMPruningModifier(**{**GRADUAL, "params": ["feature.2.weight"]}),
            "'feature.2.weight' matches none of",
            "features.2.weight",
        ),
        (ConstantPruningModifier(params=["re:encoder.*"]), "'re:encoder.*' matches none", "weight"),
        (GMPruningModifier(**{**GRADUAL, "params": ["head.bias"]}), "'head.bias' matches none", "head.weight"),
        (
            TrainableParamsModifier(params="hed", trainable=True),
            "TrainableParamsModifier, field 'params': 'hed'",
            "head",
        ),
        (SetParamModifier(params="head.bias", val=[1.0]), "1 values for 'head.bias', which has 3", "one number"),
        (
            SetLearningRateModifier(learning_rate=1, param_groups=[2]),
            "there is no group 2, the optimizer has 1",
            "0 to 0",
        ),
    ]:
        with pytest.raises(RequestError, match=match.replace("*", "[*]")) as caught:
            attach([modifier], module, sgd(module))
        assert near in caught.value.fix
    attach([TrainableParamsModifier(params="hed", trainable=True, params_strict=False)], module, sgd(module))
    small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RequestError, match="'__ALL_PRUNABLE__' matches none"):
        attach([GMPruningModifier(**GRADUAL)], small, sgd(small))
    twice = {**GRADUAL, "params": [], "final_sparsity": {0.5: ["features.2"], 0.6: ["re:features.2.weight"]}}
    with pytest.raises(RequestError, match=r"'features.2.weight' is named under two sparsities"):
        attach([GMPruningModifier(**twice)], module, sgd(module))


def test_optimizers_and_samplers_that_do_not_fit() -> None:
    module = net()
    rprop = torch.optim.Rprop(module.parameters())
    with pytest.raises(RequestError, match="Rprop has no weight_decay"):
        attach([SetWeightDecayModifier(weight_decay=0)], module, rprop)
    obs = OBSPruningModifier(**GRADUAL)
    rigl = RigLPruningModifier(
        final_sparsity=0.5, start_epoch=0, end_epoch=1, update_frequency=1, params="features.2", num_grads=2
    )
    for modifier in (obs, rigl):
        with pytest.raises(RequestError, match="there is no grad_sampler"):
            attach([modifier], module, sgd(module), grad_sampler=None)
        with pytest.raises(RequestError, match="grad_sampler lacks a function 'loss_function'"):
            attach([modifier], module, sgd(module), grad_sampler={"data_loader_builder": sampler})
    for batch, match in ((None, "gives no batch"), ((1, 2, 3, 4), "gives batches of 4 parts")):
        given = {
            "data_loader_builder": lambda batch=batch: [batch] * (batch is not None),
            "loss_function": cross_entropy,
        }
        _, optimizer = attach(
            [OBSPruningModifier(**{**GRADUAL, "start_epoch": 0})], module, sgd(module), grad_sampler=given
        )
        with pytest.raises(RequestError, match=match):
            optimizer.emulated_step()
    with pytest.raises(RequestError, match="steps_per_epoch is 0"):
        attach([RANGE], module, sgd(module), steps_per_epoch=0)


REFUSED = {
    "final_sparsity: 0.2, init_sparsity: 0.5": "init_sparsity 0.5 is above final_sparsity 0.2",
    "final_sparsity: 0.9, mask_type: '2:4'": "mask_type 2:4 zeros 0.5 of the weights, final_sparsity asks for 0.9",
    "final_sparsity: {0.5: [a]}": "write `params: ",
    "final_sparsity: 0.9, params: []": "params is empty",
    "final_sparsity: 0.9, mask_type: filter": "removed by StructuredPruningModifier; found 'filter'",
    "final_sparsity: 90": "field 'final_sparsity': 90 is no sparsity",
    "final_sparsity: 0.9, leave_enabled: false": "field 'leave_enabled': only true is possible",
    "final_sparsity: 0.9, phased: true": "field 'phased'",
    "final_sparsity: 0.9, score_type: movement": "field 'score_type'",
    "final_sparsity: 0.9, update_frequency: 0": "field 'update_frequency': give epochs between two updates",
    "final_sparsity: 0.9, start_epoch: -0.5": "field 'start_epoch': give an epoch of at least 0",
    "final_sparsity: 0.9, inter_func: quadratic": "field 'inter_func'",
    "final_sparsity: .nan": "final_sparsity",
    "finalsparsity: 0.9": "lacks its field 'final_sparsity'",
    "final_sparsity: 0.9, parms: [a]": "has no field 'parms'",
}


@pytest.mark.parametrize("fields", REFUSED)
def test_wrong_fields_name_modifier_and_field(fields: str, tmp_path: Path) -> None:
    given = {"init_sparsity": "0.05", "start_epoch": "0", "end_epoch": "5", "update_frequency": "1", "params": "['a']"}
    said = dict(part.split(": ", 1) for part in fields.replace(", ", "\n").splitlines())
    lines = "\n".join(f"        {key}: {value}" for key, value in {**given, **said}.items())
    with pytest.raises(RequestError, match="GMPruningModifier") as caught:
        from_text(tmp_path, f"modifiers:\n    - !GMPruningModifier\n{lines}\n")
    assert REFUSED[fields] in caught.value.problem
    assert caught.value.fix


SPAN = "start_epoch: 0, end_epoch: 1"
PRUNED = f"{SPAN}, update_frequency: 1, params: [a]"
RATES = "lr_func: linear, final_lr: 0, start_epoch: 0, end_epoch: 1"
SCHEDULE = "init_lr: 0.1, start_epoch: 0"
WRONG = {
    f"!OBSPruningModifier {{init_sparsity: 0, final_sparsity: 0.5, {PRUNED}, mask_type: '2:4'}}": "OBS prunes single",
    f"!RigLPruningModifier {{final_sparsity: 0.5, {PRUNED}, mask_type: '2:4'}}": "weights cannot grow within N:M",
    f"!ACDCPruningModifier {{compression_sparsity: 0.5, {SPAN}, update_frequency: 0.5, params: a}}": (
        "a phase lasts a whole number of epochs"
    ),
    f"!LearningRateModifier {{lr_class: StepLR, lr_kwargs: {{gamma: 0.1}}, {SCHEDULE}}}": (
        "lr_kwargs of StepLR are step_size and gamma, found gamma"
    ),
    f"!LearningRateModifier {{lr_class: MultiStepLR, lr_kwargs: {{gamma: 0.1, milestones: 3}}, {SCHEDULE}}}": (
        "milestones is a list"
    ),
    f"!LearningRateModifier {{lr_class: StepLR, lr_kwargs: {{gamma: 0.1, step_size: 0}}, {SCHEDULE}}}": (
        "step_size must be above 0"
    ),
    f"!LearningRateFunctionModifier {{init_lr: 2, {RATES}}}": "field 'init_lr'",
    f"!LearningRateFunctionModifier {{init_lr: 1, {RATES}, update_frequency: 2}}": "this modifier acts at every step",
    f"!MFACPruningModifier {{init_sparsity: 0, final_sparsity: 0.5, {PRUNED}}}": (
        "no installed plugin offers the training modifier 'MFACPruningModifier'"
    ),
    "!TopKASTPruningModifier {}": "no installed plugin offers the training modifier 'TopKASTPruningModifier'",
    "!GMPruningModifer {}": "there is no modifier 'GMPruningModifer'",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_recipes(text: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=WRONG[text]) as caught:
        from_text(tmp_path, f"modifiers:\n  - {text}\n")
    assert caught.value.fix
    assert "pip install sparsify-torch" not in caught.value.fix  # it is


def test_post_training_modifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'SparseGPTModifier' .* works on a trained model, not in a training loop"):
        from_text(tmp_path, "post_training_modifiers:\n  - !SparseGPTModifier {sparsity: 0.5}\n")


def test_a_refused_recipe_leaves_module_and_optimizer_alone() -> None:
    student, teacher = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    inner = torch.optim.SGD(student.parameters(), lr=0.1)
    modifiers = [*EVERY["layer_distillation"], GMPruningModifier(**{**GRADUAL, "params": ["no"]})]
    with pytest.raises(RequestError):
        attach(modifiers, student, inner, distillation_teacher=teacher)
    assert len(inner.param_groups) == 1
    assert not student._forward_hooks


def test_a_manager_that_is_not_attached() -> None:
    manager = ScheduledModifierManager([RANGE])
    for call in (manager.state_dict, manager.update, manager.finalize, manager.optimizer_pre_step):
        with pytest.raises(RequestError, match="not attached to a training loop"):
            call()


# ------------------------------------------------------------------------------------------------- NaN, loggers, create


def test_a_nan_loss_names_step_and_layer() -> None:
    module = net()
    _, optimizer = attach([RANGE], module, sgd(module))
    train(module, optimizer, batches(3))
    inputs, targets = batches(1)[0]
    module.features[4].register_forward_hook(lambda layer, given, output: output * torch.inf)
    with pytest.raises(StageError, match=r"the loss is nan at step 3 \(epoch 0.75\): layer 'features.4' is the first"):
        optimizer.loss_update(cross_entropy(module(inputs), targets))
    with torch.no_grad():
        module.features[2].weight[0] = torch.nan
    with pytest.raises(StageError, match=r"'features.2.weight' of layer 'features.2' is the first that is not finite"):
        optimizer.loss_update(cross_entropy(module(inputs), targets))


def steps(optimizer: Any, count: int) -> None:
    for _ in range(count):
        optimizer.emulated_step()


@pytest.mark.parametrize("name", ["gm", "obs", "rigl", "acdc", "movement"])
def test_weights_that_are_not_finite_are_not_pruned(name: str) -> None:
    module = net()
    _, optimizer = attach(EVERY[name], module, sgd(module))
    with torch.no_grad():
        module.features[5].weight[0] = torch.inf
    with pytest.raises(StageError, match=r"weight 'features.5.weight' holds NaN or infinity at epoch") as caught:
        steps(optimizer, 9)
    assert "last good checkpoint" in caught.value.fix


def test_loggers_of_three_kinds() -> None:
    seen: list[tuple[str, Any, float]] = []

    class Board:
        def add_scalar(self, tag: str, value: Any, step: int) -> None:
            seen.append((f"board {tag}", value, step))

    class Old:
        def log_scalar(self, tag: str, value: Any, step: int) -> None:
            seen.append((f"old {tag}", value, step))

    module = net()
    modifiers = [
        SetLearningRateModifier(learning_rate=0.5, start_epoch=1),
        SparsificationLoggingModifier(start_epoch=1),
    ]
    loggers = [lambda tag, value, epoch: seen.append((tag, value, epoch)), Board(), Old()]
    _, optimizer = attach(modifiers, module, sgd(module), loggers=loggers)
    train(module, optimizer, batches(6))
    assert ("learning_rate", 0.5, 1.0) in seen
    assert ("board learning_rate", 0.5, STEPS) in seen
    assert ("old sparsity/features.2", 0.0, STEPS) in seen
    assert ("precision/head", "float32", 1.0) in seen


@pytest.mark.parametrize("constant", [False, True])
def test_constant_logging(constant: bool) -> None:
    seen: list[tuple[str, Any, float]] = []
    module = net()
    drops = {"lr_class": "ExponentialLR", "lr_kwargs": {"gamma": 0.5}, "init_lr": 0.1, "start_epoch": 0}
    modifiers = [
        LearningRateModifier(**drops, end_epoch=2, constant_logging=constant),
        SetLearningRateModifier(learning_rate=0.3, start_epoch=2, constant_logging=constant),
        SetWeightDecayModifier(weight_decay=0.0, constant_logging=constant),
    ]
    _, optimizer = attach(modifiers, module, sgd(module), loggers=[lambda *said: seen.append(said)])
    train(module, optimizer, batches(12))
    rates = [value for tag, value, _ in seen if tag == "learning_rate"]
    if constant:
        assert rates[:8] == [0.1] * 4 + [0.05] * 4
        assert rates[-4:] == [0.3] * 4
        assert len([tag for tag, *_ in seen if tag == "weight_decay"]) >= 12
    else:
        assert rates == [0.1, 0.05, 0.025, 0.3]
        assert len([tag for tag, *_ in seen if tag == "weight_decay"]) == 1


@pytest.mark.parametrize(("level", "share"), [(0.5, 0.7), (0.3, 0.6), (1.0, 0.95), (0.2, None), (0.0, None)])
@pytest.mark.parametrize("quantized", [True, False])
def test_create_writes_a_recipe_for_a_level(quantized: bool, level: float, share: float | None, tmp_path: Path) -> None:
    module = net()
    given: dict[str, Any] = {"epochs": 3, "distillation_teacher": "self", "quantization": quantized}
    optimizer, manager = create(module, sgd(module), STEPS, level, **given)
    assert manager.max_epochs == 3
    seen: list[float] = []
    train(module, optimizer, batches(3 * STEPS), lambda step: seen.append(optimizer.param_groups[0]["lr"]))
    manager.finalize(module)
    both = torch.cat([module.features[index].weight.detach().flatten() for index in (2, 5)])
    assert sparsity(both) == pytest.approx(share or 0.0, abs=1 / len(both))
    assert seen == pytest.approx([0.05 * (1 - step / 12) for step in range(12)])
    manager.save(tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert len(resolve_modifiers(recipe, load_plugins(), "training-aware")) == len(manager.modifiers)
    assert ("fake_quantization" in str(module.state_dict().keys())) == (quantized and level > 0)


def test_create_with_a_pattern_and_what_it_refuses() -> None:
    module = net()
    optimizer, manager = create(module, sgd(module), STEPS, epochs=2, mask_type="2:4")
    train(module, optimizer, batches(2 * STEPS))
    assert sparsity(module.features[2].weight) == 0.5
    for given, match in (({"optim_level": 1.5}, "optim_level 1.5 is no level"), ({"epochs": 0}, "epochs is 0")):
        with pytest.raises(RequestError, match=match):
            create(module, sgd(module), STEPS, **given)
    assert manager.masks


def test_learning_rate_schedulers_take_the_wrapped_optimizer() -> None:
    module = net()
    _, optimizer = attach([GMPruningModifier(**GRADUAL)], module, sgd(module))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for inputs, targets in batches(4):
        cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0125
    assert optimizer.run.steps == 4
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.defaults["momentum"] == 0.9
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    assert len(optimizer.wrapped.param_groups) == 2
    assert "SGD" in repr(optimizer)
    with pytest.raises(AttributeError):
        optimizer.nothing  # noqa: B018


def test_a_closure_runs() -> None:
    module = net()
    manager, optimizer = attach(EVERY["acdc"], module, sgd(module))
    inputs, targets = batches(1)[0]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(module(inputs), targets)
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    assert float(optimizer.step(closure).detach()) < first
    assert manager.state_dict()["steps"] == 2


def test_an_optimizer_that_calls_its_closure_often_keeps_zeros() -> None:
    module = net()
    inner = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)
    manager, optimizer = attach([GMPruningModifier(**{**GRADUAL, "start_epoch": 0})], module, inner)
    inputs, targets = batches(1)[0]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(module(inputs), targets)
        loss.backward()
        return loss

    for step in range(10):
        optimizer.step(closure)
        assert manager.state_dict()["steps"] == step + 1
        for name, kept in manager.masks.items():
            assert torch.all(module.get_parameter(name)[~kept] == 0)
    assert sparsity(module.features[2].weight) > 0.6
