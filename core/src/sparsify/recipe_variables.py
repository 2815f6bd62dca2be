"""Resolve the variables of a recipe: `eval(expression)` as a complete value, overrides, and stages that shadow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sparsify.arithmetic import evaluate, referenced_names
from sparsify.errors import RequestError
from sparsify.recipe_groups import Block
from sparsify.recipe_text import Tagged

_EVAL = re.compile(r"\s*eval\((.*)\)\s*", re.DOTALL)
_NUMERIC = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*")


def read_override(value: Any) -> Any:
    """Turn numeric text into a number, as `--recipe-args` promises."""
    if isinstance(value, str) and _NUMERIC.fullmatch(value):
        return int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    return value


def check_overrides(
    given: Mapping[str, Any], document: object, variables: Mapping[str, Any], blocks: Sequence[Block], source: str
) -> None:
    """Raise RequestError for an override that no variable, stage or eval(...) of the recipe knows."""
    names = {*variables, *(name for block in blocks for name in block.variables)}
    if not given.keys() <= names:
        names |= _references(document)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            listed = f"use '{near[0]}'" if near else f"use one of: {', '.join(sorted(names)) or 'it defines none'}"
            raise RequestError(f"{source} has no variable '{name}' for --recipe-args to replace", fix=listed)


def _references(value: object) -> frozenset[str]:
    """Return the variables that any eval(...) within a value reads."""
    if isinstance(value, str):
        found = _EVAL.fullmatch(value)
        return referenced_names(found.group(1)) if found else frozenset()
    inner: list[object] = list(value) if isinstance(value, list) else []
    mapping = value.options if isinstance(value, Tagged) else value
    if isinstance(mapping, dict):
        inner = [*mapping.keys(), *mapping.values()]
    return frozenset().union(*map(_references, inner))


def resolve_variables(variables: Mapping[str, Any], outer: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return outer and resolved variables together; raises RequestError for undefined names and cycles."""
    sorter = TopologicalSorter({name: _references(value) & variables.keys() for name, value in variables.items()})
    values = dict(outer)
    try:
        for name in sorter.static_order():
            values[name] = substitute(variables[name], values, f"{source}, variable '{name}'")
    except CycleError as error:
        raise RequestError(
            f"{source}: variables refer to one another: {' → '.join(error.args[1])}",
            fix="give one of them a plain value",
        ) from error
    return values


def substitute(value: Any, scope: Mapping[str, Any], where: str) -> Any:
    """Replace every eval(...) within a value; raises RequestError saying where."""
    if isinstance(value, str):
        return _evaluate(value, scope, where)
    if isinstance(value, list):
        return [substitute(item, scope, where) for item in value]
    if isinstance(value, Tagged):
        raise RequestError(
            f"{where}: modifier !{value.name} stands inside another value", fix="put it into a list named …_modifiers"
        )
    if isinstance(value, dict):
        pairs = {_key(substitute(key, scope, where), where): item for key, item in value.items()}
        return {key: substitute(item, scope, where) for key, item in pairs.items()}
    return value


def _key(key: Any, where: str) -> Any:
    if isinstance(key, list | dict):
        raise RequestError(f"{where}: a list or mapping cannot be a key", fix="use a number or a name as key")
    return key


def _evaluate(text: str, scope: Mapping[str, Any], where: str) -> Any:
    found = _EVAL.fullmatch(text)
    if not found:
        if "eval(" in text:
            raise RequestError(
                f"{where}: eval(…) must be the whole value, found '{text}'", fix="compute it in one eval(expression)"
            )
        return text
    for name in sorted(referenced_names(found.group(1)) - scope.keys()):
        near = get_close_matches(name, scope, n=1)
        raise RequestError(
            f"{where}: {text.strip()} uses variable '{name}', which the recipe does not define",
            fix=(f"use '{near[0]}', or " if near else "") + f"define it, or give --recipe-args '{{\"{name}\": …}}'",
        )
    try:
        return evaluate(found.group(1), scope)
    except RequestError as error:
        raise RequestError(f"{where}: {error.problem}", fix=error.fix) from error
