"""Turn an image into a model's input. The functions are copied into deployment/README.md, so they need no Sparsify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def preprocess(description: Mapping[str, Any], image: Image.Image) -> NDArray[Any]:
    """Turn an image of any mode and size into one input tensor, without a batch axis, as `description` says."""
    image = resize(recolour(image, description["color"]), description["resize"], description["interpolation"])
    if description["crop"]:
        image = centre_crop(image, *description["crop"])
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    if description["color"] == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = (np.array(description[name], dtype=np.float32) for name in ("mean", "std"))
    pixels = (pixels / np.float32(description["divide_by"]) - mean) / std
    if description["layout"] == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels, dtype=description["dtype"])


def recolour(image: Image.Image, color: str) -> Image.Image:
    """Turn the image upright, and to 8 bits of grey or colour; transparency is dropped, as torchvision does."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are 32-bit floats of unknown range")
    if image.mode.startswith("I"):  # 16 bits: keep the high byte, as PIL does for 16-bit colour
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("L" if color == "L" else "RGB")


def resize(image: Image.Image, size: Any, interpolation: str) -> Image.Image:
    """Resize the short side to an integer `size`, or both sides to [height, width]; None leaves the image as it is."""
    width, height = image.size
    if isinstance(size, int):
        longest = 16 * min(width, height)  # of a longer strip only the middle: a 1 x 10,000 image would take gigabytes
        image = centre_crop(image, min(height, longest), min(width, longest))
        width, height = image.size
        long = int(size * max(width, height) / min(width, height))
        size = (long, size) if width < height else (size, long)
    if not size or (height, width) == tuple(size):
        return image
    return image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut out the middle; where the image is smaller, pad with black."""
    left, top = image.width - width, image.height - height
    left = round(left / 2) if left >= 0 else -(-left // 2)
    top = round(top / 2) if top >= 0 else -(-top // 2)
    return image.crop((left, top, left + width, top + height))
