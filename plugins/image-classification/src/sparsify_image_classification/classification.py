"""Classify images with a deployment: from a path, a PIL image or pixels to labels and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sparsify import Deployment, RequestError

from sparsify_image_classification.pixels import preprocess
from sparsify_image_classification.reading import opened

TOP = 5
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Classification:
    """Hold the best class of an image, and the best five with their probabilities in 0–1."""

    label: str
    class_id: int
    score: float
    top: tuple[tuple[str, float], ...]


def prepare(raw: Any, deployment: Deployment) -> Arrays:
    """Turn a path, the bytes of an image file, a PIL image, or an array into the model's input.

    An array of the input's own shape and type is taken as it is, one of uint8 (height, width) or (height, width, 3) as
    an image. Raises UnreadableSample for a broken file, RequestError for anything else.
    """
    spec, description = deployment.inputs[0], deployment.preprocess
    if isinstance(raw, np.ndarray) and (raw.dtype != np.uint8 or description is None or raw.ndim not in (2, 3)):
        return {spec.name: raw}
    if description is None:
        fix = f"give an array of the input '{spec.name}', without a batch axis"
        raise RequestError("this deployment has no preprocess.json: it takes arrays alone", fix=fix)
    if isinstance(raw, np.ndarray):
        raw = _picture(raw)
    if isinstance(raw, Image.Image):
        return {spec.name: preprocess(description, raw)}
    if isinstance(raw, str | PathLike | bytes):
        with opened(raw if isinstance(raw, bytes) else Path(raw)) as image:
            return {spec.name: preprocess(description, image)}
    raise RequestError(f"an image cannot be made from {type(raw).__name__}", fix="give a path, a PIL image or an array")


def _picture(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        problem = f"an image of uint8 {'×'.join(map(str, pixels.shape))} has no axis of colours last"
        raise RequestError(problem, fix="give (height, width) or (height, width, 3)")
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def interpret(outputs: Arrays, deployment: Deployment) -> Classification:
    """Read the first output as scores of classes; logits are turned into probabilities."""
    scores = np.asarray(next(iter(outputs.values())), dtype=np.float64).ravel()
    if scores.min() < 0 or abs(scores.sum() - 1) > 1e-3:
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    order = np.argsort(-scores, kind="stable")[:TOP].tolist()
    labels = deployment.labels or tuple(map(str, range(len(scores))))
    top = tuple((labels[index], float(scores[index])) for index in order)
    return Classification(top[0][0], order[0], top[0][1], top)
