"""Find the positions of a sample that are padding, by experiment: what stands there changes no output.

A text encoder's samples are padded to one length, and on SST-2 four of five rows of every activation are padding. They
would decide ranges, Hessians and means, though no output depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparsify import Dataset

CLOSE = 1e-4  # of a tensor's largest magnitude: the same to float32
PROBED = 16  # samples looked at for one with padding
Arrays = Mapping[str, NDArray[Any]]
Mask = NDArray[np.bool_]
Run = Callable[[Sequence[str], Arrays], Arrays]


@dataclass(frozen=True)
class Padding:
    """Name the input whose zeros mark padding, and the tensors that have a row for each of its values."""

    mask: str
    tensors: frozenset[str]


def find_padding(
    run: Run, outputs: Collection[str], names: Collection[str], samples: Dataset, batch: int = 1
) -> Padding | None:
    """Look for an input of zeros and ones for which what stands at its zeros in other inputs does not matter.

    Not its name tells, nor the graph: one sample is run twice, with other values at the zeros. The mask holds for the
    tensors whose values then change there and nowhere else.
    """
    for mask, inputs in _candidates(samples, batch).items():
        real = inputs[mask] != 0
        changed = _disturb(inputs, mask, real)
        if changed is None:
            continue
        wanted = list(dict.fromkeys([*outputs, *names]))
        before, after = (run(wanted, feed) for feed in (inputs, changed))
        held = frozenset(name for name in names if _has_rows(before[name], after[name], real))
        if held and all(_same(select(before[name], real), select(after[name], real)) for name in outputs):
            return Padding(mask, held)
    return None


def _candidates(samples: Dataset, batch: int) -> dict[str, Arrays]:
    """Map inputs that may be masks to the sample, of the first few, where they have most zeros."""
    found: dict[str, Arrays] = {}
    for _, sample in islice(samples.samples(), PROBED):
        inputs = {name: np.repeat(array[None], batch, axis=0) for name, array in sample.inputs.items()}
        for name in (name for name, array in inputs.items() if _marks(array)):
            if name not in found or np.sum(inputs[name] == 0) > np.sum(found[name][name] == 0):
                found[name] = inputs
    return found


def select(array: NDArray[Any], real: Mask | None) -> NDArray[Any]:
    """Drop padding where the first axes of an array are samples and positions, or both in one."""
    if real is None or array.ndim < 2:
        return array
    if array.shape[:2] == real.shape:
        return array[real]
    return array[real.reshape(-1)] if len(array) == real.size else array


def _marks(array: NDArray[Any]) -> bool:
    """Say whether an input holds zeros and ones for positions, and both of them."""
    return array.ndim == 2 and bool(np.isin(array, (0, 1)).all() and array.any() and not array.all())


def _disturb(inputs: Arrays, mask: str, real: Mask) -> Arrays | None:
    """Put the value of the first position that is no padding at all that are; None where that changes nothing."""
    first, changed = int(real[0].argmax()), dict(inputs)
    for name, array in inputs.items():
        if name != mask and array.shape[:2] == real.shape:
            changed[name] = array.copy()
            changed[name][~real] = array[0, first]
    return changed if any(not np.array_equal(changed[name], array) for name, array in inputs.items()) else None


def _has_rows(before: NDArray[Any], after: NDArray[Any], real: Mask) -> bool:
    return _same(select(before, real), select(after, real)) and not _same(before, after)


def _same(before: NDArray[Any], after: NDArray[Any]) -> bool:
    if before.dtype.kind != "f":
        return np.array_equal(before, after)
    with np.errstate(invalid="ignore"):  # infinities: whoever asked for the tensor refuses them
        largest = np.abs(before).max(initial=0.0)
        return before.shape == after.shape and bool(np.abs(after - before).max(initial=0.0) <= CLOSE * largest)
