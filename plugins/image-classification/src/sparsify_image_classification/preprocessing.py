"""Describe preprocessing as data: where the description comes from, what it may hold, whether it fits the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sparsify import RequestError, TensorSpec

from sparsify_image_classification.huggingface import from_huggingface

Side = Annotated[int, Field(gt=0, le=16384, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PLAIN_RESIZE = 64  # inputs up to this size are resized to it as they are, larger ones are cut out of the middle
CROP_SHARE = 224 / 256
ANY_SIZE = 224  # for a model that takes any height and width


class Preprocess(BaseModel):
    """Say what is done to an image, in this order: upright, colour, resize, centre crop, numbers, layout.

    resize: an integer for the short side, [height, width] for both, or null. crop: [height, width] or null, padded with
    black. Numbers: (pixel / divide_by - mean) / std, pixels in 0..255, mean and std in the order of `color`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(1, alias="schema")
    color: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Side | tuple[Side, Side] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    crop: tuple[Side, Side] | None = None
    divide_by: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 255.0
    mean: tuple[Finite, ...] = (0.0, 0.0, 0.0)
    std: tuple[Finite, ...] = (1.0, 1.0, 1.0)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "uint8"] = "float32"

    @model_validator(mode="after")
    def _fits_itself(self) -> Preprocess:
        channels = 1 if self.color == "L" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(f"{name} has {len(values)} values, color {self.color} has {channels}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be above 0, found {min(self.std):g}")
        if self.dtype == "uint8" and (self.divide_by != 1 or any(self.mean) or set(self.std) != {1.0}):
            raise ValueError("dtype uint8 keeps pixels as they are: divide_by 1, mean 0, std 1")
        return self


@dataclass(frozen=True)
class ImageInput:
    """Describe the image input of a model; height and width are None where the model takes any."""

    name: str
    layout: Literal["NCHW", "NHWC"]
    channels: Literal[1, 3]
    height: int | None
    width: int | None
    dtype: Literal["float32", "float16", "uint8"]


@dataclass(frozen=True)
class Preset:
    """Hold numbers that are known under a name; geometry and layout come from the model's input."""

    summary: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    divide_by: float = 255.0
    color: str = "RGB"


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "imagenet": Preset("1/255, ImageNet mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "unit": Preset("0 to 1"),
        "minus1to1": Preset("-1 to 1", (0.5,), (0.5,)),
        "raw255": Preset("0 to 255", divide_by=1.0),
        "caffe": Preset("0 to 255, BGR, mean subtracted", (103.939, 116.779, 123.68), divide_by=1.0, color="BGR"),
        "cifar10": Preset("1/255, CIFAR-10 mean and std", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        "mnist": Preset("1/255, MNIST mean and std", (0.1307,), (0.3081,)),
    }
)


