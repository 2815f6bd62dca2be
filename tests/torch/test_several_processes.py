"""The program in two processes, as torchrun starts it: one run, the same masks, one message, one end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify_image_classification.demo import write_demo

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("image_ranks.py")
LAUNCH = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}
THINNING = """pruning_modifiers:
- !StructuredPruningModifier
  {params: [3.weight], init_sparsity: 0.0, final_sparsity: 0.5, start_epoch: 0.0, end_epoch: 2.0, update_frequency: 0.5}
"""
FEW = ["--train-samples", "320"]  # ten steps an epoch: pruned until epoch 3.6, quantized from epoch 4.2
pytestmark = pytest.mark.timeout(1400)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("request")
    shutil.copy(Path(__file__).with_name("network.py"), folder / "tiny_network.py")
    _, data = write_demo(folder / "demo")
    fixed = ["run", "training-aware", "--use-case", "image-classification", "--model", "tiny_network:Net"]
    fixed += ["--data", str(data), "--threads", "1", "--teacher", "disable", "--max-drop", "none", "--quiet", "--json"]
    kwargs = {"epochs": 6, "dense_epochs": 0, "image_size": 8, "batch_size": 16, "lr": 0.1, "flip": False, "ema": 0.5}
    return [str(folder), *fixed, "--train-kwargs", json.dumps(kwargs)]


def environment(request_: list[str], **more: str) -> dict[str, str]:
    path = os.pathsep.join([request_[0], str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **fixed, **more}


def launch(request_: list[str], by: list[str], program: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *by, *program, *request_[1:], *more]
    return subprocess.run(command, env=environment(request_), capture_output=True, text=True, timeout=600)


def together(request_: list[str], out: Path, *more: str, fault: str = "- 0 -") -> list[tuple[int, str]]:
    """Start two processes as a launcher does, but leave the last one to end by itself; gives exit codes and stderr."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FAULT": fault}
    command = [sys.executable, str(SCRIPT), str(out), *request_[1:], *more]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(request_, RANK=str(rank), LOCAL_RANK=str(rank), **meeting),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=600)[1] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def metrics_of(printed: str) -> dict[str, Any]:
    """Read the one JSON object on stdout: a second process that printed one would break it."""
    found: dict[str, Any] = json.loads(printed)
    return found


def test_two_processes_do_what_one_does(request_: list[str], tmp_path: Path) -> None:
    done = launch(request_, LAUNCH["torchrun"], [str(SCRIPT), str(tmp_path)], "--output", str(tmp_path / "two"))
    both = metrics_of(done.stdout)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["masks"].keys() == second["masks"].keys()
    for name, kept in first["masks"].items():
        assert torch.equal(kept, second["masks"][name]), name
    for name, value in first["module"].items():  # norm statistics are the first process's at every step
        assert torch.equal(value, second["module"][name]) or "running" in name, name
    assert both["optimized"]["sparsity"] == pytest.approx(0.7, abs=0.01)
    assert both["optimized"]["quantized"] == {"int8": 4, "of": 4}
    assert len(both["training"]) == 6

    one = launch(
        [*request_[:-1], request_[-1].replace('"batch_size": 16', '"batch_size": 32')],
        [],
        [str(SCRIPT), str(tmp_path)],
        *("--output", str(tmp_path / "one")),
    )
    alone = metrics_of(one.stdout)
    assert alone["optimized"]["metrics"]["accuracy"] > 60
    assert both["optimized"]["metrics"]["accuracy"] == pytest.approx(alone["optimized"]["metrics"]["accuracy"], abs=8)


def test_two_processes_take_out_the_same_channels_and_go_on_learning(request_: list[str], tmp_path: Path) -> None:
    """DistributedDataParallel is made anew, else the new parameters would drift apart."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(THINNING)
    words = ["--recipe", str(recipe), "--output", str(tmp_path / "run")]
    done = launch(request_, LAUNCH["torchrun"], [str(SCRIPT), str(tmp_path)], *words)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True)["module"] for rank in range(2))
    assert first["3.weight"].shape == (16, 16, 3, 3)
    for name, value in first.items():
        assert torch.equal(value, second[name]) or "running" in name, name
    assert metrics_of(done.stdout)["optimized"]["metrics"]["accuracy"] > 60


def test_accelerate_launches_it_too(request_: list[str], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    level = ["--optim-level", "0", "--output", str(tmp_path / "run")]  # trains the dense model, and nothing else
    dense = [*request_[:-1], request_[-1].replace('"dense_epochs": 0', '"dense_epochs": 2')]
    done = launch(dense, LAUNCH["accelerate"], ["-m", "sparsify"], *level)
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics_of(done.stdout)["verdict"] == "baseline"
    assert (tmp_path / "run" / "training_artifacts" / "dense" / "best.pt").is_file()


def test_a_request_that_cannot_be_is_refused_once(request_: list[str], tmp_path: Path) -> None:
    (code, said), (other, nothing) = together(request_, tmp_path, "--seed", "x", "--output", str(tmp_path / "run"))
    assert (code, other) == (2, 2)
    assert said.count("error:") == 1
    assert nothing == ""


@pytest.mark.parametrize(
    ("fault", "codes", "error"),
    [
        ("1 25 nan", (5, 5), "error: the loss is nan at step 24"),
        ("1 25 SIGKILL", (5, -signal.SIGKILL), "error: training: another process of this run is gone"),
    ],
)
def test_what_goes_wrong_in_one_is_told_by_the_first(
    fault: str, codes: tuple[int, int], error: str, request_: list[str], tmp_path: Path
) -> None:
    ended = together(request_, tmp_path, *FEW, "--output", str(tmp_path / "run"), fault=fault)
    assert tuple(code for code, _ in ended) == codes, ended
    assert error in ended[0][1]
    assert [said.count("error:") for _, said in ended] == [1, 0]
    assert torch.load(tmp_path / "run" / "training_artifacts" / "last.pt", weights_only=True)["epoch"] == 2


def test_a_signal_to_one_stops_all_after_a_checkpoint_that_they_go_on_from(request_: list[str], tmp_path: Path) -> None:
    """Stopped while pruning, and while quantizing: in the end the weights are an undisturbed run's, bit for bit."""
    folders = {name: tmp_path / name for name in ("whole", "cut")}
    for folder in folders.values():
        folder.mkdir()
    whole = together(request_, folders["whole"], *FEW, "--output", str(folders["whole"] / "run"))
    assert {code for code, _ in whole} <= {0, 6}, whole
    options = [*FEW, "--output", str(folders["cut"] / "run")]
    for fault in ("1 15 SIGTERM", "1 33 SIGTERM"):  # epochs 1.5 and 4.8
        (code, said), (other, nothing) = together(request_, folders["cut"], *options, fault=fault)
        assert (code, other) == (130, 130), (said, nothing)
        assert said.count("error: interrupted") == 1
        assert nothing == ""
        options = [*options[:4], "--resume"]
    resumed = together(request_, folders["cut"], *options)
    assert {code for code, _ in resumed} <= {0, 6}, resumed
    for rank in range(2):
        before, after = (torch.load(folder / f"{rank}.pt", weights_only=True) for folder in folders.values())
        for part, held in before.items():
            for name, value in held.items():
                assert torch.equal(value, after[part][name]) or "running" in name, (rank, name)
    models = [(folder / "run" / "deployment" / "model.onnx").read_bytes() for folder in folders.values()]
    assert models[0] == models[1]
