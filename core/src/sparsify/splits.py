"""Draw calibration, selection and test samples: disjoint, seeded, recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sparsify.contracts import Data
from sparsify.data import Dataset
from sparsify.errors import RequestError

SELECTION_MAX = 1024  # a point is 10 of them: fewer cannot tell recipes apart
TEST_SHARE = 0.4  # of a folder without splits
SELECTION_SHARE = 0.1
MIN_TEST = 10  # fewer samples than this decide nothing


@dataclass(frozen=True)
class Splits:
    """Hold the samples of a run; `verified` is False where the test had to reuse calibration samples."""

    calibration: Dataset
    selection: Dataset
    test: Dataset
    verified: bool

    def named(self) -> dict[str, Dataset]:
        """Return the three splits by name."""
        return {"calibration": self.calibration, "selection": self.selection, "test": self.test}

    def counts(self) -> dict[str, int]:
        """Count the samples of each split, as metrics.json records them."""
        return {name: len(part) for name, part in self.named().items()}

    def hashes(self) -> dict[str, str]:
        """Hash the sample names of each split."""
        return {name: hashlib.sha256("\n".join(part.keys).encode()).hexdigest() for name, part in self.named().items()}


def draw_splits(data: Data, held_out: Data | None, *, calibration: int, test: int | None, seed: int) -> Splits:
    """Draw the three splits.

    held_out is the data of --eval-data. Where the data has train and validation folders, calibration and selection come
    from train and the test is all of validation (or of test, where there is one); a folder without splits is cut.
    """
    train = _first(data, "train", "all", "validation", "test")
    if train is None:
        raise RequestError(
            "the dataset has no split that a run can use", fix="put samples into train/ and val/ folders"
        )
    if held_out is None and (len(data.splits) == 1 or data.splits.keys().isdisjoint(("test", "validation"))):
        return _cut(train, calibration, test, seed)
    testing = held_out_split(held_out or data)
    if test is not None:
        testing = testing.take(sorted(_shuffled(testing.keys, seed)[:test]))
    order = _shuffled(train.keys, seed)
    selection = train.take(order[calibration:][:SELECTION_MAX])
    validation = data.splits.get("validation")
    if validation and "test" in data.splits:
        selection = validation.take(_shuffled(validation.keys, seed)[:SELECTION_MAX])
    return Splits(train.take(order[:calibration]), selection, testing, verified=len(testing) >= MIN_TEST)


def held_out_split(data: Data) -> Dataset:
    """Return the split that a finished model is measured on: test, validation, or everything."""
    found = _first(data, "test", "validation", "all", "train")
    if found is None:
        raise RequestError("the dataset has no split to measure on", fix="put samples into a val/ folder")
    return found


def _first(data: Data, *names: str) -> Dataset | None:
    return next((data.splits[name] for name in names if name in data.splits), None)


def _cut(everything: Dataset, calibration: int, test: int | None, seed: int) -> Splits:
    order = _shuffled(everything.keys, seed)
    testing = int(len(order) * TEST_SHARE)
    if testing < MIN_TEST:
        return Splits(everything.take(order[:calibration]), everything.take([]), everything, verified=False)
    selecting = min(SELECTION_MAX, int(len(order) * SELECTION_SHARE))
    rest = order[testing + selecting :]
    return Splits(
        everything.take(rest[:calibration]),
        everything.take(order[testing : testing + selecting]),
        everything.take(sorted(order[:testing][:test])),
        verified=True,
    )


def _shuffled(keys: Sequence[str], seed: int) -> list[str]:
    import numpy as np

    return [keys[index] for index in np.random.default_rng(seed).permutation(len(keys))]
