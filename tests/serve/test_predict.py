"""Raw inputs: a file's bytes go through the use case as `sparsify.Pipeline` does it, or are refused by name."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image
from sparsify import Pipeline, RequestError, UseCase
from sparsify_image_classification.demo import write_demo
from sparsify_serve.results import write_result

from tests.onnx import models
from tests.serve.serving import Told, adder, deployment, serving, serving_folder, told

LABELS = [f"digit {index}" for index in range(10)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A deployment of the float digits, and images."""
    home = tmp_path_factory.mktemp("digits")
    model, data = write_demo(home)
    folder = deployment(onnx.load(model), home / "deployment", "image-classification", LABELS)
    filled = {"interpolation": "bilinear", "crop": None, "layout": "NCHW", "dtype": "float32"}
    description = json.loads((home / "preprocess.json").read_text())
    (folder / "preprocess.json").write_text(json.dumps({**description, **filled}))
    return folder, sorted((data / "val").rglob("*.png"))[::40]


@pytest.fixture(scope="module")
def address(digits: tuple[Path, list[Path]]) -> Iterator[str]:
    with serving_folder(digits[0]) as found:
        yield f"{found}/predict"


def test_it_gives_what_the_pipeline_gives(address: str, digits: tuple[Path, list[Path]]) -> None:
    folder, images = digits
    with Pipeline.create("image-classification", folder, threads=1) as pipeline, httpx.Client() as client:
        for path, wanted in zip(images, pipeline(images), strict=True):
            found = client.post(address, content=path.read_bytes(), headers={"Content-Type": "image/png"}).json()
            assert found["model_name"] == "image-classification"
            assert found["result"]["label"] == wanted.label
            assert found["result"]["class_id"] == wanted.class_id
            assert found["result"]["score"] == pytest.approx(wanted.score, abs=1e-6)
            assert [label for label, _ in found["result"]["top"]] == [label for label, _ in wanted.top]


def bomb() -> bytes:
    """Claim 60,000 x 60,000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    )


def test_what_is_no_image_is_refused(address: str, digits: tuple[Path, list[Path]]) -> None:
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")  # which PIL would hand to another program
    for content, reason in (
        (b"", "these 0 bytes cannot be read as an image: cannot identify image file"),
        (b"/etc/passwd", "these 11 bytes cannot be read as an image: cannot identify image file"),
        (digits[1][0].read_bytes()[:60], "these 60 bytes cannot be read as an image"),
        (bomb(), "these 66 bytes cannot be read as an image: Image size (3600000000 pixels) exceeds limit"),
        (eps.getvalue(), f"these {len(eps.getvalue())} bytes cannot be read as an image: cannot identify image file"),
    ):
        found = httpx.post(address, content=content)
        assert (found.status_code, found.json()["error"][: len(reason)]) == (400, reason)
        assert found.json()["error"].endswith("; fix: give the bytes of a whole image file")
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        found = httpx.post(address, content=b"{}", headers={"Content-Type": kind})
        reason = f"the body is {kind.partition(';')[0]}, which is no file; fix: send the file's bytes alone"
        assert found.status_code == 415
        assert found.json()["error"].startswith(reason)
    assert httpx.post(address, content=digits[1][0].read_bytes()).status_code == 200


def test_without_preprocessing_it_takes_tensors_alone(digits: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits[0], tmp_path / "copy"))
    (folder / "preprocess.json").unlink()
    with serving_folder(folder) as found:
        answer = httpx.post(f"{found}/predict", content=digits[1][0].read_bytes())
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("this deployment has no preprocess.json: it takes arrays alone")


@pytest.mark.parametrize("batch", ["batch", 4])
def test_a_custom_use_case_takes_npz(tmp_path: Path, batch: str | int) -> None:
    model = models.conv_net(batch=batch)
    folder = deployment(model, tmp_path / "net")
    sample = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    file = io.BytesIO()
    np.savez(file, input=sample)
    (wanted,) = models.run(folder / "model.onnx", {"input": np.repeat(sample[None], 4, axis=0)})
    with serving_folder(folder) as address:
        found = httpx.post(f"{address}/predict", content=file.getvalue())
        np.testing.assert_allclose(found.json()["result"]["logits"], wanted[0], rtol=1e-4, atol=1e-5)
        for content, reason in (
            (b"", "the archive is empty (0 bytes)"),
            (b"\x89PNG", "the archive is no NPZ file: it does not start as a zip archive"),
            (file.getvalue()[:200], "the archive is damaged or cut short"),
        ):
            found = httpx.post(f"{address}/predict", content=content)
            assert (found.status_code, found.json()["error"][: len(reason)]) == (400, reason)
        file = io.BytesIO()
        np.savez(file, input=sample[:2])
        found = httpx.post(f"{address}/predict", content=file.getvalue())
        assert found.json()["error"].startswith("input 'input' is float32 2×8×8, the model takes float32 3×8×8")


def test_use_cases_that_are_not_here_or_read_no_files(tmp_path: Path) -> None:
    folder = deployment(adder(), tmp_path / "adder", "nlp-text_classification")
    with serving_folder(folder) as address:
        found = httpx.post(f"{address}/predict", content=b"text")
        assert found.status_code == 400
        assert found.json()["error"].startswith("use case 'text-classification' needs sparsify-plugin-nlp, not")
        row = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}
        assert httpx.post(f"{address}/infer", json={"inputs": [row]}).status_code == 200
    served = told(Told())
    served.loaded.task = UseCase(("accuracy",), lambda data, description: None, lambda data, description: "")
    with serving([served]) as base:
        found = httpx.post(f"{base}/v2/models/told/predict", content=b"text")
        assert found.json()["error"] == "use case 'custom' has no pre- and postprocessing; fix: send tensors to /infer"


def test_a_use_case_that_fails_is_a_bug_and_the_server_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    def prepare(raw: object, deployment: object) -> dict[str, np.ndarray]:
        raise ZeroDivisionError("by zero")

    served = told(Told())
    served.loaded.task = UseCase(
        ("accuracy",),
        lambda data, description: None,
        lambda data, description: "",
        None,
        prepare,
        lambda outputs, held: 0,
    )
    with serving([served]) as base:
        found = httpx.post(f"{base}/v2/models/told/predict", content=b"text")
        assert (found.status_code, found.json()) == (500, {"error": "ZeroDivisionError; see what the server printed"})
        assert httpx.get(f"{base}/v2/health/live").status_code == 200
        assert 'outcome="failed"} 1.0' in httpx.get(f"{base}/metrics").text
    assert "ZeroDivisionError: by zero" in caplog.text


@dataclass(frozen=True)
class Boxes:
    boxes: np.ndarray
    scores: tuple[float, ...]
    first: np.float32


def test_results_are_written_as_data() -> None:
    result = {"found": [Boxes(np.array([[1, 2]], np.int64), (0.5,), np.float32(0.25))], "none": None, "name": "a"}
    assert json.loads(write_result("m", result)) == {
        "model_name": "m",
        "result": {"found": [{"boxes": [[1, 2]], "scores": [0.5], "first": 0.25}], "none": None, "name": "a"},
    }
    for bad in (float("nan"), np.array([np.inf]), {"deep": (float("inf"),)}):
        with pytest.raises(RequestError, match="holds NaN or infinity, which JSON cannot say"):
            write_result("m", bad)
