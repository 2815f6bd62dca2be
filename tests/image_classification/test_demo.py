"""The bundled digits and network are what the documentation says."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sparsify import Data, DataRequest, TensorSpec
from sparsify_image_classification.demo import write_demo
from sparsify_image_classification.imagefolder import load

BUNDLED = Path(str(files("sparsify_image_classification"))) / "digits"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def data(demo: tuple[Path, Path]) -> Data:
    model, folder = demo
    inputs = (TensorSpec("input", "float32", ("batch", 1, 8, 8)),)
    outputs = (TensorSpec("logits", "float32", ("batch", 10)),)
    return load(DataRequest(folder, inputs, outputs, model=model))


def test_the_digits_are_scikit_learns() -> None:
    with np.load(BUNDLED / "digits.npz", allow_pickle=False) as digits:
        images, labels, held_out = digits["images"], digits["labels"], digits["held_out"]
    assert (images.shape, images.dtype, images.min(), images.max()) == ((1797, 8, 8), np.uint8, 0, 16)
    # class sizes and pixel sum as in scikit-learn's description of the set
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert int(images.astype(int).sum()) == 561718
    assert held_out.sum() == 602
    assert np.bincount(labels[held_out]).tolist() == [60, 61, 59, 61, 61, 61, 61, 60, 58, 60]


def test_the_bundle_is_small() -> None:
    assert (BUNDLED / "digits.npz").stat().st_size < 150_000
    assert (BUNDLED / "digits.onnx").stat().st_size < 2_000_000


def test_no_digit_is_in_both_parts_and_none_is_lost(demo: tuple[Path, Path], data: Data) -> None:
    parts = {name: {key.split("/")[-1] for key in part.keys} for name, part in data.splits.items()}
    assert not parts["train"] & parts["validation"]
    assert parts["train"] | parts["validation"] == {f"{index:04d}.png" for index in range(1797)}
    with np.load(BUNDLED / "digits.npz", allow_pickle=False) as digits:
        images, labels, held_out = digits["images"], digits["labels"], digits["held_out"]
    for key in (*data.splits["train"].keys[::40], *data.splits["validation"].keys[::40]):
        split, label, name = key.split("/")
        index = int(name.removesuffix(".png"))
        assert (int(label), split == "val") == (labels[index], held_out[index])
        with Image.open(demo[1] / key) as image:
            np.testing.assert_array_equal(np.round(np.asarray(image) * (16 / 255)), images[index])


def test_the_network_reads_held_out_digits(demo: tuple[Path, Path], data: Data) -> None:
    session = onnxruntime.InferenceSession(demo[0], providers=["CPUExecutionProvider"])
    right = total = 0
    for batch in data.splits["validation"].batches(64):
        found = session.run(None, batch.inputs)[0].argmax(axis=1)
        right += int((found == np.array(batch.targets)).sum())
        total += len(batch.targets)
    assert total == 602
    assert right / total >= 0.985


def test_the_network_is_large_enough_and_says_nothing_of_its_origin() -> None:
    model = onnx.load(BUNDLED / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) >= 200_000
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 0
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.doc_string


def test_writing_the_demo_twice_gives_the_same(demo: tuple[Path, Path]) -> None:
    before = {path: path.read_bytes() for path in demo[0].parent.rglob("*") if path.is_file()}
    assert write_demo(demo[0].parent) == demo
    after = {path: path.read_bytes() for path in demo[0].parent.rglob("*") if path.is_file()}
    assert before == after
    assert len(after) == 1797 + 2
