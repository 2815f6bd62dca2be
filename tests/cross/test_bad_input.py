"""Every kind of bad input ends in one `error:` line, one `fix:` line and its exit code, and writes over nothing."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .conftest import Call

IC = ("run", "one-shot", "--use-case", "ic")
Digits = tuple[Path, Path]


def rewrite(source: Path, target: Path, change: str) -> Path:
    """Copy a model with its second weight made NaN or infinite."""
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = float(change)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, target)
    return target


def some_images(data: Path, folder: Path, classes: str = "01", count: int = 30) -> Path:
    """Copy some digits into an image folder without splits."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for path in sorted((data / "train" / name).iterdir())[:count]:
            shutil.copy(path, folder / name)
    return folder


def test_a_truncated_model(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(digits[0].read_bytes()[:5000])
    done = sparsify(*IC, "--model", broken, "--data", digits[1], "--output", tmp_path / "run")
    assert done.code == 2
    assert "broken.onnx" in done.complaint[0]
    assert not (tmp_path / "run").exists()  # the mended request may name it again
    (tmp_path / "run").mkdir()
    assert sparsify(*IC, "--model", broken, "--data", digits[1], "--output", tmp_path / "run").code == 2
    assert list((tmp_path / "run").iterdir()) == []  # a folder of the user's own stays


def test_a_model_whose_external_data_is_missing(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(onnx.load(digits[0]), model, save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").unlink()
    done = sparsify(*IC, "--model", model, "--data", digits[1], "--output", tmp_path / "run")
    assert done.code == 2
    assert "net.data" in done.complaint[0]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers(sparsify: Call, digits: Digits, tmp_path: Path, value: str) -> None:
    model = rewrite(digits[0], tmp_path / "net.onnx", value)
    done = sparsify(*IC, "--model", model, "--data", digits[1], "--output", tmp_path / "run")
    assert done.code == 5
    layer = next(node.name for node in onnx.load(digits[0]).graph.node if node.op_type == "Conv")
    assert layer in done.complaint[0]


def test_activations_that_are_no_numbers_name_the_layer(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    model = onnx.load(digits[0])
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e16), tensor.name))
    onnx.save(model, tmp_path / "net.onnx")
    done = sparsify(*IC, "--model", tmp_path / "net.onnx", "--data", digits[1], "--output", tmp_path / "run")
    layers = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert done.code == 5
    assert any(f"layer '{name}'" in done.complaint[0] for name in layers)


def test_labels_in_npz_give_accuracy(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data, random = tmp_path / "d", np.random.default_rng(0)
    data.mkdir()
    for index in range(60):
        np.savez(data / f"{index}.npz", input=random.normal(size=(1, 8, 8)).astype(np.float32), label=index % 10)
    done = sparsify(
        "run", "one-shot", "--use-case", "custom:x", "--model", digits[0], "--data", data, "--optim-level", "0",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0
    assert "accuracy" in done.err


def npz_folder(folder: Path, **first: object) -> Path:
    """Write twelve good NPZ samples, then the first one anew with these keys."""
    folder.mkdir()
    for index in range(12):
        np.savez(folder / f"{index:02d}.npz", input=np.zeros((1, 8, 8), np.float32))
    if first:
        arrays = {name: np.asarray(value) for name, value in first.items()}
        np.savez(folder / "00.npz", **arrays)  # type: ignore[arg-type]
    return folder


def run_npz(sparsify: Call, digits: Digits, data: Path, tmp_path: Path) -> tuple[str, str]:
    done = sparsify(
        "run", "one-shot", "--use-case", "custom:x", "--model", digits[0], "--data", data, "--output", tmp_path / "r"
    )
    assert done.code == 2
    return done.complaint


def test_npz_with_a_key_that_is_no_input(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    error, fix = run_npz(sparsify, digits, npz_folder(tmp_path / "d", inptu=np.zeros((1, 8, 8))), tmp_path)
    assert "00.npz" in error
    assert "'inptu'" in error
    assert "input" in fix


def test_npz_with_a_batch_dimension(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    error, fix = run_npz(
        sparsify, digits, npz_folder(tmp_path / "d", input=np.zeros((1, 1, 8, 8), np.float32)), tmp_path
    )
    assert "(1, 1, 8, 8)" in error
    assert "leading axis" in fix


def test_npz_with_objects_is_never_unpickled(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    error, _ = run_npz(sparsify, digits, npz_folder(tmp_path / "d", input=np.array([Bomb()], dtype=object)), tmp_path)
    assert "00.npz" in error
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_npz_folder_of_broken_files(sparsify: Call, digits: Digits, tmp_path: Path, content: bytes) -> None:
    data = tmp_path / "d"
    data.mkdir()
    for index in range(12):
        (data / f"{index}.npz").write_bytes(content)
    assert ".npz" in run_npz(sparsify, digits, data, tmp_path)[0]


def test_npz_cut_short(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = npz_folder(tmp_path / "d")
    for path in sorted(data.iterdir()):
        path.write_bytes(path.read_bytes()[:100])
    assert ".npz" in run_npz(sparsify, digits, data, tmp_path)[0]


def test_npz_that_unpacks_to_a_bomb(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**28,)})
    with zipfile.ZipFile(data / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("input.npy", "w") as file:
        file.write(header.getvalue())
        for _ in range(32):
            file.write(bytes(2**20))
    assert "0.npz" in run_npz(sparsify, digits, data, tmp_path)[0]


def test_an_empty_image_folder(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done = sparsify(*IC, "--model", digits[0], "--data", tmp_path / "photos", "--output", tmp_path / "run")
    assert done.code == 2
    assert "photos" in done.complaint[0]


def test_one_class_only(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = some_images(digits[1], tmp_path / "photos", classes="3")
    done = sparsify(*IC, "--model", digits[0], "--data", data, "--output", tmp_path / "run")
    assert done.code == 2
    assert "class" in done.complaint[0]


def test_fewer_classes_than_outputs_asks_for_a_class_list(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = some_images(digits[1], tmp_path / "photos")
    done = sparsify(*IC, "--model", digits[0], "--data", data, "--output", tmp_path / "run")
    assert done.code == 2
    assert "--class-list" in done.complaint[1]


def with_class_list(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join("0123456789"))
    return path


def test_corrupt_images_among_good_ones_are_named_and_skipped(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = some_images(digits[1], tmp_path / "photos", count=60)
    broken = sorted((data / "0").iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:40])
    done = sparsify(
        *IC, "--model", digits[0], "--data", data, "--class-list", with_class_list(tmp_path), "--optim-level", "0.2",
        "--output", tmp_path / "run", "--max-drop", "none",
    )  # fmt: skip
    assert done.code in (0, 6)
    assert broken.name in done.err
    assert "warning: skipped" in done.err


def test_too_many_corrupt_images(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    data = some_images(digits[1], tmp_path / "photos")
    for path in sorted((data / "0").iterdir()):
        path.write_bytes(b"GIF89a")
    done = sparsify(
        *IC, "--model", digits[0], "--data", data, "--class-list", with_class_list(tmp_path),
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 2
    assert "cannot be read" in done.complaint[0]


@pytest.mark.parametrize("level", ["1.5", "-1", "abc"])
def test_impossible_levels(sparsify: Call, digits: Digits, tmp_path: Path, level: str) -> None:
    done = sparsify(
        *IC, "--model", digits[0], "--data", digits[1], "--optim-level", level, "--output", tmp_path / "run"
    )
    assert done.code == 2
    assert "--optim-level" in done.complaint[0]
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_not_empty_is_left_alone(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = sparsify(*IC, "--model", digits[0], "--data", digits[1], "--output", tmp_path)
    assert done.code == 2
    assert done.complaint == (f"--output: {tmp_path} is not empty", "give an empty or a new folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def limited(digits: Digits, output: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Run with a limit on every file's size, the way a full disk shows."""
    script = (
        "import resource, sys; from sparsify.cli.app import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *IC, "--optim-level", "0.2", "--calibration-samples", "8"]
    command += ["--model", str(digits[0]), "--data", str(digits[1]), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_full_disk(digits: Digits, tmp_path: Path) -> None:
    done = limited(digits, tmp_path / "run", 60_000)
    lines = done.stderr.strip().splitlines()[-2:]
    assert done.returncode == 5, done.stderr
    assert lines[0].startswith("error: stage ")
    assert lines[1] == "fix: free space there, or give another --output"
    assert not (tmp_path / "run" / "deployment" / "model.onnx").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_read_only_disk(sparsify: Call, digits: Digits, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this process may not mount a read-only disk")
    try:
        done = sparsify(*IC, "--model", digits[0], "--data", digits[1], "--output", disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.code == 5
    assert done.complaint[1] == "give an --output that can be written"
