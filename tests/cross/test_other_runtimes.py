"""A run times every runtime that is installed, and does without one that does not work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparsify.cli.app import main

from tests.onnx import models

OFFERS = """
@hookimpl
def runtimes():
    return [
        Entry("second", "sparsify_onnx.runtime:open_session", "ONNX Runtime again"),
        Entry("broken", "several.broken:open_session", "opens nothing"),
        Entry("falling", "several.broken:Falling", "opens and fails"),
        Entry("homeless", "several.broken:homeless", "says at the door that something is missing"),
        Entry("absent", "several.broken:open_session", "lacks a library", requires=("no_such_library",)),
    ]
"""
BROKEN = """
from sparsify import MissingLibraryError

def open_session(path, threads):
    raise OSError("no such device")

def homeless(path, threads):
    raise MissingLibraryError("no home", fix="make one")

class Falling:
    facts = {}

    def __init__(self, path, threads):
        pass

    def run(self, inputs):
        raise ValueError("fell over")

    def close(self):
        pass
"""


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., list[str]]:
    """Write a model and samples, and give the words of a run on them."""
    model, data = models.mlp(), tmp_path / "data"
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", **{name: array[0] for name, array in models.samples(model, 1, index).items()})
    path = models.save(model, tmp_path)

    def words(*more: str) -> list[str]:
        fixed = ["run", "one-shot", "--use-case", "custom", "--model", str(path), "--data", str(data), "--json"]
        return [*fixed, "--optim-level", "0.2", "--max-drop", "none", "--threads", "1", *more]

    return words


def metrics_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    metrics: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert ended.value.code == (6 if metrics["verdict"] == "slower" else 0)
    return metrics


def test_installed_runtimes_are_timed_beside_the_deciding_one(
    tmp_path: Path,
    request_for: Callable[..., list[str]],
    add_plugin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_plugin("several", OFFERS, broken=BROKEN)
    metrics = metrics_of(request_for("--output", str(tmp_path / "run")), capsys)
    timed = list(metrics["speedup"])
    assert timed[0] == "onnxruntime"
    assert timed[1:] == sorted(timed[1:])
    assert "second" in timed
    assert not {"broken", "falling", "homeless", "absent"} & set(timed)
    for side in ("baseline", "optimized"):
        assert list(metrics[side]["latency"]) == timed
    said = [note for note in metrics["notes"] if "not timed" in note]
    assert [note for note in said if note.startswith(("broken", "falling"))] == [
        "broken is installed, and not timed: no such device",
        "falling is installed, and not timed: fell over",
    ]
    assert not any(note.startswith(("homeless", "absent")) for note in said)


def test_a_runtime_that_was_named_must_work(
    tmp_path: Path,
    request_for: Callable[..., list[str]],
    add_plugin: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_plugin("several", OFFERS, broken=BROKEN)
    arguments = request_for("--output", str(tmp_path / "run"), "--runtime", "onnxruntime", "--runtime", "homeless")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 4
    assert "error: no home\nfix: make one" in capsys.readouterr().err
