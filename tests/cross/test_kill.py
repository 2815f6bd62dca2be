"""SIGKILL in every stage: each time `--resume` goes on, and the end is that of an undisturbed run, byte for byte.

A signal that can be caught ends every stage alike: exit 130, and how to go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.onnx.models import residual_net

ROOT = Path(__file__).parents[2]
MOMENTS = {
    "equalization": "EqualizationModifier > measuring channels > measuring channels",
    "allocation": "SparseGPTModifier > measuring sensitivity > measuring sensitivity",
    "the allocation's trials": "SparseGPTModifier > measuring sensitivity > pruning > pruning",
    "pruning": "sparsity spread over > pruning > pruning > pruning",
    "quantization": "QuantizationModifier > calibrating > calibrating",
    "bias correction": "QuantizationModifier > correcting biases",
    "between two rungs": "rung > trying",
    "a rung that quantizes again": "trying: ranges > trying: ranges > calibrating",
    "a rung that prunes again": "trying: denser > pruning > pruning",
    "export": "stage-started export",
    "verification": "stage-started verify > evaluate > evaluate",
}


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ask for more than random weights can keep, so that the whole ladder is climbed."""
    folder = tmp_path_factory.mktemp("kill")
    onnx.save(residual_net(), folder / "model.onnx")
    random, data = np.random.default_rng(0), folder / "data"
    data.mkdir()
    for index in range(120):
        np.savez(data / f"{index:03d}.npz", input=random.standard_normal((3, 8, 8)).astype(np.float32))
    given = {"use-case": "killed", "model": folder / "model.onnx", "data": data, "calibration-samples": 24}
    given |= {"max-drop": 0, "threads": 1}
    return ["run", "one-shot", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def start(moments: str, *arguments: str | Path, by: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cross.dying", by, moments, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(request_: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = start("", *request_, "--output", whole)
    assert done.returncode in (0, 6), done.stderr
    for place, (stage, moments) in enumerate(MOMENTS.items()):
        died = start(moments, *request_, "--output", killed, *(["--resume"] if place else []))
        assert died.returncode == -signal.SIGKILL, (stage, died.stderr)
        assert not (killed / "metrics.json").exists()
    done = start("", *request_, "--output", killed, "--resume")
    assert done.returncode in (0, 6), done.stderr
    assert (killed / "deployment" / "model.onnx").read_bytes() == (whole / "deployment" / "model.onnx").read_bytes()
    assert (killed / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()
    assert figures(killed) == figures(whole)
    assert not (killed / ".state").exists()


@pytest.mark.parametrize("stage", ["resolve", "load", "baseline", "recipe", "apply", "export", "verify", "report"])
def test_a_run_interrupted_in_any_stage_says_how_to_go_on(request_: list[str], tmp_path: Path, stage: str) -> None:
    by = "SIGTERM" if stage in ("load", "export") else "SIGINT"
    done = start(f"stage-started {stage}", *request_, "--optim-level", "0.2", "--output", tmp_path / "run", by=by)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "error: interrupted",
        "fix: run the same command again, with --resume if it made a run folder",
    ]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run").exists() == (stage != "resolve")
    assert not (tmp_path / "run" / "metrics.json").exists()


def figures(folder: Path) -> dict[str, Any]:
    """Read what does not depend on the clock or the folder."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for rung in metrics["rungs"]:
        del rung["seconds"]
    for layer in metrics["layers"]:
        del layer["ms"]
    kept = ("verdict", "agreement", "drop", "samples", "layers", "rungs", "excluded", "notes", "compression")
    return {name: metrics[name] for name in kept}
