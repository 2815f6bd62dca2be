"""Write a third-party plugin that works: package, entry point, one real implementation, tests, README."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template

from sparsify import RequestError

TEMPLATES = Path(__file__).parent / "templates"
PLACES = {"pyproject.toml": ".", "README.md": ".", "test_plugin.py": "tests"}  # of files outside the package
# kind of plugin: what its package depends on besides sparsify-core
KINDS: Mapping[str, tuple[str, ...]] = {
    "use-case": ("sparsify-plugin-npz>=0.1",),
    "dataset": ("numpy>=1.26",),
    "modifier": ("numpy>=1.26", "onnx>=1.17", "pydantic>=2.10"),
    "runtime": ("onnx>=1.17",),
    "evaluator": ("numpy>=1.26",),
    "command": ("typer>=0.27",),
}


def write_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write a plugin's files into a new or empty folder and return their paths; raises RequestError."""
    package = package_of(name)
    if kind not in KINDS:
        raise RequestError(f"there is no kind of plugin '{kind}'", fix=f"use one of: {', '.join(KINDS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is not an empty folder", fix="give --output a folder that is new or empty")
    words = {
        "name": name,
        "package": package,
        "title": "".join(part.capitalize() for part in name.removesuffix("-modifier").split("-")),
        "kind": kind.replace("-", " "),
        "dependencies": ", ".join(f'"{one}"' for one in ("sparsify-core>=0.1", *KINDS[kind])),
    }
    written = []
    for template in (*(TEMPLATES / "package").iterdir(), *(TEMPLATES / kind).iterdir()):
        file = folder / PLACES.get(template.stem, f"src/{package}") / template.stem
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        written.append(file)
    return sorted(written)


def package_of(name: str) -> str:
    """Return the import name of a distribution; raises RequestError for a name that cannot be one, or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        fix = "use lower-case letters, digits and single hyphens, such as my-plugin"
        raise RequestError(f"'{name}' cannot name a plugin", fix=fix)
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or find_spec(package) is not None:
        problem = f"'{name}' would hide the module '{package}' that Python already has"
        raise RequestError(problem, fix=f"use another name: {name}-plugin")
    return package
