"""Broken files are named, never a crash; everything PIL can write and read back is read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sparsify import Batch, DataRequest, RequestError, UnreadableSample
from sparsify_image_classification.imagefolder import load
from sparsify_image_classification.reading import ImageReader, opened

PLAIN = {
    "schema": 1,
    "color": "RGB",
    "resize": [8, 8],
    "interpolation": "bilinear",
    "crop": None,
    "divide_by": 1,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "layout": "NCHW",
    "dtype": "float32",
}


def reader(root: Path, key: str) -> ImageReader:
    return ImageReader(root, "input", PLAIN, {key: 3})


def encoded(name: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, name)
    return buffer.getvalue()


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "DDS")
FILES = {name: encoded(name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_every_common_format_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "image").write_bytes(FILES[name])
    sample = reader(tmp_path, "image")("image")
    assert sample.inputs["input"].shape == (3, 8, 8)
    assert sample.target == 3
    if name in ("PNG", "BMP", "TIFF", "PPM"):
        with Image.open(io.BytesIO(FILES["PNG"])) as image:
            expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(sample.inputs["input"], expected)


@given(name=st.sampled_from(FORMATS), place=st.integers(0, 600), garbage=st.binary(max_size=6), cut=st.booleans())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_named(tmp_path: Path, name: str, place: int, garbage: bytes, cut: bool) -> None:
    whole = FILES[name]
    place %= len(whole)
    damaged = whole[:place] + garbage + (b"" if cut else whole[place + len(garbage) :])
    (tmp_path / "image").write_bytes(damaged)
    with suppress(UnreadableSample):
        assert reader(tmp_path, "image")("image").inputs["input"].shape == (3, 8, 8)


def test_an_empty_file_and_a_text_are_named(tmp_path: Path) -> None:
    for content in (b"", b"no image at all"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(UnreadableSample, match=r"x\.jpg cannot be read as an image: cannot identify image file"):
            reader(tmp_path, "x.jpg")("x.jpg")


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_bytes_are_read_as_the_file_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "image").write_bytes(FILES[name])
    with opened(FILES[name]) as held, opened(tmp_path / "image") as file:
        np.testing.assert_array_equal(np.asarray(held), np.asarray(file))


def test_bytes_that_are_no_image_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"/etc/hostname", FILES["PNG"][:50]):
        with (
            pytest.raises(UnreadableSample, match=rf"these {len(content)} bytes cannot be read as an image") as caught,
            opened(content) as image,
        ):
            image.load()
        assert caught.value.fix == "give the bytes of a whole image file"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UnreadableSample, match="decompression bomb"), opened(FILES["PNG"]):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSample, match=r"gone\.png cannot be read as an image: .*No such file"):
        reader(tmp_path, "gone.png")("gone.png")


@pytest.mark.parametrize("factor", [1.5, 3])  # PIL warns above its limit and refuses above twice the limit
def test_decompression_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(120 / factor))
    (tmp_path / "big.png").write_bytes(FILES["PNG"])
    with pytest.raises(UnreadableSample, match=r"big\.png cannot be read as an image: Image size .*decompression bomb"):
        reader(tmp_path, "big.png")("big.png")


def test_postscript_is_never_handed_to_its_interpreter(tmp_path: Path) -> None:
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "image.png").write_text(script)
    with pytest.raises(UnreadableSample, match="cannot identify image file"):
        reader(tmp_path, "image.png")("image.png")


def test_odd_metadata_does_not_warn(tmp_path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01\x03\x00\x01"  # says five entries, holds a part of one
    with Image.open(io.BytesIO(FILES["JPEG"])) as image:
        image.save(tmp_path / "x.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader(tmp_path, "x.jpg")("x.jpg")
    assert not caught


def test_one_corrupt_image_among_good_ones_is_skipped(
    pictures: Callable[..., Path], request_for: Callable[..., DataRequest]
) -> None:
    root = pictures("cat", "dog", count=10)
    (root / "cat" / "3.png").write_bytes(FILES["PNG"][:40])
    data = load(request_for(root)).splits["all"]
    batches: list[Batch] = list(data.batches(4))
    assert sum(len(batch.keys) for batch in batches) == 19
    assert list(data.unreadable) == ["cat/3.png"]
    assert str(root / "cat" / "3.png") in data.unreadable["cat/3.png"]


def test_too_many_corrupt_images_are_an_error(
    pictures: Callable[..., Path], request_for: Callable[..., DataRequest]
) -> None:
    root = pictures("cat", "dog", count=10)
    for index in (1, 2):
        (root / "dog" / f"{index}.png").write_bytes(b"")
    with pytest.raises(RequestError, match=r"2 of 20 samples cannot be read, the last: .*dog/2\.png"):
        list(load(request_for(root)).splits["all"].batches(4))
