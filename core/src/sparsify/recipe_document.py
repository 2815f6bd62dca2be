"""Turn a recipe document into steps: find groups of both dialects, flat or in stages, and resolve variables."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from typing import Any

from sparsify.arithmetic import evaluate, referenced_names
from sparsify.errors import RequestError
from sparsify.known_modifiers import TRAINING_ONLY, current_name, has_epochs, nearest, normalise_options
from sparsify.recipe import RUN_TYPES, Recipe, Step, group_name, implied_phase

_EVAL = re.compile(r"\s*eval\((.*)\)\s*", re.DOTALL)
_EXAMPLE = "write `modifiers:` and below it items such as `- !QuantizationModifier {}`"
_Found = tuple[Step, Mapping[str, Any]]  # a step as written, with the variables of its stage


def read_steps(document: object, given: Mapping[str, Any], source: str) -> Recipe:
    """Return the steps in file order, variables resolved, those `given` replaced; raises RequestError."""
    if isinstance(document, Step | list):
        document = {"modifiers": document}
    if not isinstance(document, dict):
        raise RequestError(f"{source} holds {type(document).__name__}, expected lists of modifiers", fix=_EXAMPLE)
    found, variables = _split({str(key): value for key, value in document.items()}, source)
    if not found and not any("modifiers" in str(key) for key in document):
        raise RequestError(f"{source} holds no modifiers", fix=_EXAMPLE)
    _check_overrides(given, variables.keys() | {name for _, own in found for name in own}, document, source)
    scope = _resolve({**variables, **given}, {}, source)
    steps: list[Step] = []
    notes: list[str] = []
    for step, own in found:
        inner = _resolve({name: given.get(name, value) for name, value in own.items()}, scope, source)
        options = _substitute(step.options, inner, f"{source}, {step.name}")
        name = current_name(step.name, step.phase)
        options, said = normalise_options(name, step.phase, options)
        steps.append(replace(step, name=name, options=options))
        said += [f"written {step.name} in the recipe"] if name != step.name else []
        notes.extend(f"{name}: {line}" for line in said)
    return Recipe(tuple(steps), tuple(dict.fromkeys(notes)))


def _split(document: Mapping[str, Any], source: str) -> tuple[list[_Found], dict[str, Any]]:
    """Return every step in file order, and the document's variables; key-dialect groups without a stage share one."""
    found: list[_Found] = []
    variables: dict[str, Any] = {}
    loose = {key: value for key, value in document.items() if _is_group(key, value) and _is_by_key(value)}
    for key, value in document.items():
        if key in loose:
            found.extend(_stage("default", loose, source) if key == next(iter(loose)) else ())
        elif _is_group(key, value):
            found.extend(_placed(_items(key, value, source), implied_phase(key), group_name(key), {}))
        elif key == "stages":
            found.extend(_named_stages(value, source))
        elif _is_stage(key, value):
            found.extend(_stage(key, value, source))
        elif isinstance(value, list) and any(isinstance(item, Step) for item in value):
            problem = f"{source}: list '{key}' holds modifiers, but its name does not contain 'modifiers'"
            raise RequestError(problem, fix=f"rename it to '{key}_modifiers'")
        elif key not in ("version", "__metadata__"):
            variables[key] = value
    return found, variables


def _is_group(key: str, value: object) -> bool:
    return ("modifiers" in key and not key.endswith("_stage")) or isinstance(value, Step)


def _is_stage(key: str, value: object) -> bool:
    return isinstance(value, dict) and (key.endswith("_stage") or any(_is_group(str(k), v) for k, v in value.items()))


def _is_by_key(group: object) -> bool:
    return any(isinstance(item, dict) for item in _listed(group))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _named_stages(stages: object, source: str) -> Iterator[_Found]:
    if not isinstance(stages, dict):
        raise RequestError(f"{source}: 'stages' holds no mapping", fix="write each stage's name and groups below it")
    for name, bodies in stages.items():
        for index, body in enumerate(bodies if isinstance(bodies, list) else [bodies]):
            yield from _stage(f"{name}_{index + 1}" if index else str(name), body, source)


def _stage(name: str, body: object, source: str) -> Iterator[_Found]:
    entries = {str(key): value for key, value in body.items()} if isinstance(body, dict) else {}
    groups = {key: value for key, value in entries.items() if _is_group(key, value)}
    if not groups:
        fix = "name a mapping or list in it so that it ends in _modifiers"
        raise RequestError(f"{source}: stage '{name}' holds no group of modifiers", fix=fix)
    stage = name.removesuffix("_stage").replace("/", "_") + "_stage"
    items = {key: list(_items(key, value, source)) for key, value in groups.items()}
    variables = {key: value for key, value in entries.items() if key not in groups and key != "run_type"}
    phase = _stage_phase(stage, entries.get("run_type"), items, any(map(_is_by_key, groups.values())), source)
    for key, group in items.items():
        yield from _placed(group, phase, f"{stage}/{group_name(key)}", variables)


def _placed(steps: Iterable[Step], phase: str, group: str, variables: Mapping[str, Any]) -> Iterator[_Found]:
    return ((replace(step, phase=phase, group=group), variables) for step in steps)


