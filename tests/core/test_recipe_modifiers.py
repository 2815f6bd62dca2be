"""Steps meet installed modifiers: phases, options and every refusal; every known modifier is explained in words."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pluggy
import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sparsify.errors import MissingLibraryError, PluginError, RequestError
from sparsify.hooks import Entry
from sparsify.known_modifiers import REQUIRED, known_modifier, known_names
from sparsify.modifiers import check_recipe, resolve_modifiers
from sparsify.plugins import Plugin, Plugins
from sparsify.recipe import Recipe, Step, parse_recipe


class Prune(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sparsity: float = Field(0.5, ge=0, lt=1)
    targets: tuple[str, ...] = ("__ALL_PRUNABLE__",)
    mask_structure: str = "unstructured"

    @field_validator("mask_structure")
    @classmethod
    def _structure(cls, value):
        if value == "5:4":
            raise ValueError("N must not exceed M")
        return value


class Schedule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    start_epoch: float
    end_epoch: float = -1


class Looking(BaseModel):
    def check_beside(self, modifiers):
        raise RequestError("beside me: " + ", ".join(name for name, _ in modifiers), fix="move")


def offer(name, phase, target="toy_modifiers:Prune", requires=()):
    return Entry(name, target, f"{name} of the toy plugin", phase=phase, requires=requires)


def installed(*entries):
    plugin = Plugin("toy", "sparsify-toy", "1.0", "toy", entries={"modifiers": entries})
    return Plugins((plugin,), pluggy.PluginManager("sparsify"))


ONESHOT = (offer("SparseGPTModifier", "post-training"), offer("QuantizationModifier", "post-training"))
TRAINING = (
    offer("QuantizationModifier", "training", "toy_modifiers:Schedule"),
    offer("EpochRangeModifier", "training", "toy_modifiers:Schedule"),
)


@pytest.fixture(autouse=True)
def toy_modifiers(monkeypatch):
    module = ModuleType("toy_modifiers")
    module.Prune, module.Schedule, module.Looking, module.plain = Prune, Schedule, Looking, print
    monkeypatch.setitem(sys.modules, "toy_modifiers", module)


def refusal(text, plugins, kind="one-shot", error=RequestError):
    with pytest.raises(error) as caught:
        resolve_modifiers(parse_recipe(text), plugins, kind)
    return caught.value


def test_a_one_shot_recipe_becomes_frozen_options():
    text = (
        "post_training_modifiers:\n- !SparseGPTModifier {sparsity: '5e-1', targets: [a, b]}\n- !QuantizationModifier\n"
    )
    (first, prune), (second, default) = resolve_modifiers(parse_recipe(text), installed(*ONESHOT), "one-shot")
    assert (first.phase, second.phase) == ("post-training", "post-training")
    assert prune == Prune(sparsity=0.5, targets=("a", "b"))
    assert default == Prune()


@pytest.mark.parametrize(
    ("group", "kind", "phase"),
    [
        ("modifiers", "one-shot", "post-training"),
        ("modifiers", "training-aware", "training"),
        ("modifiers", "sparse-transfer", "training"),
        ("post_training_modifiers", "training-aware", "post-training"),
    ],
)
def test_the_phase_selects_between_two_modifiers_of_one_name(group, kind, phase):
    options = {"training": "{start_epoch: 2}", "post-training": "{sparsity: 0.1}"}[phase]
    recipe = parse_recipe(f"{group}:\n- !QuantizationModifier {options}\n")
    ((step, found),) = resolve_modifiers(recipe, installed(*ONESHOT, *TRAINING), kind)
    assert step.phase == phase
    assert type(found) is {"training": Schedule, "post-training": Prune}[phase]


def test_a_training_recipe_may_hold_what_exists_after_training_only():
    recipe = parse_recipe("modifiers:\n- !EpochRangeModifier {start_epoch: 0}\n- !SparseGPTModifier {}\n")
    resolved = resolve_modifiers(recipe, installed(*ONESHOT, *TRAINING), "training-aware")
    assert [step.phase for step, _ in resolved] == ["training", "post-training"]


@pytest.mark.parametrize(
    ("item", "problem", "fix"),
    [
        (
            "!SparseGTPModifier {}",
            "there is no modifier 'SparseGTPModifier' (post_training_modifiers)",
            "use 'SparseGPTModifier'",
        ),
        (
            "!Zzz {}",
            "there is no modifier 'Zzz' (post_training_modifiers)",
            "remove it, or use one of: ACDCPruningModifier, ",
        ),
        (
            "!SparseGPTModifier {sparisty: 0.5}",
            "modifier 'SparseGPTModifier' (post_training_modifiers) has no field 'sparisty' (found 0.5)",
            "use 'sparsity'",
        ),
        (
            "!SparseGPTModifier {qqq: 1}",
            "modifier 'SparseGPTModifier' (post_training_modifiers) has no field 'qqq' (found 1)",
            "remove it, or use one of: sparsity, targets, mask_structure",
        ),
        (
            "!SparseGPTModifier {sparsity: 1.5}",
            "modifier 'SparseGPTModifier' (post_training_modifiers), field 'sparsity': it should be less than 1; "
            "found 1.5",
            "change 'sparsity'",
        ),
        (
            "!SparseGPTModifier {mask_structure: 5:4}",
            "modifier 'SparseGPTModifier' (post_training_modifiers), field 'mask_structure': N must not exceed M; "
            "found '5:4'",
            "change 'mask_structure'",
        ),
        (
            "!WandaPruningModifier {sparsity: 0.5}",
            "no installed plugin offers the post-training modifier 'WandaPruningModifier' (post_training_modifiers)",
            "remove it, or use one of: QuantizationModifier, SparseGPTModifier",
        ),
        (
            "!EpochRangeModifier {start_epoch: 0, end_epoch: 3}",
            "modifier 'EpochRangeModifier' (post_training_modifiers) works during training, "
            "and one-shot does not train",
            "remove it, or `pip install sparsify-torch` and use `sparsify run training-aware`",
        ),
    ],
)
def test_refusals_of_a_run_name_modifier_field_and_what_is_near(item, problem, fix):
    error = refusal(f"post_training_modifiers:\n- {item}\n", installed(*ONESHOT))
    assert error.problem == problem
    assert error.fix.startswith(fix)


def test_one_shot_refuses_training_modifiers_installed_or_not():
    text = "modifiers:\n- !EpochRangeModifier {start_epoch: 0}\n"
    for plugins in (installed(*ONESHOT), installed(*ONESHOT, *TRAINING)):
        assert "works during training, and one-shot does not train" in refusal(text, plugins).problem
    stage = "a_stage: {run_type: train, a_modifiers: {QuantizationModifier: {}}}"
    assert "works during training" in refusal(stage, installed(*ONESHOT)).problem


def test_training_modifiers_need_a_package_that_offers_them():
    text = "modifiers:\n- !GMPruningModifier {params: __ALL__}\n"
    error = refusal(text, installed(*ONESHOT), "training-aware")
    assert error.problem == "no installed plugin offers the training modifier 'GMPruningModifier' (modifiers)"
    assert error.fix == "pip install sparsify-torch, or remove the modifier from the recipe"


def test_a_modifier_offered_in_the_other_phase_only_is_told_how_to_move():
    text = "a_stage: {a_modifiers: {EpochRangeModifier: {}}}"
    error = refusal(text, installed(*TRAINING), "training-aware")
    assert error.problem.startswith("no installed plugin offers the post-training modifier 'EpochRangeModifier'")
    assert error.fix == "put it into a stage with `run_type: train`, or remove it"


def test_a_missing_field_is_named():
    error = refusal("modifiers:\n- !EpochRangeModifier {}\n", installed(*TRAINING), "training-aware")
    assert error.problem == "modifier 'EpochRangeModifier' (modifiers) lacks its field 'start_epoch'"
    assert error.fix == "add `start_epoch: …` below !EpochRangeModifier"


def test_faults_of_plugins_are_theirs():
    text = "modifiers:\n- !SparseGPTModifier {}\n"
    error = refusal(
        text, installed(offer("SparseGPTModifier", "post-training", "toy_modifiers:plain")), error=PluginError
    )
    assert error.problem == "modifier 'SparseGPTModifier' of plugin 'toy' is no pydantic model of its options"
    assert error.fix == "run `sparsify plugins check toy`"
    assert "offered twice" in refusal(text, installed(*ONESHOT, *ONESHOT), error=PluginError).problem
    lacking = installed(offer("SparseGPTModifier", "post-training", requires=("no-such-library",)))
    assert "needs no-such-library" in refusal(text, lacking, error=MissingLibraryError).problem


TRANSFER = """
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 30}
pruning_modifiers:
  - !GMPruningModifier
    params: ['re:.*query.weight', 're:.*key.weight', a.weight, b.weight]
    init_sparsity: 0.05
    final_sparsity: 0.8
    start_epoch: 2
    end_epoch: 26
    update_frequency: 0.5
