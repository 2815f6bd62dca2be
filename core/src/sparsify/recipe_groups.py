"""Find the groups of modifiers in a recipe document: both dialects, flat or in stages, become blocks in file order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.errors import RequestError
from sparsify.known_modifiers import TRAINING_ONLY
from sparsify.recipe_text import Tagged

RUN_TYPES: Mapping[str, str] = {"oneshot": "post-training", "train": "training"}
_RESERVED = ("version", "__metadata__", "stages")


@dataclass(frozen=True)
class Block:
    """Hold one group of modifiers as read; `variables` are those of its stage."""

    group: str
    phase: str
    items: tuple[Tagged, ...]
    variables: Mapping[str, Any]


def global_variables(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return every top-level value that is neither a group, nor a stage, nor reserved."""
    values = {name: value for name, value in document.items() if name not in _RESERVED}
    return {name: value for name, value in values.items() if not _is_group(name, value) and not _is_stage(name, value)}


def find_blocks(document: Mapping[str, Any], source: str) -> Iterator[Block]:
    """Yield every group with its phase, in file order; key-dialect groups outside stages share a `default_stage`."""
    loose = {key: value for key, value in document.items() if _is_group(key, value) and _is_by_key(value)}
    for key, value in document.items():
        if key in loose:
            yield from _stage("default", loose, source) if key == next(iter(loose)) else ()
        elif _is_group(key, value):
            yield Block(group_name(key), implied_phase(key), tuple(_items(key, value, source)), {})
        elif key == "stages":
            yield from _named_stages(value, source)
        elif _is_stage(key, value):
            yield from _stage(key, value, source)
        elif isinstance(value, list) and any(isinstance(item, Tagged) for item in value):
            problem = f"{source}: list '{key}' holds modifiers, but its name does not contain 'modifiers'"
            raise RequestError(problem, fix=f"rename it to '{key}_modifiers'")


def implied_phase(group: str) -> str:
    """Return the phase that a group's name states."""
    return "post-training" if "post_training" in group else ""


def group_name(key: str) -> str:
    """Return a group's name, which contains `modifiers` and no slash."""
    name = key.replace("/", "_")
    return name if "modifiers" in name else f"{name}_modifiers"


def _is_group(key: str, value: object) -> bool:
    return ("modifiers" in key and not key.endswith("_stage")) or isinstance(value, Tagged)


def _is_stage(key: str, value: object) -> bool:
    return isinstance(value, dict) and (key.endswith("_stage") or any(_is_group(str(k), v) for k, v in value.items()))


def _is_by_key(group: object) -> bool:
    return any(isinstance(item, dict) for item in _listed(group))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _named_stages(stages: object, source: str) -> Iterator[Block]:
    if not isinstance(stages, dict):
        raise RequestError(f"{source}: 'stages' holds no mapping", fix="write each stage's name and groups below it")
    for name, bodies in stages.items():
        for index, body in enumerate(bodies if isinstance(bodies, list) else [bodies]):
            yield from _stage(f"{name}_{index + 1}" if index else str(name), body, source)


def _stage(name: str, body: object, source: str) -> Iterator[Block]:
    entries = {str(key): value for key, value in body.items()} if isinstance(body, dict) else {}
    groups = {key: value for key, value in entries.items() if _is_group(key, value)}
    if not groups:
        fix = "name a mapping or list in it so that it ends in _modifiers"
        raise RequestError(f"{source}: stage '{name}' holds no group of modifiers", fix=fix)
    stage = name.removesuffix("_stage").replace("/", "_") + "_stage"
    items = {key: tuple(_items(key, value, source)) for key, value in groups.items()}
    variables = {key: value for key, value in entries.items() if key not in groups and key != "run_type"}
    names = {item.name for group in items.values() for item in group}
    phase = _stage_phase(stage, entries.get("run_type"), any(map(_is_by_key, groups.values())), names, source)
    for key in groups:
        yield Block(f"{stage}/{group_name(key)}", phase or implied_phase(key), items[key], variables)


def _stage_phase(stage: str, run_type: object, is_by_key: bool, names: set[str], source: str) -> str:
    """Decide a stage's phase: run_type; in the key dialect its name, then its modifiers; else each list's own."""
    if run_type is None and not is_by_key:
        return ""
    if run_type is None:
        inferred = "training" if names <= TRAINING_ONLY else "post-training"
        return next((phase for word, phase in RUN_TYPES.items() if word in stage), inferred)
    if str(run_type) not in RUN_TYPES:
        fix = "write `run_type: oneshot` or `run_type: train`"
        raise RequestError(f"{source}: run_type of stage '{stage}' is {run_type!r}", fix=fix)
    return RUN_TYPES[str(run_type)]


def _items(key: str, group: object, source: str) -> Iterator[Tagged]:
    for item in _listed(group):
        if isinstance(item, Tagged):
            yield item
        elif isinstance(item, dict):
            for name, options in item.items():
                if options is not None and not isinstance(options, dict):
                    problem = f"{source}: '{name}' holds {options!r}, expected a mapping of arguments"
                    raise RequestError(problem, fix=f"write `{name}: {{…}}`")
                yield Tagged(str(name), options or {})
        else:
            fix = f"write `- !{item if isinstance(item, str) else 'QuantizationModifier'}` with arguments below it"
            raise RequestError(f"{source}: '{key}' holds {item!r}, expected a modifier with its arguments", fix=fix)
