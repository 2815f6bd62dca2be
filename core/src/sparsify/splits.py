"""Draw calibration, selection and test samples: disjoint, seeded, recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sparsify.contracts import Data
from sparsify.data import Dataset
from sparsify.errors import RequestError

SELECTION_MAX = 256
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
    train, validation = (
        _first(data, "train", "all", "validation", "test"),
        _held_out(held_out or data, own=held_out is not None),
    )
    if validation is None:
        return _cut(train, calibration, test, seed)
    order = _shuffled(train.keys, seed)
    calibrating, rest = order[:calibration], order[calibration:]
    selecting = _own_selection(data, seed)
    chosen = validation if test is None else validation.take(sorted(_shuffled(validation.keys, seed)[:test]))
    selecting = selecting or train.take(rest[:SELECTION_MAX])
    return Splits(train.take(calibrating), selecting, chosen, verified=len(chosen) >= MIN_TEST)


def held_out_split(data: Data) -> Dataset:
    """Return the split that a finished model is measured on: test, validation, or everything."""
    return _first(data, "test", "validation", "all", "train")


def _first(data: Data, *names: str) -> Dataset:
    for name in names:
        if name in data.splits:
            return data.splits[name]
    raise RequestError("the dataset has no split that a run can use", fix="put samples into train/ and val/ folders")


def _held_out(data: Data, *, own: bool) -> Dataset | None:
    separate = own or (len(data.splits) > 1 and not data.splits.keys().isdisjoint(("test", "validation")))
    return held_out_split(data) if separate else None


def _own_selection(data: Data, seed: int) -> Dataset | None:
    if "test" in data.splits and "validation" in data.splits:
        validation = data.splits["validation"]
        return validation.take(_shuffled(validation.keys, seed)[:SELECTION_MAX])
    return None


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
