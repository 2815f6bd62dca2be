"""Recipes: an ordered list of modifiers, read from both dialects of the field's YAML, written in the tag dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any

from sparsify.errors import RequestError
from sparsify.known_modifiers import normalise_options
from sparsify.modifiers import resolve_modifiers as resolve_modifiers  # the pipeline's other half of this module

_EXAMPLE = "write `modifiers:` and below it items such as `- !QuantizationModifier {}`"


@dataclass(frozen=True)
class Step:
    """Name one modifier with its options.

    phase: `post-training`, `training`, or empty where the kind of experiment decides. group: the list it stands in,
    `post_training_modifiers`, or `stage/list` in staged recipes.
    """

    name: str
    phase: str
    options: Mapping[str, Any]
    group: str


@dataclass(frozen=True)
class Recipe:
    """Hold the steps in order; notes say what old spellings were mapped or dropped, and are no part of equality."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file: .yaml, .yml, .json, or the front matter of .md; raises RequestError."""
    from sparsify.recipe_text import front_matter

    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json", ".md"):
        raise RequestError(f"recipe {path} is no recipe file", fix="give a .yaml, .yml, .json or .md file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"recipe {path} is not UTF-8 text: {error.reason}", fix="save it as UTF-8") from error
    except OSError as error:
        fix = "give the path of an existing file"
        raise RequestError(f"recipe {path} cannot be read: {error.strerror}", fix=fix) from error
    if suffix == ".json":
        text = text.replace("\t", " ")  # JSON is YAML but for tabs, and cannot hold one inside a string
    if suffix == ".md":
        text = front_matter(text, str(path))
    return parse_recipe(text, overrides, source=str(path))


def parse_recipe(text: str, overrides: Mapping[str, Any] | None = None, source: str = "recipe") -> Recipe:
    """Read recipe text of either dialect; `overrides` replace its variables. Raises RequestError naming the place."""
    from sparsify.recipe_groups import find_blocks, global_variables
    from sparsify.recipe_text import Tagged, read_document, strip_front_matter
    from sparsify.recipe_variables import check_overrides, read_override, resolve_variables, substitute

    given = {name: read_override(value) for name, value in (overrides or {}).items()}
    document = read_document(strip_front_matter(text), given, source)
    if isinstance(document, Tagged | list):
        document = {"modifiers": document}
    if not isinstance(document, dict):
        raise RequestError(f"{source} holds {type(document).__name__}, expected lists of modifiers", fix=_EXAMPLE)
    blocks = tuple(find_blocks(document, source))
    if not blocks:
        raise RequestError(f"{source} holds no modifiers", fix=_EXAMPLE)
    variables = global_variables(document)
    check_overrides(given, document, variables, blocks, source)
    scope = resolve_variables(variables | given, {}, source)
    steps: list[Step] = []
    notes: list[str] = []
    for block in blocks:
        shadowing = {name: given.get(name, value) for name, value in block.variables.items()}
        inner = resolve_variables(shadowing, scope, source)
        for item in block.items:
            options = substitute(item.options, inner, f"{source}, {item.name}")
            options, said = normalise_options(item.name, block.phase, options)
            steps.append(Step(item.name, block.phase, options, block.group))
            notes.extend(f"{item.name}: {line}" for line in said)
    return Recipe(tuple(steps), tuple(dict.fromkeys(notes)))


def dump_recipe(recipe: Recipe, header: str = "") -> str:
    """Write a recipe in the tag dialect, variables resolved, below `header` as comments; reading it gives it back."""
    from sparsify.recipe_text import Tagged, write_document

    document: dict[str, Any] = {"version": "1.1.0"}
    for (group, phase), run in groupby(recipe.steps, key=lambda step: (step.group, step.phase)):
        place, name = _place(document, group, phase)
        place[_unused(name, place)] = [Tagged(step.name, dict(step.options)) for step in run]
    if not recipe.steps:
        document["modifiers"] = []
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comments + write_document(document)


def _place(document: dict[str, Any], group: str, phase: str) -> tuple[dict[str, Any], str]:
    """Find where a group goes: at the top where its name implies its phase, else in a stage whose run_type says it."""
    from sparsify.recipe_groups import RUN_TYPES, group_name, implied_phase

    stage, _, name = group.rpartition("/")
    name = group_name(name) if name else "post_training_modifiers" if phase == "post-training" else "modifiers"
    if not stage and phase == implied_phase(name):
        return document, name
    stage = stage or name.removesuffix("modifiers").removesuffix("_") + "_stage"
    run_type = {phase: word for word, phase in RUN_TYPES.items()}.get(phase)
    last = document.get(stage) if stage == list(document)[-1] else None
    if last is None or last.get("run_type") != run_type or name in last:
        stage = _unused(stage, document)
        document[stage] = {"run_type": run_type} if run_type else {}
    place: dict[str, Any] = document[stage]
    return place, name


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    stem, _, suffix = name.rpartition("_")
    numbered = (f"{stem or suffix}_{number}" + (f"_{suffix}" if stem else "") for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
