"""The one implementation of preprocessing against independent references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sparsify_image_classification.pixels import centre_crop, preprocess, recolour, resize

IMAGENET: dict[str, Any] = {
    "schema": 1,
    "color": "RGB",
    "resize": 256,
    "interpolation": "bilinear",
    "crop": [224, 224],
    "divide_by": 255.0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "layout": "NCHW",
    "dtype": "float32",
}
AS_IT_IS = IMAGENET | {"resize": None, "crop": None, "divide_by": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
SIDES = st.integers(1, 60)


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(height, width))


@given(SIDES, SIDES, st.integers(1, 40), SIDES, SIDES)
@settings(deadline=None, max_examples=60)
def test_geometry_is_that_of_resize_then_centre_crop(
    height: int, width: int, side: int, rows: int, columns: int
) -> None:
    # torchvision.transforms.Resize(side) and CenterCrop((rows, columns)), written out with arrays
    image = picture(height, width)
    if max(height, width) > 16 * min(height, width):
        return
    size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = np.asarray(image if size == (height, width) else image.resize(size[::-1], Image.Resampling.BILINEAR))
    below, beside = max(rows - size[0], 0), max(columns - size[1], 0)
    padded = np.pad(resized, ((below // 2, (below + 1) // 2), (beside // 2, (beside + 1) // 2), (0, 0)))
    top, left = round((padded.shape[0] - rows) / 2), round((padded.shape[1] - columns) / 2)
    expected = padded[top : top + rows, left : left + columns]
    found = preprocess(AS_IT_IS | {"resize": side, "crop": [rows, columns]}, image)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


@given(SIDES, SIDES, st.sampled_from(["NCHW", "NHWC"]), st.sampled_from(["RGB", "BGR"]))
@settings(deadline=None, max_examples=30)
def test_numbers_are_scaled_then_normalized_in_float32(height: int, width: int, layout: str, color: str) -> None:
    pixels = noise(height, width).astype(np.float64)
    pixels = pixels[..., ::-1] if color == "BGR" else pixels
    expected = (pixels / 255 - IMAGENET["mean"]) / IMAGENET["std"]
    expected = expected.transpose(2, 0, 1) if layout == "NCHW" else expected
    description = IMAGENET | {"resize": None, "crop": None, "layout": layout, "color": color}
    found = preprocess(description, picture(height, width))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 2000), st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_thin_strip_keeps_its_middle_and_stays_small(short: int, long: int, upright: bool) -> None:
    long = max(long, short)
    image = picture(*((long, short) if upright else (short, long)))
    scaled = resize(image, 32, "bilinear")
    assert min(scaled.size) == 32
    assert max(scaled.size) <= 16 * 32
    assert preprocess(IMAGENET | {"resize": 32, "crop": [28, 28]}, image).shape == (3, 28, 28)


def test_both_sides_are_resized_where_both_are_given() -> None:
    image = picture(9, 5)
    expected = np.asarray(image.resize((7, 4), Image.Resampling.BICUBIC))
    found = preprocess(AS_IT_IS | {"resize": [4, 7], "interpolation": "bicubic", "layout": "NHWC"}, image)
    np.testing.assert_array_equal(found, expected)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = picture(6, 6)
    assert resize(image, [6, 6], "bilinear") is image


def test_padding_is_black_and_centred() -> None:
    found = np.asarray(centre_crop(Image.new("L", (1, 1), 255), 3, 4))
    assert found.tolist() == [[0, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0]]


def turned(orientation: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # what a viewer shows for stored pixels, by the EXIF standard's table of orientations
    shown = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    return shown[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    pixels = noise(3, 5)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(recolour(image, "RGB")), turned(orientation, pixels))


def test_grey_is_repeated_for_colour_and_colour_weighed_for_grey() -> None:
    grey = Image.fromarray(noise(4, 4, 1)[..., 0])
    np.testing.assert_array_equal(np.asarray(recolour(grey, "RGB")), np.repeat(np.asarray(grey)[..., None], 3, 2))
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as PIL documents
    found = preprocess(AS_IT_IS | {"color": "L", "mean": [0.0], "std": [1.0]}, picture(4, 4))
    assert found.shape == (1, 4, 4)
    np.testing.assert_allclose(found[0], noise(4, 4) @ weights, atol=1)


def test_alpha_is_dropped_and_palettes_are_looked_up() -> None:
    colour = picture(5, 4)
    clear = colour.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(np.asarray(recolour(clear, "RGB")), np.asarray(colour))
    palette = colour.quantize(16)
    expected = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    palette.info["transparency"] = bytes([0, 128])  # PIL warns where this is converted to RGB in one go
    np.testing.assert_array_equal(np.asarray(recolour(palette, "RGB")), expected)


def test_cmyk_becomes_the_complement() -> None:
    cyan = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert np.asarray(recolour(cyan, "RGB"))[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_keep_their_high_byte(mode: str) -> None:
    values = np.array([[0, 255], [256, 65535]])
    kinds: dict[str, Any] = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}
    image = Image.frombytes(mode, (2, 2), values.astype(kinds[mode]).tobytes())
    assert np.asarray(recolour(image, "L")).tolist() == [[0, 0], [1, 255]]


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="its pixels are 32-bit floats of unknown range"):
        recolour(Image.new("F", (2, 2)), "L")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
@pytest.mark.parametrize("color", ["L", "RGB", "BGR"])
def test_every_mode_gives_the_shape_asked_for(mode: str, color: str) -> None:
    channels = 1 if color == "L" else 3
    numbers = {"mean": [0.0] * channels, "std": [1.0] * channels}
    found = preprocess(IMAGENET | numbers | {"color": color}, Image.new(mode, (1, 7)))
    assert found.shape == (channels, 224, 224)
    assert math.isfinite(float(found.sum()))


def test_uint8_models_get_the_pixels() -> None:
    found = preprocess(AS_IT_IS | {"dtype": "uint8", "layout": "NHWC"}, picture(3, 4))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, noise(3, 4))
