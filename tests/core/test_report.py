"""The three reports: well formed, self-contained, escaped, and a dash for whatever is not known."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.report_figures import DASH, change, milliseconds, number, percent, size, span, times
from sparsify.report_pages import figures, render_html, render_markdown

from tests.core.reports import EXPLAINED, HOSTILE, METRICS, OPTIONAL, VERDICTS, Checker, holder, layer, leaves, terminal


def summary(metrics: dict[str, Any]) -> str:
    return str(figures(metrics)["summary"])


def with_name(name: str, metrics: dict[str, Any] = METRICS) -> dict[str, Any]:
    """Put a name in the place of every text and of every metric and runtime."""
    metrics = copy.deepcopy(metrics)
    for path in list(leaves(metrics)):
        inside = holder(metrics, path)
        if isinstance(inside[path[-1]], str) and path[-1] not in ("image", "given"):
            inside[path[-1]] = name
    for side in (metrics["baseline"], metrics["optimized"]):
        side.update(metrics={name: 1.0}, latency={name: side["latency"]["onnxruntime"]})
    named = {key: {name: name} for key in ("environment", "files", "samples", "unreadable")}
    return {**metrics, **named}


def test_html_is_well_formed_and_self_contained() -> None:
    for metrics, plots in ((METRICS, 2), (EXPLAINED, 4)):
        page = render_html(metrics)
        checked = Checker(page)
        assert page.startswith("<!doctype html>")
        assert not {"script", "link", "iframe", "object"} & set(checked.tags)
        assert "href" not in {name for name, _ in checked.attributes}
        sources = [str(value) for name, value in checked.attributes if name == "src"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
        assert checked.tags.count("svg") >= plots
        assert 'name="viewport"' in page
        assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", [HOSTILE, "<b>", "&amp;", '" onload="x', "{{ 7 * 7 }}{% raw %}"])
@pytest.mark.parametrize("metrics", [METRICS, EXPLAINED])
def test_html_escapes_every_name(name: str, metrics: dict[str, Any]) -> None:
    clean, hostile = Checker(render_html(metrics)), Checker(render_html(with_name(name, metrics)))
    assert set(hostile.tags) == set(clean.tags)
    assert {key for key, _ in hostile.attributes} == {key for key, _ in clean.attributes}
    assert sum(name in word for word in hostile.words) > 30


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_html_stays_well_formed_for_any_name(name: str) -> None:
    assert set(Checker(render_html(with_name(name, EXPLAINED))).tags) <= set(Checker(render_html(EXPLAINED)).tags)


@pytest.mark.parametrize("image", ["https://example.org/x.png", "data:text/html;base64,AAAA", "javascript:x", "", 3])
def test_images_are_embedded_or_left_out(image: Any) -> None:
    metrics = {**EXPLAINED, "examples": [{**EXPLAINED["examples"][0], "image": image}]}
    page = render_html(metrics)
    assert "img" not in Checker(page).tags
    assert "cat/1.png" in page


@pytest.mark.parametrize("missing", OPTIONAL)
def test_every_optional_field_may_be_absent(missing: str) -> None:
    for metrics in ({**EXPLAINED, missing: None}, {key: EXPLAINED[key] for key in EXPLAINED if key != missing}):
        Checker(render_html(metrics))
        assert list(tables(render_markdown(metrics)))
        assert terminal(metrics, 100)


@settings(deadline=None, max_examples=50)
@given(st.sets(st.sampled_from(sorted(leaves(EXPLAINED), key=str)), max_size=12), st.booleans())
def test_any_field_may_be_absent_or_null(paths: set[tuple[Any, ...]], null: bool) -> None:
    metrics = copy.deepcopy(EXPLAINED)
    for path in paths:
        inside = holder(metrics, path)
        if isinstance(inside, dict) and null:
            inside[path[-1]] = None
        elif isinstance(inside, dict):
            inside.pop(path[-1], None)
    Checker(render_html(metrics))
    assert render_markdown(metrics)
    assert terminal(metrics, 100)


def tables(text: str) -> Iterator[list[str]]:
    """Split Markdown into its tables."""
    for block in text.split("\n\n"):
        lines = block.strip().split("\n")
        if lines[0].startswith("|"):
            yield lines


@pytest.mark.parametrize("metrics", [METRICS, EXPLAINED, with_name(HOSTILE), with_name(HOSTILE, EXPLAINED)])
def test_markdown_tables_keep_their_columns(metrics: dict[str, Any]) -> None:
    found = list(tables(render_markdown(metrics)))
    ladder = [len(metrics["rungs"])] if "rungs" in metrics else []
    assert [len(lines) - 2 for lines in found][1 : 2 + len(ladder)] == [*ladder, 20]
    for lines in found:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_markdown_escapes_markup() -> None:
    text = render_markdown(with_name(HOSTILE))
    assert "<script>" not in text.replace("\\<", "")
    assert r"\`\*\[x\](y)" in text


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_terminal_shows_the_outcome_at_any_width(width: int) -> None:
    shown = terminal(METRICS, width)
    assert all(len(line) <= width for line in shown.splitlines())
    joined = "".join(shown.split())
    for word in ("1.09MB", "272kB", "4.00×smaller", "51.4%", "22/22", "21/22", "Withinbudget", "1.95×faster"):
        assert word in joined
    for word in ("−0.35points", "97.85%", "run/deployment/model.onnx", "warning:3imagesskipped", "fix:raise--max-drop"):
        assert word in joined


def test_markup_of_the_terminal_is_not_read_from_names() -> None:
    assert "[red]" in "".join(terminal(with_name("[red]x[/red]"), 140).split())


@pytest.mark.parametrize("name", [*VERDICTS, "novel"])
def test_every_verdict_has_words_and_a_tone(name: str) -> None:
    metrics = {**METRICS, "verdict": name}
    title = VERDICTS.get(name, "novel")
    assert title in render_html(metrics)
    assert title in render_markdown(metrics)
    assert title in terminal(metrics, 140)


@pytest.mark.parametrize("metrics", [{}, {"verdict": None, "layers": [{}], "stages": [{}], "optimized": {}}])
def test_missing_values_are_dashes_and_never_zero(metrics: dict[str, Any]) -> None:
    Checker(render_html(metrics))
    assert terminal(metrics, 100)
    for row in figures(metrics)["rows"]:
        assert set(row["sides"]) <= {DASH, ""}
    assert not re.search(r"\b0(\.0+)?\b", re.sub(r"<style>.*</style>|<svg.*?</svg>", "", render_markdown(metrics)))


def test_none_is_a_dash_in_every_place() -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["agreement"] = {"top1": None, "cosine": None, "kl": None}
    metrics["optimized"]["latency"]["onnxruntime"].update(int8_executed=None, p50_ms=None)
    metrics["layers"][3].update(sparsity=None, sqnr_db=None, precision=None)
    shown = {row["label"]: row["sides"][1] for row in figures(metrics)["rows"]}
    assert shown["onnxruntime: INT8 nodes executed"] == DASH
    assert shown["onnxruntime: p50 at batch 1, 2 threads"] == DASH
    assert shown["cosine of the outputs"] == DASH
    row = f"<td>{DASH}</td><td>{DASH}</td><td>{DASH}</td><td>Conv</td><td>16×16×3×3</td>"
    assert row in render_html(metrics)


def test_columns_without_content_are_left_out_of_the_html() -> None:
    assert "drop if alone" not in render_html(METRICS)
    metrics = {**METRICS, "layers": [layer(0, drop_if_alone=0.4)]}
    assert "drop if alone" in render_html(metrics)


def test_the_change_of_a_metric_that_should_fall_keeps_its_interval() -> None:
    moved, bounds = change(METRICS, "accuracy")
    assert moved == pytest.approx(-0.35)
    assert bounds == (-1.12, 0.41)
    falling = copy.deepcopy(METRICS)
    falling["baseline"]["metrics"] = {"accuracy": 8.15}
    falling["optimized"]["metrics"] = {"accuracy": 8.5}
    moved, bounds = change(falling, "accuracy")
    assert moved == pytest.approx(0.35)
    assert bounds == [-0.41, 1.12]
    assert change(METRICS, "top5")[1] is None
    assert change(METRICS, "absent") == (None, None)


def test_agreement_that_decides_is_shown_once() -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["metric"] = "agreement"
    metrics["baseline"]["metrics"], metrics["optimized"]["metrics"] = {"agreement": 100.0}, {"agreement": 97.85}
    labels = [row["label"] for row in figures(metrics)["rows"]]
    assert labels.count("agreement") == 1
    assert "agreement with the baseline, top-1" not in labels
    assert "agreement 100.00 → 97.85 (−2.15; budget 2.00 points, default)" in summary(metrics)


def test_a_model_that_got_worse_says_so() -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["optimized"]["bytes"] = 2 * metrics["baseline"]["bytes"]
    metrics["speedup"], metrics["speedup_interval"] = {"onnxruntime": 0.8}, [0.78, 0.82]
    assert summary(metrics).startswith("2.00× larger, 1.25× slower (1.22 to 1.28×) on onnxruntime")


@pytest.mark.parametrize("bounds", [[0.95, 1.26], [1.0, 1.26], [0.8, 1.0]])
def test_an_interval_around_one_is_no_difference(bounds: list[float]) -> None:
    metrics = {**METRICS, "speedup": {"onnxruntime": 1.09}, "speedup_interval": bounds}
    said = f"no measurable difference ({bounds[0]:.2f} to {bounds[1]:.2f}×)"
    for report in (render_html(metrics), render_markdown(metrics), terminal(metrics, 140), summary(metrics)):
        assert said in " ".join(report.split())
        assert not re.search("faster|slower", re.sub("<style>.*</style>", "", report, flags=re.DOTALL))


def test_a_baseline_claims_no_speed() -> None:
    metrics = {**METRICS, "verdict": "baseline"}
    for report in (render_html(metrics), render_markdown(metrics), terminal(metrics, 140)):
        assert not re.search("faster|slower|no measurable", re.sub("<style>.*</style>", "", report, flags=re.DOTALL))
        assert "p50 at batch 1" in report


def test_budgets_are_said_as_given() -> None:
    for budget, said in (
        ({"points": 1.0, "given": "1.0"}, "budget 1.00 points)"),
        ({"points": 0.9185, "given": "1%"}, "budget 0.92 points, 1%"),
        ({"points": 1.0, "given": "1"}, "budget 1.00 points)"),
        ({"points": None, "given": "none"}, "no budget"),
    ):
        assert said in summary({**METRICS, "budget": budget})


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(None), DASH), (number(math.nan), DASH), (number(True), DASH), (number(-1.234), "−1.23"),
        (number(0), "0.00"), (size(None), DASH), (size(0), "0 bytes"), (size(999), "999 bytes"),
        (size(1_000), "1 kB"), (size(98_765_432), "98.8 MB"), (size(1.6e9), "1.6 GB"), (times(0.5, "faster", "slower"),
        "2.00× slower"), (times(0), DASH), (times(1.0, "faster", "slower"), "1.00× faster"), (span(None), ""),
        (span([1, None]), ""), (span((-1, 2)), "−1.00 to 2.00"), (milliseconds(0.01234), "0.0123 ms"),
        (milliseconds(123.4), "123 ms"), (milliseconds(1.5), "1.50 ms"), (milliseconds(None), DASH),
        (milliseconds(-0.00021, "+", 0.356), "−0.000 ms"), (milliseconds(0.0213, "+", 0.356), "+0.021 ms"),
        (milliseconds(0), "0.00 ms"), (percent(0.514), "51.4 %"), (percent(None), DASH), (percent("x"), DASH),
    ],
)  # fmt: skip
def test_figures_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_what_is_wrong_with_calibration_is_a_warning_said_once() -> None:
    (line,) = EXPLAINED["coverage"]["notes"]
    metrics = {**EXPLAINED, "notes": [*EXPLAINED["notes"], line]}
    page, text = render_html(metrics), render_markdown(metrics)
    assert page.count(line) == text.count(line) == 1
    assert f'<p class="warning">warning: {line}' in page
    assert "0.3 % of the activations on selection samples are beyond the calibrated ranges" in page
    assert "".join(f"warning: {line}".split()) in "".join(terminal(metrics, 100).split())
