"""Evaluate the arithmetic of recipes, `eval(num_epochs * 0.6)`, by walking a whitelist of syntax, never by `eval`."""

from __future__ import annotations

import ast
import math
from ast import Add, Div, FloorDiv, Mod, Mult, Pow, Sub
from collections.abc import Callable, Mapping
from operator import add, floordiv, mod, mul, sub, truediv
from typing import Any

from sparsify.errors import RequestError

Number = int | float

_LENGTH = 500  # characters; also bounds the depth of the walk
_BITS = 1024  # of any integer result: 9**9**9 would not fit into memory


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _BITS:
        raise ValueError(f"{base}**{exponent} is too large")
    return base**exponent


def _round(value: Number, digits: Number | None = None) -> Any:
    if digits is not None and abs(digits) > 100:
        raise ValueError("round() to more than 100 digits")  # round(1, -10**9) computes 10**10**9
    return round(value, digits)  # type: ignore[arg-type]  # Python refuses a fraction itself


_Call = Callable[..., Any]
_FUNCTIONS: Mapping[str, _Call] = {"abs": abs, "float": float, "int": int, "max": max, "min": min, "round": _round}
_OPERATORS = {Add: add, Sub: sub, Mult: mul, Div: truediv, FloorDiv: floordiv, Mod: mod, Pow: _power}


def referenced_names(expression: str) -> frozenset[str]:
    """Return the variables that an expression reads; raises RequestError where it is no expression."""
    nodes = list(ast.walk(_parse(expression)))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called)


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """Return the value of an expression: a finite number, or whatever a variable holds that is named alone.

    Knows + - * / // ** %, minus signs, parentheses, and abs, float, int, max, min, round.
    """
    body = _parse(expression)
    try:
        return variables[body.id] if isinstance(body, ast.Name) else _number(body, variables)
    except KeyError as error:
        raise _refusal(expression, f"variable {error} is not defined") from error
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        raise _refusal(expression, str(error)) from error


def _parse(expression: str) -> ast.expr:
    if len(expression) > _LENGTH:
        raise _refusal(expression[:40] + "…", f"it is longer than {_LENGTH} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refusal(expression, "it is not an arithmetic expression") from error


def _refusal(expression: str, why: str) -> RequestError:
    fix = "use numbers, defined variables, + - * / // ** %, parentheses, abs float int max min round"
    return RequestError(f"cannot compute eval({expression}): {why}", fix=fix)


def _number(node: ast.expr, variables: Mapping[str, Any]) -> Number:
    match node:
        case ast.Constant(value=value):
            return _checked(value)
        case ast.Name(id=name):
            return _checked(variables[name], name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, variables)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _checked(_OPERATORS[type(op)](_number(left, variables), _number(right, variables)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _checked(_FUNCTIONS[name](*[_number(argument, variables) for argument in arguments]))
    raise ValueError(f"'{ast.unparse(node)}' is not allowed")


def _checked(value: object, name: str = "") -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = f"variable '{name}'" if name else f"{value!r}"
        raise TypeError(f"{what} is {type(value).__name__}, not a number")
    if (isinstance(value, int) and value.bit_length() > _BITS) or not math.isfinite(value):
        raise ValueError("the result is not finite or too large")
    return value
