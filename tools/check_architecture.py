#!/usr/bin/env python3
"""Check the directions and limits of DESIGN §2 and STYLE §4 over a checkout; print what breaks them, exit 1 if any.

    python tools/check_architecture.py [ROOT]

It reads text and imports nothing of what it checks. import-linter is not used beside it: it cannot say "only the public
names of `sparsify`", nor "only inside a function", and it has to import the packages.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "integrations" / "plugin-kit" / "src")
)  # runs without anything installed

from sparsify_plugin_kit.layout import check_package_init, check_plugin_module, imports

CORE_LINES, MODULE_LINES, FUNCTION_LINES, DEPTH = 3500, 400, 60, 1
PLUGIN_LINES = 40  # of code in plugin.py, besides Entry(...) rows and docstrings
NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)
# the one integration that may import another's public names (DESIGN §2)
MAY_IMPORT = frozenset({("sparsify_torch", "sparsify_onnx")})
Importing = ast.stmt | ast.expr  # an import statement, or a call of import_module
MUTABLE_CALLS = frozenset({"dict", "list", "set", "defaultdict", "OrderedDict", "Counter", "deque", "bytearray"})


@dataclass(frozen=True)
class Module:
    """Hold one parsed source file; `kind` is core, integration or plugin, `package` its import name."""

    path: Path
    shown: str
    kind: str
    package: str
    dotted: str
    source: str
    tree: ast.Module


def read_modules(root: Path) -> Iterator[Module]:
    """Parse every module of every distribution below core/, integrations/ and plugins/."""
    homes = [("core", root / "core")]
    homes += [("integration", folder) for folder in sorted((root / "integrations").glob("*"))]
    homes += [("plugin", folder) for folder in sorted((root / "plugins").glob("*"))]
    for kind, home in homes:
        for path in sorted((home / "src").rglob("*.py")):
            parts = path.relative_to(home / "src").with_suffix("").parts
            source = path.read_text(encoding="utf-8")
            dotted = ".".join(parts).removesuffix(".__init__")
            yield Module(path, path.relative_to(root).as_posix(), kind, parts[0], dotted, source, ast.parse(source))


def check(root: Path) -> tuple[list[str], int]:
    """Return the faults as `path:line: text`, and the lines of code in core."""
    modules = list(read_modules(root))
    public = {
        module.package: public_names(module.tree)
        for module in modules
        if module.path.name == "__init__.py" and module.dotted == module.package
    }
    kinds = {module.package: module.kind for module in modules}
    lines = sum(len(code_lines(module.source)) for module in modules if module.kind == "core")
    faults = [f"{module.shown}:{line}: {text}" for module in modules for line, text in _faults(module, kinds, public)]
    faults += check_depth(modules)
    faults += [f"{path}: {text}" for path, text in check_entry_points(root, kinds)]
    if lines > CORE_LINES:
        faults.append(f"core: {lines} lines of code, at most {CORE_LINES} are allowed")
    return faults, lines


def _faults(module: Module, kinds: Mapping[str, str], public: Mapping[str, set[str]]) -> Iterator[tuple[int, str]]:
    yield from check_directions(module, kinds, public)
    if module.path.name == "plugin.py":
        yield from check_plugin_module(module.source, core=module.kind == "core")
        yield from check_plugin_size(module.source)
        yield from check_targets(module)
    if module.path.name == "__init__.py":
        yield from check_package_init(module.source)
    yield from check_sizes(module)
    yield from check_state(module)


def public_names(tree: ast.Module) -> set[str]:
    """Read the names in a module's `__all__`, or in the table `_PUBLIC` that it is derived from."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if node.targets[0].id == "_PUBLIC":
            return {name for names in ast.literal_eval(node.value).values() for name in names.split()}
        if node.targets[0].id == "__all__" and isinstance(node.value, ast.List | ast.Tuple):
            return set(ast.literal_eval(node.value))
    return set()


