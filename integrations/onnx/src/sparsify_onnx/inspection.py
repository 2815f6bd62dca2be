"""Look at calibration samples as they are, before any model: how many are distinct, constant, noise, or of other scale.

The thresholds were measured on 256 samples each of CIFAR-10 and ImageNet photos, scikit-learn's digits, and images of
random pixels, as PNG, as JPEG, and resized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sparsify import Dataset

from sparsify_onnx.drift import spread

LOOKED_AT = 64  # pixels a side: 16 ms a photo become 2
FEW = 16  # distinct samples: INT8 alone agrees with float as often from 8 on, 2 points less at 4, 6 to 23 at 1
DISTINCT = 0.9  # of the samples; text data hold some short sentence twice, photos none
CONSTANT = 0.2  # of the samples; none of the photos and digits is of one colour
PIXELS = 8  # a side of a picture, at the least
COLOURS = 4  # its channels, at most
NEIGHBOURS = 0.4  # correlation; photos 0.79 to 0.97, digits of 8 x 8 pixels 0.67; noise 0 to 0.3 (shrunk to half)
# standard deviation of the samples' means, that of all pixels being 1: photos 0.44 to 0.50, digits 0.085 (centred, all
# of one pen), noise enlarged from 32 x 32 pixels 0.03; below EVENED samples were standardised one by one
SPREAD, EVENED = 0.05, 0.001
SHIFT, SCALE = 1.0, 2.0  # mean and deviation against the selection samples'; photos against CIFAR: 0.03 and 1.2

Array = NDArray[np.float64]


@dataclass
class Moments:
    """Sum up one float input: count, sum and squares by channel, each sample's mean, neighbours' correlations."""

    count: int = 0
    total: Array = field(default_factory=lambda: np.zeros(1))
    squares: Array = field(default_factory=lambda: np.zeros(1))
    means: list[float] = field(default_factory=list)
    neighbours: list[float] = field(default_factory=list)

    def add(self, array: NDArray[np.floating]) -> bool:
        """Add a sample; returns whether it is constant."""
        channels = as_picture(array)
        values = (array.reshape(1, -1) if channels is None else thinned(channels)).astype(np.float64)
        self.count += values.shape[1]
        self.total = self.total + values.sum(axis=1)
        self.squares = self.squares + (values * values).sum(axis=1)
        self.means.append(float(values.mean()))
        if channels is None:
            return is_flat(array.reshape(1, -1))
        if not is_flat(middle(channels)):
            self.neighbours.append(neighbour_correlation(middle(channels).astype(np.float64)))
        return is_flat(channels)

    @property
    def mean(self) -> Array:
        """Return the mean by channel."""
        return self.total / max(self.count, 1)

    @property
    def deviation(self) -> Array:
        """Return the standard deviation by channel."""
        return np.sqrt(np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0))


@dataclass
class Inspection:
    """Hold what a set of samples looks like; `moments` by float input."""

    samples: int = 0
    constant: int = 0
    hashes: set[bytes] = field(default_factory=set)
    moments: dict[str, Moments] = field(default_factory=dict)


def inspect(samples: Dataset, most: int) -> Inspection:
    """Look at evenly spread samples, `most` of them."""
    found = Inspection()
    for _, sample in spread(samples, most).samples():
        digest = hashlib.blake2b()
        flat = []
        for name, array in sorted(sample.inputs.items()):
            digest.update(np.ascontiguousarray(array).tobytes())
            if array.dtype.kind == "f" and array.size > 1:
                flat.append(found.moments.setdefault(name, Moments()).add(array))
        found.samples += 1
        found.hashes.add(digest.digest())
        found.constant += bool(flat) and all(flat)
    return found


def as_picture(array: NDArray[np.floating]) -> NDArray[np.floating] | None:
    """Return a picture with its channels first, None for an array of another kind."""
    if array.ndim != 3:
        return None
    if len(array) <= COLOURS < PIXELS <= min(array.shape[1:]):
        return array
    if array.shape[2] <= COLOURS < PIXELS <= min(array.shape[:2]):
        return np.moveaxis(array, 2, 0)
    return None


def middle(picture: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cut out the middle of a picture."""
    top, left = (max(0, (side - LOOKED_AT) // 2) for side in picture.shape[1:])
    return picture[:, top : top + LOOKED_AT, left : left + LOOKED_AT]


def thinned(picture: NDArray[np.floating]) -> NDArray[np.floating]:
    """Take evenly spread pixels of a picture, one row a channel."""
    down, across = (-(-side // LOOKED_AT) for side in picture.shape[1:])
    return picture[:, ::down, ::across].reshape(len(picture), -1)


def is_flat(channels: NDArray[np.floating]) -> bool:
    """Say whether each channel has one value only."""
    rows = channels.reshape(len(channels), -1)
    return bool((rows.min(axis=1) == rows.max(axis=1)).all())


def neighbour_correlation(picture: Array) -> float:
    """Return how far neighbouring pixels correlate, along the axis where they do more."""
    centred = picture - picture.mean(axis=(1, 2), keepdims=True)
    energy = float((centred * centred).mean())
    down = float((centred[:, 1:] * centred[:, :-1]).mean())
    across = float((centred[:, :, 1:] * centred[:, :, :-1]).mean())
    return max(down, across) / energy


def suspicions(found: Inspection, unseen: Inspection) -> Iterator[str]:
    """Say what is wrong with calibration samples, beside the selection samples, each with the fix."""
    distinct, constant = len(found.hashes), found.constant > CONSTANT * found.samples
    if distinct < DISTINCT * found.samples:
        are = "is distinct" if distinct == 1 else "are distinct"
        yield f"only {distinct} of {found.samples} calibration samples {are}: take the copies out of the data"
    elif distinct < FEW:
        few = "1 calibration sample is" if distinct == 1 else f"{distinct} calibration samples are"
        yield f"{few} too few for ranges to rely on: give 100 or more (--calibration-samples)"
    if constant:
        yield (
            f"{found.constant} of {found.samples} calibration samples are constant, such as black images: "
            "calibrate on samples as the model will meet them (--data)"
        )
    for name, moments in found.moments.items() if not constant else ():
        yield from _noise(name, moments, distinct)
        if name in unseen.moments and min(len(moments.means), len(unseen.moments[name].means)) >= FEW:
            yield from _moved(name, moments, unseen.moments[name])


def _noise(name: str, moments: Moments, distinct: int) -> Iterator[str]:
    """Notice pictures of random pixels: neighbours have nothing in common, or the means are all the same."""
    if not moments.neighbours:
        return
    fix = "calibrate on real samples (--data)"
    correlation = float(np.mean(moments.neighbours))
    varied = float(np.std(moments.means) / max(float(np.sqrt((moments.deviation**2).mean())), 1e-30))
    if correlation < NEIGHBOURS:
        yield (
            f"calibration samples look like noise: neighbouring pixels of '{name}' correlate by {correlation:.2f}, "
            f"those of photos by 0.8 and more; {fix}"
        )
    elif distinct >= FEW and EVENED < varied < SPREAD:
        yield (
            f"calibration samples look like noise: the means of '{name}' vary by {varied:.3f} of its deviation, "
            f"those of photos by 0.4 and more; {fix}"
        )


def _moved(name: str, moments: Moments, unseen: Moments) -> Iterator[str]:
    scale = np.maximum(unseen.deviation, 1e-12)
    shift = np.abs(moments.mean - unseen.mean) / scale
    ratio = np.maximum(moments.deviation, 1e-12) / scale
    if shift.max() > SHIFT or ratio.max() > SCALE or ratio.min() < 1 / SCALE:
        worst = int(np.argmax(np.maximum(shift / SHIFT, np.abs(np.log2(ratio)))))
        sides = [f"{side.mean[worst]:.3g} ± {side.deviation[worst]:.3g}" for side in (moments, unseen)]
        yield (
            f"calibration samples are of another scale than selection samples: '{name}' has {sides[0]}, not "
            f"{sides[1]}: take both from one source, prepared alike"
        )
