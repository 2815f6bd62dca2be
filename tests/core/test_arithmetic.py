"""The arithmetic of recipes: agrees with Python where it is arithmetic, and refuses everything else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.arithmetic import evaluate, referenced_names
from sparsify.errors import RequestError

NUMBERS = st.one_of(st.integers(0, 50), st.floats(0.015625, 50, allow_nan=False).map(lambda value: round(value, 4)))


def expressions(inner):
    binary = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(lambda x: f"({' '.join(x)})")
    calls = st.tuples(st.sampled_from(["abs", "float", "int", "round"]), inner).map(lambda x: f"{x[0]}({x[1]})")
    pairs = st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(lambda x: f"{x[0]}({x[1]}, {x[2]})")
    return st.one_of(binary, calls, pairs, inner.map(lambda x: f"-{x}"), inner.map(lambda x: f"({x})**2"))


@given(st.recursive(NUMBERS.map(repr), expressions, max_leaves=12))
def test_agrees_with_python(expression):
    try:
        expected = eval(expression, {})
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(RequestError):
            evaluate(expression, {})
        return
    if len(expression) > 500 or not math.isfinite(expected) or (type(expected) is int and expected.bit_length() > 1024):
        return
    assert evaluate(expression, {}) == expected
    assert type(evaluate(expression, {})) is type(expected)


@given(st.text(max_size=40))
def test_never_fails_otherwise_than_by_refusal(expression):
    try:
        result = evaluate(expression, {"a": 2})
    except RequestError as error:
        assert error.problem.startswith("cannot compute eval(")  # noqa: PT017 - refusing is one of two right outcomes
    else:
        assert isinstance(result, int | float)


def test_variables_enter_by_name():
    assert evaluate("num_epochs * 0.5 - warm_up", {"num_epochs": 40, "warm_up": 2}) == 18.0
    assert referenced_names("max(a, b) + round(c)") == {"a", "b", "c"}


@pytest.mark.parametrize("value", ["block4", [1, 4], True, None, {"gamma": 0.1}])
def test_anything_is_referenced_by_its_exact_name_only(value):
    assert evaluate(" mask ", {"mask": value}) == value
    with pytest.raises(RequestError, match=f"variable 'mask' is {type(value).__name__}, not a number"):
        evaluate("mask * 1", {"mask": value})


def test_the_longest_expression_is_walked():
    assert evaluate("-" * 499 + "1", {}) == -1


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("9**9**9", "too large"),
        ("2**2000", "too large"),
        ("1" + "*9**300" * 20, "too large"),
        ("round(1, -10**9)", "more than 100 digits"),
        ("10.0**400", "Result too large|out of range|too large"),
        ("1e308 * 10", "not finite"),
        ("(-8)**0.5", "complex"),
        ("1 / 0", "division by zero"),
        ("missing + 1", "'missing' is not defined"),
        ("__import__('os').system('true')", "not allowed"),
        ("().__class__", "not allowed"),
        ("[1 for _ in range(9)]", "not allowed"),
        ("'a' * 3", "not a number"),
        ("True + 1", "bool, not a number"),
        ("1 if 2 else 3", "not allowed"),
        ("1 << 200", "not allowed"),
        ("max(1, key=abs)", "not allowed"),
        ("abs", "not defined"),
        ("lambda: 1", "not allowed"),
        ("min()", "at least 1 argument"),
        ("1 +", "not an arithmetic expression"),
        ("", "not an arithmetic expression"),
        ("(" * 300 + "1" + ")" * 300, "longer than 500|not an arithmetic expression"),
        ("1" + "+1" * 400, "longer than 500 characters"),
        ("1\x00", "not an arithmetic expression"),
    ],
)
def test_refuses_by_name(expression, why):
    with pytest.raises(RequestError, match=why) as refusal:
        evaluate(expression, {})
    assert refusal.value.problem.startswith("cannot compute eval(")
    assert "abs float int max min round" in refusal.value.fix
