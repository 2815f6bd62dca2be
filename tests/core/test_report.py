"""The three reports: well formed, self-contained, escaped, and a dash for whatever is not known."""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sparsify.plots import plot, round_top
from sparsify.report_figures import DASH, VERDICTS, change, milliseconds, number, rows, size, span, summary, times
from sparsify.report_html import render_html
from sparsify.report_markdown import render_markdown
from sparsify.report_table import terminal_table

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "</td><script>alert(1)</script>|`*[x](y)&\"'\n/conv"


def layer(index: int, **other: Any) -> dict[str, Any]:
    name = f"/layer{1 + index // 6}/layer{1 + index // 6}.{index % 3}/conv{1 + index % 2}/Conv"
    facts = {"name": name, "op": "Conv", "shape": [16, 16, 3, 3], "sparsity": 0.5, "precision": "int8"}
    return {**facts, "sqnr_db": 38.0 - index, "drop_if_alone": None, "kept_dense": "", "kept_float": "", **other}


def latency(p50: float, int8: int | None) -> dict[str, Any]:
    facts = {"batch": 1, "threads": 2, "p50_ms": p50, "p95_ms": 1.5 * p50, "throughput": 1000 / p50}
    return {**facts, "precision": "int8" if int8 else "float32", "int8_executed": int8, "of": 22}


def side(scale: float, accuracy: float) -> dict[str, Any]:
    return {
        "model": "resnet20.onnx",
        "bytes": int(1_086_234 * scale),
        "compressed_bytes": int(1_005_310 * scale),
        "metrics": {"accuracy": accuracy, "top5": 99.7},
        "intervals": {"accuracy": [accuracy - 1.2, accuracy + 1.1]},
        "latency": {"onnxruntime": latency(2.0 * scale, 22 if scale < 1 else 0)},
    }


METRICS: dict[str, Any] = {
    "schema": 1,
    "kind": "one-shot",
    "use_case": "image-classification",
    "optim_level": 0.5,
    "seed": 0,
    "verdict": "met",
    "metric": "accuracy",
    "budget": {"points": 2.0, "given": "default"},
    "baseline": side(1.0, 91.85),
    "optimized": {
        **side(0.25, 91.5), "sparsity": 0.5143, "sparsity_file": 0.5031, "quantized": {"int8": 21, "of": 22}
    },
    "agreement": {"top1": 97.85, "cosine": 0.99712, "kl": 0.00812},
    "drop": {"points": 0.35, "interval": [-0.41, 1.12]},
    "samples": {"calibration": 500, "selection": 256, "test": 2000},
    "layers": [layer(0, sparsity=0.0, kept_dense="first layer"), *(layer(index) for index in range(1, 20))],
    "stages": [{"name": "apply", "seconds": 38.2, "peak_rss_mb": 412.5}],
    "speedup": {"onnxruntime": 1.95},
    "speedup_interval": [1.88, 2.01],
    "compression": 4.0,
    "environment": {"cpu": "a CPU", "cores": 2, "packages": {"onnxruntime": "1.31.1"}},
    "notes": ["opset raised from 12 to 13"],
    "warnings": ["3 images skipped"],
    "fix": "raise --max-drop",
    "files": {"model": "run/deployment/model.onnx"},
}  # fmt: skip


