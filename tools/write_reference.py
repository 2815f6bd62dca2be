#!/usr/bin/env python3
"""Write docs/reference/{commands,hooks,errors,recipes}.md from the code; `--check` fails where a page is stale.

    python tools/write_reference.py [--check]

docs/reference/files.md is written by hand, and tests/docs compares it with a real run.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from sparsify import contracts, data, errors, hooks, recipe
from sparsify.cli.app import CommandGroup
from sparsify.cli.run import FLAGS
from sparsify.errors import ExitCode
from sparsify.experiment import Experiment
from sparsify.known_modifiers import REQUIRED, known_modifier
from sparsify.plugins import Offer, Plugins, load_plugins, singular

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
COMMAND = "python tools/write_reference.py"
WIDTH = 100
HEADER = f"<!-- written by `{COMMAND}` from the code: edit that, not this -->\n"
ERRORS = ("RequestError", "UnreadableSample", "PluginError", "MissingLibraryError", "StageError")
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
    files = [ROOT / "core" / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]
    files += sorted(ROOT.glob("plugins/*/pyproject.toml"))
    names = {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in files}
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
        "A plugin is a module named by an entry point of the group `sparsify`. It implements any of these hooks as plain "
        "functions marked `@sparsify.hookimpl`. All but the last return [`Entry`](#entry) rows: data, so that listing "
        "plugins imports none of their code. `sparsify plugins check NAME` imports every target and compares it with "
        "what is said here. How to write one: [tutorial](../tutorial/first-plugin.md).\n",
    ]
    for name in hooks.CATALOGUES:
        parts += [f"## {name}\n", linked(documentation(getattr(hooks.Hooks, name)))]
        rows = [
            (code(offer.entry.name), offer.plugin.distribution, offer.entry.summary) for offer in offers(plugins, name)
        ]
        parts.append(table(("offered here", "by", "what it is"), rows) if rows else "Nothing is offered here yet.\n")
    observer = hooks.Hooks.experiment_finished
    parts += ["## experiment_finished\n", documentation(observer)]
    parts.append(f"Called as `experiment_finished{signature(observer)}`; take only the arguments you need.\n")
    parts.append("## Types\n")
    parts.append("All are importable from `sparsify`.\n")
    return "\n".join([*parts, *types()])


def offers(plugins: Plugins, catalogue: str) -> tuple[Offer, ...]:
    """List what is offered, once a name and phase."""
    return plugins.offers(catalogue)


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
        default = code(f"{field.default_factory.__name__}()")
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
    classes = {code: [name for name in ERRORS if getattr(errors, name).exit_code == code] for code in ExitCode}
    parts = [
        HEADER,
        "# Errors\n",
        "A deliberate error is two lines on stderr, `error:` with what was wrong and `fix:` with the edit or command that "
        "mends it, and an exit code. From Python the same errors are exceptions below `sparsify.SparsifyError`, with the "
        "fields `problem`, `fix` and `exit_code`.\n",
        "## Exit codes\n",
        table(
            ("exit", "meaning", "exception"),
            [(str(int(exit)), EXITS[exit], ", ".join(map(code, classes[exit]))) for exit in ExitCode],
        ),
        "## Every message\n",
        "Words in braces stand for what was found. The headings are the modules that raise the errors.\n",
    ]
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rows = list(dict.fromkeys(raised(tree)))
        if rows:
            relative = path.relative_to(ROOT).as_posix().split("/src/")[1]
            summary = (ast.get_docstring(tree) or "").split("\n")[0]
            module = relative.removesuffix(".py").replace("/", ".")
            parts += [f"### {module}\n", f"{summary}\n", table(("exit", "error", "fix"), rows)]
    return "\n".join(parts)


def sources() -> list[Path]:
    """List the modules of every distribution."""
    homes = [ROOT / "core", *sorted(ROOT.glob("integrations/*")), *sorted(ROOT.glob("plugins/*"))]
    return [path for home in homes for path in sorted((home / "src").rglob("*.py"))]


def raised(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield exit code, message and fix of every error that a module makes."""
    for function, call in error_calls(tree):
        scope = assignments(function)
        name = ast.unparse(call.func)
        fixes = [word.value for word in call.keywords if word.arg == "fix"]
        if call.args and fixes:
            exit = str(int(getattr(errors, name).exit_code))
            for problem in texts(call.args[0], scope):
                yield exit, problem, " *or* ".join(dict.fromkeys(texts(fixes[0], scope)))


