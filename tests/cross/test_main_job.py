"""The main job on real input: the demo's digits, end to end, by every road."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sparsify as api
from onnx import numpy_helper

from .conftest import Call

Digits = tuple[Path, Path]
KEYS = {
    "schema", "kind", "use_case", "optim_level", "seed", "verdict", "budget", "baseline", "optimized", "agreement",
    "samples", "layers", "stages", "speedup", "compression",
}  # fmt: skip
SIDE = {"model", "bytes", "compressed_bytes", "metrics", "latency"}
LATENCY = {"batch", "threads", "p50_ms", "p95_ms", "throughput", "precision", "int8_executed", "of"}
LAYER = {"name", "op", "shape", "sparsity", "precision", "sqnr_db", "drop_if_alone"}


@pytest.fixture(scope="module")
def run(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run one-shot at the default level in a process of its own."""
    output = tmp_path_factory.mktemp("main") / "run"
    done = subprocess.run(command(digits, output, "--json"), capture_output=True, text=True, timeout=200)
    assert done.returncode in (0, 6), done.stderr
    metrics: dict[str, Any] = json.loads(done.stdout)
    return output, metrics


def command(digits: Digits, output: Path, *options: str) -> list[str]:
    model, data = map(str, digits)
    fixed = ["--use-case", "image-classification", "--model", model, "--data", data, "--output", str(output)]
    return [sys.executable, "-m", "sparsify", "run", "one-shot", *fixed, "--calibration-samples", "128", *options]


