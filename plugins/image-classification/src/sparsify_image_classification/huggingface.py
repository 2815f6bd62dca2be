"""Read Hugging Face's preprocessor_config.json as a preprocessing description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsify import RequestError

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers
CONVNEXT_PLAIN = 384  # its processor crops only below this size
HALF = (0.5, 0.5, 0.5)


def from_huggingface(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Map an image processor's settings; raises RequestError for what has no counterpart."""
    if config.get("do_pad") or config.get("rescale_offset"):
        name = "do_pad" if config.get("do_pad") else "rescale_offset"
        raise RequestError(f"{path} sets {name}, which has no counterpart here", fix=_write_own(path))
    try:
        return {"schema": 1, **_geometry(config), **_numbers(config)}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RequestError(f"{path} cannot be mapped: {type(error).__name__}: {error}", fix=_write_own(path)) from None


def _write_own(path: Path) -> str:
    own = path.with_name("preprocess.json")
    return f"write {own} with resize, crop, interpolation, divide_by, mean and std, or use --preprocess"


def _geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    crops = bool(config.get("do_center_crop", False))
    resize = _size(config["size"], short=crops) if config.get("do_resize", True) else None
    crop = _both(_size(config["crop_size"], short=False)) if crops else None
    if "crop_pct" in config and isinstance(resize, int):  # ConvNext: resize by 1/crop_pct, then crop to `size`
        side = resize
        plain = side >= CONVNEXT_PLAIN
        resize, crop = ([side, side], None) if plain else (int(side / (config["crop_pct"] or 224 / 256)), [side, side])
    number = config.get("resample", 2)
    if not 0 <= number < len(RESAMPLE):
        raise ValueError(f"resample {number} is none of PIL's")
    return {"resize": resize, "crop": crop, "interpolation": RESAMPLE[number]}


def _size(size: Any, *, short: bool) -> int | list[int]:
    if isinstance(size, int):
        return size if short else [size, size]
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return [int(size["height"]), int(size["width"])]


def _both(size: int | list[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else size


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {"divide_by": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    if config.get("do_rescale", True):
        divide_by = 1 / float(config.get("rescale_factor", 1 / 255))
        numbers["divide_by"] = round(divide_by) if abs(divide_by - round(divide_by)) < 1e-6 else divide_by
    if config.get("do_normalize", True):
        numbers |= {"mean": list(config.get("image_mean", HALF)), "std": list(config.get("image_std", HALF))}
    if config.get("do_flip_channel_order"):
        numbers |= {"color": "BGR"}
    return numbers
