"""The recipe grammar: both dialects, variables, numbers, bounds, and that what is written reads back the same."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.errors import RequestError
from sparsify.recipe import Recipe, Step, dump_recipe, load_recipe, parse_recipe


def steps(text, overrides=None):
    return parse_recipe(dedent(text), overrides).steps


def refusal(text, overrides=None):
    with pytest.raises(RequestError) as caught:
        steps(text, overrides)
    assert caught.value.fix
    return caught.value


TRANSFER = """
    version: 1.1.0

    # General Variables
    num_epochs: &num_epochs 13
    init_lr: 1.5e-4
    final_lr: 0
    qat_start_epoch: &qat_start_epoch 8.0
    quantize_embeddings: &quantize_embeddings 1
    targets: [bert.encoder, classifier]

    training_modifiers:
      - !EpochRangeModifier
          end_epoch: eval(num_epochs)
          start_epoch: 0.0
      - !LearningRateFunctionModifier
        start_epoch: 0
        end_epoch: *num_epochs
        lr_func: linear
        init_lr: eval(init_lr)
        final_lr: eval(0.01 * init_lr)

    quantization_modifiers:
      - !QuantizationModifier
          start_epoch: eval(qat_start_epoch)
          quantize_embeddings: eval(quantize_embeddings)
          exclude_module_types: ['LayerNorm', 'Tanh']
          submodules: eval(targets)

    constant_modifiers:
      - !ConstantPruningModifier {start_epoch: 0.0, params: __ALL_PRUNABLE__}
    """


def test_reads_variables_anchors_and_every_indentation_of_arguments():
    found = steps(TRANSFER)
    assert [(step.name, step.phase, step.group) for step in found] == [
        ("EpochRangeModifier", "", "training_modifiers"),
        ("LearningRateFunctionModifier", "", "training_modifiers"),
        ("QuantizationModifier", "", "quantization_modifiers"),
        ("ConstantPruningModifier", "", "constant_modifiers"),
    ]
    assert found[0].options == {"end_epoch": 13, "start_epoch": 0.0}
    assert found[1].options["end_epoch"] == 13
    assert found[1].options["final_lr"] == pytest.approx(1.5e-6)
    assert found[2].options["submodules"] == ["bert.encoder", "classifier"]
    assert found[3].options == {"start_epoch": 0.0, "params": "__ALL_PRUNABLE__"}


def test_an_override_reaches_eval_and_aliases_alike_and_leaves_other_uses_alone():
    found = steps(TRANSFER, {"num_epochs": "30", "init_lr": 1.0})
    assert found[0].options["end_epoch"] == found[1].options["end_epoch"] == 30
    assert found[1].options["init_lr"] == 1.0
    aliased = (
        "first: &first 1\nsecond: *first\nmodifiers:\n- !EpochRangeModifier {start_epoch: *first, end_epoch: *first}\n"
    )
    used = aliased + "- !SetParamModifier {params: eval(first), val: eval(second)}\n"
    assert steps(used, {"second": 9})[0].options == {"start_epoch": 1, "end_epoch": 1}
    assert steps(used, {"second": 9})[1].options == {"params": 1, "val": 9}


def test_an_override_may_define_what_the_recipe_only_refers_to():
    text = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(warm_up + 1)}"
    assert steps(text, {"warm_up": "2.5"})[0].options["end_epoch"] == 3.5
    assert "uses variable 'warm_up', which the recipe does not define" in refusal(text).problem
    assert """--recipe-args '{"warm_up": …}'""" in refusal(text).fix


@pytest.mark.parametrize("fence", [("---", "---"), ("+++", "+++"), ("---", "+++")])
@pytest.mark.parametrize("before", ["", "\n", "<!--\nCopyright: none\n-->\n\n"])
def test_reads_the_front_matter_of_markdown(tmp_path, fence, before):
    body = "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2\n"
    text = f"{before}{fence[0]}\n{body}{fence[1]}\n\n# Card\n\n---\nnot: a recipe\n---\n"
    path = tmp_path / "recipe.md"
    path.write_text(text)
    expected = (Step("EpochRangeModifier", "", {"start_epoch": 0, "end_epoch": 2}, "modifiers"),)
    assert load_recipe(path).steps == expected
    assert parse_recipe(text).steps == expected
    path.write_text(text.replace("\n", "\r\n"))
    assert load_recipe(path).steps == expected


def test_a_document_marker_alone_is_no_front_matter():
    assert steps("---\nmodifiers:\n- !EpochRangeModifier {end_epoch: 1}\n")[0].options == {"end_epoch": 1}


@pytest.mark.parametrize(
    "text",
    [
        "- !GMPruningModifier\n  init_sparsity: 0.05\n  params: ['re:.*weight']\n",
        "- !GMPruningModifier\n    init_sparsity: 0.05\n    params: ['re:.*weight']\n",
        "- !GMPruningModifier {init_sparsity: 0.05, params: ['re:.*weight']}\n",
        "- !pytorch.GMPruningModifier {init_sparsity: 0.05, params: ['re:.*weight']}\n",
        "!GMPruningModifier\n  init_sparsity: 0.05\n  params: ['re:.*weight']\n",
        "!GMPruningModifier\ninit_sparsity: 0.05\nparams: ['re:.*weight']\n",
        "modifiers:\n- !GMPruningModifier\n  init_sparsity: 0.05\n  params:\n  - re:.*weight\n",
        "modifiers: !GMPruningModifier\n  init_sparsity: 0.05\n  params: ['re:.*weight']\n",
        "version: 0.1.0\n__metadata__: {level: 1}\nmodifiers:\n    - !GMPruningModifier\n"
        "        init_sparsity: 5e-2\n        params: ['re:.*weight']\n",
    ],
)
def test_top_level_forms_of_the_tag_dialect_are_one_recipe(text):
    options = {"init_sparsity": 0.05, "params": ["re:.*weight"]}
    assert steps(text) == (Step("GMPruningModifier", "", options, "modifiers"),)


def test_a_single_modifier_under_any_name_and_modifiers_without_arguments():
    found = steps("epochs: !EpochRangeModifier {end_epoch: 1}\nmodifiers:\n- !QuantizationModifier\n- !XModifier {}\n")
    assert [(step.name, step.options, step.group) for step in found] == [
        ("EpochRangeModifier", {"end_epoch": 1}, "epochs_modifiers"),
        ("QuantizationModifier", {}, "modifiers"),
        ("XModifier", {}, "modifiers"),
    ]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-7", 1e-7),
        ("5E-5", 5e-5),
        ("1.5e-4", 1.5e-4),
        (".5", 0.5),
        ("-3.", -3.0),
        ("1_000", 1000),
        ("010", 10),
        ("0x10", 16),
        ("-1", -1),
        ("2:4", "2:4"),
        ("1:30:00", "1:30:00"),
        ("'1e-7'", "1e-7"),
        ("2021-07-01", "2021-07-01"),
        ("1.1.0", "1.1.0"),
        ("-", "-"),
        ("True", True),
        ("null", None),
        ("1x4", "1x4"),
        ("__ALL__", "__ALL__"),
        ("re:model.layers.\\d+$", "re:model.layers.\\d+$"),
        (".inf", float("inf")),
    ],
)
def test_numbers_are_what_they_look_like_and_patterns_stay_text(written, value):
    (step,) = steps(
        f"modifiers:\n- !AnyModifier\n  field: {written}" if written != "-" else "- !AnyModifier {field: '-'}"
    )
    assert step.options["field"] == value
    assert type(step.options["field"]) is type(value)


OBCQ = """
    sparsity_stage:
      run_type: oneshot
      sparsity_modifiers:
        SparseGPTModifier:
          sparsity: eval(goal)
          mask_structure: 2:4
          percdamp: 0.02
          quantize: True
    finetuning_stage:
      run_type: train
      goal: 0.9
      finetuning_modifiers:
        ConstantPruningModifier:
          targets: ['re:.*q_proj.weight', 're:.*k_proj.weight']
          start: 0
          end: eval(goal)
    test_stage:
      obcq_modifiers:
        SmoothQuantModifier:
          smoothing_strength: 0.5
          mappings: [[["re:.*q_proj", "re:.*k_proj"], "re:.*input_layernorm"]]
        GPTQModifier:
          config_groups:
            group_0: {weights: {num_bits: 4, type: int}, targets: [Linear]}
    goal: 0.5
    """


def test_the_key_dialect_keeps_its_stages_and_is_normalised():
    recipe = parse_recipe(dedent(OBCQ))
    assert [(step.name, step.phase, step.group) for step in recipe.steps] == [
        ("SparseGPTModifier", "post-training", "sparsity_stage/sparsity_modifiers"),
        ("ConstantPruningModifier", "training", "finetuning_stage/finetuning_modifiers"),
        ("SmoothQuantModifier", "post-training", "test_stage/obcq_modifiers"),
        ("GPTQModifier", "post-training", "test_stage/obcq_modifiers"),
    ]
    assert recipe.steps[0].options == {"sparsity": 0.5, "mask_structure": "2:4", "dampening_frac": 0.02}
    assert recipe.steps[1].options == {
        "params": ["re:.*q_proj.weight", "re:.*k_proj.weight"],
        "start_epoch": 0,
        "end_epoch": 0.9,
    }
    assert recipe.notes == (
        "SparseGPTModifier: renamed 'percdamp' to 'dampening_frac'",
        "SparseGPTModifier: dropped 'quantize': quantization is a modifier of its own",
        "SmoothQuantModifier: dropped 'mappings': what reads each normalisation is found from the graph",
    )


@pytest.mark.parametrize(
    "text",
    [
        "obcq_modifiers:\n  SparseGPTModifier: {sparsity: 0.5}\n",
        "obcq_modifiers:\n  - SparseGPTModifier: {sparsity: 0.5}\n",
        "stages:\n  default:\n    obcq_modifiers:\n      SparseGPTModifier: {sparsity: 0.5}\n",
        "stages:\n  default:\n  - obcq_modifiers:\n      SparseGPTModifier: {sparsity: 0.5}\n",
        "default_stage: {run_type: oneshot, obcq_modifiers: {SparseGPTModifier: {sparsity: 0.5}}}\n",
        '{"default_stage":\n\t{"obcq_modifiers":{"SparseGPTModifier":\t{"sparsity":0.5}}}}',
    ],
)
def test_flat_and_staged_forms_of_the_key_dialect_are_one_recipe(tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    options = {"sparsity": 0.5}
    assert load_recipe(path).steps == (
        Step("SparseGPTModifier", "post-training", options, "default_stage/obcq_modifiers"),
    )


def test_a_bare_modifiers_group_of_the_key_dialect_and_one_without_arguments():
    found = steps("modifiers:\n  QuantizationModifier:\n  SparseGPTModifier: {sparsity: 0.5}\n")
    assert [(step.name, step.phase, step.options) for step in found] == [
        ("QuantizationModifier", "post-training", {}),
        ("SparseGPTModifier", "post-training", {"sparsity": 0.5}),
    ]


@pytest.mark.parametrize(
    ("stage", "phase"),
    [
        ("initial_training_stage: {pruning_modifiers: {QuantizationModifier: {}}}", "training"),
        ("oneshot_stage: {pruning_modifiers: {QuantizationModifier: {}}}", "post-training"),
        ("test_stage: {pruning_modifiers: {QuantizationModifier: {}}}", "post-training"),
        ("test_stage: {pruning_modifiers: {ConstantPruningModifier: {targets: __ALL__}}}", "training"),
        ("test_stage: {pruning_modifiers: [!QuantizationModifier {}]}", ""),
        ("test_stage: {run_type: train, pruning_modifiers: [!QuantizationModifier {}]}", "training"),
        ("test_stage: {post_training_modifiers: [!QuantizationModifier {}]}", "post-training"),
        ("post_training_modifiers: [!QuantizationModifier {}]", "post-training"),
        ("training_modifiers: [!QuantizationModifier {}]", ""),
    ],
)
def test_the_phase_comes_from_run_type_then_names(stage, phase):
    assert steps(stage)[0].phase == phase


def test_staged_tag_recipes_shadow_variables():
    text = """
    rate: 0.1
    half: eval(rate / 2)
    pre: {rate: 0.4, x_modifiers: [!SetLearningRateModifier {learning_rate: eval(rate), other: eval(half)}]}
    fine: {x_modifiers: [!SetLearningRateModifier {learning_rate: eval(rate)}]}
    """
    assert [step.options["learning_rate"] for step in steps(text)] == [0.4, 0.1]
    assert steps(text)[0].options["other"] == 0.05
    assert [step.options["learning_rate"] for step in steps(text, {"rate": 1})] == [1, 1]


def test_a_stage_computes_its_variables_from_those_of_the_document_first():
    """SparseML's staged recipes keep the document's value so: `end_global: eval(end)` beside `end: 75`."""
    text = """
    end: 100
    rate: 0.1
    a: {end_global: eval(end), end: 75, rate: eval(rate * 2), last: eval(end_global + own), own: 1,
        x_modifiers: [!EpochRangeModifier {start_epoch: eval(end), end_epoch: eval(end_global), r: eval(rate),
        l: eval(last)}]}
    """
    assert steps(text)[0].options == {"start_epoch": 75, "end_epoch": 100, "r": 0.2, "l": 101}


def test_variables_chain_in_any_order_and_inside_containers():
    text = """
    c: {gamma: eval(b * 2), milestones: [eval(a), eval(b)]}
    b: eval(a + 1)
    a: 1
    modifiers:
      - !LearningRateModifier {lr_kwargs: eval(c), final: {eval(b): [x]}}
    """
    assert steps(text)[0].options == {"lr_kwargs": {"gamma": 4, "milestones": [1, 2]}, "final": {2: ["x"]}}
    long_chain = "".join(f"v{i}: eval(v{i + 1})\n" for i in range(900))
    assert steps(f"{long_chain}v900: 7\nmodifiers:\n- !XModifier {{x: eval(v0)}}\n")[0].options == {"x": 7}


def test_dead_fields_of_old_recipes_are_mapped_or_dropped_with_a_note():
    recipe = parse_recipe(
        dedent("""
        pruning_modifiers:
          - !MFACPruningModifier
            params: __ALL_PRUNABLE__
            log_types: __ALL__
            num_grads: 512
            mfac_options:
              num_grads: {0.0: 256, 0.5: 512}
              available_gpus: [cuda:0]
        """)
    )
    assert recipe.steps[0].options == {"num_grads": 512, "available_devices": ["cuda:0"], "params": "__ALL_PRUNABLE__"}
    assert recipe.notes == (
        "MFACPruningModifier: moved the fields of 'mfac_options' one level up",
        "MFACPruningModifier: renamed 'available_gpus' to 'available_devices'",
        "MFACPruningModifier: dropped 'log_types': logging is not a matter of the recipe",
    )


def test_fields_of_foreign_modifiers_are_never_touched():
    options = {"group": 1, "index": 2, "percdamp": 3, "quantize": 4, "start": 5}
    assert steps(f"post_training_modifiers:\n- !TheirModifier {json.dumps(options)}")[0].options == options


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("", "recipe is empty", "`modifiers:`"),
        ("just words", "recipe holds str, expected lists of modifiers", "`modifiers:`"),
        ("num_epochs: 3\n", "recipe holds no modifiers", "`modifiers:`"),
        ("things:\n- !XModifier {}\n", "list 'things' holds modifiers", "rename it to 'things_modifiers'"),
        ("modifiers:\n- XModifier\n", "'modifiers' holds 'XModifier', expected a modifier", "`- !XModifier`"),
        ("max_modifiers: 3", "'max_modifiers' holds 3, expected a modifier", "`- !QuantizationModifier`"),
        ("modifiers:\n- !XModifier 3\n", "line 2: !XModifier is followed by no mapping", "indented"),
        ("x_modifiers: {XModifier: 3}", "'XModifier' holds 3, expected a mapping", "`XModifier: {…}`"),
        ("x_stage: {run_type: oneshot, x: 1}", "stage 'x_stage' holds no group of modifiers", "_modifiers"),
        ("x_stage: {run_type: later, x_modifiers: {X: {}}}", "run_type of stage 'x_stage' is 'later'", "oneshot"),
        ("x_stage: {a_modifiers: [!X {}], post_training_modifiers: [!X {}]}", "mixes post_training", "its own"),
        ("stages: [1]\n", "'stages' holds no mapping", "below it"),
        ("a: !X {}\nmodifiers:\n- !Y {z: !X {}}\n", "modifier !X stands inside another value", "…_modifiers"),
        ("a: eval(b)\nb: eval(a)\nmodifiers: [!X {}]\n", "variables refer to one another: ", "plain value"),
        ("a: eval(a)\nmodifiers: [!X {}]\n", "variables refer to one another: a → a", "plain value"),
        (
            "epochs: 1\nmodifiers:\n- !X {y: eval(epoch)}\n",
            "uses variable 'epoch', which",
            "use 'epochs', or define it",
        ),
        ("modifiers:\n- !X {y: eval(9**9**9)}\n", "recipe, X: cannot compute eval(9**9**9)", "use numbers"),
        ("modifiers:\n- !X {y: eval(f(1))}\n", "'f(1)' is not allowed", "use numbers"),
        ("modifiers:\n- !X {y: at eval(1) only}\n", "eval(…) must be the whole value", "one eval"),
        ("a: [1]\nmodifiers:\n- !X {y: {eval(a): 1}}\n", "a list or mapping cannot be a key", "number or a name"),
        ("modifiers:\n- !X {y: *gone}\n", "line 2: found undefined alias 'gone'", "write eval(name)"),
        ("modifiers:\n- !X\n  y: 1\n  y: 2\n", "line 4: key 'y' stands twice", "remove one"),
        ("modifiers:\n- !X {}\nmodifiers:\n- !X {}\n", "line 3: key 'modifiers' stands twice", "remove one"),
        ("modifiers:\n- !!python/object/apply:os.system [ls]\n", "could not determine a constructor", "never executed"),
        ("modifiers:\n- !X\n\ty: 1\n", "line 3", "spaces"),
        ("modifiers: [\n", "line 2", "mend"),
        ("a: 1\n---\nb: 1\n", "line 2", "one recipe in a file"),
        ("modifiers:\n- !X {y: \x07}\n", "line 2: character '\\x07' is not allowed", "UTF-8"),
        ("modifiers:\n- !X {[1]: 2}\n", "line 2: found unhashable key", "mend"),
        ("modifiers:\n- !X {y: " + "9" * 400 + "}", "more than 300 digits", "mend"),
        ("a: &a [*a]\nmodifiers: [!X {}]\n", "a value that contains itself (line 1)", "give a recipe file"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 deep", "mend"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep", "mend"),
    ],
)
def test_refuses_what_is_no_recipe(text, problem, fix):
    error = refusal(text)
    assert problem in error.problem
    assert fix in error.fix


def test_refuses_alias_bombs():
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert "values nested" in refusal(f"l0: &l0 [x]\n{levels}modifiers: [!X {{y: *l8}}]\n").problem
    deep = "".join(f"l{i}: &l{i} [*l{i - 1}]\n" for i in range(1, 60))
    assert "values nested" in refusal(f"l0: &l0 [x]\n{deep}modifiers: [!X {{}}]\n").problem


@pytest.mark.parametrize(
    ("name", "fix"),
    [("num_epoch", "use 'num_epochs'"), ("zzz", "use one of: "), ("training_modifiers", "use one of: ")],
)
def test_refuses_overrides_of_unknown_variables(name, fix):
    error = refusal(TRANSFER, {name: 3})
    assert error.problem == f"recipe has no variable '{name}' for --recipe-args to replace"
    assert error.fix.startswith(fix)


def test_files_are_paths_never_text(tmp_path):
    missing = tmp_path / "missing.yaml"
    with pytest.raises(RequestError, match=r"missing\.yaml cannot be read: No such file") as caught:
        load_recipe(missing)
    assert caught.value.fix == "give the path of an existing file"
    with pytest.raises(RequestError, match=r"is no recipe file") as caught:
        load_recipe(Path("modifiers: [!X {}]"))
    assert caught.value.fix == "give a .yaml, .yml, .json or .md file"
    card = tmp_path / "card.md"
    card.write_text("# Card\n\n```yaml\nmodifiers: []\n```\n")
    with pytest.raises(RequestError, match=r"card\.md has no front matter") as caught:
        load_recipe(card)
    assert "between two lines of ---" in caught.value.fix
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"is not UTF-8 text") as caught:
        load_recipe(binary)
    assert caught.value.fix == "save it as UTF-8"


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=12).filter(
    lambda x: "eval(" not in x
)
LOOKALIKES = st.sampled_from(
    ["1e-7", "2:4", "010", "1_0", "yes", "null", "", "!X", "*a", "&a", "re:.*", "---", "0x1", "=", "<<"]
)
FLOATS = st.floats(allow_nan=False)
SCALARS = st.one_of(TEXT, LOOKALIKES, FLOATS, st.integers(-(10**20), 10**20), st.booleans(), st.none())
KEYS = st.one_of(TEXT, LOOKALIKES, st.floats(0, 1), st.integers(0, 9))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
OPTIONS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), VALUES, max_size=4)
NAMES = st.from_regex(r"[A-Z][A-Za-z]{0,5}Modifier", fullmatch=True)
HOMES = [("modifiers", ""), ("training_modifiers", ""), ("post_training_modifiers", "post-training")]
HOMES += [("pre_stage/x_modifiers", phase) for phase in ("", "training", "post-training")]
HOMES += [("train_stage/y_modifiers", "training"), ("default_stage/x_modifiers", "post-training")]


@st.composite
def recipes(draw):
    """Draw what reading yields: each stage has one phase, each group stands once."""
    homes = draw(st.lists(st.sampled_from(HOMES), unique_by=lambda home: home[0], max_size=4))
    homes.sort(key=lambda home: home[0].partition("/")[0])
    blocks = [(home, draw(st.lists(st.tuples(NAMES, OPTIONS), min_size=1, max_size=3))) for home in homes]
    return Recipe(tuple(Step(name, phase, options, group) for (group, phase), run in blocks for name, options in run))


@settings(max_examples=200, deadline=None)
@given(recipes())
def test_every_recipe_reads_back_as_it_was_written(recipe):
    text = dump_recipe(recipe, "a header\nof two lines")
    assert text.startswith("# a header\n# of two lines\nversion: 1.1.0\n")
    assert parse_recipe(text) == recipe
    assert dump_recipe(parse_recipe(text), "a header\nof two lines") == text


@pytest.mark.parametrize("text", [TRANSFER, OBCQ])
def test_real_recipes_round_trip(text):
    recipe = parse_recipe(dedent(text))
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_text_that_yaml_1_1_takes_for_a_number_is_quoted():
    options = {"mask_structure": "2:4", "rate": "1e-7", "small": 1e-7}
    written = dump_recipe(Recipe((Step("XModifier", "post-training", options, "post_training_modifiers"),)))
    assert "mask_structure: '2:4'" in written
    assert "rate: '1e-7'" in written
    assert "small: 1.0e-07" in written


PHASES = st.sampled_from(["", "training", "post-training"])
GROUPS = st.sampled_from(["", "a", "modifiers", "post_training_modifiers", "s/a"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, PHASES, GROUPS), max_size=5))
def test_what_a_generator_writes_keeps_its_order_and_phases(rows):
    recipe = Recipe(tuple(Step(name, phase, {}, group) for name, phase, group in rows))
    read = parse_recipe(dump_recipe(recipe))
    expected = [(name, phase or ("post-training" if "post_training" in group else "")) for name, phase, group in rows]
    assert [(step.name, step.phase) for step in read.steps] == expected