def check_directions(
    module: Module, kinds: Mapping[str, str], public: Mapping[str, set[str]]
) -> Iterator[tuple[int, str]]:
    """Yield imports of our own packages that DESIGN §2 forbids, `import_module("…")` included."""
    lazy = {
        node
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found: list[tuple[Importing, str, str]] = [*imports(ast.walk(module.tree)), *_dynamic_imports(module.tree)]
    for node, target, name in found:
        package = target.split(".")[0]
        if target.startswith(".") or package == module.package or package not in kinds:
            yield from _unknown_package(module, node, package, kinds)
            continue
        verdict = _forbidden(module, kinds[package], package, node in lazy)
        if verdict:
            yield node.lineno, verdict
        elif "." in target:
            yield node.lineno, f"imports {target}; only the public names of {package} may be imported"
        elif name and name not in public[package]:
            yield node.lineno, f"imports {name}, which is not in {package}.__all__"
    yield from _attributes(module, kinds, public)


def _unknown_package(
    module: Module, node: Importing, package: str, kinds: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    """Core may not know a package of the family even where that is not in this checkout."""
    if module.kind == "core" and package.startswith("sparsify_") and package not in kinds:
        yield node.lineno, f"core imports {package}"


def _forbidden(module: Module, kind: str, package: str, lazy: bool) -> str:
    if module.kind == "core":
        return f"core imports {package}"
    if kind == "plugin":
        return f"{module.kind} {module.package} imports the plugin {package}"
    if kind == "integration" and module.kind == "integration" and (module.package, package) not in MAY_IMPORT:
        return f"integration {module.package} imports the integration {package}"
    if kind == "integration" and module.kind == "plugin" and not lazy:
        return f"plugin {module.package} imports the integration {package} outside the function that needs it"
    return ""


def _dynamic_imports(tree: ast.AST) -> Iterator[tuple[ast.expr, str, str]]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node, str(node.args[0].value), ""


def _attributes(module: Module, kinds: Mapping[str, str], public: Mapping[str, set[str]]) -> Iterator[tuple[int, str]]:
    """Yield `package.name` of an imported package of ours where the name is not public."""
    imported = {
        name.asname or name.name: name.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name in kinds and name.name != module.package
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            package = imported[node.value.id]
            if node.attr not in public[package]:
                yield node.lineno, f"uses {package}.{node.attr}, which is not in {package}.__all__"


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no blank line, no comment, no docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for text in docstrings(ast.parse(source)):
        lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """Yield the docstring statements of a module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first


def check_plugin_size(source: str) -> Iterator[tuple[int, str]]:
    """Yield a plugin.py that holds much besides its Entry rows."""
    rows: set[int] = set()
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "Entry":
            rows.update(range(call.lineno, (call.end_lineno or call.lineno) + 1))
    count = len(code_lines(source) - rows)
    if count > PLUGIN_LINES:
        yield 1, f"plugin.py has {count} lines of code besides its Entry rows, at most {PLUGIN_LINES} are allowed"


def check_targets(module: Module) -> Iterator[tuple[int, str]]:
    """Yield entries whose target lies in another package than the plugin's own."""
    for call in ast.walk(module.tree):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "Entry"):
            continue
        given = [word.value for word in call.keywords if word.arg == "target"] or call.args[1:2]
        for value in given:
            target = str(getattr(value, "value", module.package))
            if target.partition(":")[0].split(".")[0] != module.package:
                yield call.lineno, f"target '{target}' lies outside {module.package}"


def check_entry_points(root: Path, kinds: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield distributions whose pyproject.toml does not offer `<package>.plugin` in the group `sparsify`."""
    for path in sorted(root.glob("core/pyproject.toml")) + sorted(root.glob("*/*/pyproject.toml")):
        packages = {folder.name for folder in (path.parent / "src").glob("*") if folder.name in kinds}
        points = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("entry-points", {})
        for package in packages:
            has_plugin = (path.parent / "src" / package / "plugin.py").exists()
            if has_plugin and f"{package}.plugin" not in points.get("sparsify", {}).values():
                yield path.relative_to(root).as_posix(), f"no entry point of group sparsify names {package}.plugin"


def check_sizes(module: Module) -> Iterator[tuple[int, str]]:
    """Yield modules above 400 lines and functions above 60."""
    length = len(module.source.splitlines())
    if length > MODULE_LINES:
        yield 1, f"{length} lines in one module, at most {MODULE_LINES} are allowed"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield node.lineno, f"{node.name} is {length} lines long, at most {FUNCTION_LINES} are allowed"


def check_state(module: Module) -> Iterator[tuple[int, str]]:
    """Yield `global` statements and mutable module-level values under a name that is not a constant's."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}: pass the value instead"
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign):
            targets: Iterable[ast.expr] = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        else:
            continue
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        for name in names:
            if name != name.upper() and not name.startswith("__") and _mutable(statement.value):
                yield statement.lineno, f"module-level mutable value '{name}': build it in a function"


def _mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp):
        return True
    return isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS


def check_depth(modules: Iterable[Module]) -> list[str]:
    """Return classes more than one level below another of ours; the error tree is exempt."""
    classes = {
        node.name: (module, node)
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    parents = {
        name: [base for base in map(_base_name, node.bases) if base in classes and base != name]
        for name, (_, node) in classes.items()
    }

    def chain(name: str) -> list[str]:
        above = [chain(base) for base in parents[name]]
        return [name, *max(above, key=len, default=[])]

    faults = []
    for name, (module, node) in classes.items():
        line = chain(name)
        if len(line) - 1 > DEPTH and line[-1] != "SparsifyError":
            faults.append(f"{module.shown}:{node.lineno}: class {' < '.join(line)} is {len(line) - 1} levels deep")
    return faults


def _base_name(base: ast.expr) -> str:
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]


def main(arguments: list[str]) -> int:
    """Print faults and the size of core."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    faults, lines = check(root)
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"core: {lines} lines of code, at most {CORE_LINES}; {len(faults)} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
