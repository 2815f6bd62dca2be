"""Classes against outputs, and a README whose sample makes our tensors bit for bit."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sparsify import Data, Dataset, Description, RequestError, Sample, TensorSpec, UnreadableSample
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.preprocessing import ImageInput, resolve_preprocess
from sparsify_image_classification.reading import ImageReader
from sparsify_image_classification.use_case import THUMBNAIL, USE_CASE, picture

DIGITS = tuple("0123456789")


def described(outputs: int | str | None, *more: int) -> Description:
    inputs = (TensorSpec("input", "float32", ("batch", 3, 224, 224)),)
    return Description(inputs, (TensorSpec("logits", "float32", ("batch", outputs, *more)),), (), 0, 0, 0)


def data_of(labels: tuple[str, ...], preprocess: Mapping[str, Any] | None = None) -> Data:
    return Data({}, has_targets=True, labels=labels, preprocess=preprocess)


def test_classes_must_be_the_outputs() -> None:
    with pytest.raises(RequestError) as caught:
        USE_CASE.check(data_of(DIGITS), described(1000))
    assert caught.value.problem == "the data have 10 classes, the model's output 'logits' has 1000"
    assert caught.value.fix == "give --class-list FILE with 1000 lines, one folder name a line, line i = class i"


@pytest.mark.parametrize("outputs", [(10,), (10, 1, 1), (None,), ("classes",)])
def test_fitting_and_unknown_outputs_pass(outputs: tuple[Any, ...]) -> None:
    USE_CASE.check(data_of(DIGITS), described(*outputs))


def test_data_without_names_pass() -> None:
    USE_CASE.check(data_of(()), described(10))


def sample_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    return str(code)


def write_odd_images(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    for orientation in (3, 6, 7):
        exif[0x0112] = orientation
        colour.save(folder / f"turned{orientation}.jpg", exif=exif)
    ink = rng.integers(0, 256, (20, 25, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (25, 20), ink.tobytes()).save(folder / "cmyk.jpg")
    Image.fromarray(ink).save(folder / "alpha.png")
    Image.fromarray(ink[..., 0]).save(folder / "grey.png")
    Image.frombytes("LA", (25, 20), ink[..., :2].tobytes()).save(folder / "grey_alpha.png")
    Image.fromarray(ink[..., 0] > 127).save(folder / "one_bit.png")
    colour.quantize(8).save(folder / "palette.png", transparency=bytes([0, 90, 255]))
    colour.quantize(8).save(folder / "palette.gif", transparency=1)
    Image.fromarray(rng.integers(0, 65536, (9, 300), dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.int32)).save(folder / "int.tif")
    for size in ((1, 1), (1, 50), (50, 1), (2, 500)):
        colour.resize(size).save(folder / f"side{size[0]}x{size[1]}.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("grey", [False, True])
def test_the_sample_makes_our_tensors_bit_for_bit(tmp_path: Path, grey: bool) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = write_odd_images(images)
    image = ImageInput("input", "NCHW", 1 if grey else 3, 96, 80, "float32")
    preprocess, _ = resolve_preprocess("imagenet", image, None)
    (tmp_path / "sample.py").write_text(sample_of(USE_CASE.readme(data_of(DIGITS, preprocess), described(10))))
    (tmp_path / "preprocess.json").write_text(json.dumps(preprocess))
    probe = (
        "import json, sys, numpy, sample\n"
        "description = json.load(open('preprocess.json'))\n"
        "made = {name: sample.preprocess(description, sample.Image.open('images/' + name)) for name in sys.argv[1:]}\n"
        "numpy.savez(sys.stdout.buffer, **made)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe, *names], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    reader = ImageReader(images, "input", preprocess, dict.fromkeys(names, 0))
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as made:
        assert sorted(made.files) == names
        for name in names:
            ours = reader(name).inputs["input"]
            assert ours.dtype == made[name].dtype
            np.testing.assert_array_equal(made[name], ours, err_msg=name)


def test_the_sample_runs_as_the_readme_says(tmp_path: Path) -> None:
    model, data = write_demo(tmp_path / "demo")
    deployment = tmp_path / "deployment"
    deployment.mkdir()
    shutil.copy(model, deployment / "model.onnx")
    image = ImageInput("input", "NCHW", 1, 8, 8, "float32")
    preprocess, _ = resolve_preprocess(None, image, model)
    (deployment / "preprocess.json").write_text(json.dumps(preprocess))
    (deployment / "config.json").write_text(json.dumps({"labels": list(DIGITS)}))
    page = USE_CASE.readme(data_of(DIGITS, preprocess), described(10))
    (deployment / "sample.py").write_text(sample_of(page))
    chosen = [str(next((data / "val" / label).iterdir())) for label in DIGITS]
    command = [sys.executable, "-W", "error", str(deployment / "sample.py"), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == chosen
    assert sum(label == found for label, (_, found, _) in zip(DIGITS, lines, strict=True)) >= 9
    assert "gives `logits`, one score for each of 10 classes" in page
    assert "resize to 8x8 (bilinear), divide by 255, mean 0.3056, std 0.376, NCHW" in page


def test_npz_data_get_a_sample_without_images(tmp_path: Path) -> None:
    model, _ = write_demo(tmp_path)
    page = USE_CASE.readme(data_of(()), described(10))
    assert "preprocess.json" not in page
    assert "pillow" not in page
    shutil.copy(model, tmp_path / "model.onnx")
    (tmp_path / "sample.py").write_text(sample_of(page))
    np.savez(tmp_path / "x.npz", input=np.zeros((1, 8, 8), np.float32))
    command = [sys.executable, "-W", "error", str(tmp_path / "sample.py"), str(tmp_path / "x.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'x.npz'))} \d -?\d+\.\d+\n", done.stdout)


def test_odd_images_have_a_small_upright_picture(tmp_path: Path) -> None:
    names = write_odd_images(tmp_path)
    split = Dataset(tuple(names), ImageReader(tmp_path, "input", {}, {}))
    for name in names:
        assert USE_CASE.picture is not None
        png = USE_CASE.picture(replace(data_of(DIGITS), splits={"test": split}), name)
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG", name
            assert 1 <= min(image.size) <= max(image.size) <= THUMBNAIL, name
            if name == "turned6.jpg":
                assert image.width > image.height, "the camera was held upright"
        assert len(png) < 20_000


def test_a_picture_is_of_the_image_itself(tmp_path: Path) -> None:
    photo = Image.new("RGB", (400, 200), (200, 30, 30))
    photo.paste((20, 60, 220), (0, 0, 200, 200))
    photo.save(tmp_path / "a.jpg")
    split = Dataset(("a.jpg",), ImageReader(tmp_path, "input", {}, {}))
    with Image.open(io.BytesIO(picture(Data({"test": split}, has_targets=False), "a.jpg"))) as image:
        assert image.size == (96, 48)
        small = np.asarray(image.convert("RGB"), int)
    assert np.abs(small[24, 10] - (20, 60, 220)).max() < 12
    assert np.abs(small[24, 85] - (200, 30, 30)).max() < 12


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    split = Dataset(("a.jpg",), ImageReader(tmp_path, "input", {}, {}))
    with pytest.raises(UnreadableSample, match=r"a\.jpg cannot be read as an image"):
        picture(Data({"test": split}, has_targets=False), "a.jpg")


def test_npz_data_have_no_pictures() -> None:
    split = Dataset(("a.npz",), lambda key: Sample({}))
    assert picture(Data({"test": split}, has_targets=False), "a.npz") == b""
