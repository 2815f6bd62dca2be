"""`Pipeline`: a deployment folder on raw inputs gives what `sparsify eval` measured, or says what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sparsify import Pipeline, RequestError, StageError, one_shot, read_deployment

from .conftest import Call

USE_CASE = "image-classification"
Digits = tuple[Path, Path]


@pytest.fixture(scope="module")
def deployment(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize the bundled digits."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    one_shot(
        use_case=USE_CASE, model=digits[0], data=digits[1], optim_level=0.2, max_drop="none", threads=1,
        calibration_samples=64, output=folder, quiet=True,
    )  # fmt: skip
    return folder / "deployment"


@pytest.fixture
def pipeline(deployment: Path) -> Iterator[Pipeline]:
    with Pipeline.create(USE_CASE, deployment, threads=1) as made:
        yield made


@pytest.fixture
def copy(deployment: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deployment, tmp_path / "copy"))


def images(digits: Digits) -> list[Path]:
    return sorted((digits[1] / "val").rglob("*.png"))


def test_it_gives_what_eval_measured(sparsify: Call, deployment: Path, pipeline: Pipeline, digits: Digits) -> None:
    paths = images(digits)
    found = pipeline(paths)
    hits = [result.label == path.parent.name for path, result in zip(paths, found, strict=True)]
    done = sparsify("eval", deployment, "--data", digits[1], "--json")
    assert json.loads(done.out)["metrics"]["accuracy"] == pytest.approx(100 * np.mean(hits), abs=1e-9)
    for result in found[:20]:
        assert result.top[0] == (result.label, result.score)
        assert [score for _, score in result.top] == sorted((score for _, score in result.top), reverse=True)
        assert 0 < result.score <= 1
        assert read_deployment(deployment).labels[result.class_id] == result.label


def test_batching_changes_nothing(deployment: Path, digits: Digits) -> None:
    paths = images(digits)[:21]
    results = []
    for size in (1, 8, 64):
        with Pipeline.create(USE_CASE, deployment, batch_size=size, threads=1) as made:
            results.append(made(paths))
            assert list(made.stream(paths)) == results[-1]
    for other in results[1:]:
        assert [row.label for row in other] == [row.label for row in results[0]]
        assert [row.score for row in other] == pytest.approx([row.score for row in results[0]], abs=1e-6)


def test_a_path_an_image_its_pixels_and_the_tensor_are_one(pipeline: Pipeline, digits: Digits) -> None:
    path = images(digits)[5]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
        tensor = pipeline._prepare(path).inputs["input"]
        forms = [path, str(path), image, pixels, pixels[:, :, None], np.stack([pixels] * 3, axis=2), tensor]
        first, *others = pipeline(forms)
    assert pipeline(path) == first  # one input, one result
    for other in others:
        assert other.label == first.label
        assert other.score == pytest.approx(first.score, abs=1e-6)
    assert pipeline([]) == []


def bomb(path: Path) -> Path:
    """Write a PNG that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def test_inputs_that_do_not_fit_are_named(pipeline: Pipeline, digits: Digits, tmp_path: Path) -> None:
    good, broken = images(digits)[0], tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    for raw, reason in (
        (tmp_path / "none.png", "none.png cannot be read as an image"),
        (broken, "broken.png cannot be read as an image"),
        (bomb(tmp_path / "bomb.png"), "bomb.png cannot be read as an image.*decompression bomb"),
        (7, "an image cannot be made from int"),
        (np.zeros((1, 9, 8), np.float32), "input 'input' is float32 1×9×8, the model takes float32 1×8×8"),
        (np.zeros((1, 8, 8), np.float64), "input 'input' is float64 1×8×8, the model takes float32 1×8×8"),
        (np.zeros((8, 8, 7), np.uint8), "uint8 8×8×7 has no axis of colours last"),
    ):
        with pytest.raises(RequestError, match=reason):
            pipeline([good, raw, good])  # one of a hundred is not left out either: results would shift
        with pytest.raises(RequestError, match=reason):
            pipeline(raw)
    assert len(pipeline([good, good])) == 2


