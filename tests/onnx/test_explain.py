"""`sparsify explain`: what it says of a run, as tables and as data, and the two lines for what is no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sparsify import RequestError
from sparsify_onnx.explain import app, read
from typer.testing import CliRunner

from tests.core.reports import EXPLAINED, HOSTILE, METRICS

NOTHING = "nothing: what was asked for is what was kept"


def write(folder: Path, metrics: Any) -> Path:
    """Write a finished run, and return its folder."""
    (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics), encoding="utf-8")
    return folder


def said(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(app, [str(folder), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_tells_the_whole_story(tmp_path: Path) -> None:
    text = said(write(tmp_path, EXPLAINED))
    assert text.startswith("Within budget  4.00× smaller, 1.95× faster (1.88 to 2.01×) on onnxruntime")
    found = {line.strip(): place for place, line in enumerate(text.splitlines())}
    headings = ["Layers, worst first", "Where the error starts", "What each rung bought", "Left in float"]
    places = [found[heading] for heading in [*headings, "What was given up"]]
    assert places == sorted(places)
    for part in (
        "drop if alone", "0.60", "27.0", "0.1 %", "0.0312", "0.0104", "Error piles up from ", "layers in float",
        "kept, final", "+1.90", "−0.030 ms", "why structural exclusions", "dropped", "/attention/Softmax",
        "softmax input", "sparsity: 51.4 % as asked, 46.8 % kept",
    ):  # fmt: skip
        assert part in text


def test_the_worst_layer_comes_first_and_the_rest_is_cut(tmp_path: Path) -> None:
    lines = said(write(tmp_path, EXPLAINED), "--layers", "2").splitlines()
    start = lines.index("Layers, worst first")
    assert EXPLAINED["layers"][5]["name"] in lines[start + 2]
    assert lines[start + 4].strip() == "2 of 20 layers; --layers 0 shows all"
    everything = said(tmp_path, "--layers", "0")
    assert all(layer["name"] in everything for layer in EXPLAINED["layers"])
    assert "--layers 0" not in everything


def test_a_run_without_a_ladder_says_what_it_knows(tmp_path: Path) -> None:
    text = said(write(tmp_path, METRICS))
    assert "Not known: this run did not measure layers alone." in text
    assert "What each rung bought" not in text
    assert "drop if alone" not in text
    assert NOTHING in text
    own = {**METRICS, "layers": [{**layer, "isolated_db": layer["sqnr_db"]} for layer in METRICS["layers"]]}
    assert "Nowhere: each layer's error is mostly its own." in said(write(tmp_path, own))
    assert NOTHING in said(write(tmp_path, {"schema": 1}))


def test_json_is_the_explanation_as_data(tmp_path: Path) -> None:
    found = json.loads(said(write(tmp_path, EXPLAINED), "--json", "--layers", "3"))
    assert found.keys() == {
        "schema", "verdict", "metric", "budget", "summary", "start", "rungs", "given_up", "excluded", "layers",
    }  # fmt: skip
    assert [layer["drop_if_alone"] for layer in found["layers"]] == [0.6, None, None]
    assert found["rungs"][3]["points_bought"] == 1.9
    assert found["excluded"] == EXPLAINED["excluded"]
    assert len(json.loads(said(tmp_path, "--json", "--layers", "0"))["layers"]) == 20


def test_the_file_itself_may_be_given(tmp_path: Path) -> None:
    assert said(write(tmp_path, EXPLAINED)) == said(tmp_path / "metrics.json")


@pytest.mark.parametrize("columns", [60, 80, 119, 120, 160])
def test_a_terminal_of_any_width_is_not_overrun(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsify_onnx.explain.PLAIN_WIDTH", columns)
    lines = said(write(tmp_path, EXPLAINED)).splitlines()
    assert max(map(len, lines)) <= columns
    assert ("precision" in "".join(lines)) == (columns >= 120)


def test_names_are_never_read_as_markup(tmp_path: Path) -> None:
    layers = [{**EXPLAINED["layers"][0], "name": "[red]a[/red]"}, {**EXPLAINED["layers"][1], "name": HOSTILE}]
    text = said(write(tmp_path, {**EXPLAINED, "layers": layers}))
    assert "[red]a[/red]" in text
    assert "<script>" in text


def test_constants_that_are_no_json_are_unknown_figures(tmp_path: Path) -> None:
    assert read(write(tmp_path, '{"schema": 1, "drop": NaN}'))["drop"] is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "holds no metrics.json"),
        ("{", "cannot be read as JSON: Expecting property name"),
        ("\\xff", "cannot be read as JSON"),
        ("[]", "has schema null, and this version reads schema 1"),
        ('{"schema": 2}', "has schema 2, and this version reads schema 1"),
        ('{"schema": 1, "layers": {"a": 1}}', "'layers' in"),
        ('{"schema": 1, "rungs": ["a"]}', "'rungs' in"),
    ],
)
def test_what_is_no_run_is_refused(content: str | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        write(tmp_path, content)
    with pytest.raises(RequestError, match=problem) as raised:
        read(tmp_path)
    assert str(tmp_path) in raised.value.problem
    assert raised.value.fix


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")


def test_the_command_exits_with_two_lines_and_loads_no_model_library(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sparsify", "explain", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert [line.split(":")[0] for line in told] == ["error", "fix"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"onnx", "onnxruntime", "numpy", "torch"}
