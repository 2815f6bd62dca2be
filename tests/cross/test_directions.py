"""The architecture checker: this checkout is clean, and each direction and limit, broken on purpose, is caught."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_architecture.py"
CORE = "core/src/sparsify"
ONNX = "integrations/onnx/src/sparsify_onnx"
NPZ = "plugins/npz/src/sparsify_npz"


def run_tool(root: Path) -> subprocess.CompletedProcess[str]:
    # -I -S: the tool needs nothing installed
    command = [sys.executable, "-I", "-S", str(TOOL), str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_this_checkout_is_clean_and_core_is_counted() -> None:
    ran = run_tool(ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "lines of code, at most 3500; 0 faults" in ran.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small house with the layout of this one."""
    root = tmp_path_factory.mktemp("house")
    files = {
        f"{CORE}/__init__.py": '"""Core."""\n\n__all__ = ["Entry", "RequestError"]\n',
        f"{CORE}/hooks.py": '"""Hooks."""\n\n\nclass Entry:\n    """A row."""\n',
        f"{CORE}/errors.py": '"""Errors."""\n\n\nclass SparsifyError(Exception):\n    """Any."""\n\n\n'
        'class RequestError(SparsifyError):\n    """2."""\n\n\nclass Unreadable(RequestError):\n    """One."""\n',
    }
    for folder, package in (("integrations/onnx", "sparsify_onnx"), ("integrations/torch", "sparsify_torch"),
                            ("plugins/npz", "sparsify_npz"), ("plugins/yolo", "sparsify_yolo")):  # fmt: skip
        home = f"{folder}/src/{package}"
        files |= {
            f"{folder}/pyproject.toml": f'[project.entry-points.sparsify]\nname = "{package}.plugin"\n',
            f"{home}/__init__.py": '"""A package."""\n\n__all__ = ["public"]\n',
            f"{home}/plugin.py": '"""Offer."""\n\nfrom sparsify import Entry\n\n'
            f'ROW = Entry("name", target="{package}.work:public", summary="it")\n',
            f"{home}/work.py": '"""Work."""\n\nimport sparsify\nfrom sparsify import RequestError\n\n\n'
            'def public() -> None:\n    """Work."""\n    raise sparsify.RequestError(RequestError.__name__)\n',
        }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def house(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "house")


def faults(root: Path) -> list[str]:
    ran = run_tool(root)
    *rows, last = ran.stdout.splitlines()
    assert last.startswith("core: "), ran.stderr
    assert ran.returncode == (1 if rows else 0)
    assert last.endswith(f"; {len(rows)} faults")
    return rows


def test_the_small_house_is_clean(house: Path) -> None:
    assert faults(house) == []


LAZY = "\n\ndef late() -> None:\n    {}\n"
ALLOWED = {
    "a plugin imports an integration inside a function": (
        f"{NPZ}/work.py",
        LAZY.format("from sparsify_onnx import public"),
    ),
    "torch imports onnx": (
        "integrations/torch/src/sparsify_torch/work.py",
        "\nfrom sparsify_onnx import public as other\n",
    ),
    "a package imports its own modules": (f"{NPZ}/work.py", "\nfrom sparsify_npz.other import thing\n"),
    "a constant table": (f"{CORE}/hooks.py", "\nTABLE = {'a': 1}\n"),
    "one level of inheritance": (f"{CORE}/hooks.py", "\nclass Row(Entry):\n    pass\n"),
}
BROKEN = {
    # directions
    "core imports an integration": (f"{CORE}/hooks.py", "\nimport sparsify_onnx\n", "core imports sparsify_onnx"),
    "core imports a plugin in a function": (
        f"{CORE}/hooks.py",
        LAZY.format("from sparsify_npz import public"),
        "core imports sparsify_npz",
    ),
    "core imports a package that is not here": (
        f"{CORE}/hooks.py",
        "\nimport sparsify_serve.x\n",
        "core imports sparsify_serve",
    ),
    "core imports a plugin by its name": (
        f"{CORE}/hooks.py",
        LAZY.format("__import__('importlib').import_module('sparsify_npz')"),
        "core imports sparsify_npz",
    ),
    "a plugin imports a plugin": (
        f"{NPZ}/work.py",
        LAZY.format("from sparsify_yolo import public"),
        "plugin sparsify_npz imports the plugin sparsify_yolo",
    ),
    "an integration imports a plugin": (
        f"{ONNX}/work.py",
        "\nimport sparsify_npz\n",
        "integration sparsify_onnx imports the plugin sparsify_npz",
    ),
    "an integration imports an integration": (
        f"{ONNX}/work.py",
        "\nimport sparsify_torch\n",
        "integration sparsify_onnx imports the integration sparsify_torch",
    ),
    "a plugin imports an integration at its top": (
        f"{NPZ}/work.py",
        "\nfrom sparsify_onnx import public as other\n",
        "plugin sparsify_npz imports the integration sparsify_onnx outside the function that needs it",
    ),
    "a module of core": (
        f"{NPZ}/work.py",
        "\nfrom sparsify.errors import RequestError\n",
        "imports sparsify.errors; only the public names of sparsify may be imported",
    ),
    "a private name of core": (
        f"{NPZ}/work.py",
        "\nfrom sparsify import hooks\n",
        "imports hooks, which is not in sparsify.__all__",
    ),
    "a private attribute of core": (
        f"{NPZ}/work.py",
        LAZY.format("sparsify.hooks"),
        "uses sparsify.hooks, which is not in sparsify.__all__",
    ),
    "a private name of an integration": (
        f"{NPZ}/work.py",
        LAZY.format("from sparsify_onnx import hidden"),
        "imports hidden, which is not in sparsify_onnx.__all__",
    ),
    "a module of an integration": (
        f"{NPZ}/work.py",
        LAZY.format("import sparsify_onnx.work"),
        "imports sparsify_onnx.work; only the public names of sparsify_onnx may be imported",
    ),
    # plugin.py and __init__.py
    "a plugin.py imports a library": (
        f"{NPZ}/plugin.py",
        "\nimport numpy\n",
        "plugin.py imports numpy; it may import only sparsify, targets are imported on first use",
    ),
    "a plugin.py is long": (
        f"{NPZ}/plugin.py",
        "\nX = 1\n" * 40,
        "plugin.py has 41 lines of code besides its Entry rows, at most 40 are allowed",
    ),
    "a target in another package": (
        f"{NPZ}/plugin.py",
        "\nOTHER = Entry('a', 'sparsify_onnx.work:public', 'b')\n",
        "target 'sparsify_onnx.work:public' lies outside sparsify_npz",
    ),
    "an __init__ imports at once": (
        f"{NPZ}/__init__.py",
        "\nfrom sparsify_npz.work import public\n",
        "__init__.py imports sparsify_npz.work at once; re-export it through __getattr__ (PEP 562)",
    ),
    # limits
    "a long module": (f"{NPZ}/work.py", "\n" * 400, "409 lines in one module, at most 400 are allowed"),
    "a long function": (
        f"{NPZ}/work.py",
        "\n\ndef long():\n" + "    x = 1\n" * 60,
        "long is 61 lines long, at most 60 are allowed",
    ),
    "deep inheritance": (
        f"{NPZ}/work.py",
        "\nclass A: ...\nclass B(A): ...\nclass C(B): ...\n",
        "class C < B < A is 2 levels deep",
    ),
    "a global": (f"{NPZ}/work.py", LAZY.format("global state"), "global state: pass the value instead"),
    "mutable state": (f"{NPZ}/work.py", "\ncache = {}\n", "module-level mutable value 'cache': build it in a function"),
    "mutable state, typed": (
        f"{NPZ}/work.py",
        "\nseen: set[str] = set()\n",
        "module-level mutable value 'seen': build it in a function",
    ),
}