class Checker(HTMLParser):
    """Follow open tags, and gather attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def terminal(metrics: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(metrics, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def with_name(name: str) -> dict[str, Any]:
    metrics = copy.deepcopy(METRICS)
    metrics["layers"][0]["name"] = metrics["layers"][0]["op"] = metrics["use_case"] = name
    metrics["notes"] = metrics["warnings"] = [name]
    metrics["fix"] = metrics["files"]["model"] = metrics["stages"][0]["name"] = name
    metrics["baseline"]["metrics"] = metrics["optimized"]["metrics"] = {name: 1.0}
    return metrics


def test_html_is_well_formed_and_self_contained() -> None:
    page = render_html(METRICS)
    checked = Checker(page)
    assert page.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object"} & set(checked.tags)
    assert not {"src", "href"} & {name for name, _ in checked.attributes}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert checked.tags.count("svg") == 2
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", [HOSTILE, "<b>", "&amp;", '" onload="x'])
def test_html_escapes_every_name(name: str) -> None:
    clean, hostile = Checker(render_html(METRICS)), Checker(render_html(with_name(name)))
    assert set(hostile.tags) == set(clean.tags)
    assert {key for key, _ in hostile.attributes} == {key for key, _ in clean.attributes}
    assert any(name in word for word in hostile.words)


@given(st.text(max_size=30))
def test_html_stays_well_formed_for_any_name(name: str) -> None:
    assert set(Checker(render_html(with_name(name))).tags) <= set(Checker(render_html(METRICS)).tags)


def tables(text: str) -> Iterator[list[str]]:
    """Split Markdown into its tables."""
    for block in text.split("\n\n"):
        lines = block.strip().split("\n")
        if lines[0].startswith("|"):
            yield lines


@pytest.mark.parametrize("metrics", [METRICS, with_name(HOSTILE)])
def test_markdown_tables_keep_their_columns(metrics: dict[str, Any]) -> None:
    found = list(tables(render_markdown(metrics)))
    assert [len(lines) - 2 for lines in found][1:3] == [20, 1]
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
    title = VERDICTS[name][1] if name in VERDICTS else "novel"
    assert title in render_html(metrics)
    assert title in render_markdown(metrics)
    assert title in terminal(metrics, 140)


@pytest.mark.parametrize("metrics", [{}, {"verdict": None, "layers": [{}], "stages": [{}], "optimized": {}}])
def test_missing_values_are_dashes_and_never_zero(metrics: dict[str, Any]) -> None:
    Checker(render_html(metrics))
    assert terminal(metrics, 100)
    for row in rows(metrics):
        assert set(row.sides) <= {DASH, ""}
    assert not re.search(r"\b0(\.0+)?\b", re.sub(r"<style>.*</style>|<svg.*?</svg>", "", render_markdown(metrics)))


def test_none_is_a_dash_in_every_place() -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["agreement"] = {"top1": None, "cosine": None, "kl": None}
    metrics["optimized"]["latency"]["onnxruntime"].update(int8_executed=None, p50_ms=None)
    metrics["layers"][3].update(sparsity=None, sqnr_db=None, precision=None)
    shown = {row.label: row.sides[1] for row in rows(metrics)}
    assert shown["onnxruntime: INT8 nodes executed"] == DASH
    assert shown["onnxruntime: p50 at batch 1, 2 threads"] == DASH
    assert shown["cosine of the outputs"] == DASH
    assert f"<td>Conv</td><td>16×16×3×3</td><td>{DASH}</td><td>{DASH}</td><td>{DASH}</td>" in render_html(metrics)


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
    labels = [row.label for row in rows(metrics)]
    assert labels.count("agreement") == 1
    assert "agreement with the baseline, top-1" not in labels
    assert "agreement 100.00 → 97.85 (−2.15; budget 2.00 points, default)" in summary(metrics)


def test_a_model_that_got_worse_says_so() -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["optimized"]["bytes"] = 2 * metrics["baseline"]["bytes"]
    metrics["speedup"], metrics["speedup_interval"] = {"onnxruntime": 0.8}, [0.78, 0.82]
    assert summary(metrics).startswith("2.00× larger, 1.25× slower (0.78 to 0.82×) on onnxruntime")


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
    ],
)  # fmt: skip
def test_figures_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_plots_leave_gaps_for_missing_values() -> None:
    bars = plot([0.5, None, 0.0], ["a", "b", "c"], ["pruned"] * 3, 1.0)
    assert bars.count('class="pruned"') == 2
    assert "<title>b" not in bars
    line = plot([10.0, None, 30.0, 40.0], list("abcd"), ["dot"] * 4, 40.0)
    path = re.search(r'class="line" d="([^"]*)"', line)
    assert path is not None
    assert re.sub(r"[^ML]", "", path[1]) == "MML"
    assert line.count('class="dot"') == 3


def test_plots_map_values_to_heights() -> None:
    bars = plot([0.25, 2.0], ["", ""], ["pruned", "kept"], 1.0)
    assert re.findall(r" ([\d.]+)V240", bars) == ["180.00", "0.00"]
    assert "M500.00 120.00" in plot([20.0], [""], ["dot"], 40.0)
    assert "M500.00 240.00" in plot([-5.0], [""], ["dot"], 40.0)
    Checker(plot([], [], [], 1.0))


@pytest.mark.parametrize(("values", "top"), [([31.2, None], 40), ([None], 10), ([], 10), ([-3.0], 10), ([40.0], 40)])
def test_axes_end_on_tens(values: list[float | None], top: float) -> None:
    assert round_top(values) == top
