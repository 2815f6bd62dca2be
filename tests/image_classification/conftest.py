"""Folders of small real images, and model inputs, for the tests of the image-classification plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sparsify import DataRequest, TensorSpec

Request = Callable[..., DataRequest]


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write `root/<class>/<index>.png` for each class, under a split folder where one is given."""

    def write(*classes: str, root: str = "data", split: str = "", count: int = 2, size: int = 6) -> Path:
        rng = np.random.default_rng(len(classes))
        for name in classes:
            place = tmp_path / root / split / name
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
        return tmp_path / root

    return write


@pytest.fixture
def request_for() -> Request:
    """Ask for data that fit a model of one image input and ten outputs."""

    def ask(path: Path, shape: tuple[int | str | None, ...] = ("batch", 3, 8, 8), **more: object) -> DataRequest:
        inputs = (TensorSpec("input", "float32", shape),)
        return DataRequest(path, inputs, (TensorSpec("logits", "float32", ("batch", 10)),), **more)  # type: ignore[arg-type]

    return ask
