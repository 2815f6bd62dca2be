"""What explains a run: the order of layers, where the error starts, what rungs bought, and what was given up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsify.explanation import explanation
from sparsify.report_pages import figures, render_html, render_markdown

from tests.core.reports import EXPLAINED, METRICS, rung

MAYBE = st.one_of(st.none(), st.floats(-10, 60))


def layers(*rows: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    """Return metrics with layers a, b, … of these drops, isolated and accumulated errors."""
    keys = ("drop_if_alone", "isolated_db", "sqnr_db")
    return {"layers": [{"name": chr(97 + n), **dict(zip(keys, row, strict=True))} for n, row in enumerate(rows)]}


def order(metrics: dict[str, Any]) -> str:
    return "".join(layer["name"] for layer in explanation(metrics)["layers"])


def test_the_worst_layer_is_first() -> None:
    assert order(layers((0.1, 30, 20), (0.5, 40, 20), (None, 10, 5), (None, 12, 1), (0.1, 25, 20))) == "beacd"
    assert order(layers((None, None, 20), (None, None, 10), (None, None, None))) == "bac"
    assert order(layers((None, None, None), (None, None, None))) == "ab"


@given(st.lists(st.tuples(MAYBE, MAYBE, MAYBE), max_size=20))
def test_no_layer_is_lost_and_known_drops_fall(rows: list[tuple[float | None, float | None, float | None]]) -> None:
    metrics = layers(*rows)
    found = explanation(metrics)["layers"]
    assert sorted(layer["name"] for layer in found) == sorted(layer["name"] for layer in metrics["layers"])
    drops = [layer["drop_if_alone"] for layer in found]
    known = [drop for drop in drops if drop is not None]
    assert drops == sorted(known, reverse=True) + [None] * (len(drops) - len(known))


def test_the_error_starts_where_most_of_it_is_inherited() -> None:
    start = explanation(layers((None, 40, 40), (None, 22, 21.5), (None, 35, 31), (None, 30, 24), (None, 30, 10)))[
        "start"
    ]
    assert (start["name"], start["isolated_db"], start["sqnr_db"], start["source"]) == ("d", 30, 24, "b")
    assert start["sentence"] == (
        "Error piles up from d on: 30.0 dB alone, 24.0 dB with all before it; before it, b makes most error of its own."
    )
    for report in (render_html, render_markdown):
        assert "Error piles up from" in report(EXPLAINED)


@pytest.mark.parametrize(
    "metrics", [{}, METRICS, layers((None, 40, 34.1), (None, 30, 24.1)), layers((None, 40, None), (None, None, 2))]
)
def test_an_error_of_its_own_starts_nowhere(metrics: dict[str, Any]) -> None:
    assert explanation(metrics)["start"] is None


def test_a_first_layer_that_inherits_names_no_source() -> None:
    start = explanation(layers((None, 40, 30)))["start"]
    assert start["source"] is None
    assert start["sentence"].endswith("with all before it.")


def test_a_rung_is_compared_with_the_one_kept_before_it() -> None:
    rungs = explanation(EXPLAINED)["rungs"]
    assert [row["points_bought"] for row in rungs] == [None, 0.0, 1.4, 1.9, 0.1]
    assert [row["ms_bought"] for row in rungs] == [None, -0.018, -0.001, -0.03, -0.021]
    assert [row["name"] for row in rungs if row["final"]] == ["layers in float"]


def test_a_ladder_that_kept_nothing_has_no_final_rung() -> None:
    ladder = [rung("a", 5, 0.3, False), rung("b", 4, None, False), rung("c", 2, 0.2, False)]
    rungs = explanation({"rungs": ladder})["rungs"]
    assert not any(row["final"] for row in rungs)
    assert [row["points_bought"] for row in rungs] == [None, 1, 3]
    assert [row["ms_bought"] for row in rungs] == [None, None, pytest.approx(0.1)]


def test_what_was_given_up_is_said_in_every_report() -> None:
    metrics = {**EXPLAINED, "layers": [{**EXPLAINED["layers"][3], "name": "fc", "kept_float": "too sensitive"}]}
    said = [
        "sparsity: 51.4 % as asked, 46.8 % kept",
        "compressed size: 185 kB as asked, 214 kB kept",
        "time at batch 1: 0.350 ms as asked, 0.381 ms kept",
        "in float, too sensitive: fc",
        "in float for their place in the graph: 1 node",
    ]
    assert figures(metrics)["given_up"] == said
    for line in said:
        assert line in render_html(metrics)
        assert line in render_markdown(metrics)
    assert figures(METRICS)["given_up"] == []


def test_many_layers_in_float_are_counted_instead_of_named() -> None:
    metrics = {"layers": [{"name": f"l{place}", "kept_float": "no kernel"} for place in range(6)]}
    assert figures(metrics)["given_up"] == ["in float, no kernel: 6 layers"]