def append(file: Path, text: str) -> None:
    file.write_text((file.read_text() if file.exists() else "") + text)


@pytest.mark.parametrize(("file", "text"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed(house: Path, file: str, text: str) -> None:
    append(house / file, text)
    assert faults(house) == []


@pytest.mark.parametrize(("file", "text", "expected"), BROKEN.values(), ids=BROKEN)
def test_what_is_caught(house: Path, file: str, text: str, expected: str) -> None:
    append(house / file, text)
    (fault,) = faults(house)
    place, line, said = fault.split(":", 2)
    assert (place, said.strip()) == (file, expected)
    assert line.isdecimal()


def test_a_package_without_its_entry_point_is_caught(house: Path) -> None:
    (house / "plugins/npz/pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert faults(house) == ["plugins/npz/pyproject.toml: no entry point of group sparsify names sparsify_npz.plugin"]


def test_core_above_its_budget_is_caught_and_comments_are_free(house: Path) -> None:
    append(house / CORE / "big.py", '"""Doc."""\n' + "x = 1  # why\n" * 390 + "# only a comment\n" * 5)
    clean = run_tool(house).stdout
    for index in range(9):
        shutil.copy(house / CORE / "big.py", house / CORE / f"big{index}.py")
    (fault,) = faults(house)
    assert clean.startswith("core: 395 lines of code")
    assert fault == f"core: {395 + 9 * 390} lines of code, at most 3500 are allowed"


def mutate(house: Path, file: str, change: Callable[[str], str]) -> None:
    (house / file).write_text(change((house / file).read_text()))


def test_this_checkout_with_one_wrong_import_is_caught(tmp_path: Path) -> None:
    for name in ("core", "integrations", "plugins"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz", "*.onnx"))
    mutate(tmp_path, f"{NPZ}/folder.py", lambda text: text + "\n\nfrom sparsify_onnx.graph import weight_layers\n")
    mutate(tmp_path, f"{CORE}/hooks.py", lambda text: text + "\n\nimport sparsify_npz\n")
    rows = faults(tmp_path)
    assert [row.split(":", 2)[2].strip() for row in rows if "sparsify_" in row] == [
        "core imports sparsify_npz",
        "plugin sparsify_npz imports the integration sparsify_onnx outside the function that needs it",
    ]


# What the tool counts


@cache
def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_architecture", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_entry_rows_of_any_shape_do_not_count() -> None:
    rows = "\n".join(["Entry(", "    'a',", "    'b:c',", "    'd',", "),"] * 30)
    head = "from sparsify import Entry, hookimpl\n@hookimpl\ndef use_cases():\n    '''Offer.'''\n"
    assert list(load_tool().check_plugin_size(f"{head}    return [\n{rows}\n]\n")) == []


def test_code_lines_leave_out_what_is_no_code() -> None:
    head = '"""Doc\nstring."""\n\n# comment\nx = """two\nlines"""  # same line\n\n\n'
    source = head + 'def f():\n    """Doc."""\n    return [\n\n        1,\n    ]\n'
    assert sorted(load_tool().code_lines(source)) == [5, 6, 9, 11, 13, 14]


@given(st.lists(st.sampled_from(["x = 1", "", "# no", "y = 2  # yes"])))
def test_code_lines_count_every_statement_once(lines: list[str]) -> None:
    expected = [number for number, line in enumerate(lines, 1) if "=" in line]
    assert sorted(load_tool().code_lines("\n".join(lines))) == expected
