"""Read source text and say which imports break a plugin's rules of layout; uses the standard library only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.stmt, str, str]]:
    """Yield every import as (statement, module, name): name is '' for `import module`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node, module, alias.name) for alias in node.names)


def check_plugin_module(source: str, core: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for a plugin.py: of what is installed it imports only `sparsify`.

    The standard library's typing modules may be imported; core's own plugin.py imports `sparsify.hooks`.
    """
    allowed = ("sparsify", "__future__", "typing", "collections.abc", "pathlib")
    for node, module, _ in imports(ast.walk(ast.parse(source))):
        if module not in allowed and not (core and module == "sparsify.hooks"):
            only = "it may import only sparsify, targets are imported on first use"
            yield node.lineno, f"plugin.py imports {module}; {only}"


def check_package_init(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for a package's __init__.py: at once it imports the standard library only (PEP 562)."""
    for node, module, _ in imports(_executed_at_import(ast.parse(source))):
        if module.split(".")[0] not in sys.stdlib_module_names:
            yield node.lineno, f"__init__.py imports {module} at once; re-export it through __getattr__ (PEP 562)"


def _executed_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs at import: into `if`, `try` and classes, not into functions nor `if TYPE_CHECKING`."""
    yield node
    inner: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        inner = ()
    elif isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
        inner = node.orelse
    for child in inner:
        yield from _executed_at_import(child)
