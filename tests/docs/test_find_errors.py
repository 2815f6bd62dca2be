"""The reference of errors is read from the source: what is found there, and what stands in braces."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest


@pytest.fixture
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    from tools.find_errors import raised, text_constants

    tree = ast.parse(request.param)
    return list(raised(tree, text_constants(tree)))


CASES = {
    'def f(path):\n    raise RequestError(f"{path} is empty", fix="fill it")': [("2", "{path} is empty", "fill it")],
    'LAYOUT = "one folder"\ndef f(names):\n    raise StageError(f"no {LAYOUT}: {sorted(names)}", fix="a" + " b")': [
        ("5", "no one folder: {names}", "a b")
    ],
    'def f(near):\n    fix = f"use {near}" if near else "see --help"\n    return PluginError("twice", fix=fix)': [
        ("3", "twice", "use {near} *or* see --help")
    ],
    'def f(a):\n    if a:\n        fix = "one"\n        raise RequestError("x", fix=fix)\n    fix = "two"\n'
    '    raise RequestError(f"y {len(a)}", fix=fix)': [("2", "x", "one"), ("2", "y {number of a}", "two")],
    'def f(error):\n    raise MissingLibraryError(f"{type(error).__name__}: {error}", fix=install_command([error]))': [
        ("4", "{type}: {error}", "{install_command}")
    ],
    "def f(error):\n    raise type(error)(error.problem, fix=error.fix)": [],
}


@pytest.mark.parametrize(("found", "expected"), list(CASES.items()), indirect=["found"])
def test_errors_in_source(found: list[tuple[str, str, str]], expected: list[tuple[str, str, str]]) -> None:
    assert found == expected
