"""Plugins that exist for one test: a package and its metadata in a folder on `sys.path`, as pip would leave them."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

HEADER = "from sparsify import Entry, hookimpl\n"


def write_metadata(site: Path, distribution: str, version: str, points: dict[str, str]) -> None:
    folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    rows = "".join(f"{name} = {value}\n" for name, value in points.items())
    (folder / "entry_points.txt").write_text(f"[sparsify]\n{rows}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python searches for packages and their metadata; what was imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def add_plugin(site: Path) -> Callable[..., None]:
    """Add a plugin: `add_plugin("name", source of plugin.py, module="source", …)`; `__init__` is one of the modules."""

    def add(name: str, source: str, *, point: str = "", **modules: str) -> None:
        package = site / name.replace("-", "_")
        package.mkdir()
        for module, text in {"__init__": "", "plugin": HEADER + dedent(source), **modules}.items():
            (package / f"{module}.py").write_text(dedent(text))
        write_metadata(site, name, "1.2", {point or name: f"{package.name}.plugin"})

    return add


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, str]]:
    """Install a source folder, as `pip install -e` does; returns the environment that subprocesses need for it."""

    def add(folder: Path) -> dict[str, str]:
        import os

        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        write_metadata(site, project["name"], project["version"], project["entry-points"]["sparsify"])
        monkeypatch.syspath_prepend(folder / "src")
        path = os.pathsep.join([str(site), str(folder / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    return add
