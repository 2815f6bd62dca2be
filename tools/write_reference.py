#!/usr/bin/env python3
"""Write docs/reference/{commands,hooks,errors,recipes}.md from the code; `--check` fails where a page is stale.

    python tools/write_reference.py [--check]

docs/reference/files.md is written by hand, and tests/docs compares it with a real run.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tools.find_errors

from sparsify import contracts, data, errors, hooks, recipe
from sparsify.cli.app import CommandGroup
from sparsify.cli.run import FLAGS
from sparsify.errors import ExitCode
from sparsify.experiment import Experiment
from sparsify.known_modifiers import REQUIRED, known_modifier
from sparsify.plugins import Plugins, load_plugins

from tools.find_errors import ERRORS, raised, text_constants

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
COMMAND = "python tools/write_reference.py"
WIDTH = 100
HEADER = f"<!-- written by `{COMMAND}` from the code: edit that, not this -->\n"
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}  # of annotated_types
EXITS: Mapping[ExitCode, str] = {
    ExitCode.OK: "a verified artefact within budget and not slower",
    ExitCode.BUG: "a bug of Sparsify: a traceback",
    ExitCode.REQUEST: "the request is impossible as written: name, option, file, recipe, data",
    ExitCode.PLUGIN: "a plugin failed",
    ExitCode.MISSING: "a library is not installed; the fix is the install command",
    ExitCode.STAGE: "a stage failed: which, on what, why",
    ExitCode.MISSED: "the run worked; its result misses the budget, is slower, or could not be verified",
    ExitCode.INTERRUPTED: "interrupted; the same command with `--resume` goes on",
}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(value: object) -> str:
    """Write a value in backquotes, or nothing for nothing."""
    return f"`{value}`" if str(value) else ""


def ours() -> Plugins:
    """Load the plugins of this checkout's distributions; others may be installed too."""
    projects = [ROOT / "core" / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]
    projects += sorted(ROOT.glob("plugins/*/pyproject.toml"))
    names = {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in projects}
    plugins = load_plugins()
    found = tuple(plugin for plugin in plugins.found if plugin.distribution in names)
    absent = sorted(names - {plugin.distribution for plugin in found if not plugin.error})
    if absent:
        sys.exit(f"error: {', '.join(absent)} not installed or broken\nfix: pip install them, then run {COMMAND}")
    return dataclasses.replace(plugins, found=found)


# ------------------------------------------------------------------------------------------------------------ commands


def commands_page(plugins: Plugins) -> str:
    """Write every command's help, and the options of `run` as a table."""
    parts = [
        HEADER,
        "# Commands\n",
        "stdout is data, stderr is talk. Every command takes `--help` and `--debug`, which shows the traceback of an "
        "error. Hyphens and underscores are equal in the names of options of `run`. "
        "[Exit codes](errors.md#exit-codes) are the same for all.\n",
        "`sparsify.run` behaves as `sparsify run`, `sparsify.check_environment` as `sparsify doctor`, and "
        "`python -m sparsify` as `sparsify`.\n",
        "## Options of `run`\n",
        "The same names, with underscores, are the keys of a `--config` file and the arguments of "
        "`sparsify.one_shot`.\n",
        table(("option", "default", "meaning"), run_options()),
    ]
    group = CommandGroup(plugins)
    for name in group.list_commands(None):
        parts += list(helps(group.get_command(None, name), f"sparsify {name}"))
    return "\n".join(parts)


def run_options() -> Iterator[tuple[str, str, str]]:
    """Yield the options of `run`: the fields of Experiment, and the flags that are no part of the request."""
    for name, field in Experiment.model_fields.items():
        if name != "kind":
            default = field.default
            shown = " ".join(default) if isinstance(default, tuple) else "" if default is None else str(default)
            shown = "required" if field.is_required() else code(shown)
            yield f"`--{name.replace('_', '-')}`", shown, field.description or ""
    for name, (_, _, text) in FLAGS.items():
        yield f"`--{name.replace('_', '-')}`", "", text


def helps(command: Any, path: str) -> Iterator[str]:
    """Yield the help of a command and of those below it."""
    command.rich_markup_mode = None
    context = typer.Context(command, info_name=path, terminal_width=WIDTH, help_option_names=["--help"])
    text = command.get_help(context)
    below = [command.get_command(context, name) for name in command.list_commands(context)] if is_group(command) else []
    yield f"## `{path}`\n" if path.count(" ") == 1 else f"### `{path}`\n"
    yield f"```text\n{text.rstrip()}\n```\n"
    for inner in below:
        yield from helps(inner, f"{path} {inner.name}")


