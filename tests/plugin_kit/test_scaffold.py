"""`sparsify plugins new`: every kind of plugin it writes is complete and passes its own tests once installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from sparsify.errors import RequestError
from sparsify_plugin_kit.command import app
from sparsify_plugin_kit.scaffold import KINDS, write_plugin
from typer.testing import CliRunner

Install = Callable[[Path], dict[str, str]]


def test_the_command_offers_every_kind() -> None:
    text = " ".join(CliRunner().invoke(app, ["new", "--help"]).output.split())
    assert f"what it offers: {', '.join(KINDS)}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_passes_its_own_tests_once_installed(tmp_path: Path, install: Install, kind: str) -> None:
    folder = tmp_path / "made"
    result = CliRunner().invoke(app, ["new", "my-first-plugin", "--kind", kind, "--output", str(folder)])
    assert result.exit_code == 0, result.output
    env = install(folder) | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    tests = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(folder)]
    ran = subprocess.run(tests, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_written(tmp_path: Path) -> None:
    files = write_plugin("my-plugin", "command", tmp_path / "made")
    assert sorted(file.relative_to(tmp_path / "made").as_posix() for file in files) == [
        "README.md",
        "pyproject.toml",
        "src/my_plugin/__init__.py",
        "src/my_plugin/command.py",
        "src/my_plugin/plugin.py",
        "tests/test_plugin.py",
    ]
    project = tomllib.loads((tmp_path / "made/pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"sparsify": {"my-plugin": "my_plugin.plugin"}}
    assert project["dependencies"] == ["sparsify-core>=0.1", "typer>=0.27"]


def test_the_folder_is_named_after_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new", "my-plugin"])
    assert result.exit_code == 0, result.output
    assert result.stderr == "next: pip install -e my-plugin && python -m pytest my-plugin\n"
    assert (tmp_path / "my-plugin/src/my_plugin/task.py").exists()


def refusal(name: str, kind: str, folder: Path) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        write_plugin(name, kind, folder)
    return caught.value.problem, caught.value.fix


@pytest.mark.parametrize(
    "name", ["", "My-Plugin", "my_plugin", "-my", "my-", "my--plugin", "1st", "../up", "my plugin", "ü"]
)
def test_invalid_names(tmp_path: Path, name: str) -> None:
    assert refusal(name, "command", tmp_path / "made") == (
        f"'{name}' cannot name a plugin",
        "use lower-case letters, digits and single hyphens, such as my-plugin",
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["json", "numpy", "sparsify", "class", "sparsify-npz"])
def test_names_that_python_has_already(tmp_path: Path, name: str) -> None:
    assert refusal(name, "command", tmp_path / "made") == (
        f"'{name}' would hide the module '{name.replace('-', '_')}' that Python already has",
        f"use another name: {name}-plugin",
    )


def test_unknown_kind_and_folder_in_use(tmp_path: Path) -> None:
    assert refusal("my-plugin", "magic", tmp_path / "made") == (
        "there is no kind of plugin 'magic'",
        "use one of: use-case, dataset, modifier, runtime, evaluator, command",
    )
    (tmp_path / "kept.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "kept.txt"):
        assert refusal("my-plugin", "command", folder) == (
            f"{folder} is not an empty folder",
            "give --output a folder that is new or empty",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