def _stage_phase(stage: str, run_type: object, items: Mapping[str, list[Step]], is_by_key: bool, source: str) -> str:
    """Decide a stage's phase: run_type; in the key dialect its name, then its modifiers; else its lists' names."""
    if run_type is not None and str(run_type) not in RUN_TYPES:
        fix = "write `run_type: oneshot` or `run_type: train`"
        raise RequestError(f"{source}: run_type of stage '{stage}' is {run_type!r}", fix=fix)
    if run_type is not None:
        return RUN_TYPES[str(run_type)]
    if is_by_key:
        steps = list(chain.from_iterable(items.values()))
        trains = any(map(has_epochs, steps)) or all(step.name in TRAINING_ONLY for step in steps)
        inferred = "training" if trains else "post-training"
        return next((phase for word, phase in RUN_TYPES.items() if word in stage), inferred)
    phases = {implied_phase(key) for key in items}
    if len(phases) > 1:
        fix = "give each a stage of its own, with `run_type: oneshot` or `run_type: train`"
        raise RequestError(f"{source}: stage '{stage}' mixes post_training_modifiers with other lists", fix=fix)
    return phases.pop()


def _items(key: str, group: object, source: str) -> Iterator[Step]:
    for item in _listed(group):
        if isinstance(item, Step):
            yield item
        elif isinstance(item, dict):
            for name, options in item.items():
                if options is not None and not isinstance(options, dict):
                    problem = f"{source}: '{name}' holds {options!r}, expected a mapping of arguments"
                    raise RequestError(problem, fix=f"write `{name}: {{…}}`")
                yield Step(str(name), "", options or {}, "")
        else:
            fix = f"write `- !{item if isinstance(item, str) else 'QuantizationModifier'}` with arguments below it"
            raise RequestError(f"{source}: '{key}' holds {item!r}, expected a modifier with its arguments", fix=fix)


def _check_overrides(given: Collection[str], defined: Collection[str], document: object, source: str) -> None:
    names = {*defined, *_references(document)}
    for name in given:
        if name not in names:
            fix = nearest(name, names, f"use one of: {', '.join(sorted(names)) or 'it defines none'}")
            raise RequestError(f"{source} has no variable '{name}' for --recipe-args to replace", fix=fix)


def _references(value: object) -> frozenset[str]:
    """Return the variables that any eval(...) within a value reads."""
    if isinstance(value, str):
        found = _EVAL.fullmatch(value)
        return referenced_names(found[1]) if found else frozenset()
    inner = value.options if isinstance(value, Step) else value
    if isinstance(inner, dict):
        inner = [*inner.keys(), *inner.values()]
    return frozenset().union(*map(_references, inner if isinstance(inner, list) else ()))


def _resolve(variables: Mapping[str, Any], outer: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Compute variables; those of a stage read the document's before one another, so that `x: eval(x)` can be."""
    inner = variables.keys() - outer.keys()
    sorter = TopologicalSorter({name: _references(value) & inner for name, value in variables.items()})
    values = dict(outer)
    try:
        for name in sorter.static_order():
            values[name] = _substitute(variables[name], {**values, **outer}, f"{source}, variable '{name}'")
    except CycleError as error:
        problem = f"{source}: variables refer to one another: {' → '.join(error.args[1])}"
        raise RequestError(problem, fix="give one of them a plain value") from error
    return values


def _substitute(value: Any, scope: Mapping[str, Any], where: str) -> Any:
    """Replace every eval(...) within a value."""
    if isinstance(value, str):
        return _evaluate(value, scope, where)
    if isinstance(value, list):
        return [_substitute(item, scope, where) for item in value]
    if isinstance(value, Step):
        fix = "put it into a list named …_modifiers"
        raise RequestError(f"{where}: modifier !{value.name} stands inside another value", fix=fix)
    if isinstance(value, dict):
        keys = _substitute(list(value), scope, where)
        if any(isinstance(key, list | dict) for key in keys):
            raise RequestError(f"{where}: a list or mapping cannot be a key", fix="use a number or a name as key")
        return dict(zip(keys, _substitute(list(value.values()), scope, where), strict=True))
    return value


def _evaluate(text: str, scope: Mapping[str, Any], where: str) -> Any:
    found = _EVAL.fullmatch(text)
    if not found and "eval(" in text:
        fix = "compute it in one eval(expression)"
        raise RequestError(f"{where}: eval(…) must be the whole value, found '{text}'", fix=fix)
    if not found:
        return text
    for name in sorted(referenced_names(found[1]) - scope.keys()):
        problem = f"{where}: {text.strip()} uses variable '{name}', which the recipe does not define"
        near = nearest(name, scope)
        fix = (f"{near}, or " if near else "") + f"define it, or give --recipe-args '{{\"{name}\": …}}'"
        raise RequestError(problem, fix=fix)
    try:
        return evaluate(found[1], scope)
    except RequestError as error:
        raise RequestError(f"{where}: {error.problem}", fix=error.fix) from error
