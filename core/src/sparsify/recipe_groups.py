"""Find the groups of modifiers in a recipe document: both dialects, flat or in stages, become blocks in file order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparsify.errors import RequestError
from sparsify.known_modifiers import TRAINING_ONLY
from sparsify.recipe import RUN_TYPES, Step, group_name, implied_phase
from sparsify.recipe_text import Tagged

_RESERVED = ("version", "__metadata__", "stages")


def global_variables(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return every top-level value that is neither a group, nor a stage, nor reserved."""
    values = {name: value for name, value in document.items() if name not in _RESERVED}
    return {name: value for name, value in values.items() if not _is_group(name, value) and not _is_stage(name, value)}


def find_steps(document: Mapping[str, Any], source: str) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    """Yield every step as written, with the variables of its stage; key-dialect groups without one share a stage."""
    loose = {key: value for key, value in document.items() if _is_group(key, value) and _is_by_key(value)}
    for key, value in document.items():
        if key in loose:
            yield from _stage("default", loose, source) if key == next(iter(loose)) else ()
        elif _is_group(key, value):
            for item in _items(key, value, source):
                yield Step(item.name, implied_phase(key), item.options, group_name(key)), {}
        elif key == "stages":
            yield from _named_stages(value, source)
        elif _is_stage(key, value):
            yield from _stage(key, value, source)
        elif isinstance(value, list) and any(isinstance(item, Tagged) for item in value):
            problem = f"{source}: list '{key}' holds modifiers, but its name does not contain 'modifiers'"
            raise RequestError(problem, fix=f"rename it to '{key}_modifiers'")


def _is_group(key: str, value: object) -> bool:
    return ("modifiers" in key and not key.endswith("_stage")) or isinstance(value, Tagged)


def _is_stage(key: str, value: object) -> bool:
    return isinstance(value, dict) and (key.endswith("_stage") or any(_is_group(str(k), v) for k, v in value.items()))


def _is_by_key(group: object) -> bool:
    return any(isinstance(item, dict) for item in _listed(group))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _named_stages(stages: object, source: str) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    if not isinstance(stages, dict):
        raise RequestError(f"{source}: 'stages' holds no mapping", fix="write each stage's name and groups below it")
    for name, bodies in stages.items():
        for index, body in enumerate(bodies if isinstance(bodies, list) else [bodies]):
            yield from _stage(f"{name}_{index + 1}" if index else str(name), body, source)


def _stage(name: str, body: object, source: str) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    entries = {str(key): value for key, value in body.items()} if isinstance(body, dict) else {}
    groups = {key: value for key, value in entries.items() if _is_group(key, value)}
    if not groups:
        fix = "name a mapping or list in it so that it ends in _modifiers"
        raise RequestError(f"{source}: stage '{name}' holds no group of modifiers", fix=fix)
    stage = name.removesuffix("_stage").replace("/", "_") + "_stage"
    items = {key: list(_items(key, value, source)) for key, value in groups.items()}
    variables = {key: value for key, value in entries.items() if key not in groups and key != "run_type"}
    names = {item.name for group in items.values() for item in group}
    phase = _stage_phase(stage, entries.get("run_type"), groups, names, source)
    for key, group in items.items():
        for item in group:
            yield Step(item.name, phase, item.options, f"{stage}/{group_name(key)}"), variables


def _stage_phase(stage: str, run_type: object, groups: Mapping[str, object], names: set[str], source: str) -> str:
    """Decide a stage's phase: run_type; in the key dialect its name, then its modifiers; else its lists' names."""
    if run_type is not None and str(run_type) not in RUN_TYPES:
        fix = "write `run_type: oneshot` or `run_type: train`"
        raise RequestError(f"{source}: run_type of stage '{stage}' is {run_type!r}", fix=fix)
    if run_type is not None:
        return RUN_TYPES[str(run_type)]
    if any(map(_is_by_key, groups.values())):
        inferred = "training" if names <= TRAINING_ONLY else "post-training"
        return next((phase for word, phase in RUN_TYPES.items() if word in stage), inferred)
    phases = {implied_phase(key) for key in groups}
    if len(phases) > 1:
        fix = "give each a stage of its own, with `run_type: oneshot` or `run_type: train`"
        raise RequestError(f"{source}: stage '{stage}' mixes post_training_modifiers with other lists", fix=fix)
    return phases.pop()


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
