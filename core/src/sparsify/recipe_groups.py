"""Find the groups of modifiers in a recipe document: both dialects, flat or in stages, become blocks in file order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def global_variables(document: Mapping[Any, Any]) -> dict[str, Any]:
    """Return every top-level value that is neither a group, nor a stage, nor reserved."""
    return {
        str(name): value
        for name, value in document.items()
        if name not in _RESERVED and not _is_group(str(name), value) and not _is_stage(str(name), value)
    }


def find_blocks(document: Mapping[Any, Any], source: str) -> Iterator[Block]:
    """Yield every group with its phase, in file order; key-dialect groups outside stages share a `default_stage`."""
    entries = [(str(key), value) for key, value in document.items()]
    loose = {key: value for key, value in entries if _is_group(key, value) and _items(key, value, source)[1]}
    for key, value in entries:
        if key in loose:
            if key == next(iter(loose)):
                yield from _stage("default", loose, source)
        elif _is_group(key, value):
            yield Block(group_name(key), implied_phase(key), _items(key, value, source)[0], {})
        elif key == "stages":
            for name, body in _named_stages(value, source):
                yield from _stage(name, body, source)
        elif _is_stage(key, value):
            yield from _stage(key, value, source)
        elif isinstance(value, list) and any(isinstance(item, Tagged) for item in value):
            raise RequestError(
                f"{source}: list '{key}' holds modifiers, but its name does not contain 'modifiers'",
                fix=f"rename it to '{key}_modifiers'",
            )


def _named_stages(stages: object, source: str) -> Iterator[tuple[str, object]]:
    if not isinstance(stages, dict):
        raise RequestError(f"{source}: 'stages' holds no mapping", fix="write each stage's name and groups below it")
    for name, bodies in stages.items():
        if not isinstance(bodies, list):
            yield str(name), bodies
            continue
        for index, body in enumerate(bodies):
            yield f"{name}_{index + 1}" if index else str(name), body


def _is_group(key: str, value: object) -> bool:
    return ("modifiers" in key and not key.endswith("_stage")) or isinstance(value, Tagged)


def _is_stage(key: str, value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return key.endswith("_stage") or any(_is_group(str(inner), item) for inner, item in value.items())


def implied_phase(group: str) -> str:
    """Return the phase that a group's name states."""
    return "post-training" if "post_training" in group else ""


def group_name(key: str) -> str:
    """Return a group's name, which contains `modifiers` and no slash."""
    name = key.replace("/", "_")
    return name if "modifiers" in name else f"{name}_modifiers"


def _stage(name: str, body: object, source: str) -> Iterator[Block]:
    if not isinstance(body, dict) or not any(_is_group(str(key), value) for key, value in body.items()):
        raise RequestError(
            f"{source}: stage '{name}' holds no group of modifiers",
            fix="name a mapping or list in it so that it ends in _modifiers",
        )
    stage = name.removesuffix("_stage").replace("/", "_") + "_stage"
    groups = [(str(k), *_items(str(k), v, source)) for k, v in body.items() if _is_group(str(k), v)]
    variables = {str(k): v for k, v in body.items() if not _is_group(str(k), v) and k != "run_type"}
    phase = _stage_phase(stage, groups, body.get("run_type"), source)
    for key, items, _ in groups:
        yield Block(f"{stage}/{group_name(key)}", phase, items, variables)


def _stage_phase(
    stage: str, groups: Sequence[tuple[str, Sequence[Tagged], bool]], run_type: object, source: str
) -> str:
    """Decide a stage's phase: run_type; in the key dialect its name, then its modifiers; else its lists' names."""
    if run_type is not None:
        if str(run_type) not in RUN_TYPES:
            raise RequestError(
                f"{source}: run_type of stage '{stage}' is {run_type!r}",
                fix="write `run_type: oneshot` or `run_type: train`",
            )
        return RUN_TYPES[str(run_type)]
    if any(is_key_dialect for _, _, is_key_dialect in groups):
        for word, phase in RUN_TYPES.items():
            if word in stage:
                return phase
        names = {item.name for _, items, _ in groups for item in items}
        return "training" if names and names <= TRAINING_ONLY else "post-training"
    phases = {implied_phase(key) for key, _, _ in groups}
    if len(phases) > 1:
        raise RequestError(
            f"{source}: stage '{stage}' mixes post_training_modifiers with other lists",
            fix="give each a stage of its own, with `run_type: oneshot` or `run_type: train`",
        )
    return phases.pop()


def _items(key: str, value: object, source: str) -> tuple[tuple[Tagged, ...], bool]:
    """Return a group's modifiers, and whether it is written in the key dialect (Name: options)."""
    items: list[Tagged] = []
    is_key_dialect = False
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, Tagged):
            items.append(item)
        elif isinstance(item, dict):
            is_key_dialect = True
            items.extend(Tagged(str(name), _arguments(str(name), options, source)) for name, options in item.items())
        else:
            raise RequestError(
                f"{source}: '{key}' holds {item!r}, expected a modifier with its arguments",
                fix=f"write `- !{item if isinstance(item, str) else 'QuantizationModifier'}` with arguments below it",
            )
    return tuple(items), is_key_dialect


def _arguments(name: str, options: object, source: str) -> Mapping[Any, Any]:
    if options is not None and not isinstance(options, dict):
        raise RequestError(
            f"{source}: '{name}' holds {options!r}, expected a mapping of arguments", fix=f"write `{name}: {{…}}`"
        )
    return options or {}