def test_a_closed_pipeline_says_so(deployment: Path, digits: Digits) -> None:
    with Pipeline.create(USE_CASE, deployment, threads=1) as made:
        pass
    with pytest.raises(StageError, match="is closed"):
        made(images(digits)[0])


Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "no use case": (lambda config: config.pop("use_case"), "'use_case' is missing or no text"),
    "labels as text": (lambda config: config.update(labels="0123456789"), "'labels' is missing or no list"),
    "an input without a shape": (lambda config: config["inputs"][0].pop("shape"), "lacks its name, dtype or shape"),
    "another schema": (lambda config: config.update(schema=9), "schema 9 is not 1"),
    "inputs that are text": (lambda config: config.update(inputs=["input"]), "lacks its name, dtype or shape"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_config_is_named(copy: Path, edit: str) -> None:
    change, reason = EDITS[edit]
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=reason) as caught:
        Pipeline.create(USE_CASE, copy)
    assert str(copy / "config.json") in caught.value.problem


@pytest.mark.parametrize(
    ("name", "reason"), [("config.json", "config.json does not exist"), ("model.onnx", "has no model.onnx")]
)
def test_a_missing_file_is_named(copy: Path, name: str, reason: str) -> None:
    (copy / name).unlink()
    with pytest.raises(RequestError, match=reason):
        Pipeline.create(USE_CASE, copy)


def test_files_that_are_no_json_and_models_that_are_none(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"none")
    with pytest.raises(StageError, match="cannot open"):
        Pipeline.create(USE_CASE, copy)
    for name, text, reason in (
        ("preprocess.json", "{", "is no JSON"),
        ("config.json", "[]", "it holds no object"),
        ("config.json", "\0", "is no JSON"),
    ):
        (copy / name).write_text(text)
        with pytest.raises(RequestError, match=reason):
            read_deployment(copy)


def test_without_preprocessing_it_takes_arrays_alone(copy: Path, digits: Digits) -> None:
    (copy / "preprocess.json").unlink()
    with Pipeline.create(USE_CASE, copy, threads=1) as made:
        with pytest.raises(RequestError, match=r"has no preprocess.json: it takes arrays alone"):
            made(images(digits)[0])
        assert made(np.zeros((1, 8, 8), np.float32)).label in made.deployment.labels


def test_another_use_case_or_runtime_is_refused(deployment: Path) -> None:
    with pytest.raises(RequestError, match="serves 'image-classification', not 'custom:cats'") as caught:
        Pipeline.create("custom:cats", deployment)
    assert caught.value.fix == 'use Pipeline.create("image-classification", …)'
    with pytest.raises(RequestError, match="runtime"):
        Pipeline.create(USE_CASE, deployment, runtime="onyx")


def test_the_run_folder_will_do_and_openvino_agrees(deployment: Path, digits: Digits) -> None:
    paths = images(digits)[:100]
    with Pipeline.create("image_classification", deployment.parent, runtime="openvino", threads=1) as made:
        found = made(paths)
    with Pipeline.create(USE_CASE, deployment, threads=1) as other:
        wanted = other(paths)
    assert np.mean([row.label == own.label for row, own in zip(found, wanted, strict=True)]) >= 0.99


def test_a_custom_use_case_gives_arrays(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "use_case": "custom:digits"}))
    sample = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "sample.npz", input=sample, label=np.array(3))
    with Pipeline.create("custom:digits", copy, threads=1) as made:
        forms = made([{"input": sample}, sample, tmp_path / "sample.npz"])
        assert [list(form) for form in forms] == [["logits"]] * 3
        for form in forms:
            np.testing.assert_array_equal(form["logits"], forms[0]["logits"])
        for raw, reason in (
            (7, "a sample cannot be int"),
            ({"other": sample}, "a sample has other, the model takes input"),
            ({}, "a sample has no arrays"),
        ):
            with pytest.raises(RequestError, match=reason):
                made(raw)