def is_group(command: Any) -> bool:
    """Say whether a command has others below it."""
    return hasattr(command, "list_commands")


# --------------------------------------------------------------------------------------------------------------- hooks


def hooks_page(plugins: Plugins) -> str:
    """Write every hook with what is offered through it, and the types that targets are made of."""
    parts = [
        HEADER,
        "# Hooks\n",
        "A plugin is a module named by an entry point of the group `sparsify`. It implements any of these hooks as "
        "plain functions marked `@sparsify.hookimpl`. All but the last return [`Entry`](#entry) rows: data, so that "
        "listing plugins imports none of their code. `sparsify plugins check NAME` imports every target and compares "
        "it with what is said here. How to write one: [tutorial](../tutorial/first-plugin.md).\n",
    ]
    for name in hooks.CATALOGUES:
        parts += [f"## {name}\n", linked(documentation(getattr(hooks.Hooks, name)))]
        rows = [
            (code(offer.entry.name), offer.plugin.distribution, offer.entry.summary) for offer in plugins.offers(name)
        ]
        parts.append(table(("offered here", "by", "what it is"), rows) if rows else "Nothing is offered here yet.\n")
    observer = hooks.Hooks.experiment_finished
    parts += ["## experiment_finished\n", documentation(observer)]
    parts.append(f"Called as `experiment_finished{signature(observer)}`; take only the arguments you need.\n")
    parts.append("## Types\n")
    parts.append("All are importable from `sparsify`.\n")
    return "\n".join([*parts, *types()])


def types() -> Iterator[str]:
    """Yield every public type of the contracts: docstring, fields, methods."""
    homes = {
        hooks: ("Entry",),
        contracts: (
            "UseCase", "DatasetLoader", "DataRequest", "Data", "ModelFormat", "Model", "Description", "TensorSpec",
            "Layer", "Context", "Checkpoint", "Session", "Metric",
        ),
        data: ("Dataset", "Sample", "Batch"),
        recipe: ("Recipe", "Step"),
    }  # fmt: skip
    for module, names in homes.items():
        for name in names:
            kind = getattr(module, name)
            yield f"### {name}\n"
            yield documentation(kind)
            if dataclasses.is_dataclass(kind):
                yield table(("field", "type", "default"), [row(field) for field in dataclasses.fields(kind)])
            methods = [(f"`{each}{signature(member)}`", documentation(member).strip()) for each, member in public(kind)]
            if methods:
                yield table(("method", "does"), methods)


