"""Resolve the variables of a recipe: `eval(expression)` as a complete value, overrides, and stages that shadow."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sparsify.arithmetic import evaluate, referenced_names
from sparsify.errors import RequestError
from sparsify.known_modifiers import nearest
from sparsify.recipe_text import Tagged

_EVAL = re.compile(r"\s*eval\((.*)\)\s*", re.DOTALL)


def check_overrides(given: Collection[str], defined: Collection[str], document: object, source: str) -> None:
    """Raise RequestError for an override that the recipe neither defines nor reads in any eval(...)."""
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
    inner = value.options if isinstance(value, Tagged) else value
    if isinstance(inner, dict):
        inner = [*inner.keys(), *inner.values()]
    return frozenset().union(*map(_references, inner if isinstance(inner, list) else ()))


def resolve_variables(variables: Mapping[str, Any], outer: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return outer and resolved variables together; raises RequestError for undefined names and cycles."""
    sorter = TopologicalSorter({name: _references(value) & variables.keys() for name, value in variables.items()})
    values = dict(outer)
    try:
        for name in sorter.static_order():
            values[name] = substitute(variables[name], values, f"{source}, variable '{name}'")
    except CycleError as error:
        problem = f"{source}: variables refer to one another: {' → '.join(error.args[1])}"
        raise RequestError(problem, fix="give one of them a plain value") from error
    return values


def substitute(value: Any, scope: Mapping[str, Any], where: str) -> Any:
    """Replace every eval(...) within a value; raises RequestError saying where."""
    if isinstance(value, str):
        return _evaluate(value, scope, where)
    if isinstance(value, list):
        return [substitute(item, scope, where) for item in value]
    if isinstance(value, Tagged):
        fix = "put it into a list named …_modifiers"
        raise RequestError(f"{where}: modifier !{value.name} stands inside another value", fix=fix)
    if isinstance(value, dict):
        keys = substitute(list(value), scope, where)
        if any(isinstance(key, list | dict) for key in keys):
            raise RequestError(f"{where}: a list or mapping cannot be a key", fix="use a number or a name as key")
        return dict(zip(keys, substitute(list(value.values()), scope, where), strict=True))
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
