"""Where a description comes from, what it may hold, and whether it fits the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sparsify import RequestError, TensorSpec
from sparsify_image_classification.pixels import preprocess
from sparsify_image_classification.preprocessing import (
    PRESETS,
    ImageInput,
    Preprocess,
    image_input,
    resolve_preprocess,
    summarize,
)

CIFAR = ImageInput("input", "NCHW", 3, 32, 32, "float32")
PHOTO = ImageInput("input", "NCHW", 3, 224, 224, "float32")
GREY = ImageInput("input", "NCHW", 1, 28, 28, "float32")
ANY = ImageInput("input", "NHWC", 3, None, None, "float32")


def resolved(asked: str | Mapping[str, Any] | None, image: ImageInput, model: Path | None = None) -> dict[str, Any]:
    return resolve_preprocess(asked, image, model)[0]


def refused(description: object, image: ImageInput, folder: Path) -> RequestError:
    path = folder / "p.json"
    path.write_text(json.dumps(description))
    with pytest.raises(RequestError) as caught:
        resolve_preprocess(str(path), image, None)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch", 3, 224, 224), ("NCHW", 3, 224, 224)),
        ((1, 1, 28, 28), ("NCHW", 1, 28, 28)),
        ((None, 224, 200, 3), ("NHWC", 3, 224, 200)),
        (("n", 28, 28, 1), ("NHWC", 1, 28, 28)),
        (("n", 3, "h", "w"), ("NCHW", 3, None, None)),
        (("n", None, None, 3), ("NHWC", 3, None, None)),
        (("n", "c", "h", "w"), ("NCHW", 3, None, None)),
        ((-1, 3, -1, -1), ("NCHW", 3, None, None)),
        ((1, 3, 8, 3), ("NCHW", 3, 8, 3)),
    ],
)
def test_layout_and_channels_are_read_off_the_input(shape: Any, expected: tuple[Any, ...]) -> None:
    found = image_input((TensorSpec("x", "float32", shape),))
    assert (found.layout, found.channels, found.height, found.width) == expected


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (
            (TensorSpec("a", "float32", (1, 3, 8, 8)), TensorSpec("b", "float32", (1, 2))),
            "image folders feed models with one input, this one has 2: a, b",
        ),
        ((), "image folders feed models with one input, this one has 0: none"),
        (
            (TensorSpec("ids", "int64", ("batch", None)),),
            "model input 'ids' is int64 [batch, ?], an image input is float32, float16 or uint8 of four axes "
            "(batch, channels, height, width)",
        ),
        (
            (TensorSpec("x", "float32", (1, 4, 8, 8)),),
            "model input 'x' is [1, 4, 8, 8]: 4 channels, images have 1 or 3",
        ),
    ],
)
def test_other_inputs_are_refused(inputs: tuple[TensorSpec, ...], problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        image_input(inputs)
    assert caught.value.problem == problem
    assert "NPZ files" in caught.value.fix


def test_small_inputs_are_resized_to_and_large_ones_cut_out() -> None:
    assert resolved(None, CIFAR) == {
        "schema": 1,
        "color": "RGB",
        "resize": [32, 32],
        "interpolation": "bilinear",
        "crop": None,
        "divide_by": 255.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layout": "NCHW",
        "dtype": "float32",
    }
    photo = resolved(None, PHOTO)
    assert (photo["resize"], photo["crop"]) == (256, [224, 224])


@pytest.mark.parametrize(
    ("side", "resize", "crop"),
    [(64, [64, 64], None), (65, 74, [65, 65]), (299, 342, [299, 299]), (None, 256, [224, 224])],
)
def test_the_short_side_is_8_sevenths_of_the_crop(side: int | None, resize: Any, crop: Any) -> None:
    found = resolved(None, ImageInput("x", "NCHW", 3, side, side, "float32"))
    assert (found["resize"], found["crop"]) == (resize, crop)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 3]), st.sampled_from(["NCHW", "NHWC"]))
def test_the_default_fits_every_input(height: int, width: int, channels: Any, layout: Any) -> None:
    image = ImageInput("x", layout, channels, height, width, "float32")
    description = resolved(None, image)
    assert resolved(description, image) == description
    shape = (channels, height, width) if layout == "NCHW" else (height, width, channels)
    assert preprocess(description, Image.new("RGB", (9, 7))).shape == shape


def test_grey_models_get_0_to_1_unless_told() -> None:
    assert (resolved(None, GREY)["mean"], resolved(None, GREY)["std"]) == ([0.0], [1.0])
    assert resolved("mnist", GREY)["mean"] == [0.1307]
    averaged = resolved("imagenet", GREY)
    assert (averaged["color"], averaged["mean"], averaged["std"]) == ("L", [0.449], [0.226])
    assert resolved("mnist", CIFAR)["std"] == [0.3081] * 3


@pytest.mark.parametrize(
    ("name", "darkest", "brightest"),
    [("unit", 0, 1), ("minus1to1", -1, 1), ("raw255", 0, 255), ("mnist", -0.4242, 2.8215)],
)
def test_presets_map_black_and_white_as_their_names_say(name: str, darkest: float, brightest: float) -> None:
    for pixel, expected in ((0, darkest), (255, brightest)):
        found = preprocess(resolved(name, CIFAR), Image.new("RGB", (32, 32), (pixel,) * 3))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_caffe_takes_blue_first() -> None:
    found = preprocess(resolved("caffe", CIFAR), Image.new("RGB", (32, 32), (10, 20, 30)))
    np.testing.assert_allclose(found[:, 0, 0], [30 - 103.939, 20 - 116.779, 10 - 123.68], rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("image", [CIFAR, PHOTO, GREY, ANY])
def test_every_preset_fits_every_input_and_stays_what_it_is(name: str, image: ImageInput) -> None:
    description = resolved(name, image)
    assert resolved(json.loads(json.dumps(description)), image) == description
    assert Preprocess.model_validate(description).model_dump(mode="json", by_alias=True) == description


def test_uint8_models_get_pixels() -> None:
    description = resolved(None, ImageInput("x", "NHWC", 3, 16, 16, "uint8"))
    assert (description["divide_by"], description["mean"], description["dtype"]) == (1.0, [0.0] * 3, "uint8")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        resolve_preprocess("imagnet", CIFAR, None)
    assert caught.value.problem == "--preprocess: 'imagnet' is neither a known name nor a file"
    for name in PRESETS:
        assert f"{name} (" in caught.value.fix


def test_files_beside_the_model_come_before_the_default(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_resize": False, "do_normalize": False}))
    found, source = resolve_preprocess(None, ANY, model)
    assert (found["resize"], found["mean"], source) == (None, [0.0] * 3, str(tmp_path / "preprocessor_config.json"))
    (tmp_path / "preprocess.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3]}))
    found, source = resolve_preprocess(None, CIFAR, model)
    assert found["mean"] == [0.1, 0.2, 0.3]
    assert found["resize"] == [32, 32]  # what the file leaves out comes from the model's input
    assert source == str(tmp_path / "preprocess.json")
    assert resolve_preprocess(None, CIFAR, tmp_path) == (found, source)
    assert resolved("unit", CIFAR, model)["mean"] == [0.0] * 3


@pytest.mark.parametrize(
    ("description", "problem", "fix"),
    [
        ({"schema": 1, "maen": [0]}, "there is no key 'maen'", "remove it; the keys are schema, color, resize, "),
        ({"schema": 2}, "schema: Input should be 1, found 2", "mend the value"),
        ({"mean": [0.5]}, "mean has 1 values, color RGB has 3", "mend the value"),
        ({"std": [1, 0, 1]}, "std must be above 0, found 0", "mend the value"),
        ({"divide_by": 0}, "divide_by: Input should be greater than 0, found 0", "mend the value"),
        ({"interpolation": "cubic"}, "interpolation: Input should be 'nearest', 'bilinear'", "mend the value"),
        ({"crop": [0, 32]}, "crop: Input should be greater than 0, found 0", "mend the value"),
        ({"resize": "big"}, "resize: Input should be a valid integer, found 'big'", "mend the value"),
        ({"dtype": "uint8"}, "dtype uint8 keeps pixels as they are: divide_by 1, mean 0, std 1", "mend the value"),
        (
            {"crop": [24, 24]},
            "makes images of 24x24, model input 'input' takes 32x32",
            'set "crop": [32, 32] in the file',
        ),
        (
            {"resize": 40},
            "makes images of the images' own sizes, model input 'input' takes 32x32",
            'set "crop": [32, 32] in the file',
        ),
        (
            {"layout": "NHWC"},
            "makes 3 channels NHWC float32, model input 'input' takes 3 channels NCHW float32",
            "leave color, layout and dtype out of the file",
        ),
        ([1], "holds list, expected an object", 'write {"schema": 1'),
    ],
)
def test_wrong_descriptions_are_refused(description: object, problem: str, fix: str, tmp_path: Path) -> None:
    error = refused(description, CIFAR, tmp_path)
    assert str(tmp_path / "p.json") in error.problem
    assert problem in error.problem
    assert fix in error.fix


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(RequestError) as caught:
        resolve_preprocess(str(tmp_path / "p.json"), CIFAR, None)
    assert caught.value.problem.startswith(f"{tmp_path / 'p.json'} cannot be read as JSON: Expecting property name")
    assert caught.value.fix == "mend the file, or name another with --preprocess"


def test_a_summary_is_one_line_that_names_every_step() -> None:
    assert summarize(resolved(None, PHOTO)) == (
        "RGB, resize short side to 256 (bilinear), centre crop 224x224, divide by 255, mean 0.485 0.456 0.406, "
        "std 0.229 0.224 0.225, NCHW"
    )


VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 256},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
CONVNEXT = {"crop_pct": 0.875, "size": {"shortest_edge": 224}, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VIT, ([224, 224], None, "bilinear", 255, [0.5] * 3)),
        (VIT | {"size": 224}, ([224, 224], None, "bilinear", 255, [0.5] * 3)),
        (VIT | {"do_normalize": False}, ([224, 224], None, "bilinear", 255, [0.0] * 3)),
        (CLIP, (256, [224, 224], "bicubic", 255, [0.48, 0.46, 0.41])),
        (CLIP | {"size": 256, "crop_size": 224}, (256, [224, 224], "bicubic", 255, [0.48, 0.46, 0.41])),
        (CLIP | {"do_rescale": False}, (256, [224, 224], "bicubic", 1, [0.48, 0.46, 0.41])),
        (CONVNEXT, (256, [224, 224], "bilinear", 255, [0.4] * 3)),
    ],
)
def test_hugging_face_settings_are_mapped(config: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = resolved(None, PHOTO, tmp_path / "model.onnx")
    assert tuple(found[key] for key in ("resize", "crop", "interpolation", "divide_by", "mean")) == expected


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (VIT | {"do_pad": True}, "sets do_pad, which has no counterpart here"),
        (VIT | {"rescale_offset": True}, "sets rescale_offset, which has no counterpart here"),
        (VIT | {"size": {"longest_edge": 224}}, "cannot be mapped: KeyError: 'height'"),
        (VIT | {"resample": 9}, "cannot be mapped: ValueError: resample 9 is none of PIL's"),
    ],
)
def test_hugging_face_settings_without_counterpart_are_refused(
    config: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError) as caught:
        resolve_preprocess(None, PHOTO, tmp_path / "model.onnx")
    assert problem in caught.value.problem
    assert caught.value.fix.startswith(f"write {tmp_path / 'preprocess.json'}")
