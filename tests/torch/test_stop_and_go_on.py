"""The program stopped while it prunes, while it quantizes, by a lost power supply and by a full disk: it goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.training.stopping import held_back

ROOT = Path(__file__).parents[2]
PRUNING = "epoch 2/4 > epoch 2/4"  # the second step of an epoch
QUANTIZING = "epoch 4/4 > epoch 4/4 > epoch 4/4"
ROOM = 120_000  # bytes in a file: more than the model takes as ONNX, less than the checkpoint to go on from
pytestmark = pytest.mark.timeout(1400)


@pytest.fixture
def request_(tmp_path: Path) -> list[str]:
    shutil.copy(Path(__file__).with_name("network.py"), tmp_path / "tiny_network.py")
    _, data = write_demo(tmp_path / "demo")
    fixed = ["run", "training-aware", "--use-case", "image-classification", "--model", "tiny_network:Net"]
    fixed += ["--data", str(data), "--threads", "1", "--max-drop", "none", "--quiet"]
    fixed += ["--train-samples", "160", "--calibration-samples", "16", "--val-samples", "100"]
    kwargs = {"epochs": 4, "dense_epochs": 0, "image_size": 8, "batch_size": 32, "ema": 0.5}
    return [*fixed, "--train-kwargs", json.dumps(kwargs)]


def start(
    by: str, moments: str, request_: list[str], folder: Path, *more: str, room: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "tests.cross.dying", by, moments, *request_, "--output", str(folder), *more]
    path = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600, preexec_fn=limit
    )


def outcome(folder: Path) -> tuple[bytes, list[Any]]:
    training = json.loads((folder / "metrics.json").read_text())["training"]
    for row in training:
        del row["seconds"]
    return (folder / "deployment" / "model.onnx").read_bytes(), training


def test_whatever_stops_it_the_end_is_that_of_an_undisturbed_run(request_: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = start("SIGTERM", "", request_, whole)
    assert done.returncode in (0, 6), done.stderr

    told = ["error: interrupted", "fix: run the same command again, with --resume if it made a run folder"]
    stopped = start("SIGTERM", PRUNING, request_, cut)
    assert (stopped.returncode, stopped.stderr.splitlines()[-2:]) == (130, told)
    again = start("SIGTERM", QUANTIZING, request_, cut, "--resume")
    assert (again.returncode, again.stderr.splitlines()[-2:]) == (130, told)
    assert start("SIGKILL", QUANTIZING, request_, cut, "--resume").returncode == -signal.SIGKILL

    last = cut / "training_artifacts" / "last.pt"
    before = last.read_bytes()
    full = start("SIGTERM", "", request_, cut, "--resume", room=ROOM)
    assert full.returncode == 5, full.stderr
    assert "cannot be written: File too large" in full.stderr
    assert last.read_bytes() == before

    done = start("SIGTERM", "", request_, cut, "--resume")
    assert done.returncode in (0, 6), done.stderr
    assert outcome(cut) == outcome(whole)


def test_another_model_behind_the_same_name_is_named(request_: list[str], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    assert start("SIGTERM", PRUNING, request_, cut).returncode == 130
    source = tmp_path / "tiny_network.py"
    source.write_text(source.read_text().replace("nn.Linear(32, 10)", "nn.Linear(32, 10, bias=False)"))
    refused = start("SIGTERM", "", request_, cut, "--resume")
    assert refused.returncode == 2
    assert "was saved by a run with another model: '10.bias (10,)' there" in refused.stderr
    assert (cut / "training_artifacts" / "last.pt").exists()


def test_a_second_signal_acts_at_once() -> None:
    with held_back() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM  # the step at hand goes on
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
