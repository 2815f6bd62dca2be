"""Choose by module which nodes of a graph stay float."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from sparsify import RequestError
from torch import nn


def matching_nodes(
    module: nn.Module, patterns: Sequence[str], owners: Mapping[str, str], *, strict: bool = True
) -> set[str]:
    """Name the nodes that modules matching a path, a class name or a `re:` pattern call; `owners` maps nodes to paths.

    A path stands for all below it. Raises RequestError for a pattern that matches no module,
    unless `strict` is off.
    """
    paths = {path for pattern in patterns for path in _matches(module, pattern, strict)}
    return {node for node, owner in owners.items() if any(_inside(owner, path) for path in paths)}


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def _matches(module: nn.Module, pattern: str, strict: bool) -> list[str]:
    kinds = {path: type(part).__name__ for path, part in module.named_modules() if path}
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise RequestError(
                f"ignore: '{pattern}' is no regular expression: {error}",
                fix="mend the pattern, or write the module's name",
            ) from error
        found = [path for path in kinds if expression.match(path)]
    else:
        found = [path for path, kind in kinds.items() if pattern in (path, kind)]
    if not found and strict:
        near = (
            get_close_matches(pattern.removeprefix("re:"), [*kinds, *kinds.values()], n=3, cutoff=0.3) or [*kinds][:3]
        )
        raise RequestError(
            f"ignore: '{pattern}' matches none of the model's {len(kinds)} modules",
            fix=f"use a module's path or class, such as {', '.join(dict.fromkeys(near))}",
        )
    return found
