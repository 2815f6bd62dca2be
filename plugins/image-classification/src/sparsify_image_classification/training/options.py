"""Say how to train: what --train-kwargs takes, with defaults."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sparsify import RequestError

Whole = Annotated[int, Field(gt=0)]
NotNegativeWhole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
OPTION = "--train-kwargs"


class TrainOptions(BaseModel):
    """Hold the options of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Whole | None = Field(None, description="side of the model's input in pixels; by default its name's")
    epochs: Whole | None = Field(None, description="how many epochs; by default to the end of the recipe, else 15")
    dense_epochs: NotNegativeWhole | None = Field(
        None, description="of these before the recipe, where the model has no weights or a new head; by default epochs"
    )
    batch_size: Whole = Field(128, description="images that one process passes through the model at once")
    grad_accumulation: Whole = Field(1, description="batches to an optimizer step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (Nesterov) or adamw")
    lr: Positive | None = Field(
        None,
        description="peak learning rate; by default 0.05 (sgd) or 0.001 (adamw) for 128 images a step, 0.6 of it where "
        "weights are trained and at most 80 % of them become zero",
    )
    momentum: BelowOne = Field(0.9, description="of sgd")
    weight_decay: NotNegative = Field(1e-4, description="of weights; norms and biases have none")
    warmup_epochs: NotNegative = Field(1.0, description="epochs of linear warm-up before the cosine")
    clip_grad: NotNegative | None = Field(
        None, description="largest norm of all gradients together, 0 = any; by default 1 in networks without norms"
    )
    label_smoothing: BelowOne = Field(0.0, description="share of the target that is spread over all classes")
    mixup: NotNegative = Field(0.0, description="alpha of mixup's Beta distribution, 0 = off")
    cutmix: NotNegative = Field(0.0, description="alpha of CutMix's Beta distribution, 0 = off")
    randaugment: Annotated[int, Field(ge=0, le=10)] = Field(0, description="RandAugment's magnitude 1-10, 0 = off")
    flip: bool = Field(True, description="mirror half of the images")
    crop: bool = Field(True, description="crop at random: after padding up to 64 px, else resized")
    crop_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.25, description="smallest share of the area to crop")
    ema: BelowOne = Field(0.0, description="decay of an average of the weights that is kept as the result, 0 = off")
    amp: bool = Field(False, description="compute in bfloat16 where that is exact enough")
    channels_last: bool = Field(True, description="lay images out with channels last")
    patience: Whole | None = Field(None, description="stop after so many epochs without a better accuracy")
    workers: Whole = Field(2, description="threads that decode images")
    cache_mb: Annotated[int, Field(ge=0)] = Field(2048, description="decoded images kept in memory, the rest on disk")


def read_options(given: Mapping[str, Any] | None) -> TrainOptions:
    """Check what --train-kwargs holds; raises RequestError with the nearest name."""
    try:
        return TrainOptions.model_validate(dict(given or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    fields = TrainOptions.model_fields
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, fields, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"use some of: {', '.join(fields)}"
        raise RequestError(f"{OPTION}: there is no '{name}' for image classification", fix=fix)
    message = first["msg"].removeprefix("Value error, ")
    fix = f"'{name}' is: {fields[name].description}"
    raise RequestError(f"{OPTION}: {name}: {message}, found {first['input']!r}", fix=fix)