def public(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public methods that a class defines, in order."""
    for name, member in vars(kind).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            yield name, member


def row(field: dataclasses.Field[Any]) -> tuple[str, str, str]:
    """Describe one field."""
    default = "required"
    if field.default is not dataclasses.MISSING:
        default = code(getattr(field.default, "__name__", repr(field.default)))
    elif field.default_factory is not dataclasses.MISSING:
        default = code(f"{getattr(field.default_factory, '__name__', '')}()")
    return code(field.name), code(field.type), default


def signature(function: Any) -> str:
    """Write a signature without `self`."""
    return str(inspect.signature(function)).replace("'", "").replace("(self, ", "(").replace("(self)", "()")


def documentation(thing: Any) -> str:
    """Return a docstring with its paragraphs unwrapped; double spaces between sentences stay single."""
    text = inspect.cleandoc(thing.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")) + "\n"


def linked(text: str) -> str:
    """Link the types that a docstring names as `sparsify.Name`."""
    return re.sub(r"`sparsify\.(\w+)`", lambda match: f"[`sparsify.{match[1]}`](#{match[1].lower()})", text)


# -------------------------------------------------------------------------------------------------------------- errors


def errors_page(plugins: Plugins) -> str:
    """Write the exit codes, and every deliberate error found in the sources."""
    del plugins
    classes = {one: [name for name in ERRORS if getattr(errors, name).exit_code == one] for one in ExitCode}
    parts = [
        HEADER,
        "# Errors\n",
        "A deliberate error is two lines on stderr, `error:` with what was wrong and `fix:` with the edit or command "
        "that mends it, and an exit code. From Python the same errors are exceptions below `sparsify.SparsifyError`, "
        "with the fields `problem`, `fix` and `exit_code`.\n",
        "## Exit codes\n",
        table(
            ("exit", "meaning", "exception"),
            [(str(int(one)), EXITS[one], ", ".join(map(code, classes[one]))) for one in ExitCode],
        ),
        "## Every message\n",
        "Words in braces stand for what was found. The headings are the modules that raise the errors.\n",
    ]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    constants = {name: values for tree in trees.values() for name, values in text_constants(tree).items()}
    for path, tree in trees.items():
        rows = list(dict.fromkeys(raised(tree, constants | text_constants(tree))))
        if rows:
            relative = path.relative_to(ROOT).as_posix().split("/src/")[1]
            summary = re.sub(r" of DESIGN §\d", "", (ast.get_docstring(tree) or "").split("\n")[0])
            module = relative.removesuffix(".py").replace("/", ".")
            parts += [f"### {module}\n", f"{summary}\n", table(("exit", "error", "fix"), rows)]
    return "\n".join(parts)


def sources() -> list[Path]:
    """List the modules of every distribution."""
    homes = [ROOT / "core", *sorted(ROOT.glob("integrations/*")), *sorted(ROOT.glob("plugins/*"))]
    return [path for home in homes for path in sorted((home / "src").rglob("*.py"))]


# ------------------------------------------------------------------------------------------------------------- recipes

PHASES: Mapping[str, tuple[str, str]] = {
    "post-training": (
        "Applied to a trained model",
        "These run in `sparsify run one-shot`. In a file a modifier is a tag, such as `- !QuantizationModifier {}`.\n",
    ),
    "training": (
        "Attached to a training loop",
        "These run in [your own PyTorch loop](../how-to/train-with-recipes.md). Epochs may be fractions; -1 is the "
        "beginning for `start_epoch`, never for `end_epoch`, every step for `update_frequency`.\n",
    ),
}


def recipes_page(plugins: Plugins) -> str:
    """Write the modifiers that can run here with their fields, and those that recipes may hold."""
    parts = [
        HEADER,
        "# Modifiers in recipes\n",
        "How to read, write and run recipes: [recipes](../how-to/recipes.md). `sparsify recipe check FILE` says in "
        "words what each step of a recipe does, and which cannot run here.\n",
    ]
    for phase, (heading, said) in PHASES.items():
        parts += [f"## {heading}\n", said]
        for offer in plugins.offers("modifiers"):
            if offer.entry.phase == phase:
                target = plugins.load("modifiers", offer.entry.name, phase)
                parts += [f"### {offer.entry.name}\n", f"{offer.entry.summary} ({offer.plugin.distribution})\n"]
                parts += [documentation(target), table(("field", "type", "default", "meaning"), options(target))]
    parts += [
        "## Known\n",
        "Recipes of SparseML hold these. All are read, checked and explained; those that stand above run.\n",
    ]
    return "\n".join([*parts, *known()])


def options(target: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yield the fields of a modifier's options."""
    for name, field in target.model_fields.items():
        kind = inspect.formatannotation(field.annotation).replace("typing.", "")
        default = "required" if field.is_required() else code(field.get_default(call_default_factory=True))
        limits = [
            f"{sign} {getattr(one, word)}"
            for one in field.metadata
            for word, sign in SIGNS.items()
            if hasattr(one, word)
        ]
        yield code(name), ", ".join([code(kind), *limits]), default, field.description or ""


def known() -> Iterator[str]:
    """Yield a table for each dialect of recipe."""
    import yaml

    dialects = yaml.safe_load(files("sparsify").joinpath("known_modifiers.yaml").read_text(encoding="utf-8"))
    for dialect, phase, heading in (
        ("tag", "training", "In lists of tags"),
        ("key", "post-training", "In staged recipes, by key"),
    ):
        rows = []
        for name, row_ in sorted(dialects[dialect].items()):
            found = known_modifier(name, phase)
            fields = (
                name if value == REQUIRED else f"{name}: {json.dumps(value)}"
                for name, value in sorted(row_["fields"].items())  # PyYAML 6.0.4 merges anchors in another order
            )
            rows.append((code(name), found.phase if found else "", row_["does"], ", ".join(map(code, fields))))
        yield f"### {heading}\n"
        yield table(("modifier", "phase", "what it does", "fields, with defaults"), rows)


def pages(plugins: Plugins) -> Iterator[tuple[Path, str]]:
    """Yield each page's path and text."""
    for name, write in (
        ("commands", commands_page),
        ("hooks", hooks_page),
        ("errors", errors_page),
        ("recipes", recipes_page),
    ):
        yield PAGES / f"{name}.md", write(plugins)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check compare them."""
    stale = []
    for path, text in pages(ours()):
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if "--check" in arguments and stale:
        sys.stderr.write(f"error: {', '.join(stale)} not as the code says\nfix: {COMMAND}\n")
        return 1
    sys.stdout.write(f"{'all up to date' if not stale else 'wrote ' + ', '.join(stale)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
