"""Datasets that stream: samples are read one at a time, batches are NumPy dictionaries, nothing holds a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsify.contracts import Array, Arrays
from sparsify.errors import RequestError, UnreadableSample

UNREADABLE_SHARE = 0.05  # above this the data, not a file, is broken


@dataclass(frozen=True)
class Sample:
    """Hold one sample: arrays by model input name, without a batch axis, and the target if there is one."""

    inputs: Arrays
    target: Any = None


@dataclass(frozen=True)
class Batch:
    """Hold stacked samples; only the first `len(keys)` rows are samples, the rest is padding."""

    inputs: dict[str, Array]
    targets: list[Any]
    keys: list[str]


@dataclass(frozen=True)
class Dataset:
    """Stream the samples named by `keys`.

    unreadable gathers the broken ones by key, shared by all subsets; population is how many samples the whole
    dataset has, of which at most 5 % may be broken.
    """

    keys: tuple[str, ...]
    read: Callable[[str], Sample]
    unreadable: dict[str, str] = field(default_factory=dict)
    population: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, keys: Sequence[str]) -> Dataset:
        """Return the subset of these keys, in this order."""
        return replace(self, keys=tuple(keys), population=self.population or len(self))

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Read sample by sample, skipping unreadable ones; raises RequestError above 5 % of them."""
        population = self.population or len(self)
        for key in self.keys:
            try:
                sample = self.read(key)
            except UnreadableSample as error:
                self.unreadable[key] = error.problem
                if len(self.unreadable) > UNREADABLE_SHARE * population:
                    raise RequestError(
                        f"{len(self.unreadable)} of {population} samples cannot be read, the last: {error.problem}",
                        fix="repair or remove the unreadable files; at most 5 % may be",
                    ) from error
                continue
            yield key, sample

    def batches(self, size: int, *, pad: bool = False) -> Iterator[Batch]:
        """Stack up to `size` consecutive samples of equal shapes; `pad` repeats the last sample to fill a batch."""
        pending: list[tuple[str, Sample]] = []
        for key, sample in self.samples():
            if pending and (len(pending) == size or _shapes(sample) != _shapes(pending[0][1])):
                yield _stack(pending, size if pad else 0)
                pending = []
            pending.append((key, sample))
        if pending:
            yield _stack(pending, size if pad else 0)


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def _stack(samples: list[tuple[str, Sample]], rows: int) -> Batch:
    import numpy as np

    filled = [sample for _, sample in samples]
    filled += filled[-1:] * (rows - len(filled))
    return Batch(
        inputs={name: np.stack([sample.inputs[name] for sample in filled]) for name in filled[0].inputs},
        targets=[sample.target for _, sample in samples],
        keys=[key for key, _ in samples],
    )


def spool(dataset: Dataset, folder: Path) -> Dataset:
    """Copy a dataset's arrays to disk once, so that layer-by-layer passes do not decode the same files again.

    Targets are dropped. Samples are read one at a time: mapped files would count as resident memory.
    """
    from sparsify.run_folder import read_arrays, write_arrays

    kept: list[str] = []
    for index, (_, sample) in enumerate(dataset.samples()):
        kept.append(f"{index:06d}")
        write_arrays(folder / f"{kept[-1]}.npz", sample.inputs, sync=False)  # a resumed run copies them again
    return Dataset(tuple(kept), lambda key: Sample(read_arrays(folder / f"{key}.npz")))