post_training_modifiers:
  - !SparseGPTModifier {sparsity: 0.514}
  - !GPTQModifier {block_size: 64}
  - !TrainableParamsModifier {params: __ALL__}
"""


def test_check_explains_every_step_and_says_what_cannot_run():
    findings = check_recipe(parse_recipe(TRANSFER), installed(*ONESHOT))
    assert [(finding.modifier, finding.runnable) for finding in findings] == [
        ("EpochRangeModifier", False),
        ("GMPruningModifier", False),
        ("SparseGPTModifier", True),
        ("GPTQModifier", False),
        ("TrainableParamsModifier", False),
    ]
    assert findings[1].sentence == (
        "prunes the smallest weights of names like .*query.weight, names like .*key.weight and 2 more, from sparsity "
        "0.05 to 0.8 (cubic, unstructured), from epoch 2 to epoch 26, every 0.5 epochs"
    )
    assert findings[2].sentence == (
        "prunes every prunable weight to sparsity 0.514 (unstructured) and corrects the weights that stay, once, on "
        "the trained model"
    )
    during = "it works during training, and no installed plugin offers it (pip install sparsify-torch)"
    assert [finding.why_not for finding in findings] == [during, during, "", "no installed plugin offers it", during]


def test_check_says_what_is_given_and_nothing_of_what_is_not():
    text = "modifiers:\n- !QuantizationModifier {start_epoch: 2}\n"
    plain, full = "trains with simulated low-precision weights and activations", "{submodules: [a, b], ignore: [c], "
    assert check_recipe(parse_recipe(text), installed())[0].sentence == f"{plain}, from epoch 2 to the end"
    text = text.replace("{", full).replace("}", ", freeze_bn_stats_epoch: 3}")
    assert check_recipe(parse_recipe(text), installed())[0].sentence == (
        f"{plain} of a, b, but not of c (norm statistics kept from epoch 3), from epoch 2 to the end"
    )


def test_check_proposes_to_install_only_what_is_not_there():
    recipe = parse_recipe("modifiers:\n- !MFACPruningModifier {params: x}\n")
    assert "pip install" in check_recipe(recipe, installed(*ONESHOT))[0].why_not
    assert check_recipe(recipe, installed(*ONESHOT, *TRAINING))[0].why_not == "no installed plugin offers it"


def test_check_reads_the_epochs_of_either_dialect():
    text = "a_stage: {a_modifiers: {MagnitudePruningModifier: {targets: x, start: 1, end: 3, update_frequency: 0.5}}}"
    assert check_recipe(parse_recipe(text), installed())[0].sentence.endswith(
        "from epoch 1 to epoch 3, every 0.5 epochs"
    )
    staged = text.replace("a_modifiers", "run_type: train, a_modifiers")
    assert check_recipe(parse_recipe(staged), installed())[0].sentence.endswith(
        "from epoch 1 to epoch 3, every 0.5 epochs"
    )


def test_check_lets_the_phase_that_fits_run():
    recipe = parse_recipe("modifiers:\n- !QuantizationModifier {start_epoch: 2}\n- !QuantizationModifier {}\n")
    both = check_recipe(recipe, installed(*ONESHOT, *TRAINING))
    assert [finding.runnable for finding in both] == [True, True]
    assert both[0].sentence.endswith("from epoch 2 to the end")
    assert both[1].sentence == "quantizes weights and activations, once, on the trained model"
    alone = check_recipe(recipe, installed(*ONESHOT))
    assert [finding.runnable for finding in alone] == [False, True]
    assert alone[0].why_not.startswith("it works during training")


def test_check_reports_wrong_values_and_broken_plugins_without_failing():
    recipe = parse_recipe("post_training_modifiers:\n- !SparseGPTModifier {sparsity: 2}\n")
    (finding,) = check_recipe(recipe, installed(*ONESHOT))
    assert not finding.runnable
    assert finding.why_not.endswith("field 'sparsity': it should be less than 1; found 2")
    lacking = installed(offer("SparseGPTModifier", "post-training", requires=("no-such-library",)))
    assert "needs no-such-library" in check_recipe(recipe, lacking)[0].why_not


def test_check_knows_the_fields_of_third_parties():
    theirs = installed(offer("TheirModifier", "post-training"))
    (finding,) = check_recipe(parse_recipe("modifiers:\n- !TheirModifier {sparsity: 0.2}\n"), theirs)
    assert finding.runnable
    assert finding.sentence == "TheirModifier of the toy plugin, once, on the trained model"
    with pytest.raises(RequestError, match="has no field 'sparsty'") as caught:
        check_recipe(parse_recipe("modifiers:\n- !TheirModifier {sparsty: 0.2}\n"), theirs)
    assert caught.value.fix == "use 'sparsity'"


@pytest.mark.parametrize(
    ("item", "problem", "fix"),
    [
        ("!GMPruneModifier {}", "there is no modifier 'GMPruneModifier' (modifiers)", "use 'GMPruningModifier'"),
        (
            "!GMPruningModifier {final_sparisty: 0.8}",
            "modifier 'GMPruningModifier' (modifiers) has no field 'final_sparisty' (found 0.8)",
            "use 'final_sparsity'",
        ),
        (
            "!QuantizationModifier {start_epoch: 2, submoduls: [x]}",
            "modifier 'QuantizationModifier' (modifiers) has no field 'submoduls' (found ['x'])",
            "use 'submodules'",
        ),
    ],
)
def test_check_refuses_what_nobody_knows(item, problem, fix):
    with pytest.raises(RequestError) as caught:
        check_recipe(parse_recipe(f"modifiers:\n- {item}\n"), installed(*ONESHOT))
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def known_steps():
    for name in sorted(known_names()):
        for phase in ("", "training", "post-training"):
            yield Step(name, phase, dict.fromkeys(known_modifier(name, phase).fields, 1), "modifiers")


def test_every_known_modifier_passes_the_check_with_every_field():
    findings = check_recipe(Recipe(tuple(known_steps())), installed())
    assert len(findings) == 3 * len(known_names())
    for finding in findings:
        assert not finding.runnable
        assert finding.why_not
        assert not re.search(r"[{}]|required|lacks", finding.sentence + finding.why_not)


def test_the_table_of_known_modifiers_is_whole():
    assert len(known_names()) == 34
    for step in known_steps():
        known = known_modifier(step.name, step.phase)
        assert set(re.findall(r"\{(\w+)\}", known.does)) <= known.fields.keys()
    assert known_modifier("EpochRangeModifier", "").fields == {"start_epoch": REQUIRED, "end_epoch": REQUIRED}
    assert known_modifier("QuantizationModifier", "post-training").fields["config_groups"] == REQUIRED
    assert {"submodules", "scheme_overrides", "post_oneshot_calibration"} <= known_modifier(
        "QuantizationModifier", ""
    ).fields.keys()
    assert known_modifier("TheirModifier", "") is None


@pytest.mark.parametrize(
    ("written", "now"),
    [
        ("GradualKSModifier", "GMPruningModifier"),
        ("LegacyGMPruningModifier", "GMPruningModifier"),
        ("ConstantKSModifier", "ConstantPruningModifier"),
        ("LegacyQuantizationModifier", "QuantizationModifier"),
        ("SparseOPTModifier", "SparseGPTModifier"),
    ],
)
def test_retired_names_become_the_last_ones_with_a_note(written, now):
    recipe = parse_recipe(f"modifiers:\n- !{written} {{}}\n")
    assert (recipe.steps[0].name, recipe.notes) == (now, (f"{now}: written {written} in the recipe",))


def test_the_legacy_name_stays_where_it_works_on_a_trained_model():
    recipe = parse_recipe("a_stage: {run_type: oneshot, a_modifiers: {LegacyQuantizationModifier: {}}}")
    assert (recipe.steps[0].name, recipe.notes) == ("LegacyQuantizationModifier", ())


def test_two_numbers_of_old_recipes_are_a_pattern():
    recipe = parse_recipe("a_stage: {a_modifiers: {SparseGPTModifier: {sparsity: 0.5, prunen: 2, prunem: 4}}}")
    assert recipe.steps[0].options == {"sparsity": 0.5, "mask_structure": "2:4"}
    assert recipe.notes == ("SparseGPTModifier: wrote 'prunen' and 'prunem' as mask_structure 2:4",)


@pytest.mark.parametrize("field", ["start", "end", "update_frequency"])
def test_modifiers_of_both_dialects_train_where_they_have_epochs(field):
    text = f"a_stage: {{a_modifiers: {{MagnitudePruningModifier: {{final_sparsity: 0.5, {field}: 1}}}}}}"
    assert parse_recipe(text).steps[0].phase == "training"
    assert parse_recipe(text.replace(f"{field}: 1", f"{field}: null")).steps[0].phase == "post-training"


def test_a_field_at_its_default_needs_nobody_who_knows_it():
    text = "a_stage: {a_modifiers: {SparseGPTModifier: {sparsity: 0.5, owl_m: %s}}}"
    [finding] = check_recipe(parse_recipe(text % "null"), installed(*ONESHOT))
    assert finding.runnable
    [finding] = check_recipe(parse_recipe(text % "5"), installed(*ONESHOT))
    assert finding.why_not == (
        "modifier 'SparseGPTModifier' (a_stage/a_modifiers), field 'owl_m': nothing installed can do 5"
    )
    error = refusal(text % "5", installed(*ONESHOT), "one-shot")
    assert error.fix == "remove 'owl_m'"


def test_a_modifier_may_look_at_those_beside_it():
    looking = offer("EpochRangeModifier", "training", "toy_modifiers:Looking")
    recipe = parse_recipe("modifiers:\n- !EpochRangeModifier {}\n- !QuantizationModifier {start_epoch: 1}\n")
    findings = check_recipe(recipe, installed(looking, TRAINING[0]))
    assert [(finding.runnable, finding.why_not) for finding in findings] == [
        (False, "beside me: EpochRangeModifier, QuantizationModifier"),
        (True, ""),
    ]
