"""Serve image classification: metrics, the check of classes against outputs, and the deployment's README."""

from __future__ import annotations

import math

from sparsify import Data, Description, RequestError, UseCase

from sparsify_image_classification.classification import interpret, prepare
from sparsify_image_classification.readme import readme

THUMBNAIL = 96  # pixels


def picture(data: Data, key: str) -> bytes:
    """Return a thumbnail of a sample for the report, nothing where the samples are no image files."""
    from sparsify_image_classification.reading import ImageReader

    (split,) = data.splits.values()
    return split.read.thumbnail(key, THUMBNAIL) if isinstance(split.read, ImageReader) else b""


def check(data: Data, description: Description) -> None:
    """Refuse data whose classes are not the model's; raises RequestError. NPZ data names no classes."""
    output = description.outputs[0]
    sides = [side for side in output.shape[1:] if isinstance(side, int)]
    if len(sides) != len(output.shape) - 1 or not sides:
        return  # the output's size is known only when the model runs
    classes = math.prod(sides)
    if data.labels and classes != len(data.labels):
        raise RequestError(
            f"the data have {len(data.labels)} classes, the model's output '{output.name}' has {classes}",
            fix=f"give --class-list FILE with {classes} lines, one folder name a line, line i = class i",
        )


USE_CASE = UseCase(
    metrics=("accuracy", "top5"), check=check, readme=readme, picture=picture, prepare=prepare, interpret=interpret
)
