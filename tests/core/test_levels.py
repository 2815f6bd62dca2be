"""`--optim-level`, `--max-drop` and `--sparsity` mean what the documentation says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.levels import parse_budget, parse_level, parse_structure, target_sparsity


@given(st.floats(0, 1))
def test_a_level_from_0_to_1_is_kept(level: float) -> None:
    assert parse_level(str(level)) == level


@given(st.integers(2, 100))
def test_a_whole_number_from_2_is_per_cent(level: int) -> None:
    assert parse_level(level) == level / 100 == parse_level(str(level))


def test_one_means_everything_not_one_per_cent() -> None:
    assert parse_level("1") == 1.0


@pytest.mark.parametrize("level", ["1.5", "-1", "abc", "101", "nan", "", None])
def test_any_other_level_is_refused(level: object) -> None:
    with pytest.raises(ValueError, match="give 0 to 1, or a whole number from 2 to 100 as per cent"):
        parse_level(level)


@pytest.mark.parametrize(
    ("kind", "level", "sparsity"),
    [
        ("one-shot", 0.0, 0.0),
        ("one-shot", 0.29, 0.0),
        ("one-shot", 0.3, 0.40),
        ("one-shot", 0.5, 0.5142857),
        ("one-shot", 1.0, 0.80),
        ("training-aware", 0.3, 0.60),
        ("training-aware", 0.5, 0.70),
        ("training-aware", 1.0, 0.95),
    ],
)
def test_sparsity_follows_the_documented_lines(kind: str, level: float, sparsity: float) -> None:
    assert target_sparsity(level, kind) == pytest.approx(sparsity)


@pytest.mark.parametrize(
    ("given_", "agreement", "baseline", "points"),
    [
        (None, False, 80.0, 2.0),
        (None, True, 100.0, 5.0),
        ("1.0", False, 80.0, 1.0),
        ("1%", False, 80.0, 0.8),
        ("none", False, 80.0, None),
        ("0", False, 80.0, 0.0),
    ],
)
def test_a_budget_is_points_or_a_share_of_the_baseline(
    given_: str | None, agreement: bool, baseline: float, points: float | None
) -> None:
    assert parse_budget(given_, agreement=agreement).resolved(baseline) == pytest.approx(points)


@pytest.mark.parametrize("text", ["-1", "much", "1 %%", "101", "nan", "1e3"])
def test_any_other_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give points such as 1\.0, a share such as 1%, or none"):
        parse_budget(text, agreement=False)


@pytest.mark.parametrize(
    ("given_", "pattern"),
    [("2:4", "2:4"), ("block4", "1x4"), ("4X1", "4x1"), ("unstructured",) * 2, ("Structured", "structured")],
)
def test_patterns(given_: str, pattern: str) -> None:
    assert parse_structure(given_) == pattern


@pytest.mark.parametrize(
    ("text", "why"), [("4:4", "keeps every weight"), ("0x4", "no sparsity pattern"), ("dense", "no sparsity pattern")]
)
def test_impossible_patterns_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_structure(text)
