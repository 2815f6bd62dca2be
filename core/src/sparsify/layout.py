"""Read source text and say where it breaks a plugin's rules of layout; uses the standard library only."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator

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


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str, str]]:
    """Yield every import as (statement, module, name): name is '' for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, "." * node.level + (node.module or ""), alias.name


def check_plugin_module(source: str, core: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for a plugin.py: it imports only `sparsify`, and holds little besides its Entry rows.

    The standard library's typing modules may be imported; core's own plugin.py imports `sparsify.hooks`.
    """
    tree = ast.parse(source)
    for node, module, _ in imports(tree):
        own = module == "sparsify" or (core and module == "sparsify.hooks")
        if not own and module not in ("__future__", "typing", "collections.abc", "pathlib"):
            yield (
                node.lineno,
                f"plugin.py imports {module}; it may import only sparsify, targets are imported on first use",
            )
    rows: set[int] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "Entry":
            rows.update(range(call.lineno, (call.end_lineno or call.lineno) + 1))
    count = len(code_lines(source) - rows)
    if count > PLUGIN_LINES:
        yield 1, f"plugin.py has {count} lines of code besides its Entry rows, at most {PLUGIN_LINES} are allowed"


def check_package_init(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for a package's __init__.py: at once it imports the standard library only (PEP 562)."""
    for node in _executed_at_import(ast.parse(source).body):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            if module.split(".")[0] not in sys.stdlib_module_names:
                yield node.lineno, f"__init__.py imports {module} at once; re-export it through __getattr__ (PEP 562)"


def _executed_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run at import: into `if` and `try`, not into functions nor `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        inner: list[ast.stmt] = []
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            inner = node.orelse
        else:
            for name in ("body", "orelse", "finalbody"):
                inner += getattr(node, name, [])
            inner += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
        yield from _executed_at_import(inner)