def error_calls(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Yield each call that makes an error with the innermost function around it, in the order of the file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in sorted(
        (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS),
        key=lambda call: (call.lineno, call.col_offset),
    ):
        around = [one for one in functions if one.lineno <= node.lineno <= (one.end_lineno or one.lineno)]
        yield max(around, key=lambda one: one.lineno, default=tree), node


def assignments(function: ast.AST) -> dict[str, list[ast.expr]]:
    """Gather the values that a function assigns to plain names."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for name, value in pairs:
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(value)
    return found


def texts(node: ast.expr, scope: Mapping[str, list[ast.expr]]) -> list[str]:
    """Return the texts that an expression may give, with {words} for what is only known at run time."""
    if isinstance(node, ast.Constant):
        return [" ".join(str(node.value).split())]
    if isinstance(node, ast.JoinedStr):
        return ["".join(piece(value, scope) for value in node.values)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, scope), *texts(node.orelse, scope)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left, scope) for right in texts(node.right, scope)]
    if isinstance(node, ast.Name) and node.id in scope:
        inner = {name: values for name, values in scope.items() if name != node.id}
        return [text for value in scope[node.id] for text in texts(value, inner)]
    return [f"{{{word(node)}}}"]


def piece(node: ast.expr, scope: Mapping[str, list[ast.expr]]) -> str:
    """Write one part of an f-string; short texts held in a variable are written out."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(value, ast.Name) and len(scope.get(value.id, ())) == 1:
        (found,) = scope[value.id]
        if isinstance(found, ast.Constant | ast.JoinedStr):
            return texts(found, {name: values for name, values in scope.items() if name != value.id})[0]
    return f"{{{word(value)}}}"


def word(node: ast.AST) -> str:
    """Name what an expression stands for, in one word."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return word(node.value)
    if isinstance(node, ast.Call):
        called = word(node.func)
        if called in ("join", "sorted", "str", "map", "list", "repr", "int", "type", "dict") and node.args:
            return word(node.args[-1])
        return called if called != "len" else f"number of {word(node.args[0])}"
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return word(node.generators[0].iter)
    inner = next((child for child in ast.walk(node) if isinstance(child, ast.Name)), None)
    return inner.id if inner else "…"


# ------------------------------------------------------------------------------------------------------------- recipes


def recipes_page(plugins: Plugins) -> str:
    """Write the modifiers that can run here with their fields, and those that recipes may hold."""
    parts = [
        HEADER,
        "# Modifiers in recipes\n",
        "How to read, write and run recipes: [recipes](../how-to/recipes.md). `sparsify recipe check FILE` says in words "
        "what each step of a recipe does, and which cannot run here.\n",
        "## Installed\n",
        "These run in `sparsify run one-shot`. In a file a modifier is a tag, such as `- !QuantizationModifier {}`.\n",
    ]
    for offer in plugins.offers("modifiers"):
        target = plugins.load("modifiers", offer.entry.name, offer.entry.phase)
        parts += [
            f"### {offer.entry.name}\n",
            f"{offer.entry.summary} ({offer.entry.phase}, {offer.plugin.distribution})\n",
        ]
        parts += [documentation(target), table(("field", "type", "default", "meaning"), options(target))]
    parts += [
        "## Known\n",
        "Recipes of SparseML hold these. They are read, checked and explained; those that train need a training kind of "
        "experiment, which this version does not have.\n",
    ]
    return "\n".join([*parts, *known()])


def options(target: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yield the fields of a modifier's options."""
    for name, field in target.model_fields.items():
        kind = inspect.formatannotation(field.annotation).replace("typing.", "")
        default = "required" if field.is_required() else code(field.get_default(call_default_factory=True))
        yield code(name), code(kind), default, field.description or ""


def known() -> Iterator[str]:
    """Yield a table for each dialect of recipe."""
    from sparsify.known_modifiers import known_names

    names = sorted(known_names())
    for phase, heading in (("training", "In lists of tags"), ("post-training", "In staged recipes, by key")):
        rows = []
        for name in names:
            found = known_modifier(name, phase)
            if found is not None and own_dialect(name, phase):
                fields = (name if value == REQUIRED else f"{name} = {value}" for name, value in found.fields.items())
                rows.append((code(name), found.phase, found.does, ", ".join(map(code, fields))))
        yield f"### {heading}\n"
        yield table(("modifier", "phase", "what it does", "fields, with defaults"), rows)


def own_dialect(name: str, phase: str) -> bool:
    """Say whether a modifier stands in the dialect of a phase, and not only in the other one."""
    from sparsify.known_modifiers import _table

    return name in _table()["key" if phase == "post-training" else "tag"]


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
