"""Feed a training loop: which images a step sees, in which order, as the numbers that the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sparsify import Training
from torch import Tensor

from sparsify_image_classification.training.augment import augment, mix, to_numbers
from sparsify_image_classification.training.options import TrainOptions
from sparsify_image_classification.training.samples import (
    Chosen,
    Images,
    evaluation_steps,
    input_side,
    make_store,
    training_steps,
)

SAMPLING = 1 << 20  # the epoch that seeds batches outside the training steps


@dataclass(frozen=True)
class Place:
    """Say where a process stands: its number, how many there are, and the device that it computes on."""

    rank: int
    ranks: int
    device: torch.device


@dataclass(frozen=True)
class Feed:
    """Give the batches of one process; the same seed, epoch and step give the same batch, wherever a run began."""

    train: Images
    validation: Images
    description: Mapping[str, Any]
    classes: int
    options: TrainOptions
    seed: int
    place: Place

    @property
    def per_step(self) -> int:
        """Return how many images a process sees to one optimizer step."""
        wanted = self.options.batch_size * self.options.grad_accumulation
        return max(1, min(wanted, len(self.train) // self.place.ranks))

    @property
    def steps(self) -> int:
        """Return the optimizer steps of an epoch; what does not fill a step waits for another epoch's order."""
        return max(1, len(self.train) // (self.per_step * self.place.ranks))

    @property
    def at_once(self) -> int:
        """Return how many images pass the model together, as long as memory suffices."""
        return min(self.options.batch_size, self.per_step)

    def close(self) -> None:
        """Let the threads that decode go."""
        self.train.pool.shutdown(wait=False, cancel_futures=True)
        self.validation.pool.shutdown(wait=False, cancel_futures=True)

    def indices(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return which images this process takes at a step."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        mine = order[self.place.rank :: self.place.ranks]
        return mine[step * self.per_step : (step + 1) * self.per_step]

    def batches(self, epoch: int, step: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a step's images (rows, channels, height, width) and targets: class ids, or shares where mixed."""
        indices = self.indices(epoch, step)
        for start in range(0, len(indices), rows):
            random = np.random.default_rng((self.seed, epoch, step, self.place.rank, start))
            yield self._batch(indices[start : start + rows], random)

    def sampled(self, **given: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches for modifiers that sample gradients by themselves; batch_size is theirs to choose."""
        rows = int(given.get("batch_size") or self.options.batch_size)
        for step in range(self.steps):
            random = np.random.default_rng((self.seed, SAMPLING, step, self.place.rank))
            yield self._batch(self.indices(SAMPLING, step)[:rows], random, mixed=False)

    def evaluation(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of the validation images as a deployment would see them, and class ids."""
        mine = np.arange(self.place.rank, len(self.validation), self.place.ranks)
        for start in range(0, len(mine), rows):
            pixels, targets = self.validation.rows(mine[start : start + rows])
            numbers = to_numbers(torch.from_numpy(pixels).to(self.place.device), self.description)
            yield numbers, torch.from_numpy(targets).to(self.place.device)

    def _batch(
        self, indices: NDArray[np.int64], random: np.random.Generator, mixed: bool = True
    ) -> tuple[Tensor, Tensor]:
        pixels, targets = self.train.rows(indices)
        aspects = self.train.aspects[indices].astype(np.float64)
        sides = self.description["crop"] or self.description["resize"]
        images = torch.from_numpy(pixels).to(self.place.device)
        images = augment(images, aspects, (sides[0], sides[1]), self.options, random, self.train.pool.map)
        numbers, wanted = to_numbers(images, self.description), torch.from_numpy(targets).to(self.place.device)
        if mixed and (self.options.mixup or self.options.cutmix):
            return mix(numbers, wanted, self.classes, self.options, random)
        return numbers, wanted


def make_feed(chosen: Chosen, training: Training, options: TrainOptions, classes: int, place: Place) -> Feed:
    """Make room for decoded images and the feed that fills it; opens no image yet. Raises RequestError."""
    description = training.data.preprocess or {}
    side, note = input_side(description), training.note
    channels = len(description["mean"])

    def keep(name: str, dataset: Any, steps: Mapping[str, Any]) -> Images:
        sides = steps["crop"] or steps["resize"] or [side, side]
        file = Path(training.folder) / f"pixels-{name}-{place.rank}.npy"
        store = make_store(len(dataset), (*sides, channels), options.cache_mb, file, note)
        return Images(dataset, steps, store, options.workers)

    train = keep("train", chosen.train, training_steps(description))
    validation = keep("validation", chosen.validation, evaluation_steps(description))
    return Feed(train, validation, description, classes, options, training.experiment.seed, place)
