"""Find every deliberate error in a module's source: exit code, message and fix, with {words} for what varies."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from sparsify import errors

Scope = dict[str, list[ast.expr]]  # the values that a name may have
ERRORS = ("RequestError", "UnreadableSample", "PluginError", "MissingLibraryError", "StageError")
# methods and functions that show what they are given, or nearly
SHOWING = ("join", "sorted", "str", "map", "list", "repr", "int", "type", "dict", "chr", "ord")
TRIMMING = ("strip", "rstrip", "removeprefix", "replace", "get", "items")


def raised(tree: ast.Module, constants: Scope) -> Iterator[tuple[str, str, str]]:
    """Yield exit code, message and fix of every error that a module makes, in the order of the file."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in sorted(calls, key=lambda one: (one.lineno, one.col_offset)):
        fixes = [argument.value for argument in call.keywords if argument.arg == "fix"]
        if not (call.args and fixes):
            continue  # `type(error)(…)` and the like
        scope = dict(constants)
        for function in functions:  # outer ones come first
            if holds(function, call):
                assigned(function.body, call, scope)
        number = str(int(getattr(errors, ast.unparse(call.func)).exit_code))
        fix = " *or* ".join(dict.fromkeys(texts(fixes[0], scope)))
        for problem in texts(call.args[0], scope):
            yield number, problem, fix


def text_constants(tree: ast.Module) -> Scope:
    """Gather the texts and numbers that a module holds under names in capitals."""
    scope: Scope = {}
    assigned([node for node in tree.body if isinstance(node, ast.Assign)], tree, scope)
    return {name: values for name, values in scope.items() if name.isupper() and isinstance(values[0], ast.Constant)}


def holds(node: ast.AST, inner: ast.AST) -> bool:
    """Say whether a node lies inside another."""
    return any(one is inner for one in ast.walk(node))


def assigned(body: Sequence[ast.stmt], call: ast.AST, scope: Scope) -> None:
    """Gather the values that plain names may have where a call stands, from the statements before it."""
    for statement in body:
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(statement, "handlers", [])]
        inside = [block for block in blocks if any(holds(one, call) for one in block)]
        if isinstance(statement, ast.Assign):
            assign(statement, scope)
        for block in inside or [block for block in blocks if not leaves(block)]:
            branch = dict(scope)
            assigned(block, call, branch)
            for name, values in branch.items():
                scope[name] = (
                    values if inside else list({id(one): one for one in scope.get(name, []) + values}.values())
                )
        if holds(statement, call):
            return


def leaves(block: Sequence[ast.stmt]) -> bool:
    """Say whether a block never goes on to the statement after it."""
    return bool(block) and isinstance(block[-1], ast.Return | ast.Raise | ast.Continue)


def assign(statement: ast.Assign, scope: Scope) -> None:
    """Record an assignment; one that uses the name's old value adds to it."""
    for target in statement.targets:
        pairs = [(target, statement.value)]
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            pairs = list(zip(target.elts, statement.value.elts, strict=False))
        for name, value in pairs:
            if isinstance(name, ast.Name):
                again = any(isinstance(one, ast.Name) and one.id == name.id for one in ast.walk(value))
                scope[name.id] = [*(scope.get(name.id, []) if again else []), value]


def texts(node: ast.expr, scope: Scope) -> list[str]:
    """Return the texts that an expression may give, with {words} for what is only known at run time."""
    if isinstance(node, ast.Constant):
        return [" ".join(str(node.value).split())] if str(node.value).strip() == node.value else [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(piece(value, scope) for value in node.values)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, scope), *texts(node.orelse, scope)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left, scope) for right in texts(node.right, scope)]
    if isinstance(node, ast.Name) and node.id in scope:
        inner = {name: values for name, values in scope.items() if name != node.id}
        found = [text for value in scope[node.id] for text in texts(value, inner)]
        return [text for text in found if text != f"{{{node.id}}}"] or [f"{{{word(node)}}}"]
    return [f"{{{word(node)}}}"]


def piece(node: ast.expr, scope: Scope) -> str:
    """Write one part of an f-string; a text held in a variable is written out."""
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
        return node.id.strip("_").lower()
    if isinstance(node, ast.Attribute):
        return "type" if node.attr == "__name__" else node.attr.strip("_")
    if isinstance(node, ast.Subscript):
        key = node.slice
        return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else word(node.value)
    if isinstance(node, ast.Call):
        return called(node)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return word(node.generators[0].iter)
    inner = next((child for child in ast.walk(node) if isinstance(child, ast.Name)), None)
    return word(inner) if inner else "…"


def called(call: ast.Call) -> str:
    """Name what a call stands for: what it shows or counts, else the function."""
    name = word(call.func)
    if name == "len":
        return f"number of {word(call.args[0])}"
    if name in SHOWING and call.args:
        return word(call.args[-1])
    if isinstance(call.func, ast.Attribute) and name in TRIMMING:
        return word(call.args[0] if name == "get" else call.func.value)
    return name
