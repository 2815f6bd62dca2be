"""Choose the samples that train and validate, and keep their decoded pixels, so that files are read once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sparsify import Data, Dataset, Experiment, RequestError, UnreadableSample, draw_splits

from sparsify_image_classification.pixels import preprocess, recolour
from sparsify_image_classification.preprocessing import CROP_SHARE, PLAIN_RESIZE
from sparsify_image_classification.reading import ImageReader

VALIDATION_SHARE = 0.1  # of the training split; never more than the run's selection samples
UNREADABLE_SHARE = 0.05
DISK_SHARE = 0.5  # of what is free
MEGABYTE = 1 << 20
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Chosen:
    """Hold what a run trains on and what it validates on; no test sample is in either."""

    train: Dataset
    validation: Dataset


def choose(data: Data, experiment: Experiment) -> Chosen:
    """Choose the samples by the run's own splits: test samples in neither part, validation samples not in training.

    Validation is the first of the run's selection samples, a tenth of the training split. Raises RequestError where
    too few are left.
    """
    whole = next((data.splits[name] for name in ("train", "all") if name in data.splits), None)
    if whole is None or not isinstance(whole.read, ImageReader):
        what = "no training split" if whole is None else "no image files"
        fix = "give a folder of images by class, with train/ and val/ above or without"
        raise RequestError(f"--data: {experiment.data} holds {what}: image classification trains on images", fix=fix)
    splits = draw_splits(data, None, calibration=experiment.calibration_samples, test=None, seed=experiment.seed)
    kept_out = frozenset(splits.test.keys) if splits.verified else frozenset(whole.keys)
    if experiment.eval_data is not None:
        kept_out = _below(whole, Path(experiment.eval_data))
    usable = [key for key in whole.keys if key not in kept_out]
    validation = _validation(splits.selection, usable, experiment.seed)
    held = frozenset(validation.keys)
    training = [key for key in usable if key not in held]
    if experiment.train_samples is not None:
        order = np.random.default_rng(experiment.seed).permutation(len(training))
        training = sorted(training[index] for index in order[: experiment.train_samples])
    if len(training) < 2 or not len(validation):
        problem = (
            f"--data: {experiment.data} leaves {len(training)} images to train on and {len(validation)} to validate"
        )
        raise RequestError(problem, fix="give more images: a folder without splits needs 30, train/ more than 2")
    return Chosen(whole.take(training), validation)


def _validation(selection: Dataset, usable: Sequence[str], seed: int) -> Dataset:
    """Take the selection samples of a validation split of their own, else a tenth of what can be trained on."""
    own = frozenset(usable)
    if len(selection) and own.isdisjoint(selection.keys):
        return selection
    count = max(1, int(len(usable) * VALIDATION_SHARE)) if usable else 0
    order = [key for key in selection.keys if key in own]
    if not order:  # calibration took all that there is
        order = [usable[index] for index in np.random.default_rng(seed).permutation(len(usable))]
    return selection.take(order[:count])


def _below(whole: Dataset, folder: Path) -> frozenset[str]:
    """Return the keys whose files lie in the folder of --eval-data."""
    held = folder.resolve()
    return frozenset(key for key in whole.keys if (whole.read.root / key).resolve().is_relative_to(held))  # type: ignore[attr-defined]


class Images:
    """Give rows of decoded uint8 pixels (rows, height, width, channels) by index; a file is read once.

    Unreadable images are stood in for by the next readable one. aspects: width ÷ height of each image as it was.
    """

    def __init__(self, dataset: Dataset, steps: Mapping[str, Any], store: Pixels | None, workers: int) -> None:
        reader = dataset.read
        if not isinstance(reader, ImageReader):
            raise TypeError("the samples are no image files")
        self.dataset, self.reader, self.steps, self.store = dataset, reader, steps, store
        self.targets = np.array([reader.targets[key] for key in dataset.keys], dtype=np.int64)
        self.aspects = np.ones(len(dataset), dtype=np.float32)
        self.filled = np.zeros(len(dataset), dtype=bool)
        self.decoded = 0  # files read
        self.pool = ThreadPoolExecutor(workers)

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64]]:
        """Return pixels and targets of these rows; raises RequestError above 5 % of unreadable files."""
        if self.store is None:
            return np.stack(list(self.pool.map(self._read, indices))), self.targets[indices]
        absent = [int(index) for index in indices if not self.filled[index]]
        for index, pixels in zip(absent, self.pool.map(self._read, absent), strict=True):
            self.store[index], self.filled[index] = pixels, True
        return np.asarray(self.store[indices]), self.targets[indices]

    def _read(self, index: int) -> Pixels:
        for shift in range(len(self)):
            found = (index + shift) % len(self)
            key = self.dataset.keys[found]
            try:
                with self.reader.open(key) as image:
                    pixels, aspect = decode(self.steps, image)
            except UnreadableSample as error:
                self._refuse(key, error)
                continue
            self.decoded += 1
            self.aspects[index], self.targets[index] = aspect, self.targets[found]
            return pixels
        raise RequestError("no image can be read", fix="repair the files")

    def _refuse(self, key: str, error: UnreadableSample) -> None:
        unreadable = self.dataset.unreadable
        unreadable[key] = error.problem
        population = self.dataset.population or len(self.dataset)
        if len(unreadable) > UNREADABLE_SHARE * population:
            problem = f"{len(unreadable)} of {population} images cannot be read, the last: {error.problem}"
            raise RequestError(problem, fix="repair or remove the unreadable files; at most 5 % may be") from error


def decode(steps: Mapping[str, Any], image: Image.Image) -> tuple[Pixels, float]:
    """Return an image's pixels (height, width, channels) by the deployment's own steps, and its aspect ratio."""
    upright = recolour(image, steps["color"])
    return preprocess(steps, upright), upright.width / upright.height


def evaluation_steps(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the deployment's preprocessing up to the pixels, before they become numbers."""
    channels = len(description["mean"])
    plain = {"divide_by": 1.0, "mean": [0.0] * channels, "std": [1.0] * channels, "layout": "NHWC", "dtype": "uint8"}
    return {**description, **plain}


def training_steps(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steps that lead to what augmentation crops from: all of a large image, squeezed into a square."""
    steps, side = evaluation_steps(description), input_side(description)
    if side <= PLAIN_RESIZE:
        return steps
    kept = round(side / CROP_SHARE)
    return {**steps, "resize": [kept, kept], "crop": None}


def input_side(description: Mapping[str, Any]) -> int:
    """Return the longer side of the model's input in pixels; raises RequestError where it is the image's own."""
    sides = description["crop"] or description["resize"]
    if not isinstance(sides, list | tuple):
        problem = "the preprocessing leaves images at their own sizes, which training cannot put into one batch"
        raise RequestError(problem, fix='give --preprocess FILE with "crop": [height, width]')
    return int(max(sides))


def make_store(
    rows: int, shape: Sequence[int], megabytes: int, file: Path, note: Callable[[str], None]
) -> Pixels | None:
    """Return room for decoded images: memory, else a file beside the checkpoints, else None where the disk is full."""
    size = rows * int(np.prod(shape))
    if size <= megabytes * MEGABYTE:
        return np.zeros((rows, *shape), dtype=np.uint8)
    if size <= DISK_SHARE * shutil.disk_usage(file.parent).free:
        note(f"decoded images take {size / MEGABYTE:.0f} MB: kept in {file} (cache_mb is {megabytes})")
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(rows, *shape))
    note(f"decoded images would take {size / MEGABYTE:.0f} MB: they are decoded anew in each epoch")
    return None
