"""Write a third-party plugin that works: package, entry point, one real implementation, tests, README."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template

from sparsify.errors import RequestError

TEMPLATES = Path(__file__).parent / "templates"
# kind: the implementation's module, and what the package depends on besides sparsify-core
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "use-case": ("task", ("sparsify-plugin-npz>=0.1",)),
    "dataset": ("rows", ("numpy>=1.26",)),
    "modifier": ("clipping", ("numpy>=1.26", "onnx>=1.17", "pydantic>=2.10")),
    "runtime": ("session", ("onnx>=1.17",)),
    "evaluator": ("metric", ("numpy>=1.26",)),
    "command": ("command", ("typer>=0.27",)),
}


def write_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write a plugin's files into a new or empty folder and return their paths; raises RequestError."""
    package = package_of(name)
    if kind not in KINDS:
        raise RequestError(f"there is no kind of plugin '{kind}'", fix=f"use one of: {', '.join(KINDS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is not an empty folder", fix="give --output a folder that is new or empty")
    module, dependencies = KINDS[kind]
    words = {
        "name": name,
        "package": package,
        "title": "".join(part.capitalize() for part in name.removesuffix("-modifier").split("-")),
        "kind": kind.replace("-", " "),
        "module": module,
        "dependencies": ", ".join(f'"{one}"' for one in ("sparsify-core>=0.1", *dependencies)),
    }
    files = {
        "pyproject.toml": "package/pyproject.toml",
        "README.md": "package/README.md",
        f"src/{package}/__init__.py": "package/__init__.py",
        f"src/{package}/plugin.py": f"{kind}/plugin.py",
        f"src/{package}/{module}.py": f"{kind}/{module}.py",
        "tests/test_plugin.py": f"{kind}/test_plugin.py",
    }
    for path, template in files.items():
        text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(Template(text).substitute(words), encoding="utf-8")
    return [folder / path for path in files]


def package_of(name: str) -> str:
    """Return the import name of a distribution; raises RequestError for a name that cannot be one, or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        fix = "use lower-case letters, digits and single hyphens, such as my-plugin"
        raise RequestError(f"'{name}' cannot name a plugin", fix=fix)
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or find_spec(package) is not None:
        problem = f"'{name}' would hide the module '{package}' that Python already has"
        raise RequestError(problem, fix=f"use another name: {name}-plugin")
    return package
