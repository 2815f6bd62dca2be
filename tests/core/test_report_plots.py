"""The plots of the HTML report: values stand where they belong, gaps stay gaps, and labels stay apart."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sparsify.report_pages import render_html, render_markdown, ticks

from tests.core.reports import EXPLAINED, METRICS, Checker, rung

FIGURES = st.floats(-1e6, 1e9)


def section(metrics: dict[str, Any], title: str) -> str:
    """Return a section of the page, or nothing."""
    found = [part for part in render_html(metrics).split("<section") if f"<h2>{title}</h2>" in part]
    return found[0] if found else ""


def with_layers(**columns: list[Any]) -> dict[str, Any]:
    """Return metrics whose layers hold these values."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    layers = [{"name": f"conv{place}", "shape": [10, 10], **row} for place, row in enumerate(rows)]
    return {**METRICS, "layers": layers}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 4.5, [0, 2, 4, 6]), (0, 0, [0, 1]), (185_000, 214_000, [180_000, 190_000, 200_000, 210_000, 220_000]),
     (-3, 41.2, [-20, 0, 20, 40, 60]), (7, 7, [0, 10]), (0, 0.004, [0, 0.001, 0.002, 0.003, 0.004])],
)  # fmt: skip
def test_ticks_are_round_and_reach_both_ends(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@example(0.0, 5e-324, 2)
@given(FIGURES, FIGURES, st.integers(2, 8))
def test_ticks_hold_any_range(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high, most)
    slack = 1e-9 * max(abs(low), abs(high), 1)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= most + 2


def trained(**columns: list[Any]) -> dict[str, Any]:
    """Return metrics of a training whose epochs have logged these values."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {**METRICS, "training": [{"epoch": place, "seconds": 1.5, **row} for place, row in enumerate(rows)]}


def test_the_curves_of_a_training_have_a_point_for_every_epoch_and_mark_the_kept_one() -> None:
    columns: dict[str, list[Any]] = {"loss": [2.0, 1.0, 0.5], "accuracy": [40.0, 80.0, 79.0], "lr": [0.1, 0.05, 0.0]}
    metrics = trained(**columns, sparsity=[0.0, 0.35, 0.7], kept=[False, True, False])
    found = section(metrics, "Training")
    names = ("training loss", "accuracy on validation samples", "learning rate", "sparsity of what is pruned")
    assert re.findall(r"<div><p>(.*?)</p>", found) == list(names)
    assert found.count('<circle class="after"') == 12
    assert found.count('r="6"') == 4
    assert "epoch 2: 80, kept" in found
    assert "epoch 3: 70 %" in found
    # 40 to 80 span the axis: the first epoch lies at its foot, the second at its head
    accuracy = found.split("accuracy on validation samples by epoch")[1]
    assert re.findall(r'cy="(.*?)%"', accuracy)[:2] == ["100.0", "0.0"]


def test_an_epoch_without_a_number_leaves_a_gap_and_what_modifiers_log_no_curve() -> None:
    metrics = trained(loss=[2.0, None, 0.5], **{"GMPruningModifier/progress": [0.1, 0.2, 0.3]})
    found = section(metrics, "Training")
    assert found.count('<circle class="after"') == 2
    assert "epoch 2: no number" in found
    assert "progress" not in found


def test_what_trains_nothing_has_no_curves() -> None:
    assert section({**METRICS, "training": []}, "Training") == ""
    assert section(METRICS, "Training") == ""


def test_a_long_training_is_a_short_table() -> None:
    metrics = trained(loss=[1 / (place + 1) for place in range(300)], kept=[place == 298 for place in range(300)])
    table = render_markdown(metrics).split("## Training")[1].split("##")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 12 + 2  # heading, every 25th, the kept and the last epoch
    assert lines[-2].startswith("| 299, kept |")
    assert lines[-1].startswith("| 300 |")


def test_the_ladder_shows_every_rung_the_budget_and_the_final_one() -> None:
    found = section(EXPLAINED, "What each rung bought")
    assert found.count("<circle") == 5
    assert len(re.findall('<g class="final"><circle', found)) == 1
    assert "layers in float: 1.20 points lost, 214 kB" in found
    assert "budget 2.00" in found
    assert "the original has 1.01 MB" in found
    for text in ("kept, final", "dropped", "+1.40", "−0.030 ms", "within budget", "why range methods"):
        assert text in found
    assert not re.search("budget 2.00", section({**EXPLAINED, "budget": {"points": None}}, "What each rung bought"))


def test_one_rung_is_a_table_without_a_plot() -> None:
    found = section({**EXPLAINED, "rungs": EXPLAINED["rungs"][:1]}, "What each rung bought")
    assert "<svg" not in found
    assert "as asked" in found
    assert section({**EXPLAINED, "rungs": []}, "What each rung bought") == ""


def test_a_rung_far_beyond_the_others_lies_on_the_foot_and_says_so() -> None:
    rungs = [rung("as asked", 63.0, 0.3, False), rung("rescued", 1.0, 0.3, True, compressed_bytes=190_000)]
    found = section({**EXPLAINED, "rungs": rungs}, "What each rung bought")
    assert 'cy="100.0%"' in found
    assert "as asked ↓ 63.00" in found


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(FIGURES, st.floats(1, 1e10), st.booleans()), max_size=9), st.one_of(st.none(), FIGURES))
def test_any_ladder_stays_inside_the_plot(steps: list[tuple[float, float, bool]], budget: float | None) -> None:
    rungs = [rung(f"rung {n}", lost, 0.3, kept, compressed_bytes=size) for n, (lost, size, kept) in enumerate(steps)]
    page = render_html({**EXPLAINED, "rungs": rungs, "budget": {"points": budget}})
    Checker(page)
    places = [float(place) for place in re.findall(r'c[xy]="([^"%]*)%"', page)]
    assert all(0 <= place <= 100 for place in places)


def test_lines_have_gaps_for_missing_values() -> None:
    found = section(with_layers(isolated_db=[40.0, None, 30.0, 20.0], sqnr_db=[None] * 4), "Error along the depth")
    (path,) = re.findall(r'class="alone" d="([^"]*)"', found)
    assert re.sub(r"[^ML]", "", path) == "MML"
    (path,) = re.findall(r'class="all" d="([^"]*)"', found)
    assert path == ""
    assert section(with_layers(sqnr_db=[None, None]), "Error along the depth") == ""


def test_the_line_of_layers_alone_is_named_only_where_it_is_known() -> None:
    assert "this layer alone" in section(EXPLAINED, "Error along the depth")
    assert "this layer alone" not in section(METRICS, "Error along the depth")


def test_where_the_error_starts_is_marked_and_the_worst_are_named() -> None:
    found = section(EXPLAINED, "Error along the depth")
    assert "starts here: " in found
    assert found.count('class="worst"') == 3
    assert "starts here" not in section(METRICS, "Error along the depth")


def test_sparsity_is_as_high_as_the_share_and_as_wide_as_the_weights() -> None:
    metrics = with_layers(sparsity=[0.25, 1.0, None], kept_dense=["", "", "first layer"])
    metrics["layers"][1]["shape"] = [10, 20]
    found = section(metrics, "Sparsity per layer")
    heights = re.findall(r' y="[\d.]+%" height="([\d.]+)%"/>\n<title>', found)
    widths = re.findall(r'class="whole" x="[\d.]+%" width="([\d.]+)%"', found)
    assert list(map(float, heights)) == [25, 100, 0]
    assert list(map(float, widths)) == [24.8, 49.8, 24.8]
    assert found.count('<g class="kept">') == 1
    assert "conv1: 100.0 % of 200 weights are zero" in found
    assert "average 51.4 %" in found


def test_what_was_taken_out_is_shown_above_what_became_zero() -> None:
    metrics = with_layers(
        sparsity=[0.5, None, 0.25], shape=[[8, 4], [8, 4], [8, 4]], shape_after=[[4, 4], None, [8, 4]]
    )
    metrics["baseline"] = {**metrics["baseline"], "macs": 200}
    metrics["optimized"] = {**metrics["optimized"], "macs": 100, "sparsity": 0.01}
    found = section(metrics, "What went of each layer")
    assert re.findall(r'class="gone" x="[\d.]+%" width="[\d.]+%" height="([\d.]+)%"', found) == ["50.0", "100.0"]
    assert re.findall(r' y="[\d.]+%" height="([\d.]+)%"/>\n', found)[:3] == ["25.0", "0.0", "25.0"]
    assert "50.0 % are taken out" in found
    assert "average" not in found
    page = render_html(metrics)
    assert "2.00× fewer multiplications" in page
    cards = page[page.index('class="cards"') : page.index("Before and after")]
    assert "multiplications a sample" in cards
    assert "sparsity" not in cards


def test_hundreds_of_layers_with_long_names_are_drawn() -> None:
    metrics = copy.deepcopy(EXPLAINED)
    metrics["layers"] = [
        {**metrics["layers"][place % 20], "name": f"/encoder/{'a' * 120}/{place}/MatMul"} for place in range(300)
    ]
    page = render_html(metrics)
    Checker(page)
    assert page.count('class="hover"') == 300
    labels = re.findall(r'<text class="label[^>]*>([^<]*)</text>', page)
    assert labels
    assert max(map(len, labels)) < 45
    assert len(page) < 1_000_000


def test_the_shift_of_the_top_score_is_drawn_with_its_threshold() -> None:
    found = section(EXPLAINED, "Shift of the top probability")
    assert 'class="before" cx="91.0%"' in found
    assert 'class="after" cx="89.0%"' in found
    for text in ("threshold 0.5", "2.0 %", "0.0900", "F1 at threshold 0.5", "0.900"):
        assert text in found
    bare = section({**EXPLAINED, "confidence": {"name": "margin", "flips": 0.02}}, "Shift of the margin")
    assert "<svg" not in bare
    assert "2.0 %" in bare


def test_examples_show_what_changed_first_as_they_came() -> None:
    found = section(EXPLAINED, "Before and after, sample by sample")
    assert found.count("<img") == 1
    assert found.count("example changed") == 1
    for text in ("cat/1.png · is cat", "dog", "0.630", "cat/2.png"):
        assert text in found


def test_exclusions_stand_below_their_reason() -> None:
    excluded = [{"name": f"n{place}", "op": "Concat", "reason": "box decode"} for place in range(3)]
    found = section({**EXPLAINED, "excluded": [*excluded, *EXPLAINED["excluded"]]}, "Left in float")
    assert found.count("<dt>") == 2
    assert found.count('class="node"') == 4
