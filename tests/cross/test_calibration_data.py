"""Calibration data that is no such thing: noise, black images, copies, one sample. The run works and names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Call

Digits = tuple[Path, Path]
random = np.random.default_rng(0)


def spoil(digits: Digits, folder: Path, how: str) -> Path:
    """Copy the digits with another train folder."""
    data = folder / "data"
    shutil.copytree(digits[1] / "val", data / "val")
    for place in range(10):
        (data / "train" / str(place)).mkdir(parents=True)
    first = np.asarray(Image.open(min((digits[1] / "train" / "0").iterdir())))
    for number in range(1 if how == "one" else 80):
        pixels = {
            "noise": random.integers(0, 256, (8, 8), dtype=np.uint8),
            "black": np.zeros((8, 8), np.uint8),
            "copies": first,
            "one": first,
        }[how]
        Image.fromarray(pixels).save(data / "train" / str(number % 10) / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(map(str, range(10))))
    return data


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("noise", "calibration samples look like noise: neighbouring pixels of 'input' correlate by "),
        ("black", "64 of 64 calibration samples are constant, such as black images"),
        ("copies", "only 1 of 64 calibration samples is distinct"),
        ("one", "1 calibration sample is too few for ranges to rely on"),
    ],
)
def test_it_is_named_with_the_fix(digits: Digits, tmp_path: Path, sparsify: Call, how: str, said: str) -> None:
    data = spoil(digits, tmp_path, how)
    done = sparsify(
        "run", "one-shot", "--use-case", "ic", "--model", digits[0], "--data", data, "--output", tmp_path / "run",
        "--calibration-samples", 64, "--class-list", tmp_path / "classes.txt", "--val-samples", 100, "--time-budget",
        "1s", "--optim-level", 0.5 if how == "black" else 0.2,
    )  # fmt: skip
    assert done.code in (0, 6), done.err
    metrics: dict[str, Any] = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (line,) = [line for line in metrics["coverage"]["notes"] if line.startswith(said)]
    assert ("--data" in line) or ("--calibration-samples" in line) or ("take the copies out" in line)
    assert line in metrics["notes"]
    assert f"warning: {line}".replace("'", "&#39;") in (tmp_path / "run" / "report.html").read_text()
    assert "".join(f"warning: {line}".split()) in "".join(done.out.split())
    assert said in done.err