def image_input(inputs: tuple[TensorSpec, ...]) -> ImageInput:
    """Read layout, channels and size off the model's one input; raises RequestError where it takes no image."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs) or "none"
        raise RequestError(
            f"image folders feed models with one input, this one has {len(inputs)}: {names}",
            fix="save the inputs as NPZ files, a sample a file, and give their folder as --data",
        )
    spec = inputs[0]
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in spec.shape)
    if len(shape) != 4 or spec.dtype not in ("float32", "float16", "uint8"):
        raise RequestError(
            f"model input '{spec.name}' is {spec.dtype} {_brackets(spec.shape)}, an image input is float32, float16 or "
            "uint8 of four axes (batch, channels, height, width)",
            fix="give an image classifier, or save the inputs as NPZ files and give their folder as --data",
        )
    nhwc = shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels = shape[3] if nhwc else shape[1]
    height, width = shape[1:3] if nhwc else shape[2:]
    if channels not in (1, 3, None):
        raise RequestError(
            f"model input '{spec.name}' is {_brackets(spec.shape)}: {channels} channels, images have 1 or 3",
            fix="save the inputs as NPZ files, a sample a file, and give their folder as --data",
        )
    return ImageInput(
        spec.name, "NHWC" if nhwc else "NCHW", 1 if channels == 1 else 3, height, width, _dtype(spec.dtype)
    )


def _dtype(name: str) -> Literal["float32", "float16", "uint8"]:
    return "float16" if name == "float16" else "uint8" if name == "uint8" else "float32"


def _brackets(shape: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]"


def resolve_preprocess(
    asked: str | Mapping[str, Any] | None, image: ImageInput, model: Path | None
) -> tuple[dict[str, Any], str]:
    """Return the description to execute, checked against the model, and where it came from.

    asked: a preset's name, a JSON file, a description, or None for a file beside the model, else the default.
    Raises RequestError.
    """
    if isinstance(asked, Mapping):
        return _finish(asked, image, "the recorded preprocessing"), "as recorded"
    if asked is not None and asked in PRESETS:
        return _finish({}, image, asked, PRESETS[asked]), f"--preprocess {asked}"
    if asked is not None:
        return _from_file(_named_file(asked), image), f"--preprocess {asked}"
    folder = None if model is None else model if model.is_dir() else model.parent
    for name in ("preprocess.json", "preprocessor_config.json") if folder else ():
        if folder and (folder / name).is_file():
            return _from_file(folder / name, image), str(folder / name)
    preset = "imagenet" if image.channels == 3 else "unit"
    if image.dtype == "uint8":
        preset = "raw255"
    return _finish({}, image, preset, PRESETS[preset]), f"default, {preset}; --preprocess changes it"


def _named_file(asked: str) -> Path:
    path = Path(asked)
    if path.is_file():
        return path
    names = ", ".join(f"{name} ({preset.summary})" for name, preset in PRESETS.items())
    raise RequestError(
        f"--preprocess: '{asked}' is neither a known name nor a file", fix=f"use one of: {names}; or a JSON file"
    )


def _from_file(path: Path, image: ImageInput) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path} cannot be read as JSON: {error}", fix="mend the file, or name another with --preprocess"
        ) from None
    if not isinstance(read, dict):
        raise RequestError(
            f"{path} holds {type(read).__name__}, expected an object", fix='write {"schema": 1, "resize": 256, …}'
        )
    if "schema" not in read and any(name.startswith(("do_", "image_")) for name in read):
        read = from_huggingface(read, path)
    return _finish(read, image, str(path))


def _finish(given: Mapping[str, Any], image: ImageInput, source: str, preset: Preset | None = None) -> dict[str, Any]:
    """Fill what is not given from the preset and the model's input, and check the whole."""
    default = preset or PRESETS["raw255" if image.dtype == "uint8" else "imagenet" if image.channels == 3 else "unit"]
    color = "L" if image.channels == 1 else default.color
    filled: dict[str, Any] = {
        "schema": 1,
        "color": color,
        **({} if {"resize", "crop"} & set(given) else _geometry(image)),
        "divide_by": default.divide_by,
        "mean": _for_channels(default.mean, image.channels),
        "std": _for_channels(default.std, image.channels),
        "layout": image.layout,
        "dtype": image.dtype,
        **given,
    }
    try:
        description = Preprocess.model_validate(filled)
    except ValidationError as error:
        raise _invalid(error, source) from None
    _check_fit(description, image, source)
    result: dict[str, Any] = json.loads(description.model_dump_json(by_alias=True))
    return result


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Repeat a grey number for colour; average colour's numbers for grey, as timm does for its one-channel models."""
    if len(values) == channels:
        return values
    return values * channels if len(values) == 1 else (round(sum(values) / len(values), 6),)


def _geometry(image: ImageInput) -> dict[str, Any]:
    height, width = image.height or image.width or ANY_SIZE, image.width or image.height or ANY_SIZE
    if max(height, width) <= PLAIN_RESIZE:
        return {"resize": (height, width), "crop": None}
    return {"resize": round(max(height, width) / CROP_SHARE), "crop": (height, width)}


def _invalid(error: ValidationError, source: str) -> RequestError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in Preprocess.model_fields.items())
        return RequestError(f"{source}: there is no key '{where}'", fix=f"remove it; the keys are {known}")
    message = first["msg"].removeprefix("Value error, ")
    return RequestError(
        f"{source}: {where}: {message}, found {first['input']!r}" if where else f"{source}: {message}",
        fix="mend the value; `resize` is an integer or [height, width], `crop` [height, width], mean and std lists",
    )


def _check_fit(description: Preprocess, image: ImageInput, source: str) -> None:
    channels = 1 if description.color == "L" else 3
    size = description.crop or (description.resize if isinstance(description.resize, tuple) else (None, None))
    wanted, made = (image.height, image.width), size
    if channels != image.channels or description.layout != image.layout or description.dtype != image.dtype:
        raise RequestError(
            f"{source} makes {channels} channels {description.layout} {description.dtype}, "
            f"model input '{image.name}' takes {image.channels} channels {image.layout} {image.dtype}",
            fix="leave color, layout and dtype out of the file: they are read from the model",
        )
    if any(side is not None and side != other for side, other in zip(wanted, made, strict=True)):
        height, width = (other if side is None else side for side, other in zip(wanted, made, strict=True))
        found = "the images' own sizes" if made == (None, None) else f"{made[0]}x{made[1]}"
        raise RequestError(
            f"{source} makes images of {found}, model input '{image.name}' takes "
            f"{'x'.join('any' if side is None else str(side) for side in wanted)}",
            fix=f'set "crop": [{height or ANY_SIZE}, {width or ANY_SIZE}] in the file, or leave resize and crop out',
        )


def summarize(description: Mapping[str, Any]) -> str:
    """Say a description in one line, for the note beside the baseline."""
    resize, crop = description["resize"], description["crop"]
    steps = [description["color"]]
    if resize:
        size = f"short side to {resize}" if isinstance(resize, int) else f"to {resize[0]}x{resize[1]}"
        steps.append(f"resize {size} ({description['interpolation']})")
    if crop:
        steps.append(f"centre crop {crop[0]}x{crop[1]}")
    mean, std = (" ".join(f"{value:g}" for value in description[name]) for name in ("mean", "std"))
    steps += [f"divide by {description['divide_by']:g}", f"mean {mean}", f"std {std}", description["layout"]]
    return ", ".join(steps)
