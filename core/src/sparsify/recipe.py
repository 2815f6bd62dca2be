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
        text: str | None = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"recipe {path} is not UTF-8 text: {error.reason}", fix="save it as UTF-8") from error
    except OSError as error:
        fix = "give the path of an existing file"
        raise RequestError(f"recipe {path} cannot be read: {error.strerror}", fix=fix) from error
    if suffix == ".json":
        text = text.replace("\t", " ")  # JSON is YAML but for tabs, and cannot hold one inside a string
    if suffix == ".md" and (text := front_matter(text, anywhere=True)) is None:
        fix = "put the recipe between two lines of --- , or into a .yaml file"
        raise RequestError(f"{path} has no front matter, a block between two lines of ---", fix=fix)
    return parse_recipe(text, overrides, source=str(path))


def parse_recipe(text: str, overrides: Mapping[str, Any] | None = None, source: str = "recipe") -> Recipe:
    """Read recipe text of either dialect; `overrides` replace its variables. Raises RequestError naming the place."""
    from sparsify.recipe_groups import find_blocks, global_variables
    from sparsify.recipe_text import Tagged, front_matter, read_document
    from sparsify.recipe_variables import check_overrides, read_override, resolve_variables, substitute

    given = {name: read_override(value) for name, value in (overrides or {}).items()}
    within = front_matter(text, anywhere=False)
    document = read_document(text if within is None else within, given, source)
    if isinstance(document, Tagged | list):
        document = {"modifiers": document}
    if not isinstance(document, dict):
        raise RequestError(f"{source} holds {type(document).__name__}, expected lists of modifiers", fix=_EXAMPLE)
    document = {str(key): value for key, value in document.items()}
    blocks = tuple(find_blocks(document, source))
    if not blocks:
        raise RequestError(f"{source} holds no modifiers", fix=_EXAMPLE)
    variables = global_variables(document)
    check_overrides(given, document, variables, blocks, source)
    scope = resolve_variables(variables | given, {}, source)
    steps: list[Step] = []
    notes: list[str] = []
    for block in blocks:
        inner = resolve_variables(
            {name: given.get(name, value) for name, value in block.variables.items()}, scope, source
        )
        for item in block.items:
            options = substitute(item.options, inner, f"{source}, {item.name}")
            options, said = normalise_options(item.name, block.phase, options)
            steps.append(Step(item.name, block.phase, options, block.group))
            notes.extend(f"{item.name}: {line}" for line in said)
    return Recipe(tuple(steps), tuple(dict.fromkeys(notes)))


def dump_recipe(recipe: Recipe, header: str = "") -> str:
    """Write a recipe in the tag dialect, variables resolved, below `header` as comments; reading it gives it back."""
    from sparsify.recipe_text import Tagged, write_document

    document: dict[str, Any] = {"version": "1.1.0"} | ({} if recipe.steps else {"modifiers": []})
    for (stage, run_type), staged in groupby(recipe.steps, key=_stage):
        place = document
        if stage:
            place = document[_unused(stage, document)] = {"run_type": run_type} if run_type else {}
        for name, run in groupby(staged, key=_list_name):
            place[_unused(name, place)] = [Tagged(step.name, dict(step.options)) for step in run]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comments + write_document(document)


def _stage(step: Step) -> tuple[str, str]:
    """Find the stage of a step and its run_type: none where the name of its list alone implies its phase."""
    from sparsify.recipe_groups import RUN_TYPES, implied_phase

    stage, name = step.group.rpartition("/")[0], _list_name(step)
    if step.phase == implied_phase(name):
        return stage, ""
    run_type = next((word for word, phase in RUN_TYPES.items() if phase == step.phase), "")
    return stage or name.removesuffix("modifiers").removesuffix("_") + "_stage", run_type


def _list_name(step: Step) -> str:
    from sparsify.recipe_groups import group_name

    default = "post_training" if step.phase == "post-training" else "modifiers"
    return group_name(step.group.rpartition("/")[2] or default)


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    candidates = chain([name], (f"part_{number}_{name}" for number in count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
