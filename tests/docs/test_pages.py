"""Run every code block of docs/ as a reader would, and compare the pages about files and keys with real ones.

A block's info string says what happens to it:

    ```bash tox=docs              run by bash -euo pipefail in the page's folder; exit=2 where it must fail that way
    ```python tox=docs            run by the environment's Python
    ```yaml tox=docs file=a.yaml  written to the page's folder; any language may be
    ```text output                what the block before it printed, `...` stands for anything
    ```text                       shown only

The first tutorial runs first: its `sparsify demo` leaves model and images in `sparsify-demo/`, which every other page
finds beside it. What a page installs goes to a folder beside its own files, not into the environment.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FIRST = "tutorial/first-run.md"
LANGUAGES = ("bash", "python", "yaml", "toml", "json")
OPTIONS = ("tox", "file", "exit")
TIMEOUT_S = 120
FENCE = re.compile(r"^(`{3,})([^`\n]*)\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PAGES = sorted(
    (page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")),
    key=lambda page: (page != FIRST, not page.startswith("tutorial/"), page),
)


@dataclass(frozen=True)
class Block:
    """Hold one fenced block; `line` is that of its first line."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def options(self) -> Mapping[str, str]:
        return dict(word.split("=", 1) for word in self.words if "=" in word)

    @property
    def place(self) -> str:
        return f"docs/{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        language, *words = match[2].split() or [""]
        yield Block(page, text.count("\n", 0, match.start()) + 2, language, tuple(words), match[3])


class MissedError(Exception):
    """Report that a run's result was judged slower or worse."""


def run_page_fairly(page: str, folder: Path, demo: Path | None = None) -> None:
    """Run a page in a folder of its own, once more where a run ended with exit 6.

    A machine that is busy with something else can time a faster model as slower; once is chance, twice is not.
    """
    for last in (False, True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if demo is not None:
            (folder / "sparsify-demo").symlink_to(demo, target_is_directory=True)
        try:
            run_page(page, folder)
        except MissedError as missed:
            if last:
                pytest.fail(str(missed), pytrace=False)
        else:
            return


def run_page(page: str, folder: Path) -> None:
    """Run a page's blocks in order; fails naming page and line."""
    printed = ""
    for block in blocks(page):
        if block.words == ("output",):
            compare(block, printed)
        elif "file" in block.options:
            target = folder / block.options["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif "tox" in block.options:
            printed = run_block(block, folder)


def run_block(block: Block, folder: Path) -> str:
    """Run one block and return what it printed, both streams together."""
    bash = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(
        bash if block.language == "bash" else [sys.executable, "-c", block.text],
        cwd=folder,
        env=environment(folder / ".site"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    expected = int(block.options.get("exit", 0))
    if done.returncode == 6 and expected == 0:
        raise MissedError(f"{block.place}: exit 6\n{done.stdout}")
    if done.returncode != expected:
        pytest.fail(f"{block.place}: exit {done.returncode}, expected {expected}\n{done.stdout}", pytrace=False)
    return done.stdout


def environment(site: Path) -> dict[str, str]:
    """Put this environment's programs first, and send what pip installs to `site`, offline."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",  # matrices this small gain nothing from threads that wait for each other
        "NO_COLOR": "1",
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_TARGET": str(site),
        "PIP_UPGRADE": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the option as its negation: 0 means that there is none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def compare(block: Block, printed: str) -> None:
    """Compare an output block with what was printed."""
    lines = [line.rstrip() for line in printed.strip().splitlines()]
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not doctest.OutputChecker().check_output(block.text.strip(), "\n".join(lines), flags):
        pytest.fail(f"{block.place}: the output differs; printed was\n{printed}", pytrace=False)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the first tutorial, whose files the other pages use."""
    folder = tmp_path_factory.mktemp("docs")
    run_page_fairly(FIRST, folder / "first")
    return folder


@pytest.fixture(scope="session")
def demo_run(workspace: Path) -> Path:
    """Return the run folder of `sparsify demo`."""
    (run,) = (workspace / "first" / "sparsify-demo").glob("one-shot_*")
    return run


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, workspace: Path) -> None:
    if page == FIRST:
        return  # the fixture has run it
    folder = workspace / page.removesuffix(".md").replace("/", "-")
    run_page_fairly(page, folder, workspace / "first" / "sparsify-demo")


def test_every_block_says_where_it_runs() -> None:
    envs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tox"]["env"]
    wrong = []
    for block in (block for page in PAGES for block in blocks(page)):
        options = block.options
        runs = block.language in LANGUAGES
        if runs and (options.get("tox") != "docs" or "docs" not in envs):
            wrong.append(f"{block.place}: a {block.language} block without tox=docs would never run")
        if runs and block.language not in ("bash", "python") and "file" not in options:
            wrong.append(f"{block.place}: a {block.language} block without file=NAME would never be used")
        if not runs and block.language != "text":
            wrong.append(f"{block.place}: '{block.language}' is none of text, {', '.join(LANGUAGES)}")
        if not runs and block.words not in ((), ("output",)) and "file" not in options:
            wrong.append(f"{block.place}: a text block says `output`, file=NAME or nothing")
        unknown = set(options) - set(OPTIONS)
        if unknown:
            wrong.append(f"{block.place}: there is no option {', '.join(sorted(unknown))}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_read(page: str) -> None:
    """A fence that is indented or never closed would be no block, and would not run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "```" not in FENCE.sub("", text), page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", (DOCS / page).read_text(encoding="utf-8"))
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (DOCS / page).parent.joinpath(link).exists()] == []


def test_the_index_lists_every_page() -> None:
    listed = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert [page for page in PAGES if page != "index.md" and page not in listed] == []


def test_pages_that_messages_name_exist() -> None:
    named = {
        found
        for folder in ("core", "integrations", "plugins")
        for source in (ROOT / folder).rglob("src/**/*.py")
        for found in re.findall(r"docs/[\w/-]+\.md", source.read_text(encoding="utf-8"))
    }
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


def documented(heading: str) -> list[str]:
    """Return the first cells, without backquotes, of the table below a heading of reference/files.md."""
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def test_metrics_have_the_documented_keys(demo_run: Path) -> None:
    metrics = json.loads((demo_run / "metrics.json").read_text(encoding="utf-8"))
    described = documented("metrics.json")
    found = set(keys(metrics))
    assert [key for key in described if not any(fits(key, other) for other in found)] == []
    assert sorted(key for key in found if not any(fits(other, key) for other in described)) == []


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every leaf: `baseline.bytes`, `layers[].name`; an empty mapping is a leaf."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from keys(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from keys(inner, f"{path}[]")
    else:
        yield path


def fits(documented: str, found: str) -> bool:
    """Compare two paths; `{name}` in the documented one stands for any key."""
    pattern = re.sub(r"\\{\w+\\}", r"[^.]+", re.escape(documented))
    return re.fullmatch(pattern, found) is not None


def test_a_run_folder_holds_the_documented_files(demo_run: Path) -> None:
    found = {path.relative_to(demo_run).as_posix() for path in demo_run.rglob("*") if path.is_file()}
    found.remove("deployment/sample.py")  # which the tutorial puts there
    described = documented("The run folder")
    assert [name for name in described if not any(fits(name, file) for file in found)] == []
    assert sorted(file for file in found if not any(fits(name, file) for name in described)) == []