def test_the_run_folder_holds_what_is_documented(run: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    measured = {name for name in files if name.startswith("measurements/")}
    assert measured == {name for name in measured if name.startswith("measurements/attempt-")} != set()
    assert files - measured == {
        "experiment.yaml", "recipe.yaml", "metrics.json", "report.md", "report.html",
        "deployment/model.onnx", "deployment/config.json", "deployment/preprocess.json", "deployment/README.md",
        "logs/run.log", "logs/events.jsonl",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_metrics_have_the_documented_keys(run: tuple[Path, dict[str, Any]]) -> None:
    metrics = run[1]
    assert metrics.keys() >= KEYS
    assert metrics["baseline"].keys() >= SIDE
    assert metrics["optimized"].keys() >= SIDE | {"sparsity", "sparsity_file", "quantized"}
    assert metrics["optimized"]["latency"]["onnxruntime"].keys() == LATENCY
    assert all(layer.keys() >= LAYER for layer in metrics["layers"])
    assert metrics["agreement"].keys() == {"top1", "cosine", "kl"}


def test_confidence_and_examples_are_of_the_test_samples(run: tuple[Path, dict[str, Any]], digits: Digits) -> None:
    folder, metrics = run
    confidence = metrics["confidence"]
    assert confidence["flips"] == pytest.approx(1 - metrics["agreement"]["top1"] / 100)
    assert 0.9 < confidence["before"] < 1
    assert abs(confidence["shift"]) <= confidence["shift_p95"] < 0.2
    assert confidence["f1_at_threshold"] > 0.95
    assert len(metrics["examples"]) == 8
    for example in metrics["examples"]:
        assert (digits[1] / example["key"]).is_file()
        assert example["target"] == example["key"].split("/")[1]
        assert example["image"].startswith("data:image/png;base64,")
        assert example["image"] in (folder / "report.html").read_text()
    changed = [example["before"]["label"] != example["after"]["label"] for example in metrics["examples"]]
    assert changed == sorted(changed, reverse=True)
    for file in (folder / "deployment").iterdir():
        assert b"data:image" not in file.read_bytes(), "no sample is shipped"


def test_calibration_covers_what_the_model_sees(run: tuple[Path, dict[str, Any]]) -> None:
    coverage = run[1]["coverage"]
    assert coverage["notes"] == []
    assert 0 <= coverage["unseen_range"] < 0.001
    assert 0 <= coverage["saturation"] < 0.005


def test_the_digits_stay_readable_within_the_default_budget(run: tuple[Path, dict[str, Any]]) -> None:
    metrics = run[1]
    before, after = (metrics[side]["metrics"]["accuracy"] for side in ("baseline", "optimized"))
    assert metrics["verdict"] in ("met", "slower")  # how fast it is depends on what else this machine does
    assert before - after <= 2.0
    assert metrics["agreement"]["top1"] >= 97


def test_the_model_is_pruned_as_asked_quantized_and_smaller(run: tuple[Path, dict[str, Any]]) -> None:
    metrics = run[1]
    assert metrics["optimized"]["sparsity"] == pytest.approx(0.5143, abs=1e-3)
    assert metrics["optimized"]["quantized"]["int8"] == metrics["optimized"]["quantized"]["of"] == 5
    assert metrics["compression"] > 3
    first, last = metrics["layers"][0], metrics["layers"][-1]
    assert first["precision"] == last["precision"] == "int8"
    assert first["sparsity"] < 0.1 > last["sparsity"]


def test_zeros_survive_quantization(run: tuple[Path, dict[str, Any]]) -> None:
    model = onnx.load(run[0] / "deployment" / "model.onnx")
    stored = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    pruned = stored[1:]  # the first convolution stays dense
    zeros = sum(int((array == 0).sum()) for array in pruned)
    assert zeros / sum(array.size for array in pruned) >= run[1]["optimized"]["sparsity"] > 0.51


def test_dynamic_axes_names_and_privacy_survive(run: tuple[Path, dict[str, Any]], digits: Digits) -> None:
    before, after = onnx.load(digits[0]), onnx.load(run[0] / "deployment" / "model.onnx")
    for side in ("input", "output"):
        assert [str(value) for value in getattr(after.graph, side)] == [
            str(value) for value in getattr(before.graph, side)
        ]
    assert str(run[0]).encode() not in (run[0] / "deployment" / "model.onnx").read_bytes()


def test_same_seed_same_bytes_from_python(run: tuple[Path, dict[str, Any]], digits: Digits, tmp_path: Path) -> None:
    result = api.one_shot(
        model=digits[0], data=digits[1], use_case="ic", calibration_samples=128, output=tmp_path / "run", quiet=True
    )
    assert result.model.read_bytes() == (run[0] / "deployment" / "model.onnx").read_bytes()
    assert result.metrics["optimized"]["metrics"] == run[1]["optimized"]["metrics"]


def test_a_killed_run_resumes_to_the_same_bytes(
    run: tuple[Path, dict[str, Any]], digits: Digits, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(command(digits, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(output.glob(".state/1-*/*.npz")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (output / "metrics.json").exists()
    kept = list(output.glob(".state/1-*/*.npz"))
    assert kept
    done = subprocess.run(command(digits, output, "--resume", "--quiet"), capture_output=True, text=True, timeout=200)
    assert done.returncode in (0, 6), done.stderr
    assert (output / "deployment" / "model.onnx").read_bytes() == (run[0] / "deployment" / "model.onnx").read_bytes()
    assert not (output / ".state").exists()


def test_ctrl_c_says_how_to_go_on(digits: Digits, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(digits, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background starts without
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not (output / ".state").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [
        "error: interrupted",
        "fix: run the same command again, with --resume if it made a run folder",
    ]


def test_a_budget_that_is_missed_exits_6_with_the_artefact(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    recipe = tmp_path / "harsh.yaml"
    recipe.write_text("post_training_modifiers:\n  - !MagnitudePruningModifier\n    sparsity: 0.97\n")
    model, data = digits
    done = sparsify(
        "run", "one-shot", "--use-case", "ic", "--model", model, "--data", data, "--recipe", recipe,
        "--output", tmp_path / "run", "--json", "--quiet",
    )  # fmt: skip
    assert done.code == 6
    assert json.loads(done.out)["verdict"] == "missed"
    assert (tmp_path / "run" / "deployment" / "model.onnx").is_file()


def test_level_zero_is_the_baseline(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    model, data = digits
    done = sparsify(
        "run", "one-shot", "--use-case", "ic", "--model", model, "--data", data, "--optim-level", "0",
        "--output", tmp_path / "run", "--json", "--quiet",
    )  # fmt: skip
    metrics = json.loads(done.out)
    assert (done.code, metrics["verdict"]) == (0, "baseline")
    assert metrics["agreement"]["top1"] == 100


def test_sizes_count_weights_kept_beside_the_graph(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    """PyTorch's newer exporter writes them so; without them a model would look as if it had grown."""
    model, data = digits
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(model), split, save_as_external_data=True, location="split.onnx.data", size_threshold=0)
    done = sparsify(
        "run", "one-shot", "--use-case", "ic", "--model", split, "--data", data, "--optim-level", "0",
        "--output", tmp_path / "run", "--json", "--quiet",
    )  # fmt: skip
    metrics = json.loads(done.out)
    assert metrics["baseline"]["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("split.onnx*"))
    assert metrics["compression"] == pytest.approx(1, abs=0.05)
    assert metrics["baseline"]["compressed_bytes"] == pytest.approx(metrics["optimized"]["compressed_bytes"], rel=0.05)


def test_wrong_preprocessing_is_caught_before_anything_changes(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"schema": 1, "divide_by": 255, "mean": [900.0], "std": [0.001]}))
    model, data = digits
    done = sparsify(
        "run", "one-shot", "--use-case", "ic", "--model", model, "--data", data, "--optim-level", "0.2",
        "--preprocess", wrong, "--output", tmp_path / "run",
    )  # fmt: skip
    assert "near chance" in done.err
    assert "--preprocess" in done.err
    assert done.err.index("near chance") < done.err.index("QuantizationModifier")
    assert done.code == 6  # at chance nothing is ever verified


def test_dry_run_writes_nothing(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    model, data = digits
    done = sparsify(
        "run",
        "one-shot",
        "--use-case",
        "ic",
        "--model",
        model,
        "--data",
        data,
        "--output",
        tmp_path / "run",
        "--dry-run",
    )
    assert done.code == 0
    assert json.loads(done.out)["resolved"]["dataset_loader"] == "imagefolder"
    assert list(tmp_path.iterdir()) == []


def test_config_repeats_a_run_and_options_win(sparsify: Call, run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    done = sparsify(
        "run",
        "one-shot",
        "--config",
        run[0] / "experiment.yaml",
        "--output",
        tmp_path / "x",
        "--seed",
        "7",
        "--dry-run",
    )
    settings = json.loads(done.out)
    assert (settings["seed"], settings["calibration_samples"]) == (7, 128)


def test_eval_measures_the_deployment_as_the_run_did(
    sparsify: Call, run: tuple[Path, dict[str, Any]], digits: Digits
) -> None:
    done = sparsify("eval", run[0] / "deployment", "--data", digits[1], "--json")
    assert done.code == 0
    measured = json.loads(done.out)
    assert measured["metrics"]["accuracy"] == pytest.approx(run[1]["optimized"]["metrics"]["accuracy"], abs=1e-3)
    assert measured["samples"] == run[1]["samples"]["test"]


def test_npz_without_labels_is_judged_by_agreement(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data, random = tmp_path / "npz", np.random.default_rng(0)
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", input=random.normal(size=(1, 8, 8)).astype(np.float32))
    done = sparsify(
        "run", "one-shot", "--use-case", "weld-seams", "--model", digits[0], "--data", data, "--optim-level", "0.2",
        "--output", tmp_path / "run", "--json", "--quiet",
    )  # fmt: skip
    metrics = json.loads(done.out)
    assert metrics["metric"] == "agreement"
    assert metrics["budget"] == {"points": 5.0, "given": "default"}
    assert metrics["use_case"] == "custom:weld-seams"
    assert metrics["baseline"]["metrics"] == {"agreement": 100.0}
