"""Recipes: an ordered list of modifiers, read from both dialects of the field's YAML, written in the tag dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any

from sparsify.errors import RequestError

RUN_TYPES: Mapping[str, str] = {"oneshot": "post-training", "train": "training"}


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
    if suffix == ".md" and not (text := front_matter(text, anywhere=True)):
        fix = "put the recipe between two lines of --- , or into a .yaml file"
        raise RequestError(f"{path} has no front matter, a block between two lines of ---", fix=fix)
    return parse_recipe(text, overrides, source=str(path))


def parse_recipe(text: str, overrides: Mapping[str, Any] | None = None, source: str = "recipe") -> Recipe:
    """Read recipe text of either dialect; `overrides` replace its variables. Raises RequestError naming the place."""
    from sparsify.recipe_document import read_steps
    from sparsify.recipe_text import front_matter, read_document, read_number

    given = {name: read_number(value) for name, value in (overrides or {}).items()}
    document = read_document(front_matter(text, anywhere=False) or text, given, source)
    return read_steps(document, given, source)


def dump_recipe(recipe: Recipe, header: str = "") -> str:
    """Write a recipe in the tag dialect, variables resolved, below `header` as comments; reading it gives it back."""
    from sparsify.recipe_text import write_document

    document: dict[str, Any] = {"version": "1.1.0"} | ({} if recipe.steps else {"modifiers": []})
    for (stage, run_type), staged in groupby(recipe.steps, key=lambda step: _home(step)[:2]):
        place = document
        if stage:
            place = document[_unused(stage, document)] = {"run_type": run_type} if run_type else {}
        for name, run in groupby(staged, key=lambda step: _home(step)[2]):
            place[_unused(name, place)] = list(run)
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comments + write_document(document)


def implied_phase(group: str) -> str:
    """Return the phase that a group's name states."""
    return "post-training" if "post_training" in group else ""


def group_name(key: str) -> str:
    """Return a group's name, which contains `modifiers` and no slash."""
    name = key.replace("/", "_")
    return name if "modifiers" in name else f"{name}_modifiers"


def _home(step: Step) -> tuple[str, str, str]:
    """Name a step's stage, its run_type and its list; the list alone where its name implies the phase."""
    stage, _, key = step.group.rpartition("/")
    name = group_name(key or ("post_training" if step.phase == "post-training" else "modifiers"))
    if not stage and step.phase == implied_phase(name):
        return "", "", name
    run_type = next((word for word, phase in RUN_TYPES.items() if phase == step.phase), "")
    return stage or name.removesuffix("modifiers").removesuffix("_") + "_stage", run_type, name


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    candidates = chain([name], (f"part_{number}_{name}" for number in count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)
